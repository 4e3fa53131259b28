"""Output of the command line: time zones, symbols, closed pipes, interrupts and invalid input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_runs import program_folder, run
from command_line import ALL, Shell, settled
from overnight.cli.terminal import MARKS, locale_allows_utf8
from overnight.testing import SpawnedProvider

PROGRAM = [sys.executable, "-c", "from overnight.cli import main; main()"]


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    return Shell(tmp_path, provider.base_url)


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_times_have_a_date_and_a_zone_and_json_is_utc(shell: Shell) -> None:
    shell("run", "night.py:asks", code=3)
    plain, berlin = shell("events", "last", TZ="UTC"), shell("events", "last", "--tz", "Asia/Kolkata")
    assert re.search(r"^ +1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  created", plain, re.MULTILINE)
    assert re.search(r"^ +1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d IST  created", berlin, re.MULTILINE)
    assert " IST" in shell("jobs", TZ="Asia/Kolkata"), "the local zone is the default"
    assert " IST" in shell("explain", "last", "--tz", "Asia/Kolkata")
    assert " IST" in shell("jobs", "--tz", "Asia/Kolkata", TZ="UTC")
    for words in (["jobs"], ["explain", "last"], ["events", "last"], ["budget"]):
        out = shell(*words, "--json", "--tz", "Asia/Kolkata", TZ="Asia/Tokyo")
        assert not re.search(r"\b(IST|JST)\b|\+0\d:\d\d", out), words
    assert json.loads(shell("jobs", "--json"))[0]["created_at"].endswith("Z")
    utc, told = (re.search(r"(\d\d):(\d\d):\d\d", text) for text in (plain, berlin))
    assert utc
    assert told
    minutes = [int(found[1]) * 60 + int(found[2]) for found in (utc, told)]
    assert (minutes[1] - minutes[0]) % 1440 == 330


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Berlin", "did you mean Europe/Berlin?"),
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("../../etc/passwd", "unknown time zone"),
        ("", "unknown time zone"),
        ("Europe", "unknown time zone"),
    ],
)
def test_invalid_time_zone_is_named(shell: Shell, zone: str, said: str) -> None:
    shell("jobs", "--tz", zone, code=2)
    assert said in shell.errors
    assert len(shell.errors.splitlines()) == 1


# ── terminals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_symbols_are_distinct_without_utf8(shell: Shell) -> None:
    assert len(set(MARKS) & set("✓✗‖›–↻·▶↪┬")) == 10
    marks = {MARKS[mark] for mark in "✓✗‖›–↻·▶↪┬"}
    assert len(marks) == 10
    assert "?" not in marks, "that is the mark of what is unknown"
    shell("run", "night.py:adds", "label=日本")
    shell("run", "night.py:pays", code=3)
    jobs = [each["job_id"] for each in json.loads(shell("jobs", "--json"))]
    for environment in ({"LANG": "C"}, {"LC_ALL": "en_US.ISO-8859-1"}, {"PYTHONIOENCODING": "ascii"}):
        for job_id in jobs:
            rich, plain = shell("explain", job_id, LC_ALL="C.UTF-8"), shell("explain", job_id, **environment)
            assert plain.isascii()
            assert settled("".join(MARKS.get(each, each) for each in rich)) == settled(plain)
    assert json.loads(shell("explain", last(shell), "--json", "--content", LANG="C")) == json.loads(
        shell("explain", last(shell), "--json", "--content", LANG="C.UTF-8")
    )


def last(shell: Shell) -> str:
    return json.loads(shell("jobs", "--json"))[1]["job_id"]


@pytest.mark.parametrize(
    ("environment", "utf8"),
    [
        ({}, True),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "de_DE.UTF-8@euro"}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # so Python itself leaves it
        ({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, True),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, False),
        ({"LANG": "de_DE@euro"}, False),
    ],
)
def test_locale_selects_utf8(environment: dict[str, str], utf8: bool) -> None:
    assert locale_allows_utf8(environment) is utf8


def test_external_text_contains_no_terminal_control(shell: Shell) -> None:
    (shell.folder / "odd.py").write_text(
        "import overnight\n"
        "EVIL = '\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\\r\\n'\n"
        "@overnight.job\nasync def fails():\n    raise RuntimeError(EVIL)\n"
        "@overnight.job\nasync def asks():\n    await overnight.approval('Go' + EVIL, why=EVIL)\n"
    )
    shell("run", "odd.py:fails", code=1)
    shown = [shell.errors]
    shown.append(shell("run", "odd.py:asks", code=3) + shell.errors)
    failed, asked = (each["job_id"] for each in reversed(json.loads(shell("jobs", "--json"))))
    for words in (["jobs"], ["reviews"], ["reviews", "--json"]):
        shown.append(shell(*words))
    for job in (failed, asked):
        for form in ([], ["--content"], ["--json", "--content"]):
            shown += [shell("explain", job, *form), shell("events", job, *form)]
    shown.append(shell("explain", "\x1b[2J", code=1) + shell.errors)
    for text in shown:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), text


# ── closed outputs ───────────────────────────────────────────────────────────────────────────────────────────────────


def piped(shell: Shell, command: str) -> "subprocess.CompletedProcess[str]":
    if "&-" in command:  # the command server is given all three streams
        program = shell.folder / "overnight"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from overnight.cli import main; main()' \"$@\"\n")
        program.chmod(0o755)
    else:
        program = program_folder() / "overnight"
    whole = f"PATH={program.parent}:$PATH; set -o pipefail; {command}"
    return subprocess.run(
        ["bash", "-c", whole], check=False, cwd=shell.folder, env=shell.environment, capture_output=True, text=True
    )


def test_closed_output_is_no_error(shell: Shell) -> None:
    shell("run", "night.py:adds", "count=400", "--json")
    for command in (
        "events last --content",
        "events last --json",
        "explain last --json --content",
        "jobs",
        "jobs --help",
    ):
        for way in ("| head -n 0", "| head -n 1 >/dev/null", ">&-", ">&- 2>&-", "<&- >/dev/null"):
            done = piped(shell, f"overnight {command} {way}")
            assert done.returncode in {0, 141}, (command, way, done)
            assert done.stderr == "", (command, way)
    assert piped(shell, "overnight run night.py:adds >&- 2>&-").returncode == 0
    assert [job["state"] for job in json.loads(shell("jobs", "--json"))] == ["succeeded", "succeeded"]
    full = piped(shell, "overnight jobs >/dev/full")
    assert (full.returncode, full.stderr) == (
        1,
        "overnight: cannot write standard output: No space left on device\n",
    )


# ── interrupts ───────────────────────────────────────────────────────────────────────────────────────────────────────


AFTER_THE_HANDLER = """
import os, signal, sys
from overnight.cli import main
install = signal.signal
def tell(*handler):
    before = install(*handler)
    signal.signal = install
    os.write(1, b".")
    return before
