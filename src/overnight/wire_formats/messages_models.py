"""What models that speak Anthropic messages take, as far as it differs and the name tells."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

_VERSION = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)(?:-([a-z]+))?")
_NEWEST = 500
_ALWAYS = frozenset({"fable", "mythos"})


class Traits(msgspec.Struct, frozen=True):
    """`adaptive`: thinks as `output_config.effort` says (else within `budget_tokens`). `always_thinks`: refuses to be told
    not to. `sampling`: takes `temperature`, `top_p`, `top_k`; `one_of_both`: not the first two at once.
    `system_turns`: takes instructions between turns. `prefill`: goes on from a last assistant turn.
    `schemas`: takes `output_config.format` and strict tools. `efforts`: the levels beyond low, medium and high.
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
    """Of a model that is not Claude, or not known by its name: what all have always taken."""
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
