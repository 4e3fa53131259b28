"""The documentation is correct: its examples run, and its lists are complete."""

import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import typer

import overnight
import overnight.testing
from cli_runs import run
from doc_pages import FENCE, SERVES, Block, blocks_of, missing_line, play
from overnight.api.openapi import document
from overnight.brain import Routing, check_brain
from overnight.brain.providers import well_known
from overnight.cli.program import program
from overnight.domain import EVENT_NAMES, Event, Waiting, job_states
from overnight.providers.error_classes import CLASSES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "overnight"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
POSTGRES = "postgresql://overnight@127.0.0.1:5432/overnight"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def first_column(text: str) -> list[str]:
    """The words in backticks of the first column of all tables."""
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


@cache
def source() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py")))


# ── what is typed ────────────────────────────────────────────────────────────────────────────────────────────────────


def played_pages() -> list[Path]:
    kinds = {"sh", "python", "yaml"}
    return [page for page in PAGES if kinds & {block.language for block in blocks_of(page.read_text(encoding="utf-8"))}]


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="pages are typed into bash and curl")
@pytest.mark.parametrize("page", played_pages(), ids=name_of)
def test_pages_execute_as_shown(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    needs_server = POSTGRES in page.read_text(encoding="utf-8")
    played = play(page, tmp_path, {POSTGRES: request.getfixturevalue("postgres_url")} if needs_server else {})
    for at, (block, code) in enumerate(zip(played.blocks, played.codes, strict=True)):
        place = f"{name_of(page)}:{block.line}"
        if block.language in {"sh", "python", "yaml"}:
            wanted = block.options.get("exit", "").replace(",", " ")
            shown = f"{played.shown[at] or played.whole}\n--- the servers said\n{played.served}"
            assert code == wanted, f"{place}: exit codes [{code}], expected [{wanted}]\n{shown}"
        elif block.language == "text" and at:
            line = missing_line(block.body, played.shown[at - 1])
            assert line is None, f"{place}: was not shown: {line}\n--- shown was\n{played.shown[at - 1]}"


def typed_by_hand() -> Iterator[tuple[str, Block, str]]:
    """Every block that a reader types or writes, with its place and with what stands between it and the block before it."""
    for page in PAGES:
        text, end = page.read_text(encoding="utf-8"), 0
        for match, block in zip(FENCE.finditer(text), blocks_of(text), strict=True):
            yield f"{name_of(page)}:{block.line}", block, text[end : match.start()]
            end = match.end()


def test_file_names_precede_their_content() -> None:
    """A rendered page does not show what stands beside the fence."""
    titled = [each for each in typed_by_hand() if "title" in each[1].options]
    assert [place for place, block, before in titled if f"`{block.options['title']}`" not in before] == []


def test_server_command_ends_its_block() -> None:
    """Lines pasted after a server are not typed into the shell before it ends."""
    for place, block, before in typed_by_hand():
        if block.language == "sh":
            lines = [line.replace(".venv/bin/", "") for line in block.body.splitlines()]
            servers = [number for number, line in enumerate(lines) if SERVES.match(line)]
            assert servers in ([], [len(lines) - 1]), place
            assert not servers or "terminal" in before or "second one" in before or "another one" in before, place


def test_imports_of_a_page_are_installed_by_it() -> None:
    installed: dict[str, set[str]] = {}
    for place, block, _ in typed_by_hand():
        page = installed.setdefault(place.partition(":")[0], set())
        page |= {Path(block.options.get("title", "")).stem}  # a file of the page itself
        if block.language == "sh":
            lines = re.findall(r"^python -m pip install (.+)$", block.body, re.MULTILINE)
            page |= {name.replace("-", "_") for line in lines for name in line.split()}
        if block.language == "python":
            needed = set(re.findall(r"^(?:from|import) (\w+)", block.body, re.MULTILINE))
            needed -= {*sys.stdlib_module_names, "overnight"} | COMES_ALONG
            assert needed <= page, f"{place}: {needed - page}"


COMES_ALONG = {"langchain_core", "google"}  # with langchain-openai, google-genai


def test_json_examples_are_valid() -> None:
    for page in PAGES:
        for block in blocks_of(page.read_text(encoding="utf-8")):
            if block.language == "json":
                json.loads(block.body)


# ── links ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_are_valid(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link} names no heading"


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", index)}
    assert set(DOCS) - linked == {ROOT / "docs" / "index.md"}


# ── what is listed is all there is ───────────────────────────────────────────────────────────────────────────────────


def commands(command: click.Command, name: str) -> Iterator[tuple[str, set[str]]]:
    """Every command and its options, those that are hidden left out."""
    options = [each for each in command.params if getattr(each, "param_type_name", "") == "option"]
    shown = [each for each in options if not getattr(each, "hidden", False)]
    yield name, {word for each in shown for word in (*each.opts, *each.secondary_opts)} - {"--help", "-h"}
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}")


