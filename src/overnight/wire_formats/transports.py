"""Carry requests and answers between a client format and a target format: passed through if equal, else translated.

Pure. There is one `Wire` per pair of formats, and one `Reader` per streamed attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec

from overnight.domain.json_text import encode_json
from overnight.pricing.usage import Cost, Usage, openai_usage

from . import chat, chat_whole
from .contract import (
    AnswerContext,
    Assembly,
    Codec,
    Json,
    Losses,
    Prepared,
    StreamTranslator,
    Translation,
)
from .dialects import Dialect, adapt_fields, adapt_in_place
from .request import InvalidBody, Request
from .sse import DONE, encode_event
from .tool_schemas import acceptable_tools

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

_T = TypeVar("_T")
ContextFactory = Callable[[], AnswerContext]
_RESERVE_FRAMES = 64
"""Stack frames kept free while a body is prepared, so that its later processing cannot exceed the recursion limit."""


class Received(NamedTuple):
    """A complete answer in the client's format. `usage` is None if unreported; `characters` is the length of the answer."""

    body: bytes
    usage: Usage | None
    characters: int


class Reader(Protocol):
    """The stream of one attempt. `assembly` is in the target's format."""

    @property
    def assembly(self) -> Assembly: ...

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        """The encoded chunks for the client, and whether the event is terminal. Raises as `Assembly.take`."""
        ...

    def recorded(self) -> bytes:
        """The complete answer in the client format."""
        ...

    def usage(self) -> Usage | None: ...

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        """The last chunks of the stream, sent after the answer is durable."""
        ...


class Wire(Protocol):
    """The conversion between a client format and an upstream format."""

    @property
    def client_format(self) -> Codec: ...
    @property
    def upstream_format(self) -> Codec: ...

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared: ...
    def received(self, body: bytes, make_context: ContextFactory) -> Received | None:
        """Convert a complete answer. Returns None if the body is not an answer.

        Raises:
            DecodeError, UnicodeDecodeError, RecursionError: the body cannot be decoded.
            TypeError, ValueError, KeyError, AttributeError: the body has an unknown shape.
        """
        ...

    def reader(self, request: Request, make_context: ContextFactory) -> Reader: ...


def headers_for(upstream_format: Codec, request: Request) -> tuple[tuple[bytes, bytes], ...]:
    """The headers for a target of the client format. Client headers take precedence over the defaults."""
    given = {name for name, _ in request.pass_headers}
    return (*request.pass_headers, *(each for each in upstream_format.headers if each[0] not in given))


def client_body(request: Request, max_tokens: int | None = None) -> Json:
    """The decoded client body. `max_tokens` replaces the output limit if the format has one."""
    body = cast("Json", _decode(_encode(dict(request.fields))))
    if max_tokens is not None and request.cap_field:
        body[request.cap_field] = max_tokens
    return body


class ChatPassthrough:
    """Chat to a chat target, the most frequent case: the bytes are passed through."""

    def __init__(self, codec: Codec) -> None:
        self.client_format = self.upstream_format = codec

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:
        try:
            fields, losses = adapt_fields(request.fields, dialect, model)
            if tokens != request.cap and not fields.keys().isdisjoint(("reasoning", "thinking")):
                fields = dict(fields)
                losses = [*losses, *chat.limit_reasoning_budgets(fields, tokens)]
            if request.tools:
                fields, losses = _with_acceptable_tools(fields, request, losses)
        except RecursionError:
            raise _too_deep() from None
        if fields is not request.fields:
            request = msgspec.structs.replace(request, fields=fields)
        return Prepared(
            self.upstream_format.path, chat.passthrough_body(request, model, tokens, dialect), losses=tuple(losses)
        )

    def received(self, body: bytes, make_context: ContextFactory) -> Received | None:  # noqa: ARG002
        reported = chat_whole.usual_usage(body)
        if reported is None:
            corrected = chat_whole.corrected_body(body)
            if corrected is None:
                return None
            body, completion = corrected
            reported = completion.get("usage")
        usage = openai_usage(reported or None)
        return Received(body, usage, 0 if usage else chat_whole.characters_of(body))

    def reader(self, request: Request, make_context: ContextFactory) -> Reader:  # noqa: ARG002
        return _ChatReader(request.wants_usage)


