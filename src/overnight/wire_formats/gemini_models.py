"""What Gemini models accept, derived from the model name, and names in the form that Gemini accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from .identifiers import fit_name

NAME = 64
"""The maximum length of a function name that all models accept."""
_VERSION = re.compile(r"gemini-(\d+)(?:[.-](\d+))?")
_NEWEST = 900


class Traits(msgspec.Struct, frozen=True):
    """Capabilities of one model.

    - `json_schema`: accepts JSON Schema (`parametersJsonSchema`, `responseJsonSchema`), else a subset of OpenAPI's.
    - `budget`: thinks within `thinkingBudget`; `level`: by `thinkingLevel`. Without both, it does not think.
    - `can_stop_thinking`: accepts a budget of 0.
    - `signed_calls`: rejects function calls without a thought signature.
    - `tools_with_format`: accepts functions together with a schema of the answer.
    """

    json_schema: bool = True
    budget: bool = False
    level: bool = False
    can_stop_thinking: bool = False
    signed_calls: bool = False
    tools_with_format: bool = False


@lru_cache(maxsize=1024)
def traits_of(model: str) -> Traits:
    """The capabilities of a model. Unknown ones, such as `gemini-flash-latest`, count as the newest."""
    name = model.lower().rpartition("/")[2]
    if "gemini" not in name:
        return Traits(json_schema=False)  # Gemma and others
    found = _VERSION.search(name)
    version = int(found[1]) * 100 + int(found[2] or 0) if found and int(found[2] or 0) < 100 else _NEWEST
    newest = version >= 300
    return Traits(
        json_schema=version >= 205,
        budget=205 <= version < 300,
        level=newest,
        can_stop_thinking=205 <= version < 300 and "pro" not in name,
        signed_calls=newest,
        tools_with_format=newest,
    )


def function_name(name: str) -> str:
    """The name if Gemini accepts it, else a changed one with a hash. It must begin with a letter or an underscore."""
    fits = fit_name(name, NAME)
    if fits[:1].isalpha() or fits.startswith("_"):
        return fits
    return fit_name(f"_{fits}", NAME)


def original_names(names: Iterable[str]) -> Mapping[str, str]:
    """Map changed function names to the original ones."""
    return {became: name for name in names if (became := function_name(name)) != name}
