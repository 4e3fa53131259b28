"""The brain folder: read once, validated completely, identified by the hash of its content."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from overnight.brain.agents import read_agent
from overnight.brain.nodes import parse_yaml, text_place
from overnight.brain.problems import BrainError, Problem, clipped, did_you_mean
from overnight.brain.prompts import Prompt, read_prompt
from overnight.brain.routing import Routing
from overnight.brain.routing_file import PriceSources, built_in_routing, read_routing
from overnight.brain.tool_definitions import POLICIES, TOOLS, read_tool_definitions
from overnight.domain.tools import ToolDefinitions

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 2_000
MAX_TOTAL_BYTES = 32 << 20
MAX_FOLDER_DEPTH = 8

ROUTING = "routing.yaml"
_TOP_FILES = (ROUTING, "schedules.yaml", "memory-schema.json")
_FOLDERS = {
    "prompts": ".md",
    "tools": ".yaml",
    "policies": ".yaml",
    "agents": ".yaml",
    "workflows": ".yaml",
    "evals": ".yaml",
}
_ACTED_ON = (ROUTING, "prompts", "agents", TOOLS, POLICIES)


class Brain(msgspec.Struct, frozen=True):
    """One version of the brain folder.

    `version` is the SHA-256 (hex) of all paths and bytes. `files` contains these bytes, so that a store can keep each
    version and `Brain.from_files` restores the same brain. `warnings` are problems that do not prevent loading.
    `tools` are the contracts of tools/ and the rules of policies/.
    """

    version: str
    routing: Routing
    prompts: Mapping[str, Prompt]
    files: Mapping[str, bytes]
    warnings: tuple[Problem, ...] = ()
    tools: ToolDefinitions = ToolDefinitions()

    @property
    def prompts_version(self) -> str:
        """The content hash of `prompts/` only, which does not change with the routing."""
        return prompts_version_of(self.files)

    @property
    def has_routing(self) -> bool:
        """Whether routing.yaml exists. Without it the built-in routing applies: no budgets, no limits."""
        return ROUTING in self.files

    @property
    def limits_spending(self) -> bool:
        """Whether a budget or rate limit is set."""
        budgets = self.routing.budgets
        per_job = (budgets.max_cost_per_job_microusd, budgets.max_llm_calls_per_job)
        return bool(budgets.limits or self.routing.rate_limits) or per_job != (None, None)

    @staticmethod
    def from_files(files: Mapping[str, bytes]) -> "Brain":
        """Build a brain from files (path relative to the folder, with `/`). Raises BrainError with all problems."""
        return _built("the brain", files, [])


def load_brain(folder: Path) -> Brain:
    """Load the brain in `folder`. Raises BrainError with all problems if one of them is an error."""
    if not folder.is_dir():
        raise BrainError(_missing(folder))
    files, problems = _read(folder)
    return _built(f"the brain {clipped(str(folder), 200)}", files, problems)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of `folder` by path, whatever their content. Raises `BrainError` where it does not exist."""
    if not folder.is_dir():
        raise BrainError(_missing(folder))
    return _read(folder)[0]


def load_routing(file: Path) -> Routing:
    """Load the routing of one file. Raises BrainError with all problems if one of them is an error."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BrainError(
            f"{clipped(str(file), 200)} cannot be read: {error.strerror or type(error).__name__}"
        ) from None
    text, problems = _text(str(file), content)
    routing, found = read_routing(str(file), text) if text is not None else (None, [])
    if routing is None:
        raise BrainError(f"{clipped(str(file), 200)} is not a valid routing.yaml", _in_order([*problems, *found]))
    return routing


def check_brain(folder: Path, books: PriceSources | None = None) -> list[Problem]:
    """All problems in `folder`, in order of file and line; with `books`, including missing prices. Never raises for
    any content."""
    if not folder.is_dir():
        return [Problem(str(folder), 1, 1, _missing(folder))]
    files, problems = _read(folder)
    if ROUTING not in files and not any(problem.file == ROUTING for problem in problems):
        problems.append(Problem(ROUTING, 1, 1, "the file is missing", "`overnight init FOLDER` creates one"))
    return _in_order([*problems, *_definitions(files, books)[3]])


def version_of(files: Mapping[str, bytes]) -> str:
    """The content hash of files: equal if and only if paths and bytes are."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name, content = path.encode("utf-8", "surrogatepass"), files[path]
        # Lengths come first, so that no two different folders produce the same bytes.
        digest.update(b"%d:%d:" % (len(name), len(content)) + name)
        digest.update(content)
    return digest.hexdigest()


