"""What: the FastAPI application below `/api/v1`, with `/` and `/openapi.json`. The front has checked key and scope before.
Owns: the models of bodies and queries, and the generated part of the OpenAPI document.
Depends on: the services of `/api/v1`.
Never: is imported before the first request that it serves: FastAPI takes half a second.
"""
