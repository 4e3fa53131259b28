"""Wire formats: pure codecs, translations, and the table of supported format pairs.

A new format or translation is one row in this module. It has no access to providers, money or the ledger.
"""

from overnight.pricing.provider_tools import uses_in_message, uses_in_response

from . import (
    chat,
    chat_over_gemini,
    chat_over_messages,
    embeddings,
    gemini,
    gemini_embeddings,
    gemini_over_chat,
    messages,
    messages_over_chat,
    responses,
    responses_compact,
    responses_failures,
    responses_native,
    responses_over_chat,
)
from .contract import (
    AddressedCall,
    AnswerContext,
    ClientPaths,
    Codec,
    Json,
    Losses,
    NoAnswer,
    Prepared,
    Translation,
)
from .gemini_passthrough import GeminiPassthrough
from .gemini_paths import PATHS as GEMINI_PATHS
from .messages_passthrough import MessagesPassthrough
from .messages_repair import MessagesRepair
from .recorded_answers import ReadAnswer, read_chat, read_embeddings, read_messages, read_responses
from .responses_chunks import stream_translator as responses_stream_translator
from .responses_stream import FINAL_EVENTS as RESPONSES_FINAL_EVENTS
from .transports import (
    ChatPassthrough,
    ComposedTranslation,
    Passthrough,
    Reader,
    Received,
    Translated,
    Wire,
    client_body,
)

__all__ = [
    "CHAT",
    "CODECS",
    "COMPACT",
    "MESSAGES",
    "RESPONSES",
    "AddressedCall",
    "AnswerContext",
    "ClientPaths",
    "Codec",
    "Json",
    "Losses",
    "NoAnswer",
    "Prepared",
    "ReadAnswer",
    "Reader",
    "Received",
    "Wire",
    "client_body",
    "routed_format",
    "wire_between",
]

CHAT = Codec(
    name="chat",
    path="/chat/completions",
    final_event_types=frozenset(),
    cap_field="max_tokens",
    read=chat.read,
    usage_of=chat.usage_of,
    is_answer=chat.is_answer,
    assembly=chat.Assembly,
    stream_events=chat.stream_events,
    encode=chat.encode,
    error_body=chat.error_body,
    error_event=chat.error_event,
    read_answer=read_chat,
    answer_id_prefix="chatcmpl-",
    decode_answer=chat.decode_answer,
)
RESPONSES = Codec(
    name="responses",
    path="/responses",
    final_event_types=RESPONSES_FINAL_EVENTS,
    cap_field="max_output_tokens",
    read=responses.read,
    usage_of=responses.usage_of,
    is_answer=responses.is_answer,
    assembly=responses.Assembly,
    stream_events=responses.stream_events,
    encode=responses.encode,
    error_body=responses.error_body,
    error_event=responses_failures.error_event,
    failed_event=responses_failures.failed_event,
    read_answer=read_responses,
    tool_uses=uses_in_response,
    answer_id_prefix="resp_",
)
MESSAGES = Codec(
    name="messages",
    path="/messages",
    final_event_types=frozenset({"message_stop"}),
    cap_field="max_tokens",
    read=messages.read,
    usage_of=messages.usage_of,
    is_answer=messages.is_answer,
    assembly=messages.Assembly,
    stream_events=messages.stream_events,
    encode=messages.encode,
    error_body=messages.error_body,
    error_event=messages.error_event,
    read_answer=read_messages,
    tool_uses=uses_in_message,
    answer_id_prefix="msg_",
    request_id_header=b"request-id",
    estimate_tokens=messages.estimate_input_tokens,
    key_header=b"x-api-key",
    decode_answer=messages.decode_answer,
    repair=MessagesRepair,
    headers=messages.HEADERS,
    forwarded_headers=messages.FORWARDED_HEADERS,
)
EMBEDDINGS = Codec(
    name="embeddings",
    path="/embeddings",
    final_event_types=frozenset(),
    cap_field=None,
    read=embeddings.read,
    usage_of=embeddings.usage_of,
    is_answer=embeddings.is_answer,
    assembly=embeddings.Assembly,
    stream_events=embeddings.stream_events,
    encode=embeddings.encode,
    error_body=embeddings.error_body,
    error_event=embeddings.error_event,
    read_answer=read_embeddings,
    answer_id_prefix="emb_",
)
COMPACT = Codec(
    name="compact",
    path="/responses/compact",
    final_event_types=frozenset(),
    cap_field=None,
    read=responses_compact.read,
    usage_of=responses.usage_of,
    is_answer=responses_compact.is_answer,
    assembly=responses.Assembly,
    stream_events=responses.stream_events,
    encode=responses.encode,
    error_body=responses.error_body,
    error_event=responses_failures.error_event,
    read_answer=responses_compact.read_answer,
    answer_id_prefix="resp_",
    routed_as="responses",
)
GEMINI = Codec(
    name="gemini",
    path="",
    final_event_types=frozenset(),
    cap_field=gemini.CAP_FIELD,
    read=gemini.read,
    usage_of=gemini.usage_of,
    is_answer=gemini.is_answer,
    assembly=gemini.Assembly,
    stream_events=gemini.stream_events,
    encode=gemini.encode,
    error_body=gemini.error_body,
    error_event=gemini.error_event,
    read_answer=gemini.read_answer,
    tool_uses=gemini.tool_uses,
    dispatched=gemini.dispatched,
    estimate_tokens=gemini.estimate_input_tokens,
    key_header=b"x-goog-api-key",
    client_paths=GEMINI_PATHS,
)
GEMINI_EMBEDDINGS = Codec(
    name="gemini_embeddings",
    path="",
    final_event_types=frozenset(),
    cap_field=None,
    read=gemini_embeddings.read,
    usage_of=gemini_embeddings.usage_of,
    is_answer=gemini_embeddings.is_answer,
    assembly=gemini_embeddings.Assembly,
    stream_events=gemini_embeddings.stream_events,
    encode=gemini_embeddings.encode,
    error_body=gemini_embeddings.error_body,
    error_event=gemini_embeddings.error_event,
    read_answer=gemini_embeddings.read_answer,
    dispatched=gemini_embeddings.dispatched,
    routed_as="embeddings",
)
CODECS = {codec.name: codec for codec in (CHAT, RESPONSES, MESSAGES, EMBEDDINGS, COMPACT, GEMINI, GEMINI_EMBEDDINGS)}


