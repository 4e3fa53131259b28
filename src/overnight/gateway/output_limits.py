"""What a model can put out at most, where that is less than is usually asked for: more is refused by its provider, not cut."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from .prices import ModelPrice

UNLIMITED = 2**31 - 1
LEAST_OUTPUT = 256
BYTES_PER_TOKEN = 4
_LIMITS = (
    ("claude-3-[hos]*", 4096),
    ("claude-3[-.]5-*", 8192),
    ("computer-use-preview*", 1024),
    ("deepseek-chat", 8192),
    ("deepseek-coder", 4096),
    ("gpt-3.5-*", 4096),
    ("gpt-4", 4096),
    ("gpt-4-*", 4096),
    ("gpt-4o-2024-05-13", 4096),
    ("gpt-4o*", 16_384),
    ("gpt-5*-chat*", 16_384),
    ("gpt-audio*", 16_384),
    ("mistral-tiny", 8191),
    ("moonshot-v1-8k*", 4096),
)
"""Providers' public documentation of 2026; the first pattern that fits. Whoever sends more than these is told so by name."""


@lru_cache(maxsize=4096)
def most_output(model: str) -> int:
    """In tokens. `model` may have a path before it (`openrouter/openai/gpt-4`)."""
    name = model.rpartition("/")[2]
    return next((most for pattern, most in _LIMITS if fnmatchcase(name, pattern)), UNLIMITED)


def output_cap(asked: int | None, policy: int, model: str, price: ModelPrice, prompt_bytes: int) -> int:
    """The least of what the client asked for, what the policy allows and what the model can put out.

    Where the client asked for nothing, what the prompt leaves of the model's window counts too.
    """
    most = min(policy, most_output(model))
    if asked is not None:
        return min(asked, most)
    if price.context_window:
        most = min(most, max(LEAST_OUTPUT, price.context_window - prompt_bytes // BYTES_PER_TOKEN))
    return most