def _with_acceptable_tools(
    fields: Mapping[str, msgspec.Raw], request: Request, losses: list[str]
) -> tuple[Mapping[str, msgspec.Raw], list[str]]:
    found = Losses()
    tools = acceptable_tools(fields["tools"], request.tools_sha256, "chat", found)
    return (fields if tools is fields["tools"] else {**fields, "tools": tools}), [*losses, *found]


class _ChatReader:
    __slots__ = ("_wants_usage", "assembly")

    def __init__(self, wants_usage: bool) -> None:
        self.assembly = chat.Assembly()
        self._wants_usage = wants_usage

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        assembly = self.assembly
        is_terminal = assembly.take(event)
        # Usage is for the gateway. The client receives it once, with the cost, if it requested usage.
        if event.get("usage"):
            if not event.get("choices"):
                return [], is_terminal
            payload = encode_json({name: value for name, value in event.items() if name != "usage"})
        elif assembly.is_rewritten:
            payload = encode_json(event)
        return [encode_event(payload)], is_terminal

    def recorded(self) -> bytes:
        return self.assembly.completion()

    def usage(self) -> Usage | None:
        return openai_usage(self.assembly.usage)

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        if not self._wants_usage:
            return [DONE]
        return [self.assembly.usage_piece(cost_usd, chat.usage_json(usage)), DONE]


class Passthrough:
    """Any format to a target of the same format. `native` replaces the provider's ids and adds the cost."""

    def __init__(self, codec: Codec, native: Translation | None = None) -> None:
        self.client_format = self.upstream_format = codec
        self._native = native

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:  # noqa: ARG002
        losses = Losses()
        body: Json = {**request.fields, "model": model}
        if request.tools:
            body["tools"] = with_reserve_stack(
                lambda: acceptable_tools(body["tools"], request.tools_sha256, request.format, losses)
            )
        if self.upstream_format.cap_field:
            body[self.upstream_format.cap_field] = msgspec.Raw(b"%d" % tokens)
        if (native := self._native) is not None:
            whole = body
            body = with_reserve_stack(lambda: native.request(_decode(_encode(whole)), losses))
        return self.upstream_format.prepared(body, headers_for(self.upstream_format, request), losses)

    def received(self, body: bytes, make_context: ContextFactory) -> Received | None:
        answer = _answer(self.upstream_format, body)
        if answer is None:
            return None
        usage = self.upstream_format.usage_of(answer)
        if self._native is not None:
            body = encode_json(self._native.answer(answer, make_context()))
        return Received(body, usage, 0 if usage else len(body))

    def reader(self, request: Request, make_context: ContextFactory) -> Reader:  # noqa: ARG002
        return _Reader(self.client_format, self.upstream_format, self._native, make_context)


class Translated:
    """A client format translated to a different upstream format."""

    def __init__(self, client: Codec, upstream_format: Codec, translation: Translation) -> None:
        self.client_format, self.upstream_format, self._translation = client, upstream_format, translation

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:
        losses = Losses(request.left_out)
        named = {"model": _decode(model)}
        body = with_reserve_stack(lambda: self._translation.request({**client_body(request, tokens), **named}, losses))
        body["model"] = model
        if self.upstream_format.name == "chat":
            losses += adapt_in_place(body, dialect)
            chat.adapt_body(body, tokens, dialect, stream=request.stream)
        elif self.upstream_format.cap_field:
            body[self.upstream_format.cap_field] = tokens
        return self.upstream_format.prepared(body, self.upstream_format.headers, losses)

    def received(self, body: bytes, make_context: ContextFactory) -> Received | None:
        answer = _answer(self.upstream_format, body)
        if answer is None:
            return None
        usage = self.upstream_format.usage_of(answer)
        translated = encode_json(self._translation.answer(answer, make_context()))
        return Received(translated, usage, 0 if usage else len(translated))

    def reader(self, request: Request, make_context: ContextFactory) -> Reader:
        reports_usage = self.client_format.name != "chat" or request.wants_usage
        return _Reader(
            self.client_format, self.upstream_format, self._translation, make_context, reports_usage=reports_usage
        )


