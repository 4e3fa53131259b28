"""Names and globs that external names are compared with."""

import re
from fnmatch import fnmatchcase, translate
from functools import lru_cache

import msgspec


def is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[")


class Names(msgspec.Struct, frozen=True):
    """Names or globs (`*`, `?`, `[0-9]`), compared case-sensitively. An exact name is one look-up."""

    patterns: tuple[str, ...]
    exact: frozenset[str] = frozenset()
    glob: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        setting = msgspec.structs.force_setattr
        setting(self, "exact", frozenset(one for one in self.patterns if not is_glob(one)))
        globs = "|".join(translate(one) for one in self.patterns if is_glob(one))
        setting(self, "glob", re.compile(globs) if globs else None)

    def matches(self, name: str | None) -> bool:
        """Whether the name matches. None never matches."""
        if name is None:
            return False
        return name in self.exact or (self.glob is not None and self.glob.match(name) is not None)

    def __str__(self) -> str:
        return " or ".join(self.patterns)


@lru_cache(maxsize=8192)
def allows(globs: tuple[str, ...], name: str) -> bool:
    """Whether a list of globs permits a name; an empty list permits all."""
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def listed(globs: tuple[str, ...]) -> str:
    """The first globs as text, for errors."""
    return ", ".join(globs[:20]) + (", …" if len(globs) > 20 else "")