def test_commands_and_options() -> None:
    page = reference("commands")
    there = dict(commands(typer.main.get_command(program), "overnight"))
    documented = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(there)
    for name, options in there.items():
        assert {word for word in first_column(section(page, name)) if word.startswith("-")} == options, name


def test_environment_variables() -> None:
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source()))
    read |= set(re.findall(r"signal\.SIG\w+, \"(OVERNIGHT_\w+)\"", source()))
    read |= {provider.api_key_env for provider in well_known().values() if provider.api_key_env}
    documented = [name for name in first_column(reference("environment")) if name.isupper()]
    assert sorted(documented) == sorted(read)


def test_crash_points() -> None:
    there = set(re.findall(r"crash_point\(\"(\w+)\"\)", source()))
    assert set(first_column(section(reference("environment"), "Crash points"))) == there


def test_event_names() -> None:
    page = reference("events")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    reserved = set(re.findall(r"`(\w+)`", section(page, "Reserved")))
    told = [
        name
        for heading in headings
        if heading not in {"Fields", "Reserved"}
        for name in first_column(section(page, heading))
    ]
    assert sorted([*told, *reserved]) == sorted(EVENT_NAMES)
    outside = source().replace((SOURCE / "domain" / "events.py").read_text(encoding="utf-8"), "")
    written = {name for name in reserved if re.search(rf"(?i)event\w*\(\s*\"{name}\"", outside)}
    assert not written, "these are written after all"


def test_event_fields() -> None:
    inner = set(Event.__struct_fields__) - {"cost_microusd", "bound_microusd"} | {"cost_usd_est", "bound_usd"}
    outer = {"seq", "ts", "job_id", "run_id", "tenant_id", "parent_job_id", "position", "fingerprint", "content"}
    assert sorted(first_column(section(reference("events"), "Fields"))) == sorted(inner | outer)


def test_public_names() -> None:
    page = reference("python")
    documented = re.findall(r"^### overnight\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(overnight.__all__)
    for name in overnight.testing.__all__:
        assert f"`{name}`" in section(page, "overnight.testing")
    for name in ("job", "step", "chat", "effect", "run", "attach", "approval", "sleep", "timeout"):
        wrapped = getattr(overnight, name)
        for parameter in inspect.signature(wrapped).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"{parameter.name}=" in section(page, f"overnight.{name}"), f"{name}({parameter.name}=…)"


def known_keys(folder: Path, yaml: str) -> set[str]:
    """The keys that stand beside `zzzz` in the checker's own words."""
    folder.mkdir(exist_ok=True)
    (folder / "routing.yaml").write_text(yaml)
    hints = [problem.hint for problem in check_brain(folder) if "zzzz" in problem.message]
    assert len(hints) == 1, hints
    return set(hints[0].removeprefix("known: ").split(", "))


ZZZZ = {
    "Top level": "zzzz: 1",
    "routes": "routes: {a: {model: gpt-5.4, zzzz: 1}}",
    "budgets": "budgets: {zzzz: 1}",
    "when": "routes: {a: {model: gpt-5.4, when: {zzzz: 1}}}",
    "complexity": "complexity: {zzzz: 1}",
    "budgets.limits": "budgets: {limits: [{scope: job, max_tokens: 1, zzzz: 1}]}",
    "rate_limits": "rate_limits: [{scope: key, concurrency: 1, zzzz: 1}]",
    "guards": "guards: {zzzz: 1}",
    "alarms": "alarms: {zzzz: 1}",
    "breakers": "breakers: {zzzz: 1}",
    "cache": "cache: {zzzz: 1}",
    "cache.semantic": "cache: {semantic: {model: gpt-5.4, zzzz: 1}}",
    "fallbacks": "fallbacks: [{from: gpt-5.4, to: gpt-5.4-mini, zzzz: 1}]",
    "retries": "retries: {zzzz: 1}",
    "limits": "limits: {zzzz: 1}",
    "prices": "prices: {a: {input_usd_per_mtok: 1, output_usd_per_mtok: 1, zzzz: 1}}",
    "providers": 'providers: {a: {base_url: "http://127.0.0.1/v1", models: [a], zzzz: 1}}',
}


@pytest.mark.parametrize("heading", ZZZZ)
def test_routing_keys(heading: str, tmp_path: Path) -> None:
    documented = section(reference("routing"), heading).partition("| name |")[0]
    assert set(first_column(documented)) == known_keys(tmp_path / "brain", ZZZZ[heading])


def test_routing_defaults() -> None:
    page, routing = reference("routing"), Routing()
    told = dict(re.findall(r"^\| `(\w+)` \| `?([\w.-]+)`? \|", page, re.MULTILINE))
    there: dict[str, Any] = {"default_model": routing.default_model}
    limits = {name: value for name, value in msgspec.structs.asdict(routing.time_limits).items() if value is not None}
    there |= limits | {"embeddings_ms": routing.embeddings_ms, "time_zone": routing.budgets.time_zone}
    for part in (routing.retries, routing.limits, routing.breakers, routing.guards, routing.alarms):
        there |= {name: value for name, value in msgspec.structs.asdict(part).items() if name != "by_class"}
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in there.items()}
    assert {name: told[name] for name in there} == shown
    assert f"| {routing.complexity.threshold:g} |" in section(page, "complexity")


