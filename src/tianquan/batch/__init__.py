"""Batch jobs: a file of requests in OpenAI's batch format becomes a file of answers in the same order.

Rows are answered by the server's own routes, without a network in between: what is valid there is valid here.
"""