signal.signal = tell
sys.argv = ["overnight", *sys.argv[1:]]
main()
"""


def test_ctrl_c_prints_no_traceback(shell: Shell) -> None:
    shell("run", "night.py:asks", "--detach")
    started = time.monotonic()
    shell("run", "night.py:adds", code=0)
    whole = time.monotonic() - started
    ready = AFTER_THE_HANDLER
    for words in (["run", "night.py:adds", "count=1"], ["explain", "last"], ["gateway", "--port", "0"]):
        for part in range(5):
            process = subprocess.Popen(
                [sys.executable, "-c", ready, *words],
                cwd=shell.folder,
                env=shell.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            assert process.stdout.read(1) == "."
            time.sleep(0.005 + whole * part / 5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert process.returncode in {130, 0, -signal.SIGINT}, (words, part, process.returncode, errors)
            left = [
                line
                for line in errors.splitlines()
                if not re.match(r"\s+\d+  \d{4}-|adds  job_|Interrupted\. |$|\d{4}-.*Z ", line)
            ]
            assert left == [], (words, part, errors)


def test_ignored_sigint_stays_ignored(shell: Shell) -> None:
    ready = "import os, signal; signal.signal(2, 1); os.write(1, b'.')\nfrom overnight.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", ready, "jobs"],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == "."
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "no ledger at" in errors, (process.returncode, errors)


# ── ports ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_port_in_use_is_one_line_with_instructions(shell: Shell) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in ("up", "gateway"):
            assert shell(command, "--port", port, code=1) == ""
            assert "the port is in use" in shell.errors
            assert "--port" in shell.errors
            assert len(shell.errors.splitlines()) == 1
    for host in ("no such host", "a" * 80, "", "ü.example"):
        shell("gateway", "--host", host, "--port", "0", code=1)
        assert "--host" in shell.errors, host
        assert len(shell.errors.splitlines()) == 1


# ── every command ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = run(Path("/"), {"COLUMNS": "200"}, *name.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    assert re.search(rf"Examples?:\s[^╭]*overnight {name}", shown.out.replace("│", "")), shown.out


NASTY = [
    "",
    "-1",
    "\x1b[31m",
    "a\nb",
    "x" * 5000,
    "nan",
    "1e999",
    "/",
    "../..",
    "job_",
    "last",
    "{",
    "\udcff",
    "0x10",
    "%s%n",
    "ü",
]


@pytest.mark.parametrize("name", sorted(ALL))
def test_bad_input_is_one_clear_line(name: str, tmp_path: Path) -> None:
    command = ALL[name]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "USER": "zoe", "OVERNIGHT_BRAIN": "none"}
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.opts[0] not in {"--help"}]
    sample = NASTY[:: 6 if name in {"up", "gateway", "worker", "demo"} else 3]
    runs = [[nasty] * max(1, len(arguments)) for nasty in sample]
    for number, option in enumerate(options):
        if name == "demo" and getattr(option, "is_flag", False):
            continue  # it would be played
        value = [] if getattr(option, "is_flag", False) else [NASTY[number % len(NASTY)]]
        runs.append(["x"] * len(arguments) + [option.opts[0], *value])
    runs.append(["--no-such-option"])
    for words in runs:
        if name == "init" and words in (["../.."], ["/"], ["x"]):
            continue
        if words[-2:] in (["--brain", "/"], ["--brain", "../.."]):
            continue  # a folder, whose problems are listed one by one
        ran = run(tmp_path, environment, *name.split(), *words)
        assert ran.code in {0, 1, 2}, (words, ran)
        assert "Traceback" not in ran.err
        assert "OVERNIGHT_DEBUG" not in ran.err, (words, ran)
        if ran.code and name != "check":
            assert ran.err.startswith("overnight: ") or "Z ERROR" in ran.err, (words, ran)
            assert len(ran.err.splitlines()) == 1, (words, ran)
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", ran.err)


def test_internal_error_is_one_line_unless_traceback_requested(shell: Shell) -> None:
    (shell.folder / "sitecustomize.py").write_text(
        "import overnight.settings as s\n"
        "def broken(): raise ZeroDivisionError('postgresql://u:hunter2@h/x')\n"
        "s.Settings.from_environment = staticmethod(broken)\n"
    )
    shell.environment["PYTHONPATH"] = str(shell.folder)
    shell("jobs", code=1)
    assert shell.errors.startswith("overnight: unexpected ZeroDivisionError: postgresql://u:…@h/x.")
    assert "OVERNIGHT_DEBUG=1" in shell.errors
    assert len(shell.errors.splitlines()) == 1
    done = subprocess.run(
        [*PROGRAM, "jobs"],
        check=False,
        cwd=shell.folder,
        env=shell.environment | {"OVERNIGHT_DEBUG": "1"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" in done.stderr