def test_providers() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section(reference("routing"), "providers"), re.MULTILINE)
    told = {
        name: (re.findall(r"`([^`]+)`", models), key.strip("`")) for name, models, key in rows if name in well_known()
    }
    there = {name: (list(each.models), each.api_key_env or "none") for name, each in well_known().items()}
    assert told == there


TOLD_BY_PROVIDERS = {"x-amzn-errortype"}


def test_headers() -> None:
    literal = set(re.findall(r"b\"(x-[a-z-]+|traceparent)\"", source())) - TOLD_BY_PROVIDERS
    read = set(re.findall(r"b\"([a-z-]+)\": _Place\(", source())) | {"authorization", "x-api-key", "api-key"}
    documented = {word for word in first_column(reference("http")) if word.startswith("x-")}
    documented |= read & set(first_column(reference("http")))
    assert documented == literal | read


def test_routes() -> None:
    """`GET /a` in the first column, and `POST` alone in the second for the same path: all that `openapi.yaml` has."""
    told: set[tuple[str, str]] = set()
    for first, second in re.findall(r"^\| `(.+?)` \| (.+?) \|$", reference("http").partition("## ")[0], re.MULTILINE):
        method, _, path = first.partition(" ")
        path = re.sub(r"\{\w+\}", "{}", path)
        told |= {(each, path) for each in (method, *re.findall(r"`(POST|PUT|DELETE)`", second))}
    there = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, methods in json.loads(document())["paths"].items()
        for method in methods
        if method != "parameters"
    }
    assert told == there


def test_error_codes_and_classes() -> None:
    page = reference("errors")
    rows = section(page, "Gateway").splitlines()
    codes = {match[1] for row in rows if (match := re.match(r"\| \d{3} \| `(\w+)` \|", row))}
    shapes = source().partition("_SHAPES: tuple")[2].partition("_RETRYABLE")[0]
    there = set(re.findall(r"\d{3}, \"\w+\", \"(\w+)\"", shapes)) | {"internal_error"}
    assert codes == there
    flags = r" \| ".join(["(yes|no)"] * 4)
    rows = re.findall(rf"^\| `(\w+)` \| .+? \| {flags} \|", section(page, "Failure classes"), re.MULTILINE)
    told = {name: tuple(word == "yes" for word in words) for name, *words in rows}
    assert told == {name: tuple(rule) for name, rule in CLASSES.items()}


def test_states_and_waits() -> None:
    page = reference("states")
    assert first_column(section(page, "States of a job")) == list(job_states)
    assert set(first_column(section(page, "Waits"))) >= {wait.value for wait in Waiting}


def test_a_job_in_json(tmp_path: Path) -> None:
    (tmp_path / "night.py").write_text("import overnight\n@overnight.job\nasync def night() -> int:\n    return 1\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    shown = run(tmp_path, kept, "run", "night.py:night", "--json").out
    # A traceback is shown where one job is read with its log.
    assert sorted(first_column(section(reference("http"), "A job"))) == sorted([*json.loads(shown), "traceback"])


def test_the_glossary_has_one_entry_per_word_in_order() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert words == sorted(set(words))


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == overnight.__version__
