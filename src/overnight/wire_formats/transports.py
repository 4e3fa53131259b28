"""Carry requests and answers between a client format and a target format: passed through if equal, else translated.

Pure. There is one `Wire` per pair of formats, and one `Reader` per streamed attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec

from overnight.pricing.usage import Cost, Usage, openai_usage

from . import chat
from .contract import (
    Asked,
    Assembly,
    Codec,
    Json,
    Losses,
    Pieces,
    Prepared,
    Translation,
)
from .dialects import Dialect, fit, fitted
from .request import InvalidBody, Request
from .sse import DONE, encode_event

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

_T = TypeVar("_T")
Asking = Callable[[], Asked]
_ROOM = 64
"""Stack frames kept free while a body is prepared, so that its later processing cannot exceed the recursion limit."""


class Choice(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw(b"")


class Completion(msgspec.Struct):
    """The parts of a chat completion that are decoded when it is passed through."""

    choices: list[Choice] = []
    usage: Json | None = None
    error: Any = None


_completion = msgspec.json.Decoder(Completion).decode


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
        """The complete answer in the client's format."""
        ...

    def usage(self) -> Usage | None: ...

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        """The last chunks of the stream, sent once the answer is durable."""
        ...


class Wire(Protocol):
    """The conversion from a client's format to a target's and back."""

    @property
    def client(self) -> Codec: ...
    @property
    def spoken(self) -> Codec: ...

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared: ...
    def received(self, body: bytes, asked: Asking) -> Received | None:
        """None when the body is no answer. Raises DecodeError, UnicodeDecodeError, RecursionError, and as `Assembly.take`."""
        ...

    def reader(self, request: Request, asked: Asking) -> Reader: ...


def headers_for(spoken: Codec, request: Request) -> tuple[tuple[bytes, bytes], ...]:
    """The headers for a target of the client's own format: the client's take precedence over the default ones."""
    given = {name for name, _ in request.pass_headers}
    return (*request.pass_headers, *(each for each in spoken.headers if each[0] not in given))


def client_body(request: Request, max_tokens: int | None = None) -> Json:
    """The client's body, decoded; where its format has an output cap, `max_tokens` replaces it."""
    body = cast("Json", _decode(_encode(dict(request.fields))))
    if max_tokens is not None and request.cap_field:
        body[request.cap_field] = max_tokens
    return body


class ChatPassed:
    """Chat to a chat target, the most frequent case: the bytes are passed through."""

    def __init__(self, codec: Codec) -> None:
        self.client = self.spoken = codec

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:
        try:
            fields, losses = fitted(request.fields, dialect, model)
            if tokens != request.cap and not fields.keys().isdisjoint(("reasoning", "thinking")):
                fields = dict(fields)
                losses = [*losses, *chat.fit_budgets(fields, tokens)]
        except RecursionError:
            raise _too_deep() from None
        if fields is not request.fields:
            request = msgspec.structs.replace(request, fields=fields)
        return Prepared(self.spoken.path, chat.passed_on(request, model, tokens, dialect), losses=tuple(losses))

    def received(self, body: bytes, asked: Asking) -> Received | None:  # noqa: ARG002
        completion = _completion(body)
        if not body.isascii():
            body.decode()  # what is not looked at must be text all the same
        if not completion.choices or completion.error:
            return None
        usage = openai_usage(completion.usage)
        return Received(body, usage, 0 if usage else sum(len(bytes(each.message)) for each in completion.choices))

    def reader(self, request: Request, asked: Asking) -> Reader:  # noqa: ARG002
        return _ChatReader(request.wants_usage)


class _ChatReader:
    __slots__ = ("_wants_usage", "assembly")

    def __init__(self, wants_usage: bool) -> None:
        self.assembly = chat.Assembly()
        self._wants_usage = wants_usage

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:
        telling = self.assembly.take(event)
        # A piece of usage alone is for us; the client gets its own, with the cost, if it asked for one.
        shown = event.get("choices") or not event.get("usage")
        return ([encode_event(payload)] if shown else []), telling

    def recorded(self) -> bytes:
        return self.assembly.completion()

    def usage(self) -> Usage | None:
        return openai_usage(self.assembly.usage)

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        if not self._wants_usage:
            return [DONE]
        return [self.assembly.usage_piece(cost_usd, chat.told(usage)), DONE]


class Passed:
    """Any format to a target of the same format; `native` replaces the provider's ids and cost."""

    def __init__(self, codec: Codec, native: Translation | None = None) -> None:
        self.client = self.spoken = codec
        self._native = native

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:  # noqa: ARG002
        losses = Losses()
        body: Json = {**request.fields, "model": model}
        if self.spoken.cap_field:
            body[self.spoken.cap_field] = msgspec.Raw(b"%d" % tokens)
        if (native := self._native) is not None:
            whole = body
            body = carried(lambda: native.request(_decode(_encode(whole)), losses))
        return Prepared(self.spoken.path, _encode(body), headers_for(self.spoken, request), tuple(losses))

    def received(self, body: bytes, asked: Asking) -> Received | None:
        answer = _answer(self.spoken, body)
        if answer is None:
            return None
        usage = self.spoken.usage_of(answer)
        if self._native is not None:
            body = _encode(self._native.answer(answer, asked()))
        return Received(body, usage, 0 if usage else len(body))

    def reader(self, request: Request, asked: Asking) -> Reader:  # noqa: ARG002
        return _Reader(self.client, self.spoken, self._native, asked)


