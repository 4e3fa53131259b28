"""Capabilities of models in the Anthropic messages format, derived from the model name."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

_VERSION = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)(?:-([a-z]+))?")
_NEWEST = 500
_ALWAYS = frozenset({"fable", "mythos"})


class Traits(msgspec.Struct, frozen=True):
    """Capabilities of one model.

    - `adaptive`: thinking is controlled by `output_config.effort`, else by `budget_tokens`.
    - `always_thinks`: the model rejects a request to disable thinking.
    - `sampling`: accepts `temperature`, `top_p`, `top_k`; `one_of_both`: rejects the first two together.
    - `system_turns`: accepts instructions between turns.
    - `prefill`: continues a last assistant turn.
    - `schemas`: accepts `output_config.format` and strict tools.
    - `efforts`: levels beyond low, medium and high.
    """

    adaptive: bool = False
    always_thinks: bool = False
    sampling: bool = True
    one_of_both: bool = False
    system_turns: bool = False
    prefill: bool = True
    schemas: bool = False
    efforts: frozenset[str] = frozenset()


@lru_cache(maxsize=1024)
def traits_of(model: str) -> Traits:
    """The capabilities of a model. Other vendors' and unknown models get the options that all models accept."""
    name = model.lower()
    at = name.find("claude-")
    if at < 0:
        return Traits()
    found = _VERSION.search(name, at)
    family = (found[1] or found[4] or "") if found else name[at:].split("-")[1]
    version = int(found[2]) * 100 + int(found[3] or 0) if found else _NEWEST
    return Traits(
        adaptive=version >= 406,
        always_thinks=family in _ALWAYS,
        sampling=version < 407,
        one_of_both=version >= 401,
        system_turns=version >= 408,
        prefill=version < 406,
        schemas=version >= 405,
        efforts=frozenset({"xhigh", "max"}) if version >= 407 else frozenset(),
    )