def with_reserve_stack(made: Callable[[], _T]) -> _T:
    """Call `made` with reserve stack, so that excessive nesting fails before a request is sent and billed.

    Raises:
        InvalidBody: the body is nested too deep or has an unknown shape.
    """
    try:
        return _call_at_depth(made, _RESERVE_FRAMES)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        raise InvalidBody(
            "a field of the body has the wrong type or is missing; see the reference of the API"
        ) from None


def _call_at_depth(made: Callable[[], _T], frames: int) -> _T:
    return _call_at_depth(made, frames - 1) if frames else made()


def _too_deep() -> InvalidBody:
    return InvalidBody("the body is nested too deep; send fewer nested levels")


class _Reader:
    __slots__ = (
        "_client",
        "_context",
        "_repair",
        "_reports_usage",
        "_stream_translator",
        "_translation",
        "_upstream_format",
        "assembly",
    )

    def __init__(
        self,
        client: Codec,
        upstream_format: Codec,
        translation: Translation | None,
        make_context: ContextFactory,
        *,
        reports_usage: bool = True,
    ) -> None:
        self._client, self._upstream_format, self._translation, self._reports_usage = (
            client,
            upstream_format,
            translation,
            reports_usage,
        )
        self.assembly = upstream_format.assembly()
        self._repair = upstream_format.repair() if upstream_format.repair is not None else None
        if translation is not None:
            self._context = make_context()
            self._stream_translator = translation.stream_translator(self._context)

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:  # noqa: ARG002
        repaired = None if self._repair is None else self._repair.take(event)
        if repaired is None:
            return self._take(event)
        chunks: list[bytes] = []
        is_terminal = False
        for each in repaired:
            added, ends = self._take(each)
            chunks += added
            is_terminal |= ends
        return chunks, is_terminal

    def _take(self, event: Json) -> tuple[list[bytes], bool]:
        is_terminal = self.assembly.take(event)
        events = [event] if self._translation is None else self._stream_translator.take(event)
        return [self._client.encode(each) for each in events], is_terminal

    def recorded(self) -> bytes:
        whole = self.assembly.completion()
        if self._translation is None:
            return whole
        answer = self._translation.answer(self._upstream_format.decode_answer(whole), self._context)
        return encode_json(self._stream_translator.arranged(answer))

    def usage(self) -> Usage | None:
        return self._upstream_format.usage_of({"usage": self.assembly.usage})

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        last = (
            []
            if self._translation is None
            else self._stream_translator.end(cost_usd if self._reports_usage else None, usage)
        )
        chunks = [self._client.encode(each) for each in last]
        return [*chunks, DONE] if self._client.name == "chat" else chunks


def _answer(upstream_format: Codec, body: bytes) -> Json | None:
    answer: Any = upstream_format.decode_answer(body)
    if not isinstance(answer, dict):
        return None
    found = cast("Json", answer)
    return found if upstream_format.is_answer(found) else None


class ComposedTranslation(NamedTuple):
    """Two translations in sequence: client format to pivot format to upstream format.

    An answer is converted back in reverse order, with the request in each format as context.
    """

    first: Translation
    second: Translation

    def request(self, body: Json, losses: Losses) -> Json:
        return self.second.request(self.first.request(body, losses), losses)

    def answer(self, answer: Json, context: AnswerContext) -> Json:
        return self.first.answer(self.second.answer(answer, self._in_pivot(context)), context)

    def stream_translator(self, context: AnswerContext) -> StreamTranslator:
        return _ComposedStreamTranslator(
            self.first.stream_translator(context), self.second.stream_translator(self._in_pivot(context))
        )

    def _in_pivot(self, context: AnswerContext) -> AnswerContext:
        return msgspec.structs.replace(context, body=self.first.request(context.body, Losses()))


class _ComposedStreamTranslator:
    __slots__ = ("_first", "_second")

    def __init__(self, first: StreamTranslator, second: StreamTranslator) -> None:
        self._first, self._second = first, second

    def take(self, event: Json) -> list[Json]:
        return [piece for middle in self._second.take(event) for piece in self._first.take(middle)]

    def arranged(self, answer: Json) -> Json:
        return self._first.arranged(answer)

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        last = [piece for middle in self._second.end(cost_usd, usage) for piece in self._first.take(middle)]
        return [*last, *self._first.end(cost_usd, usage)]