class Translated:
    """A client's format translated into the different format of a target."""

    def __init__(self, client: Codec, spoken: Codec, translation: Translation) -> None:
        self.client, self.spoken, self._translation = client, spoken, translation

    def prepare(self, request: Request, model: msgspec.Raw, tokens: int, dialect: Dialect) -> Prepared:
        losses = Losses(request.left_out)
        named = {"model": _decode(model)}
        body = carried(lambda: self._translation.request({**client_body(request, tokens), **named}, losses))
        body["model"] = model
        if self.spoken.name == "chat":
            losses += fit(body, dialect)
            chat.suit(body, tokens, dialect, stream=request.stream)
        elif self.spoken.cap_field:
            body[self.spoken.cap_field] = tokens
        return Prepared(self.spoken.path, _encode(body), self.spoken.headers, tuple(losses))

    def received(self, body: bytes, asked: Asking) -> Received | None:
        answer = _answer(self.spoken, body)
        if answer is None:
            return None
        usage = self.spoken.usage_of(answer)
        translated = _encode(self._translation.answer(answer, asked()))
        return Received(translated, usage, 0 if usage else len(translated))

    def reader(self, request: Request, asked: Asking) -> Reader:
        told = self.client.name != "chat" or request.wants_usage
        return _Reader(self.client, self.spoken, self._translation, asked, told=told)


def carried(made: Callable[[], _T]) -> _T:
    """Call `made` with reserve stack, so that excessive nesting fails before a request is sent and billed.

    Raises:
        InvalidBody: the body is nested too deep or has an unknown shape.
    """
    try:
        return _lower(made, _ROOM)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise InvalidBody(f"a part of the body has an unknown shape ({error}); see the reference of the API") from None


def _lower(made: Callable[[], _T], frames: int) -> _T:
    return _lower(made, frames - 1) if frames else made()


def _too_deep() -> InvalidBody:
    return InvalidBody("the body is nested too deep; send fewer nested levels")


class _Reader:
    __slots__ = ("_asked", "_client", "_pieces", "_spoken", "_told", "_translation", "assembly")

    def __init__(
        self,
        client: Codec,
        spoken: Codec,
        translation: Translation | None,
        asked: Asking,
        *,
        told: bool = True,
    ) -> None:
        self._client, self._spoken, self._translation, self._told = client, spoken, translation, told
        self.assembly = spoken.assembly()
        if translation is not None:
            self._asked = asked()
            self._pieces = translation.pieces(self._asked)

    def take(self, event: Json, payload: bytes) -> tuple[list[bytes], bool]:  # noqa: ARG002
        telling = self.assembly.take(event)
        events = [event] if self._translation is None else self._pieces.take(event)
        return [self._client.encode(each) for each in events], telling

    def recorded(self) -> bytes:
        whole = self.assembly.completion()
        if self._translation is None:
            return whole
        return _encode(self._translation.answer(self._spoken.decoded(whole), self._asked))

    def usage(self) -> Usage | None:
        return self._spoken.usage_of({"usage": self.assembly.usage})

    def end(self, cost_usd: Cost, usage: Usage) -> list[bytes]:
        last = [] if self._translation is None else self._pieces.end(cost_usd if self._told else None, usage)
        pieces = [self._client.encode(each) for each in last]
        return [*pieces, DONE] if self._client.name == "chat" else pieces


def _answer(spoken: Codec, body: bytes) -> Json | None:
    answer: Any = spoken.decoded(body)
    if not isinstance(answer, dict):
        return None
    found = cast("Json", answer)
    return found if spoken.is_answer(found) else None


class Composed(NamedTuple):
    """Two translations in a row: the client's format over the pivot, the pivot over the target's.

    An answer on its way back must agree with what was asked in the pivot first, then with what the client asked.
    """

    first: Translation
    second: Translation

    def request(self, body: Json, losses: Losses) -> Json:
        return self.second.request(self.first.request(body, losses), losses)

    def answer(self, answer: Json, asked: Asked) -> Json:
        return self.first.answer(self.second.answer(answer, self._in_pivot(asked)), asked)

    def pieces(self, asked: Asked) -> Pieces:
        return _ComposedPieces(self.first.pieces(asked), self.second.pieces(self._in_pivot(asked)))

    def _in_pivot(self, asked: Asked) -> Asked:
        return msgspec.structs.replace(asked, body=self.first.request(asked.body, Losses()))


class _ComposedPieces:
    __slots__ = ("_first", "_second")

    def __init__(self, first: Pieces, second: Pieces) -> None:
        self._first, self._second = first, second

    def take(self, event: Json) -> list[Json]:
        return [piece for middle in self._second.take(event) for piece in self._first.take(middle)]

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        last = [piece for middle in self._second.end(cost_usd, usage) for piece in self._first.take(middle)]
        return [*last, *self._first.end(cost_usd, usage)]
