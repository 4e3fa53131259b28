"""Read JSON of unknown shape. A value of an unexpected type reads as empty; the provider reports the error."""

from __future__ import annotations

from typing import Any, cast

Json = dict[str, Any]


def dict_of(value: Any) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def dicts_of(value: Any) -> list[Json]:
    return [cast("Json", each) for each in list_of(value) if isinstance(each, dict)]


def list_of(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""
