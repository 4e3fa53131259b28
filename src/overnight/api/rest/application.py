"""Creates the FastAPI application, and merges its OpenAPI document with the description of the plain ASGI paths."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from overnight.jobs import Operations
from overnight.keys import Keys
from overnight.notifications import Addresses

from ..event_streams import EventStreams
from ..rest_services import RestServices
from ..routes import ROUTES
from . import bounds, brain, budgets, circuits, jobs, keys, notifications, reviews
from .calls import Answer, ApiRoute, Call, Toolbox, json_answer
from .models import PROBLEM, ResponseModel, responses

_encode = msgspec.json.Encoder().encode
_VERSION = version("overnight")
_PLAIN = Path(__file__).parent.parent / "openapi.yaml"
_ABOUT = "The operations layer under AI agents: model calls and tool calls go through it, each is recorded, metered, done once."
root = APIRouter(route_class=ApiRoute)


class About(ResponseModel):
    name: str
    version: str
    description: str


class Document(ResponseModel):
    openapi: str
    paths: dict[str, Any]


@root.get("/", summary="What this is", responses=responses(200, "Its name, version and paths.", About))
async def about(call: Call) -> Answer:
    url = call.services.public_url
    return json_answer(
        200,
        {
            "name": "Overnight",
            "version": _VERSION,
            "description": _ABOUT,
            "model_calls": f"{url}/v1",
            "api": f"{url}/api/v1",
            "openapi": f"{url}/openapi.json",
            "health": [f"{url}/healthz", f"{url}/readyz"],
        },
    )


@root.get("/openapi.json", summary="This document", responses=responses(200, "The document.", Document))
async def openapi(call: Call) -> Answer:
    return json_answer(200, msgspec.Raw(document(call.services.public_url)))


def create(services: RestServices) -> FastAPI:
    """The application. It has no pages of its own: they would load scripts from elsewhere."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.tools = Toolbox(
        services=services,
        operations=Operations(services.ledger.store, services.tool_policy),
        keys=Keys(services.ledger.store, services.keyring.masters),
        addresses=Addresses(services.ledger.store, services.keyring.masters, services.outgoing),
        streams=EventStreams(services.ledger),
    )
    app.include_router(_router())
    return app


@cache
def _router() -> APIRouter:
    every = APIRouter(responses=PROBLEM)
    every.include_router(root)
    for part in (jobs, reviews, budgets, bounds, circuits, brain, keys, notifications):
        every.include_router(part.router, prefix="/api/v1")
    return every


@cache
def document(public_url: str = "") -> bytes:
    """The OpenAPI document as JSON: the generated paths and the plain ones. `x-overnight-scope` is the scope of a path."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    merged: dict[str, Any] = yaml.load(_PLAIN)
    made = get_openapi(title="Overnight", version=_VERSION, routes=_router().routes)
    merged["openapi"], merged["info"]["version"] = made["openapi"], _VERSION
    if public_url:
        merged["servers"] = [{"url": public_url}]
    for section, found in made["components"].items():
        merged["components"].setdefault(section, {}).update(found)
    for path, operations in made["paths"].items():
        merged["paths"].setdefault(path, {}).update(operations)
    for route in ROUTES:
        operation: dict[str, Any] = merged["paths"][route.template][route.method.lower()]
        if route.scope is None:
            operation["security"] = []
            continue
        operation["x-overnight-scope"] = route.scope
        if "requestBody" in operation and route.part == "rest":
            schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            operation["requestBody"]["required"] = bool(merged["components"]["schemas"][schema].get("required"))
        if route.part == "rest":
            tenant = {"$ref": "#/components/parameters/tenant"}
            operation["parameters"] = [*operation.get("parameters", ()), tenant]
    return _encode(merged)
