"""The bodies of `/api/v1/effects`: exact fields, bounded depth and size, no NaN."""

from __future__ import annotations

import json
from typing import Any, Generic, TypeVar

import msgspec

from overnight.domain import BadInput, ErrorFacts, check_identifier
from overnight.domain.json_text import whole_characters
from overnight.gateway import BodyTooLarge, EffectRefused

T = TypeVar("T")
MAX_ARGUMENTS, MAX_RESULT = 256 * 1024, 1024 * 1024
MAX_DEPTH = 64
MIN_TIMEOUT_MS, DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS = 1_000, 60_000, 86_400_000
_KEPT = MAX_RESULT // 2
_encode = msgspec.json.Encoder().encode


class ClaimBody(msgspec.Struct, forbid_unknown_fields=True):
    tool: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    timeout_ms: int | None = None
    holder: str | None = None


class CommitBody(msgspec.Struct, forbid_unknown_fields=True):
    claim_id: str
    provider_id: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")


class EffectError(msgspec.Struct, forbid_unknown_fields=True, rename={"error_class": "class"}):
    error_class: str = "failed"
    message: str = ""

    def facts(self) -> ErrorFacts:
        return ErrorFacts(check_identifier(self.error_class, "error.class"), self.message[:500])


class FailBody(msgspec.Struct, forbid_unknown_fields=True):
    claim_id: str
    error: EffectError = msgspec.field(default_factory=EffectError)


class UnknownBody(msgspec.Struct, forbid_unknown_fields=True):
    claim_id: str
    why: str = ""


class BodyForm(Generic[T]):
    """Reads one kind of body."""

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def read(self, body: bytes) -> T:
        """The body. Raises BadInput, naming the field."""
        try:
            try:
                return self._decode(body)
            except msgspec.ValidationError:
                raise
            except (msgspec.DecodeError, UnicodeDecodeError):
                return self._decode(_repaired(body))
        except RecursionError:
            raise BadInput("body: it is nested too deeply") from None
        except (msgspec.DecodeError, ValueError) as error:
            raise BadInput(f"body: {str(error)[:300]}") from None


def _repaired(body: bytes) -> bytes:
    """The body with U+FFFD in place of halves of surrogate pairs, which models write. NaN stays an error."""
    return whole_characters(json.dumps(json.loads(body, parse_constant=_no_constant), ensure_ascii=False)).encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


CLAIM, COMMIT, FAIL, UNKNOWN = BodyForm(ClaimBody), BodyForm(CommitBody), BodyForm(FailBody), BodyForm(UnknownBody)


def argument_bytes(arguments: msgspec.Raw) -> tuple[bytes, Any]:
    """The arguments as they were sent, and their value. Raises EffectRefused, BodyTooLarge."""
    sent = bytes(arguments)
    if len(sent) > MAX_ARGUMENTS:
        raise BodyTooLarge(f"arguments: {len(sent):,} bytes; the maximum is {MAX_ARGUMENTS:,}")
    value = _value(sent, "arguments")
    if not isinstance(value, dict):
        raise EffectRefused("arguments_invalid", "arguments: expected an object")
    return sent, value


def cut_result(sent: bytes) -> bytes:
    """The result as it is kept: as it was sent, or the beginning of one that is too long, with a note."""
    _value(sent, "result")
    if len(sent) <= MAX_RESULT:
        return sent
    note = f"the result had {len(sent):,} bytes; its beginning is kept"
    return _encode({"overnight_note": note, "beginning": sent[:_KEPT].decode("utf-8", "ignore")})


def _value(sent: bytes, place: str) -> Any:
    try:
        value = msgspec.json.decode(sent)
        deep = sent.count(b"[") + sent.count(b"{") > MAX_DEPTH and _is_deep(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EffectRefused("arguments_invalid", f"{place}: {str(error)[:200]}") from None
    if deep:
        raise EffectRefused("arguments_invalid", f"{place}: nested deeper than {MAX_DEPTH} levels")
    return value


def _is_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    if isinstance(value, dict | list):
        inner: Any = value.values() if isinstance(value, dict) else value
        return left == 0 or any(_is_deep(each, left - 1) for each in inner if isinstance(each, dict | list))
    return False


def lease_us(timeout_ms: int | None) -> int:
    """How long a claim lasts, in microseconds. Raises BadInput."""
    wanted = DEFAULT_TIMEOUT_MS if timeout_ms is None else timeout_ms
    if not MIN_TIMEOUT_MS <= wanted <= MAX_TIMEOUT_MS:
        raise BadInput(f"timeout_ms: expected {MIN_TIMEOUT_MS:,} to {MAX_TIMEOUT_MS:,} milliseconds")
    return wanted * 1000