def _composed(client: Codec, upstream_format: Codec, first: Translation, second: Translation) -> Translated:
    """A wire over the pivot, chat."""
    both = ComposedTranslation(first, second)
    return Translated(client, upstream_format, Translation(both.request, both.answer, both.stream_translator))


_RESPONSES_OVER_CHAT = Translation(responses_over_chat.request, responses_over_chat.answer, responses_stream_translator)
_CHAT_OVER_MESSAGES = Translation(
    chat_over_messages.request, chat_over_messages.answer, chat_over_messages.StreamTranslator
)
_MESSAGES_OVER_CHAT = Translation(
    messages_over_chat.request, messages_over_chat.answer, messages_over_chat.StreamTranslator
)
_RESPONSES_PIVOT = _RESPONSES_OVER_CHAT._replace(request=responses_over_chat.pivot)
_CHAT_OVER_GEMINI = Translation(chat_over_gemini.request, chat_over_gemini.answer, chat_over_gemini.StreamTranslator)
_GEMINI_OVER_CHAT = Translation(gemini_over_chat.request, gemini_over_chat.answer, gemini_over_chat.StreamTranslator)
_WIRES: dict[tuple[str, str], Wire] = {
    ("chat", "chat"): ChatPassthrough(CHAT),
    ("responses", "responses"): Passthrough(
        RESPONSES, Translation(responses_native.request, responses_native.answer, responses_native.stream_translator)
    ),
    ("responses", "chat"): Translated(RESPONSES, CHAT, _RESPONSES_OVER_CHAT),
    ("responses", "messages"): _composed(RESPONSES, MESSAGES, _RESPONSES_PIVOT, _CHAT_OVER_MESSAGES),
    ("messages", "messages"): MessagesPassthrough(MESSAGES),
    ("messages", "chat"): Translated(MESSAGES, CHAT, _MESSAGES_OVER_CHAT),
    ("chat", "messages"): Translated(CHAT, MESSAGES, _CHAT_OVER_MESSAGES),
    ("embeddings", "embeddings"): Passthrough(EMBEDDINGS),
    ("compact", "responses"): Passthrough(
        COMPACT,
        Translation(responses_compact.request, responses_compact.answer, responses_compact.stream_translator),
    ),
    ("gemini", "gemini"): GeminiPassthrough(GEMINI),
    ("gemini", "chat"): Translated(GEMINI, CHAT, _GEMINI_OVER_CHAT),
    ("gemini", "messages"): _composed(GEMINI, MESSAGES, _GEMINI_OVER_CHAT, _CHAT_OVER_MESSAGES),
    ("chat", "gemini"): Translated(CHAT, GEMINI, _CHAT_OVER_GEMINI),
    ("messages", "gemini"): _composed(MESSAGES, GEMINI, _MESSAGES_OVER_CHAT, _CHAT_OVER_GEMINI),
    ("responses", "gemini"): _composed(RESPONSES, GEMINI, _RESPONSES_PIVOT, _CHAT_OVER_GEMINI),
    ("gemini_embeddings", "gemini_embeddings"): Passthrough(GEMINI_EMBEDDINGS),
    ("gemini_embeddings", "embeddings"): Translated(
        GEMINI_EMBEDDINGS,
        EMBEDDINGS,
        Translation(gemini_embeddings.to_openai, gemini_embeddings.from_openai, gemini_embeddings.no_stream),
    ),
    ("embeddings", "gemini_embeddings"): Translated(
        EMBEDDINGS,
        GEMINI_EMBEDDINGS,
        Translation(gemini_embeddings.over_gemini, gemini_embeddings.answer_over_gemini, gemini_embeddings.no_stream),
    ),
}
_PREFERRED = ("chat", "messages", "gemini", "responses", "embeddings", "gemini_embeddings")


def routed_format(form: str) -> str:
    """The name of a client format in the conditions of routes."""
    codec = CODECS.get(form)
    return (codec.routed_as if codec is not None else "") or form


def wire_between(client: str, upstream_formats: tuple[str, ...]) -> Wire | None:
    """The conversion from a client format to the formats of a target.

    A format that both share is preferred. Returns None if the pair is not supported.
    """
    if client in upstream_formats:
        return _WIRES.get((client, client))
    return next(
        (_WIRES[client, each] for each in _PREFERRED if each in upstream_formats and (client, each) in _WIRES), None
    )
