"""Providers of models: the brain's own `providers:` first, then the well-known ones of providers.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from overnight.brain.fields import MODEL_NAME, Fields, Reader, choice, list_of, one_or_many, text
from overnight.brain.nodes import Entries, Node, Scalar, parse_yaml
from overnight.brain.problems import BrainError, clipped
from overnight.domain.formats import API_FORMATS, PROVIDER_KINDS
from overnight.domain.policies import DIALECTS, ProviderDef

PROVIDER_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
RESIDENCY = r"[a-z0-9][a-z0-9_-]{0,63}"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def base_url(reader: Reader, node: Node, name: str) -> str | None:
    """An http(s) URL without credentials, query or fragment. Problems are reported without the URL."""
    from urllib.parse import urlsplit

    if not isinstance(node, Scalar) or node.kind != "text":
        reader.wrong(node, name, "text: a URL such as https://api.example.com/v1")
        return None
    try:
        url = urlsplit(node.text)
        host, _ = url.hostname, url.port
    except ValueError:
        reader.problem(node, f"{name} is not a URL", "such as https://api.example.com/v1")
        return None
    if url.username is not None or url.password is not None:
        reader.problem(node, f"{name} holds credentials", "set api_key_env to an environment variable instead")
    elif url.scheme not in ("http", "https") or not host or len(node.text) > 512 or not _plain(node.text):
        reader.problem(node, f"{name} must be an http or https URL", "such as https://api.example.com/v1")
    elif url.query or url.fragment:
        reader.problem(node, f"{name} must not have a query or a fragment", "end it at the path, such as …/v1")
    else:
        if url.scheme == "http" and host not in _LOOPBACK:
            reader.problem(node, f"{name} sends keys and prompts unencrypted", "use https", "warning")
        return node.text.rstrip("/")
    return None


def _plain(value: str) -> bool:
    return value.isascii() and value.isprintable() and " " not in value


def _places(reader: Reader, node: Node, name: str) -> frozenset[str] | None:
    found = one_or_many(text(RESIDENCY, "lower-case letters, digits, - or _, such as eu"))(reader, node, name)
    return None if found is None else frozenset(found)


def _proxy(reader: Reader, node: Node, name: str) -> str | None:
    """The URL of an HTTP proxy, or none. Problems are reported without the URL."""
    from urllib.parse import urlsplit

    hint = "such as http://proxy.example.com:3128, or none to connect directly"
    if not isinstance(node, Scalar) or node.kind != "text":
        reader.wrong(node, name, hint)
        return None
    if node.text == "none":
        return "none"
    try:
        url = urlsplit(node.text)
        host, _ = url.hostname, url.port
    except ValueError:
        reader.problem(node, f"{name} is not a URL", hint)
        return None
    if url.username is not None or url.password is not None:
        reader.problem(node, f"{name} holds credentials", "set proxy_env to an environment variable instead")
    elif url.scheme not in ("http", "https") or not host or len(node.text) > 512 or not _plain(node.text):
        reader.problem(node, f"{name} must be the http or https URL of a proxy", hint)
    elif url.path not in ("", "/") or url.query or url.fragment:
        reader.problem(node, f"{name} must not have a path, a query or a fragment", hint)
    else:
        return node.text.rstrip("/")
    return None


_VARIABLE = r"[A-Z_][A-Z0-9_]{0,127}"
_FILE = text(r"/[^\0\r\n]{1,1023}", "the absolute path of a PEM file")

FIELDS: Fields = {
    "base_url": ("base_url", base_url),
    "api_key_env": (
        "api_key_env",
        text(_VARIABLE, "the name of an environment variable such as EXAMPLE_API_KEY", secret=True),
    ),
    "models": ("models", list_of(text(MODEL_NAME, "a model name or a glob such as example-*"))),
    "kind": ("kind", choice(*PROVIDER_KINDS)),
    "model_prefix": ("model_prefix", text(MODEL_NAME, "a prefix of a model name such as example/")),
    "apis": ("apis", list_of(choice(*API_FORMATS))),
    "residency": ("residency", _places),
    "proxy": ("proxy", _proxy),
    "proxy_env": (
        "proxy_env",
        text(_VARIABLE, "the name of an environment variable such as EXAMPLE_PROXY", secret=True),
    ),
    "dialect": ("dialect", choice(*DIALECTS)),
    "ca": ("ca", _FILE),
    "client_cert": ("client_cert", _FILE),
    "client_key": ("client_key", _FILE),
}
_CONNECTION = ("proxy", "proxy_env", "ca", "client_cert", "client_key")


def read_providers(reader: Reader, node: Node | None, known: dict[str, ProviderDef]) -> tuple[ProviderDef, ...]:
    """The providers of one section. An entry named like one of `known` overrides only the fields it sets."""
    found: list[ProviderDef] = []
    valid_name = text(PROVIDER_NAME, "lower-case letters, digits, - or _")
    for name, (at, value) in reader.entries(node, "providers").items():
        if valid_name(reader, msgspec.structs.replace(at, kind="text"), "a provider name") is None:
            continue
        where = f"providers.{name}"
        before = len(reader.problems)
        values = reader.section(value, where, FIELDS)
        inherited = known.get(name)
        if inherited is None:
            given = value.entries if isinstance(value, Entries) else {}
            for field in ("base_url", "models"):
                if field not in given and (field == "models" or values.get("kind") != "library"):
                    reader.problem(
                        at, f"{where} needs the key {field!r}", "it is optional only for well-known providers"
                    )
        _check_connection(reader, at, where, values, values.get("kind") or (inherited.kind if inherited else "openai"))
        if any(problem.severity == "error" for problem in reader.problems[before:]):
            continue
        fields: dict[str, Any] = {"name": name, "base_url": ""}
        if inherited is not None:
            fields = msgspec.structs.asdict(inherited)
        if "kind" in values or inherited is None:
            fields["apis"] = PROVIDER_KINDS[values.get("kind", "openai")].apis
        found.append(ProviderDef(**fields | values))
    return tuple(found)


def _check_connection(reader: Reader, at: Node, where: str, values: dict[str, Any], kind: str) -> None:
    """Report settings of a connection that contradict each other."""
    if kind == "library" and (given := next((name for name in _CONNECTION if name in values), None)):
        hint = "the library takes proxies and certificates from the environment"
        reader.problem(at, f"{where}.{given} has no effect on a provider of kind library", hint)
    if "proxy" in values and "proxy_env" in values:
        reader.problem(at, f"{where} has both proxy and proxy_env", "keep one of them")
    if "client_key" in values and "client_cert" not in values:
        reader.problem(at, f"{where}.client_key needs client_cert", "the certificate that belongs to the key")


@cache
def well_known() -> dict[str, ProviderDef]:
    """The well-known providers by name, in the order of providers.yaml."""
    file = "overnight/brain/providers.yaml"
    node, problems = parse_yaml(file, Path(__file__).with_name("providers.yaml").read_text(encoding="utf-8"))
    reader = Reader(file)
    providers = {provider.name: provider for provider in read_providers(reader, node, {})}
    if problems or reader.problems:
        raise BrainError(f"this installation of Overnight is damaged: {clipped(file)}", problems + reader.problems)
    return providers
