"""Names and globs that something from outside is compared with."""

import re
from fnmatch import translate

import msgspec


def is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[")


class Names(msgspec.Struct, frozen=True):
    """Names or globs (`*`, `?`, `[0-9]`), compared with their case. An exact name is one look-up."""

    patterns: tuple[str, ...]
    exact: frozenset[str] = frozenset()
    globs: tuple[re.Pattern[str], ...] = ()

    def __post_init__(self) -> None:
        setting = msgspec.structs.force_setattr
        setting(self, "exact", frozenset(one for one in self.patterns if not is_glob(one)))
        setting(self, "globs", tuple(re.compile(translate(one)) for one in self.patterns if is_glob(one)))

    def fit(self, name: str | None) -> bool:
        """Is it one of them? No name never is."""
        if name is None:
            return False
        return name in self.exact or any(glob.match(name) for glob in self.globs)

    def __str__(self) -> str:
        return " or ".join(self.patterns)
