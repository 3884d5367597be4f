"""The server: the engine behind OpenAI's routes, and a page for a browser. Only `serve` imports it.

What is imported for it (starlette, uvicorn, pydantic, h11, python-multipart) is imported here and nowhere else.
"""
