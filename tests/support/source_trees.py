"""Syntax trees of the program's source files."""

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    text = path.read_text(encoding="utf-8")
    try:
        return ast.parse(text)
    except SystemError:  # Python 3.11 reports "recursion depth mismatch" now and then (cpython issue 106905)
        return ast.parse(text)