def prompts_version_of(files: Mapping[str, bytes]) -> str:
    """The content hash of the files in `prompts/` only."""
    return version_of({path: body for path, body in files.items() if path.startswith("prompts/")})


def _missing(folder: Path) -> str:
    what = "is not a folder" if folder.exists() else "does not exist"
    return f"the brain folder {clipped(str(folder), 200)} {what}: run `overnight init` to create one"


def _built(what: str, files: Mapping[str, bytes], problems: list[Problem]) -> Brain:
    routing, prompts, tools, found = _definitions(files)
    ordered = _in_order([*problems, *found])
    errors = sum(problem.severity == "error" for problem in ordered)
    if errors or routing is None:
        raise BrainError(f"{what} cannot be loaded, errors: {errors}", ordered)
    return Brain(
        version=version_of(files),
        routing=routing,
        prompts=prompts,
        files=dict(files),
        warnings=tuple(ordered),
        tools=tools,
    )


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column, problem.message))


def _definitions(
    files: Mapping[str, bytes], books: PriceSources | None = None
) -> tuple[Routing | None, dict[str, Prompt], ToolDefinitions, list[Problem]]:
    routing: Routing | None = None
    prompts: dict[str, Prompt] = {}
    about_tools: dict[str, str] = {}
    problems: list[Problem] = []
    noticed: set[str] = set()
    for path in sorted(files):
        top = path.partition("/")[0]
        suffix, misplaced = _file_kind(path, top)
        if misplaced is not None:
            # An unknown folder is one problem, not one per file in it.
            if top in _FOLDERS or top not in noticed:
                problems.append(misplaced)
            if top not in _FOLDERS:
                noticed.add(top)
            continue
        if suffix == "":
            continue
        if top not in _ACTED_ON and top not in noticed:
            noticed.add(top)
            message = f"{clipped(top)} is checked and stored with the brain version, but not used by this release"
            problems.append(Problem(path, 1, 1, message, severity="warning"))
        content, found = _text(path, files[path])
        if content is not None:
            if path == ROUTING:
                routing, found = read_routing(path, content, books)
            elif top == "prompts":
                name = path.removeprefix("prompts/").removesuffix(".md")
                prompts[name], found = read_prompt(path, name, content)
            elif top in (TOOLS, POLICIES):
                about_tools[path] = content
            elif top == "agents":
                found = read_agent(path, path.removeprefix("agents/").removesuffix(".yaml"), content)[1]
            else:
                found = _json_problems(path, content) if suffix == ".json" else parse_yaml(path, content)[1]
        problems += found
    tools, found = read_tool_definitions(about_tools) if about_tools else (ToolDefinitions(), [])
    return (built_in_routing() if ROUTING not in files else routing), prompts, tools, problems + found


def _file_kind(path: str, top: str) -> tuple[str, Problem | None]:
    """The kind of a file by its place ("" is not read), or the problem of its place."""
    name = path.rpartition("/")[2]
    suffix = os.path.splitext(name)[1]
    wanted = _FOLDERS.get(top) if "/" in path else None
    if name.upper().startswith("README"):
        return "", None
    if path in _TOP_FILES or (wanted is not None and suffix == wanted):
        return suffix, None
    if suffix == ".yml" and (wanted == ".yaml" or path.removesuffix(".yml") + ".yaml" in _TOP_FILES):
        return "", Problem(path, 1, 1, f"{clipped(name)} is ignored", "rename it to end in .yaml")
    if wanted is not None:
        return "", Problem(path, 1, 1, f"only *{wanted} files are read in {top}/", severity="warning")
    what = "folder" if "/" in path else "file"
    hint = did_you_mean(top, _FOLDERS if "/" in path else _TOP_FILES)
    return "", Problem(
        file=path, line=1, column=1, message=f"the {what} {clipped(top)} is unknown", hint=hint, severity="warning"
    )


