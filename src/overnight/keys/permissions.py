"""Which models and routes a key may use."""

from fnmatch import fnmatchcase
from functools import lru_cache


@lru_cache(maxsize=8192)
def allows(globs: tuple[str, ...], name: str) -> bool:
    """Whether the list lets a name through; an empty list lets all."""
    return not globs or any(fnmatchcase(name, glob) for glob in globs)
