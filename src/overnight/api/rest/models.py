"""Types and models that several endpoints share."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from overnight.domain import parse_whole

IDENTIFIER: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:@-]*$",
}
NAME = {"type": "string", "minLength": 1, "maxLength": 200}
PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Problem details (RFC 9457).",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""The documented response to every error."""


class Body(BaseModel):
    """A JSON object. Unknown fields and values of another type are errors; a missing body is an empty object."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmptyBody(Body):
    """A JSON object without fields."""


class Parameters(BaseModel):
    """Query parameters. Unknown ones are errors."""

    model_config = ConfigDict(extra="forbid")


class ResponseModel(BaseModel):
    """A documented response. It may have more fields."""

    model_config = ConfigDict(extra="allow")


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{value[:40]!r} contains a character that is not allowed")
    return value


def whole(most: int) -> BeforeValidator:
    """Reads a query parameter that is a whole number from 0 to `most`."""

    def read(value: Any) -> int:
        number = parse_whole(value, most)
        if number is None:
            raise ValueError(f"expected a whole number from 0 to {most:,}")
        return number

    return BeforeValidator(read)


Text = Annotated[str, BeforeValidator(_printable)]
"""The value of a query parameter."""
JobName = Annotated[str, Path(description="A job id or an external id."), WithJsonSchema(IDENTIFIER)]
"""The path's name of a job. Endpoints read the name that the front decoded, which may hold slashes."""
PathName = Annotated[str, WithJsonSchema(NAME)]


def responses(
    status: int, description: str, model: type[ResponseModel] | None = None, **media: Any
) -> dict[int | str, Any]:
    """The documented response of an endpoint; `media` adds content types."""
    said: dict[str, Any] = {"description": description} | ({"model": model} if model is not None else {})
    return {status: said | media}
