"""Sections of tools/*.yaml about who executes a tool: the HTTP request and the status check. Checked, not executed."""

import re
from collections.abc import Mapping
from typing import Any

from overnight.domain.json_pointer import MISSING
from overnight.domain.tools import ArgumentTest, HttpRequest, StatusCheck

from .fields import Fields, Reader, as_node, choice, integer, list_of, text
from .nodes import Entries, Node
from .problems import clipped
from .value_readers import TESTS, UNREADABLE, built_test, json_value, pointer

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_DAY_MS = 86_400_000
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"})
_SECRET = re.compile(r"\{secret\.[A-Za-z_][A-Za-z0-9_]{0,63}\}")
_PLACE = re.compile(r"\{([^{}]*)\}")
_PLACES = re.compile(r"key|secret\.[A-Za-z_][A-Za-z0-9_]{0,63}|[A-Za-z_][A-Za-z0-9_-]{0,127}|(/([^~/{}]|~[01])*)+")
_AUTHORITY = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+")
_host = text(r"[A-Za-z0-9._-]{1,253}:[0-9]{1,5}", "a host and port such as pay.example:443")


def _url(reader: Reader, node: Node, name: str) -> str | None:
    found = text(r"[!-~]{1,2000}", "a URL such as https://pay.example/refunds")(reader, node, name)
    if found is None or not _templates(reader, node, name, found):
        return None
    authority = re.match(r"[^/?#]*(//[^/?#]*)?", found)
    start = authority[0] if authority is not None else ""
    if "{" in start:
        reader.problem(node, f"{name}: no template in scheme, host or port", "write the host itself")
    elif "@" in start:
        reader.problem(node, f"{name} contains credentials", "use a header with {secret.NAME}")
    elif _AUTHORITY.fullmatch(start) is None:
        reader.problem(node, f"{name} must begin with https:// or http:// and a host, found {clipped(start)}")
    else:
        return found
    return None


def _templates(reader: Reader, node: Node, name: str, value: str) -> bool:
    """Whether every place in braces is one that templates have."""
    for place in _PLACE.findall(value):
        if _PLACES.fullmatch(place) is None:
            message = (
                f"{name}: {clipped('{' + place + '}')} is no argument, no pointer, and neither key nor secret.NAME"
            )
            reader.problem(node, message, "templates have no expressions")
            return False
    return True


def _headers(reader: Reader, node: Node, name: str) -> Mapping[str, str] | None:
    found: dict[str, str] = {}
    for header, (at, value) in reader.entries(node, name).items():
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", header) is None:
            reader.problem(at, f"{clipped(header)} is not the name of a header")
            continue
        secret = header.lower() in _SECRET_HEADERS
        given = text(r"[ -~]{1,1000}", "a header value", secret=secret)(reader, value, f"{name}.{header}")
        if given is None:
            continue
        if secret and _SECRET.search(given) is None:
            reader.problem(value, f"{name}.{header} must not be written here (not shown)", "use {secret.NAME}")
        elif secret or _templates(reader, value, f"{name}.{header}", given):
            found[header] = given
    return found


def _body(reader: Reader, node: Node, name: str) -> list[Any] | None:
    value = json_value(reader, node, name)
    return None if value is UNREADABLE else [value]


_NETWORK: Fields = {"allow": ("allow", list_of(_host))}
_HTTP: Fields = {
    "method": ("method", choice(*METHODS)),
    "url": ("url", _url),
    "headers": ("headers", _headers),
    "body": ("body", _body),
    "provider_id": ("provider_id", pointer),
    "not_done": ("not_done", list_of(integer(300, 599))),
    "network": ("network", as_node),
}
_STATUS_HTTP: Fields = {key: _HTTP[key] for key in ("method", "url", "headers", "body", "network")}
_NOT_DONE: Fields = {"pointer": ("pointer", pointer), **TESTS}
_STATUS: Fields = {
    "http": ("http", as_node),
    "done": ("done", pointer),
    "not_done": ("not_done", as_node),
    "settle_after_ms": ("settle_after_ms", integer(0, _DAY_MS)),
}


def read_http(reader: Reader, node: Node, name: str) -> HttpRequest | None:
    """The section `http` of a contract."""
    return _request(reader, node, name, _HTTP, "POST")


def _request(reader: Reader, node: Node, name: str, fields: Fields, method: str) -> HttpRequest | None:
    if not isinstance(node, Entries):
        reader.wrong(node, name, "a mapping with a url")
        return None
    found = reader.section(node, name, fields, ("url",))
    network = found.pop("network", None)
    if network is not None:
        found |= reader.section(network, f"{name}.network", _NETWORK)
    if "body" in found:
        found["body"] = found["body"][0]
    found.setdefault("method", method)
    return HttpRequest(**found) if "url" in found else None


def read_status(reader: Reader, node: Node, name: str) -> StatusCheck | None:
    """The section `status` of a contract."""
    if not isinstance(node, Entries):
        reader.wrong(node, name, "a mapping with http and done")
        return None
    found = reader.section(node, name, _STATUS, ("http", "done"))
    given, not_done = found.pop("http", None), found.pop("not_done", None)
    request = _request(reader, given, f"{name}.http", _STATUS_HTTP, "GET") if given is not None else None
    if not_done is not None:
        found["not_done"] = read_test(reader, not_done, f"{name}.not_done")
    return StatusCheck(http=request, **found) if request is not None and "done" in found else None


def read_test(reader: Reader, node: Node, name: str) -> ArgumentTest | None:
    """A pointer with tests, such as {pointer: /data, equals: []}."""
    if not isinstance(node, Entries):
        reader.wrong(node, name, "a mapping with a pointer and tests")
        return None
    found = reader.section(node, name, _NOT_DONE, ("pointer",))
    place = found.pop("pointer", MISSING)
    test = built_test(reader, node, name, found)
    return ArgumentTest(place, test) if place is not MISSING and test is not None else None
