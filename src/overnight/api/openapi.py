"""`/openapi.json`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from overnight.gateway import HttpResponse


@cache
def document() -> bytes:
    """The document as JSON."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    return msgspec.json.encode(yaml.load(Path(__file__).with_name("openapi.yaml")))


def answer() -> HttpResponse:
    return HttpResponse(200, [(b"content-type", b"application/json")], document())
