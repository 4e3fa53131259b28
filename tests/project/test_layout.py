"""The layout of the code: no import cycles, unique class names, short files, large records built by keyword."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from source_trees import tree_of

SOURCE = Path(__file__).parents[2] / "src"
PARALLEL = ("overnight.wire_formats", "overnight.testing", "overnight.demo")
"""Packages in which several modules define the same class for different formats, and test doubles."""
MAX_LINES, MAX_FUNCTION_LINES, MAX_POSITIONAL = 400, 60, 5


@cache
def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted((SOURCE / "overnight").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Modules of the project that a module imports, inside functions and for type checkers too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules() else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules().keys()) - {name}


def cycles() -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components)."""
    graph = {name: imports(name, path) for name, path in modules().items()}
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, edges: dict[str, set[str]], into: list[str]) -> None:
        stack = [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            node, following = stack[-1]
            step = next((each for each in following if each not in seen), None)
            if step is None:
                into.append(node)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(edges[step]))))

    for name in graph:
        if name not in seen:
            visit(name, graph, order)
    reverse: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            reverse[target].add(name)
    seen.clear()
    found: list[list[str]] = []
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            visit(name, reverse, group)
            if len(group) > 1:
                found.append(sorted(group))
    return found


def test_no_modules_import_each_other() -> None:
    assert cycles() == []


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in modules().items():
        if not name.startswith(PARALLEL):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_files_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_functions_are_short() -> None:
    long: dict[str, int] = {}
    for name, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name}.{node.name}"] = lines
    assert long == {}


@cache
def records() -> dict[tuple[str, str], list[str]]:
    """The fields of each record class (named tuple, msgspec struct, dataclass), by module and name."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                marks = [ast.unparse(each) for each in (*node.bases, *node.decorator_list)]
                if any(kind in mark for mark in marks for kind in ("NamedTuple", "Struct", "dataclass")):
                    annotated = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                    found[module, node.name] = [
                        ast.unparse(each.target) for each in annotated if "ClassVar" not in ast.unparse(each.annotation)
                    ]
    return found


def called_record(module: str, name: str, large: dict[str, set[str]]) -> bool:
    """Whether a name in a module is a large record: of its own, or imported (one of a name is enough)."""
    own = (module, name) in records()
    return module in large[name] if own else bool(large[name])


def test_large_records_are_built_by_keyword() -> None:
    large: dict[str, set[str]] = defaultdict(set)
    for (module, name), fields in records().items():
        if len(fields) > MAX_POSITIONAL:
            large[name].add(module)
    by_position: list[str] = []
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                starred = any(isinstance(each, ast.Starred) for each in node.args)
                if (starred or len(node.args) > MAX_POSITIONAL) and called_record(module, name, large):
                    by_position.append(f"{module}:{node.lineno} {name}")
    assert by_position == []
