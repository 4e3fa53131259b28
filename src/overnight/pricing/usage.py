"""Token usage of a model call: as reported by the provider and made consistent, or estimated if not reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

# More than any model accepts or produces. A larger count is a provider's error and would overflow its column.
MAX_TOKENS = 1_000_000_000
_CHARACTERS_PER_TOKEN = 4
_CHAT_COUNTS, _COUNTS = ("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")


Cost = float | Mapping[str, float]
"""The cost in the usage of a stream: dollars, or fields by name if a part of it is unknown."""


def cost_fields(cost: Cost) -> dict[str, float]:
    """The cost fields of a stream's usage: `cost_usd` is known cost, `bound_usd` the maximum of additional unknown
    cost."""
    return dict(cost) if isinstance(cost, Mapping) else {"cost_usd": cost}


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts of one call. ``input_tokens`` and ``output_tokens`` are totals.

    Disjoint parts of the input: ``cached_tokens`` (read from the provider's cache), ``cache_write_tokens`` (five
    minutes or no stated time), ``cache_write_1h_tokens``, ``audio_input_tokens``. Parts of the output:
    ``reasoning_tokens``, ``audio_output_tokens``. ``estimated``: computed from the length of the text. ``adjusted``:
    the provider's counts were contradictory and were corrected.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    estimated: bool = False
    adjusted: bool = False

    def clamped(self, input_tokens: int, output_tokens: int) -> Usage:
        """A copy whose totals do not exceed these limits."""
        kept = _consistent(
            self.adjusted,
            min(self.input_tokens, input_tokens),
            min(self.output_tokens, output_tokens),
            (self.cached_tokens, self.cache_write_tokens, self.cache_write_1h_tokens, self.audio_input_tokens),
            (self.reasoning_tokens, self.audio_output_tokens),
        )
        return msgspec.structs.replace(kept, estimated=self.estimated)


def estimated_usage(prompt_characters: int, output_characters: int) -> Usage:
    """Estimate usage for a provider that reports none: a quarter of a token per character, rounded up."""
    return Usage(
        input_tokens=-(-prompt_characters // _CHARACTERS_PER_TOKEN),
        output_tokens=-(-output_characters // _CHARACTERS_PER_TOKEN),
        estimated=True,
    )


def openai_usage(usage: object) -> Usage | None:
    """Read the ``usage`` object of a chat completion, an embedding or a response. Returns None without usable counts.

    Some providers omit reasoning from ``completion_tokens`` but include it in ``total_tokens`` and bill it as output.
    The excess of the total is therefore counted as output.
    """
    read = _Reader(usage)
    before, after = _CHAT_COUNTS if read.has("prompt_tokens") else _COUNTS
    if not read.has(before) or not (read.has(after) or read.has("total_tokens")):
        return None
    input_tokens, output_tokens = read.count(before), read.count(after)
    if read.adjusted:
        return None
    unaccounted = read.count("total_tokens") - input_tokens - output_tokens
    if unaccounted > 0:
        output_tokens += unaccounted
        read.adjusted = True
    sent, made = read.inside(f"{before}_details"), read.inside(f"{after}_details")
    # DeepSeek reports cached tokens under its own name, next to the total.
    cached = sent.count("cached_tokens") or read.count("prompt_cache_hit_tokens")
    input_parts = (cached, sent.count("cache_write_tokens"), 0, sent.count("audio_tokens"))
    output_parts = (made.count("reasoning_tokens"), made.count("audio_tokens"))
    adjusted = read.adjusted or sent.adjusted or made.adjusted
    return _consistent(adjusted, input_tokens, output_tokens, input_parts, output_parts)


def anthropic_usage(usage: object) -> Usage | None:
    """Read the ``usage`` object of a message, whose ``input_tokens`` exclude cached ones. Returns None without usable
    counts."""
    read = _Reader(usage)
    if not read.has("input_tokens") or not read.has("output_tokens"):
        return None
    cached, written = read.count("cache_read_input_tokens"), read.count("cache_creation_input_tokens")
    input_tokens, output_tokens = read.count("input_tokens") + cached + written, read.count("output_tokens")
    if read.adjusted:
        return None
    kinds = read.inside("cache_creation")
    written_1h = min(kinds.count("ephemeral_1h_input_tokens"), written)
    input_parts = (cached, written - written_1h, written_1h, 0)
    made = read.inside("output_tokens_details")
    output_parts = (made.count("thinking_tokens"), 0)
    return _consistent(kinds.adjusted or made.adjusted, input_tokens, output_tokens, input_parts, output_parts)


class _Reader:
    """Reads counts of a provider's report. Missing counts are zero; invalid ones are zero and set ``adjusted``."""

    __slots__ = ("_counts", "adjusted")

    def __init__(self, counts: object) -> None:
        # Reports are dicts; the check of other mappings is slow.
        is_mapping = isinstance(counts, dict) or isinstance(counts, Mapping)  # noqa: SIM101
        self._counts: Mapping[str, object] = cast("Mapping[str, object]", counts) if is_mapping else {}
        self.adjusted = counts is not None and not is_mapping

    def has(self, name: str) -> bool:
        return self._counts.get(name) is not None

    def inside(self, name: str) -> _Reader:
        value = self._counts.get(name)
        return _NOTHING if value is None else _Reader(value)

    def count(self, name: str) -> int:
        value = self._counts.get(name)
        if value is None:
            return 0
        if type(value) is str and value.isdecimal() and len(value) < 16:
            value = int(value)  # some routers write counts as strings
        if type(value) is not int:
            value = int(value) if type(value) is float and value.is_integer() else -1
        if 0 <= value <= MAX_TOKENS:
            return value
        self.adjusted = True
        return 0


_NOTHING = _Reader(None)


def _consistent(
    adjusted: bool, input_tokens: int, output_tokens: int, input_parts: tuple[int, ...], output_parts: tuple[int, int]
) -> Usage:
    """Limit each part to its total, and the sum of the input's parts to the input."""
    if sum(input_parts) > input_tokens or max(output_parts) > output_tokens:
        adjusted, left = True, input_tokens
        kept: list[int] = []
        for part in input_parts:
            kept.append(min(part, left))
            left -= kept[-1]
        input_parts = tuple(kept)
        output_parts = (min(output_parts[0], output_tokens), min(output_parts[1], output_tokens))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=input_parts[0],
        cache_write_tokens=input_parts[1],
        cache_write_1h_tokens=input_parts[2],
        audio_input_tokens=input_parts[3],
        reasoning_tokens=output_parts[0],
        audio_output_tokens=output_parts[1],
        adjusted=adjusted,
    )
