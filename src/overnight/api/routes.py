"""The table of all paths: method, template, the scope that a caller needs, and the part that serves it.

`front.py` reads it before anything of a request is read but its head. The OpenAPI document and the tests read it too.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from overnight.domain import Scope
from overnight.gateway import CHAT, CODECS, ClientPaths, Codec, UnknownPath
from overnight.http_server import Scope as AsgiScope

from .problems import MethodNotAllowed

Part = Literal["probes", "calls", "effects", "rest", "links"]
"""`probes` are served by every process, `calls` and `effects` by the plain ASGI handlers of a gateway, `rest` by the FastAPI
application. `links` are the pages of one-time links."""


class PathRoute(NamedTuple):
    """A row of the table. `scope` None: the path requires no key. `spans`: the last name of the template may hold slashes."""

    method: str
    template: str
    scope: Scope | None
    part: Part
    spans: bool = False


CALLS: dict[str, Codec] = {f"/v1{codec.path}": codec for codec in CODECS.values() if codec.path}
"""The paths of model calls, and the format of each."""
ADDRESSED: tuple[tuple[Codec, ClientPaths], ...] = tuple(
    (codec, codec.client_paths) for codec in CODECS.values() if codec.client_paths is not None
)
"""The formats whose paths hold a part of the request."""
COUNT_TOKENS = "/v1/messages/count_tokens"

ROUTES: tuple[PathRoute, ...] = (
    PathRoute("GET", "/", None, "rest"),
    PathRoute("GET", "/openapi.json", None, "rest"),
    PathRoute("GET", "/healthz", None, "probes"),
    PathRoute("GET", "/readyz", None, "probes"),
    PathRoute("GET", "/reviews/{token}", None, "links"),
    PathRoute("POST", "/reviews/{token}", None, "links"),
    *(PathRoute("POST", path, "calls", "calls") for path in CALLS),
    PathRoute("POST", COUNT_TOKENS, "calls", "calls"),
    PathRoute("GET", "/v1/models", "calls", "calls"),
    PathRoute("GET", "/v1/models/{model}", "calls", "calls", spans=True),
    *(
        PathRoute(method, template, "calls", "calls", spans=template.endswith("}"))
        for _, paths in ADDRESSED
        for method, templates in (("POST", paths.templates), ("GET", (paths.models_path, paths.model_path)))
        for template in templates
    ),
    PathRoute("GET", "/v1/responses/{response}", "calls", "calls"),
    PathRoute("DELETE", "/v1/responses/{response}", "calls", "calls"),
    PathRoute("GET", "/v1/responses/{response}/input_items", "calls", "calls"),
    PathRoute("POST", "/api/v1/effects", "effects", "effects"),
    PathRoute("GET", "/api/v1/effects", "effects", "effects"),
    PathRoute("GET", "/api/v1/effects/{effect}", "effects", "effects"),
    PathRoute("POST", "/api/v1/effects/{effect}/commit", "effects", "effects"),
    PathRoute("POST", "/api/v1/effects/{effect}/fail", "effects", "effects"),
    PathRoute("POST", "/api/v1/effects/{effect}/unknown", "effects", "effects"),
    PathRoute("GET", "/api/v1/jobs", "jobs.read", "rest"),
    PathRoute("GET", "/api/v1/jobs/{job}", "jobs.read", "rest"),
    PathRoute("GET", "/api/v1/jobs/{job}/events", "jobs.read", "rest"),
    PathRoute("GET", "/api/v1/jobs/{job}/receipt", "jobs.read", "rest"),
    PathRoute("POST", "/api/v1/jobs/{job}/attempts", "jobs.operate", "rest"),
    PathRoute("POST", "/api/v1/jobs/{job}/complete", "jobs.operate", "rest"),
    PathRoute("POST", "/api/v1/jobs/{job}/cancel", "jobs.operate", "rest"),
    PathRoute("GET", "/api/v1/reviews", "jobs.read", "rest"),
    PathRoute("GET", "/api/v1/reviews/{review}", "jobs.read", "rest"),
    PathRoute("POST", "/api/v1/reviews/{review}/decide", "reviews.decide", "rest"),
    PathRoute("POST", "/api/v1/reviews/{review}/renew", "reviews.decide", "rest"),
    PathRoute("GET", "/api/v1/budgets", "jobs.read", "rest"),
    PathRoute("POST", "/api/v1/budgets", "budgets.write", "rest"),
    PathRoute("GET", "/api/v1/bounds", "instance.read", "rest"),
    PathRoute("POST", "/api/v1/bounds/{call}/settle", "instance.admin", "rest"),
    PathRoute("GET", "/api/v1/circuits", "jobs.read", "rest"),
    PathRoute("GET", "/api/v1/brain/prompts/{prompt}", "content.read", "rest", spans=True),
    PathRoute("GET", "/api/v1/keys", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/keys", "keys.admin", "rest"),
    PathRoute("GET", "/api/v1/keys/{key}", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/keys/{key}/rotate", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/keys/{key}/allow", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/keys/{key}/revoke", "keys.admin", "rest"),
    PathRoute("GET", "/api/v1/provider-keys", "keys.admin", "rest"),
    PathRoute("PUT", "/api/v1/provider-keys/{provider}", "keys.admin", "rest"),
    PathRoute("DELETE", "/api/v1/provider-keys/{provider}", "keys.admin", "rest"),
    PathRoute("GET", "/api/v1/notifications/addresses", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/notifications/addresses", "keys.admin", "rest"),
    PathRoute("GET", "/api/v1/notifications/addresses/{address}", "keys.admin", "rest"),
    PathRoute("DELETE", "/api/v1/notifications/addresses/{address}", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/notifications/addresses/{address}/rotate", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/notifications/addresses/{address}/test", "keys.admin", "rest"),
    PathRoute("GET", "/api/v1/notifications/deliveries", "keys.admin", "rest"),
    PathRoute("POST", "/api/v1/notifications/deliveries/{delivery}/retry", "keys.admin", "rest"),
)

_Methods = dict[str, PathRoute]


def _segments(template: str) -> tuple[str, ...]:
    """The segments of a template; "" stands for a name."""
    return tuple("" if part.startswith("{") else part for part in template.split("/")[1:])


def _index() -> tuple[dict[str, _Methods], dict[int, list[tuple[tuple[str, ...], _Methods]]], list[_Methods]]:
    """The table by exact path, by number of segments, and the rows whose last name spans several segments."""
    by_template: dict[str, _Methods] = {}
    for route in ROUTES:
        by_template.setdefault(route.template, {})[route.method] = route
    exact: dict[str, _Methods] = {}
    by_length: dict[int, list[tuple[tuple[str, ...], _Methods]]] = {}
    spanning: list[_Methods] = []
    for template, methods in by_template.items():
        segments = _segments(template)
        if next(iter(methods.values())).spans:
            spanning.append(methods)
        elif "" not in segments or template == "/":
            exact[template] = methods
        else:
            by_length.setdefault(len(segments), []).append((segments, methods))
    return exact, by_length, spanning


_EXACT, _BY_LENGTH, _SPANNING = _index()


def find_route(scope: AsgiScope) -> tuple[PathRoute, list[str]]:
    """The row of a request, and the names in its path. Raises UnknownPath, MethodNotAllowed.

    HEAD is served wherever GET is. A percent-encoded slash belongs to a name, as in a job id.
    """
    path: str = scope["path"]
    methods, names = _EXACT.get(path), list[str]()
    if methods is None:
        methods, names = _by_segments(segments_of(scope))
    if methods is None:
        raise unknown_path(path)
    method: str = scope["method"]
    route = methods.get("GET" if method == "HEAD" else method)
    if route is None:
        raise MethodNotAllowed(method, ", ".join(_allowed(methods)))
    return route, names


def segments_of(scope: AsgiScope) -> list[str]:
    """The segments of the path, decoded."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return scope["path"].split("/")[1:]
    return [unquote_to_bytes(part).decode("utf-8", "replace") for part in raw.split(b"/")[1:]]


