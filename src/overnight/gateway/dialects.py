"""Where providers of the OpenAI wire format differ in what they take."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec


class Dialect(msgspec.Struct, frozen=True):
    """`cap_field` names the limit of output tokens (None: the name the client used, else `max_tokens`).

    `stream_options`: may usage be asked for with a stream? Those that refuse the field tell usage anyway. `cache_key`: is
    `prompt_cache_key` known?
    """

    cap_field: str | None = None
    stream_options: bool = True
    cache_key: bool = False


USUAL = Dialect()
# By the end of the host's name. OpenAI's reasoning models refuse `max_tokens`, which all others still take; Mistral refuses
# every field that it does not know.
_BY_HOST = {
    "api.openai.com": Dialect(cap_field="max_completion_tokens", cache_key=True),
    ".openai.azure.com": Dialect(cap_field="max_completion_tokens"),
    "api.mistral.ai": Dialect(cap_field="max_tokens", stream_options=False),
}


def dialect_of(base_url: str) -> Dialect:
    host = urlsplit(base_url).hostname or ""
    return next((dialect for end, dialect in _BY_HOST.items() if host.endswith(end)), USUAL)
