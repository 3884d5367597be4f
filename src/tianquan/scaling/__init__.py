"""More than one process: batch jobs as a Ray Data pipeline, and replicas of the server's engine under Ray Serve.

What is imported for it (ray, pyarrow) is imported here and nowhere else.
"""
