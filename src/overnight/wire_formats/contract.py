"""The contract of a wire format: pure codecs without access to providers, money or the ledger.

The *client format* is the format of the caller, the *upstream format* that of the target. If both are equal, bytes
are passed through. If not, a translation module `X_over_Y` (client X, target Y) has `request`, `answer` and
`StreamTranslator`. The last two convert from Y to X. Content that has no equivalent is named in `Losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from overnight.domain.json_text import decode_json
from overnight.pricing.usage import Cost, Usage

from .recorded_answers import ReadAnswer
from .request import InvalidBody, Request

__all__ = [
    "AddressedCall",
    "AnswerContext",
    "Assembly",
    "ClientPaths",
    "Codec",
    "InvalidBody",
    "Json",
    "Losses",
    "NoAnswer",
    "Prepared",
    "ReadAnswer",
    "Request",
    "StreamTranslator",
    "Translation",
]

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode


class Losses(list[str]):
    """Names of content that could not be translated, such as `messages[2].content[0].cache_control` or `top_k`."""

    __slots__ = ()


class NoAnswer(ValueError):
    """The provider reports in its answer that it is none. `error` is the error in the shape of an error body."""

    def __init__(self, error: Json) -> None:
        super().__init__("the provider broke off the answer")
        self.error = error


class AnswerContext(msgspec.Struct, frozen=True):
    """The client-side values that a translated answer repeats.

    - `answer_id`: the id of the answer; item ids are derived from it.
    - `model`: the model name in the answer.
    - `body`: the client's request body.
    - `created_at`: when the request arrived, in Unix seconds.
    """

    answer_id: str
    model: str
    body: Json
    created_at: int


class Assembly(Protocol):
    """The answer of a stream, assembled from events of one upstream format.

    - `characters`: the number of characters received.
    - `usage`: the most recent usage report.
    - `is_complete`: whether the stream reached its end.
    - `has_output`: whether any output arrived, rather than only the start of an answer.
    - `is_ended`: whether the last event can be the end of a stream, although no finish reason has arrived.
    - `is_odd`: set where an event was no strict JSON. The complete answer is then encoded without loss.
    """

    is_odd: bool

    @property
    def characters(self) -> int: ...
    @property
    def usage(self) -> Json | None: ...
    @property
    def is_complete(self) -> bool: ...
    @property
    def has_output(self) -> bool: ...
    @property
    def is_ended(self) -> bool: ...

    def take(self, event: Json) -> bool:
        """Add an event. Returns True for a *terminal* event, which completes a tool call or carries the finish reason.

        Raises:
            NoAnswer: the provider breaks off the answer.
            TypeError, ValueError, KeyError, AttributeError: the event has an unknown shape.
        """
        ...

    def closing_events(self) -> list[Json]:
        """The events that are missing at the end of a stream that has ended; none if the answer itself is incomplete."""
        ...

    def completion(self) -> bytes:
        """The complete answer, in the format of an answer without streaming."""
        ...


class Repair(Protocol):
    """Puts right the events of one stream."""

    def take(self, event: Json) -> list[Json] | None:
        """The events to use in place of `event`; None if it is as it should be."""
        ...


class StreamTranslator(Protocol):
    """Converts events of the upstream format to events of the client format."""

    def take(self, event: Json) -> list[Json]: ...

    def arranged(self, answer: Json) -> Json:
        """The complete answer with its parts in the order of the stream."""
        ...

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        """The last events of the stream, sent after the answer is durable. Chat reports usage only if a cost is given."""
        ...


class AddressedCall(NamedTuple):
    """A request whose path says what it asks for.

    - `form`: the name of its client format.
    - `complete`: puts what the path says into the client's body.
    - `count_answer`: the answer to a request that counts tokens; None for a call.
    - `is_array`: the events of a stream are the elements of one JSON array.
    """

    form: str
    complete: Callable[[bytes], bytes]
    count_answer: Callable[[int], Json] | None = None
    is_array: bool = False


class ClientPaths(NamedTuple):
    """The paths of a client format in which the path holds a part of the request.

    - `templates`: of POST; the last name spans the rest of the path. `address` reads that name and the query; None if it
    names no method.
    - `models_path`, `model_path`: templates of GET; `model_card` is the card of a model, `model_list` all of them.
    - `key_parameter`: the query parameter that may hold the key.
    - `covers`: whether errors of a method and a path are in this format.
    - `with_retry`: an error's body that says after how many seconds to try again.
    """

    templates: tuple[str, ...]
    address: Callable[[str, bytes], AddressedCall | None]
    models_path: str
    model_path: str
    model_card: Callable[[str], Json]
    model_list: Callable[[list[Json]], Json]
    key_parameter: bytes
    covers: Callable[[str, str], bool]
    with_retry: Callable[[bytes, int], bytes]


def _no_uses(_answer: Json) -> Mapping[str, int]:
    return {}


class Codec(NamedTuple):
    """One wire format: the functions of the module `wire_formats/F.py`.

    - `path`: the path of the endpoint at a target.
    - `final_event_types`: types of the events that end a stream. Chat has an end mark instead.
    - `cap_field`: the body field of the output limit; None if the format has no such limit.
    - `decode_answer`: decodes a complete answer for a translation, corrected where a server is loose.
    - `repair`: puts right the events of loose servers; None if the assembly does so itself.
    - `failed_event`: the end of a failed stream in place of `error_event`: from the error body, the chunks that were sent, and
      the provider's own error event.
    - `headers`: headers sent to each target of the format.
    - `forwarded_headers`: lower-case names of client headers that are forwarded to a target of the same format.
    - `read_answer`: reads a recorded answer; None for an incomplete one.
    - `tool_uses`: the uses of provider-run tools in an answer, by tool.
    - `answer_id_prefix`, `request_id_header`: the form of an answer's id, and the header of the request's id.
    - `dispatched`: the path and the body for a target, where the path holds a part of the request; None: `path`.
    - `estimate_tokens`: the input tokens of a client's body; None if the format does not count them.
    - `key_header`: the lower-case header in which the format's own clients send a key, if it is a particular one.
    - `client_paths`: the paths at which clients send this format, if they are more than `/v1` and `path`.
    - `routed_as`: the name of the format in the conditions of routes.
    """

    name: str
    path: str
    final_event_types: frozenset[str]
    cap_field: str | None
    read: Callable[[bytes], Request]
    usage_of: Callable[[Json], Usage | None]
    is_answer: Callable[[Json], bool]
    assembly: Callable[[], Assembly]
    stream_events: Callable[[bytes, float | None], Iterator[bytes]]
    encode: Callable[[Json], bytes]
    error_body: Callable[[str, str, str | None, str | None, int], bytes]
    error_event: Callable[[bytes], bytes]
    read_answer: Callable[[Json], ReadAnswer | None]
    decode_answer: Callable[[bytes], Any] = decode_json
    repair: Callable[[], Repair] | None = None
    failed_event: Callable[[bytes, Sequence[bytes], Json | None], bytes] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    forwarded_headers: frozenset[bytes] = frozenset()
    tool_uses: Callable[[Json], Mapping[str, int]] = _no_uses
    answer_id_prefix: str = ""
    request_id_header: bytes = b"x-request-id"
    dispatched: Callable[[Json], tuple[str, bytes]] | None = None
    estimate_tokens: Callable[[Json], int] | None = None
    key_header: bytes | None = None
    client_paths: ClientPaths | None = None
    routed_as: str = ""

    def prepared(self, body: Json, headers: tuple[tuple[bytes, bytes], ...], losses: Iterable[str]) -> Prepared:
        """The request for a target, from a complete body in this format."""
        path, encoded = (self.path, _encode(body)) if self.dispatched is None else self.dispatched(body)
        return Prepared(path, encoded, headers, tuple(losses))


class Translation(NamedTuple):
    """The functions of a module `wire_formats/X_over_Y.py`.

    `request` receives the decoded client body. It contains the output limit in the client's field, and the target's
    model name.
    """

    request: Callable[[Json, Losses], Json]
    answer: Callable[[Json, AnswerContext], Json]
    stream_translator: Callable[[AnswerContext], StreamTranslator]


class Prepared(msgspec.Struct, frozen=True):
    """A prepared request: `body` for `path`. `headers` are sent in addition to the target's own."""

    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    losses: tuple[str, ...] = ()