def _by_segments(parts: list[str]) -> tuple[_Methods | None, list[str]]:
    for segments, methods in _BY_LENGTH.get(len(parts), ()):
        if all(part == segment if segment else part for segment, part in zip(segments, parts, strict=True)):
            return methods, [part for segment, part in zip(segments, parts, strict=True) if not segment]
    for methods in _SPANNING:
        fixed = _segments(next(iter(methods.values())).template)[:-1]
        name = "/".join(parts[len(fixed) :])
        if tuple(parts[: len(fixed)]) == fixed and name:
            return methods, [name]
    return None, []


def _allowed(methods: _Methods) -> list[str]:
    return [each for method in methods for each in ((method, "HEAD") if method == "GET" else (method,))]


def near_path(path: str) -> str | None:
    """The path that a client with a wrong base URL means: without `/v1`, or with it twice. None for other paths."""
    meant = path.removeprefix("/v1") if path.startswith("/v1/v1/") else f"/v1{path}"
    if path == "/" or path.startswith("/api"):
        return None
    return meant if meant in _EXACT or meant.startswith(("/v1/models/", "/v1/responses/")) else None


def _base_url_hint(path: str) -> str | None:
    meant = near_path(path)
    if meant is None:
        return None
    if path.startswith("/v1/v1/"):
        return f"/v1 stands there twice; end the base URL of the client before /v1 to call {meant}"
    return f"/v1 is missing; end the base URL of the client in /v1 to call {meant}"


def format_of(method: str, path: str) -> Codec:
    """The format in which errors of a path are written."""
    path = near_path(path) or path
    if path in CALLS:
        return CALLS[path]
    for codec, paths in ADDRESSED:
        if paths.covers(method, path):
            return codec
    return CODECS["messages"] if path.startswith("/v1/messages/") else CHAT


def is_call_path(method: str, path: str) -> bool:
    """Whether a path is one of the model calls, with the errors of a wire format."""
    addressed = any(paths.covers(method, path) for _, paths in ADDRESSED)
    return addressed or path.startswith("/v1/") or near_path(path) is not None


def key_parameter(method: str, path: str) -> bytes | None:
    """The query parameter of a path that may hold the key."""
    return next((paths.key_parameter for _, paths in ADDRESSED if paths.covers(method, path)), None)


def unknown_path(path: str) -> UnknownPath:
    """The error for a path that the table does not have: it names what there is."""
    if (hint := _base_url_hint(path)) is not None:
        return UnknownPath(f"path {ascii(path[:200])[1:-1]}: {hint}")
    section = "/api/" if path.startswith("/api") else "/v1/" if path.startswith("/v1") else "/"
    known = [template for template in _EXACT if template.startswith(section)]
    if section == "/v1/":  # the paths of formats whose last name holds the model and the method
        known += [each.replace("{model}", "{model}:{method}") for _, paths in ADDRESSED for each in paths.templates]
    return UnknownPath(f"path {ascii(path[:200])[1:-1]}; available: {', '.join(known)}; /openapi.json describes all")
