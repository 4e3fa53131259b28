"""JSON bodies and query parameters of `/api/v1`. Unknown fields and parameters are errors."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import BadInput, parse_whole
from overnight.gateway import HttpResponse

from .requests import Request, read_body

T = TypeVar("T")
MAX_BODY = 8 * 1024 * 1024
_encode = msgspec.json.Encoder().encode


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON object without fields, or no body at all."""


def json_answer(status: int, body: Any) -> HttpResponse:
    return HttpResponse(status, [(b"content-type", b"application/json")], _encode(body))


async def body_of(request: Request, kind: type[T]) -> T:
    """The body as `kind`; an empty body means its defaults. Raises BadInput, naming the field."""
    with request.memory.holding(request.key) as count:
        body = await read_body(request.receive, MAX_BODY, request.headers, count) or b"{}"
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(getattr(kind, "__struct_fields__", ())) or "none"
        raise BadInput(f"body: {error}; fields: {fields}") from None


def query_of(request: Request, *names: str) -> Mapping[str, str]:
    """The query parameters. Raises BadInput for an unknown parameter or an invalid value."""
    try:
        pairs = parse_qsl(request.query.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise BadInput("invalid query string; send percent-encoded name=value pairs") from None
    for name, value in pairs:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise BadInput(f"unknown query parameter {name[:40]!r}; {hint}")
        if not value.isprintable():
            raise BadInput(f"{name}: {value[:40]!r} contains a character that is not allowed")
    return dict(pairs)


def whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A parameter as a whole number. Raises BadInput."""
    text = query.get(name)
    if text is None:
        return default
    number = parse_whole(text, most)
    if number is None:
        raise BadInput(f"{name}: expected a whole number from 0 to {most:,}")
    return number
