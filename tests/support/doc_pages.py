"""Executes a Markdown page: writes its files and runs its commands in order, in one shell.

    ```python title=night.py     a file of that name (any language); a Python block that a later `overnight run FILE.py:job`
                                 names before it exists is that file
    ```python                    a script that must end well
    ```yaml                      a routing.yaml that `overnight check` finds no error in
    ```sh exit=3,1               typed into the shell; the exit codes that are not 0, in order
    ```text                      what the block before it shows: line by line, in order, other lines may stand between

Servers (`overnight up`, `gateway`, `worker`, the scripted provider) go on in the background; ports 87xx are replaced by free
ones; `make` and `pip` lines are not typed. In shown output `…` stands for anything, and ids, times, durations, process numbers
and line breaks are not compared.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cli_runs import program_folder

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
SERVES = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:overnight (?:up|gateway|worker)\b|python -m overnight\.testing\.scripted_provider\b)"
)
NOT_TYPED = re.compile(r"^(?:make|git clone|python3? -m (?:pip|venv)|pip) ")
PORT = re.compile(r"\b87\d\d\b")
MARK = "@@block "
PROGRAMS = Path(sys.executable).parent
LONGEST_S = 120

PROLOGUE = """
served=()
trap 'codes="$codes $?"' ERR
trap 'for one in "${served[@]}"; do kill -TERM $one 2>/dev/null; done; wait' EXIT
serve() {
    local log; log="$(mktemp -p "$SERVED_LOGS")"
    "$@" >"$log" 2>&1 &
    served+=($!)
    for _ in $(seq 600); do
        if grep -qE '"ready"|is up' "$log"; then cat "$log"; return 0; fi
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    cat "$log"; return 1
}
"""


class Block(msgspec.Struct):
    """One fenced block; `line` is where it begins on its page."""

    line: int
    language: str
    options: dict[str, str]
    body: str


class Played(msgspec.Struct):
    """What the shell showed for each block, the exit codes that were not 0, and what the servers said."""

    blocks: list[Block]
    shown: list[str]
    codes: list[str]
    whole: str
    served: str


def blocks_of(text: str) -> list[Block]:
    found: list[Block] = []
    for match in FENCE.finditer(text):
        words = match["info"].split() or [""]
        options = dict(word.partition("=")[::2] for word in words[1:])
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))
        found.append(Block(text.count("\n", 0, match.start()) + 1, words[0], options, body))
    return found


def _name_files(blocks: list[Block]) -> None:
    titles = {block.options.get("title") for block in blocks}
    waiting: list[Block] = []
    for block in blocks:
        if block.language == "python" and "title" not in block.options:
            waiting.append(block)
        if block.language == "sh":
            for name in re.findall(r"overnight run (?:-\S+ )*(\w+\.py):", block.body):
                if name not in titles and waiting:
                    waiting.pop().options["title"] = name
                    titles.add(name)


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def _typed(line: str) -> str:
    line = line.replace(".venv/bin/", "")
    if NOT_TYPED.match(line):
        return ":"
    if SERVES.match(line):
        if re.search(r"overnight (up|gateway)\b", line) and "--port" not in line:
            line = re.sub(r"overnight (up|gateway)\b", r"overnight \1 --port 8700", line)
        before, word, after = re.match(r"((?:[A-Z_]+=\S+ )*)(\S+)(.*)", line).groups()  # type: ignore[union-attr]
        word = str(PROGRAMS / word)  # a process of its own, which signals reach
        return f"{before}serve {word}{after}"
    return line


def script_of(blocks: list[Block], replacements: Mapping[str, str]) -> str:
    """The page as one bash script that says which block it is at."""
    parts = [PROLOGUE]
    ports: defaultdict[str, str] = defaultdict(_free_port)
    for number, block in enumerate(blocks):
        body = block.body
        if block.language == "sh":
            body = "\n".join(_typed(line) for line in body.splitlines())
        for old, new in replacements.items():
            body = body.replace(old, new)
        body = PORT.sub(lambda match: ports[match[0]], body)
        parts.append(f"codes=; echo; echo '{MARK}{number}'")
        if title := block.options.get("title"):
            parts.append(f"mkdir -p {shlex.quote(os.path.dirname(title) or '.')}")
            parts.append(f"cat > {shlex.quote(title)} <<'END_OF_FILE'\n{body}END_OF_FILE")
        elif block.language == "sh":
            parts.append(body)
        elif block.language == "python":
            parts.append(f"python - <<'END_OF_FILE'\n{body}END_OF_FILE")
        elif block.language == "yaml":
            parts.append(f"mkdir -p ../shown && cat > ../shown/routing.yaml <<'END_OF_FILE'\n{body}END_OF_FILE")
            parts.append("overnight check ../shown")
        parts.append("echo; echo '@@codes' $codes")
    return "\n".join(parts)


def play(page: Path, folder: Path, replacements: Mapping[str, str] | None = None) -> Played:
    """Play the page in `folder`, which must be empty, with nothing of this process' settings and no provider's key.

    `replacements` are made in what is typed and written.
    """
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    _name_files(blocks)
    work, logs = folder / "work", folder / "logs"
    work.mkdir()
    logs.mkdir()
    dropped = ("OVERNIGHT_", "OPENAI_", "DATABASE_", "COLUMNS", "PYTEST")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and not k.endswith("_API_KEY")}
    binaries = os.pathsep.join([str(program_folder()), str(PROGRAMS), kept.get("PATH", "")])
    environment = kept | {
        "PATH": binaries,
        "HOME": str(folder),
        "USER": "ann",
        "LOGNAME": "ann",
        "TZ": "UTC",
        "SERVED_LOGS": str(logs),
        "PYTHONUNBUFFERED": "1",  # as on a terminal
    }
    process = subprocess.Popen(
        ["bash", "-c", script_of(blocks, replacements or {})],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        whole, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        whole, _ = process.communicate()
    shown, codes = [""] * len(blocks), ["never reached"] * len(blocks)
    for part in whole.split("\n" + MARK)[1:]:
        number, _, rest = part.partition("\n")
        output, _, said = rest.rpartition("\n@@codes")
        shown[int(number)], codes[int(number)] = output, said.split("\n")[0].strip()
    served = "\n".join(log.read_text("utf-8", "replace") for log in sorted(logs.iterdir()))
    return Played(blocks, shown, codes, whole, served)


LOOSE = (
    (re.compile(r"\b(job|rev|eff|call|worker|gateway|process)_[0-9a-f]{8,32}\b"), r"\1_ID"),
    (re.compile(r"worker …\w{6}"), "worker ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT?[ ]?\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
    (re.compile(r"\b(\d\d-\d\d )?\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"(<|\b)\d+(\.\d+)? (ms|s|min|h)\b"), "SPAN"),
    (re.compile(r'("duration_ms"|"latency_ms"|"pid"): ?[\d.]+'), r"\1:0"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "HASH"),
    (re.compile(r":\d{4,5}\b"), ":PORT"),
)


def _loose(line: str) -> str:
    for pattern, stands_for in LOOSE:
        line = pattern.sub(stands_for, line)
    return " ".join(line.split())


def missing_line(expected: str, shown: str) -> str | None:
    """The first expected line that was not shown after the ones before it; None when all were."""
    actual = [_loose(line) for line in shown.splitlines()]
    at = 0
    for line in filter(str.strip, expected.splitlines()):
        wanted = re.compile(r".*".join(re.escape(" ".join(piece.split())) for piece in _loose(line).split("…")))
        while at < len(actual) and not wanted.search(actual[at]):
            at += 1
        if at == len(actual):
            return line
        at += 1
    return None