def _text(file: str, content: bytes) -> tuple[str | None, list[Problem]]:
    if len(content) > MAX_FILE_BYTES:
        return None, [_too_large(file)]
    try:
        return content.decode(), []
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        line, column = text_place(before, len(before))
        return None, [Problem(file, line, column, "this is not UTF-8 text", "save the file as UTF-8")]


def _too_large(file: str) -> Problem:
    return Problem(file, 1, 1, f"larger than {MAX_FILE_BYTES:,} bytes", "move it out of the brain folder")


def _json_problems(file: str, content: str) -> list[Problem]:
    import json  # errors have a line and column

    problems: list[Problem] = []

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for key, value in pairs:
            if key in seen:
                problems.append(Problem(file, 1, 1, f"the key {clipped(key)} appears twice in one object", "keep one"))
            seen[key] = value
        return seen

    def no_constant(name: str) -> None:
        problems.append(Problem(file, 1, 1, f"{name} is not JSON", "numbers must be finite"))

    try:
        json.loads(content, object_pairs_hook=once, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        problems.append(Problem(file, error.lineno, error.colno, f"this is not valid JSON: {error.msg}"))
    except (RecursionError, ValueError):
        problems.append(
            Problem(file, 1, 1, "this is not valid JSON: nested too deep, or a number with too many digits")
        )
    return problems


def _read(folder: Path) -> tuple[dict[str, bytes], list[Problem]]:
    """All files of the folder, and the problems of unreadable ones."""
    root = folder.resolve()
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    total = 0
    for path, found in _walk(root, problems):
        if len(files) >= MAX_FILES or total >= MAX_TOTAL_BYTES:
            message = f"the brain has more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES:,} bytes; the rest is ignored"
            problems.append(Problem(path, 1, 1, message, "keep other files outside the brain folder"))
            break
        try:
            with found.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            problems.append(Problem(path, 1, 1, f"cannot be read: {error.strerror or type(error).__name__}"))
            continue
        if len(content) > MAX_FILE_BYTES:
            problems.append(_too_large(path))
            continue
        files[path] = content
        total += len(content)
    return files, problems


def _walk(root: Path, problems: list[Problem]) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to the root, path to read) of every file that is not hidden, in a fixed order.

    Links are followed only within the folder, since mounted configuration consists of links. A reviewed folder must
    not include files from elsewhere.
    """
    folders: list[tuple[str, Path, int]] = [("", root, 0)]
    seen = {root}
    while folders:
        prefix, folder, depth = folders.pop()
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError as error:
            problems.append(Problem(prefix or ".", 1, 1, f"cannot be listed: {error.strerror}"))
            continue
        for name in names:
            path = prefix + name
            try:
                name.encode()
                target = (folder / name).resolve(strict=True)
                mode = target.stat().st_mode
            except UnicodeEncodeError:
                problems.append(Problem(path, 1, 1, "the file's name is not UTF-8", "rename it"))
                continue
            except (OSError, RuntimeError):
                problems.append(Problem(path, 1, 1, "a dangling link, or a file that cannot be opened"))
                continue
            if not target.is_relative_to(root):
                problems.append(Problem(path, 1, 1, "links to a place outside the brain folder", "copy the file in"))
            elif stat.S_ISDIR(mode):
                if target in seen or depth >= MAX_FOLDER_DEPTH:
                    message = f"a folder linked twice, or nested deeper than {MAX_FOLDER_DEPTH}"
                    problems.append(Problem(path, 1, 1, message, "keep the folder flat"))
                else:
                    seen.add(target)
                    folders.append((path + "/", target, depth + 1))
            elif stat.S_ISREG(mode):
                yield path, target
            else:
                problems.append(Problem(path, 1, 1, "neither a file nor a folder", "remove it from the brain folder"))
