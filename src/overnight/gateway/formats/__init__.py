"""Wire formats: pure codecs and translations, and the table of what can be spoken over what.

A format or a translation is a row here and nothing else: it cannot reach a provider, money or the ledger.
"""

from . import chat
from .passing import ChatPassed, Reader, Received, Wire, client_body
from .wire import Asked, Codec, Json, Losses, Prepared

__all__ = [
    "CHAT",
    "CODECS",
    "Asked",
    "Codec",
    "Json",
    "Losses",
    "Prepared",
    "Reader",
    "Received",
    "Wire",
    "client_body",
    "wire_between",
]

CHAT = Codec(
    "chat",
    "/chat/completions",
    frozenset(),
    "max_tokens",
    True,
    chat.read,
    chat.usage_of,
    chat.is_answer,
    chat.Assembly,
    chat.taken_apart,
    chat.encode,
    chat.error_body,
    chat.error_event,
)
CODECS = {codec.name: codec for codec in (CHAT,)}

_WIRES: dict[tuple[str, str], Wire] = {("chat", "chat"): ChatPassed(CHAT)}
_PREFERRED = ("chat", "messages", "responses")


def wire_between(client: str, speaks: tuple[str, ...]) -> Wire | None:
    """How a client of one format reaches a target that speaks some: passed on where it can be; None where there is no way."""
    if client in speaks:
        return _WIRES.get((client, client))
    return next((_WIRES[client, each] for each in _PREFERRED if each in speaks and (client, each) in _WIRES), None)
