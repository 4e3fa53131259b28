"""Wire formats: pure codecs and translations, and the table of what can be spoken over what.

A format or a translation is a row here and nothing else: it cannot reach a provider, money or the ledger.
"""

from . import (
    chat,
    chat_over_messages,
    embeddings,
    messages,
    messages_over_chat,
    responses,
    responses_native,
    responses_over_chat,
)
from .contract import (
    Asked,
    Codec,
    Json,
    Losses,
    Prepared,
    Translation,
)
from .messages import counted
from .messages_passthrough import MessagesPassed
from .responses_chunks import pieces as responses_pieces
from .responses_stream import LAST as RESPONSES_LAST
from .transports import (
    ChatPassed,
    Composed,
    Passed,
    Reader,
    Received,
    Translated,
    Wire,
    client_body,
)

__all__ = [
    "CHAT",
    "CODECS",
    "MESSAGES",
    "RESPONSES",
    "Asked",
    "Codec",
    "Json",
    "Losses",
    "Prepared",
    "Reader",
    "Received",
    "Wire",
    "client_body",
    "counted",
    "wire_between",
]

CHAT = Codec(
    name="chat",
    path="/chat/completions",
    last=frozenset(),
    cap_field="max_tokens",
    streams=True,
    read=chat.read,
    usage_of=chat.usage_of,
    is_answer=chat.is_answer,
    assembly=chat.Assembly,
    taken_apart=chat.taken_apart,
    encode=chat.encode,
    error_body=chat.error_body,
    error_event=chat.error_event,
)
RESPONSES = Codec(
    name="responses",
    path="/responses",
    last=RESPONSES_LAST,
    cap_field="max_output_tokens",
    streams=True,
    read=responses.read,
    usage_of=responses.usage_of,
    is_answer=responses.is_answer,
    assembly=responses.Assembly,
    taken_apart=responses.taken_apart,
    encode=responses.encode,
    error_body=responses.error_body,
    error_event=responses.error_event,
)
MESSAGES = Codec(
    name="messages",
    path="/messages",
    last=frozenset({"message_stop"}),
    cap_field="max_tokens",
    streams=True,
    read=messages.read,
    usage_of=messages.usage_of,
    is_answer=messages.is_answer,
    assembly=messages.Assembly,
    taken_apart=messages.taken_apart,
    encode=messages.encode,
    error_body=messages.error_body,
    error_event=messages.error_event,
    decoded=messages.decoded,
    headers=messages.HEADERS,
    passes=messages.PASSES,
)
EMBEDDINGS = Codec(
    name="embeddings",
    path="/embeddings",
    last=frozenset(),
    cap_field=None,
    streams=False,
    read=embeddings.read,
    usage_of=embeddings.usage_of,
    is_answer=embeddings.is_answer,
    assembly=embeddings.Assembly,
    taken_apart=embeddings.taken_apart,
    encode=embeddings.encode,
    error_body=embeddings.error_body,
    error_event=embeddings.error_event,
)
CODECS = {codec.name: codec for codec in (CHAT, RESPONSES, MESSAGES, EMBEDDINGS)}

_RESPONSES_OVER_CHAT = Translation(responses_over_chat.request, responses_over_chat.answer, responses_pieces)
_CHAT_OVER_MESSAGES = Translation(chat_over_messages.request, chat_over_messages.answer, chat_over_messages.Pieces)
_MESSAGES_OVER_CHAT = Translation(messages_over_chat.request, messages_over_chat.answer, messages_over_chat.Pieces)
_RESPONSES_OVER_MESSAGES = Composed(
    _RESPONSES_OVER_CHAT._replace(request=responses_over_chat.pivot), _CHAT_OVER_MESSAGES
)
_WIRES: dict[tuple[str, str], Wire] = {
    ("chat", "chat"): ChatPassed(CHAT),
    ("responses", "responses"): Passed(
        RESPONSES, Translation(responses_native.request, responses_native.answer, responses_native.pieces)
    ),
    ("responses", "chat"): Translated(RESPONSES, CHAT, _RESPONSES_OVER_CHAT),
    ("responses", "messages"): Translated(
        RESPONSES,
        MESSAGES,
        Translation(_RESPONSES_OVER_MESSAGES.request, _RESPONSES_OVER_MESSAGES.answer, _RESPONSES_OVER_MESSAGES.pieces),
    ),
    ("messages", "messages"): MessagesPassed(MESSAGES),
    ("messages", "chat"): Translated(MESSAGES, CHAT, _MESSAGES_OVER_CHAT),
    ("chat", "messages"): Translated(CHAT, MESSAGES, _CHAT_OVER_MESSAGES),
    ("embeddings", "embeddings"): Passed(EMBEDDINGS),
}
_PREFERRED = ("chat", "messages", "responses")


def wire_between(client: str, speaks: tuple[str, ...]) -> Wire | None:
    """How a client of one format reaches a target that speaks some: passed on where it can be; None where there is no way."""
    if client in speaks:
        return _WIRES.get((client, client))
    return next((_WIRES[client, each] for each in _PREFERRED if each in speaks and (client, each) in _WIRES), None)
