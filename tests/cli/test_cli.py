"""The command line in real processes: exit codes, stdout and stderr."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command_line import Shell
from overnight.cli.lazy_group import LazyCommands
from overnight.cli.program import COMMANDS, program
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.store import open_store
from overnight.testing import SpawnedProvider


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    return Shell(tmp_path, provider.base_url)


# ── running and reading ──────────────────────────────────────────────────────────────────────────────────────────────


def test_job_runs_and_is_shown(shell: Shell) -> None:
    out = shell("run", "night.py:adds", "count=3", "label=xyz")
    assert "succeeded" in out
    assert "result  xyz3" in out
    assert "step_committed" in shell.errors, "progress is shown on standard error"
    job_id = re.findall(r"overnight explain (job_[0-9a-f]{32})", out)[0]

    (listed,) = shell.json("jobs")
    assert listed["job_id"] == job_id
    assert (listed["state"], listed["name"], listed["paid_calls"]) == ("succeeded", "adds", 1)
    assert listed["cost_usd"] > 0
    assert listed["duration_ms"] > 0
    assert listed["created_at"].endswith("Z")
    assert job_id[:20] in shell("jobs")

    story = shell("explain", "last")
    assert "1 model call · 1 tool call · 3 steps · 0 retries" in story
    assert "tool post: done" in story
    assert "provider id MSG-1" in story
    assert "xyz" not in story, "no content without --content"
    assert "hello xyz" in shell("explain", job_id[:18], "--content")

    whole = shell.json("explain", "last")
    assert set(whole) == {"job", "header", "lines", "next", "events", "receipt"}
    assert whole["job"]["cost_usd"] == whole["header"]["cost_usd"] == listed["cost_usd"]
    assert whole["lines"][-1]["text"] == "succeeded"
    assert "hello xyz" not in json.dumps(whole)

    lines = [json.loads(line) for line in shell("events", "last", "--json").splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[0]["event"] == "created"
    assert lines[-1]["event"] == "completed"
    assert not any("content" in line for line in lines)
    assert any("content" in json.loads(line) for line in shell("events", "last", "--json", "--content").splitlines())
    assert len(shell("events", "last", "--after", "3").splitlines()) == len(lines) - 3


def test_a_job_runs_once_under_an_id_from_outside(shell: Shell) -> None:
    first = shell.json("run", "night:adds", "--external-id", "nightly-1", "--input", '{"label": "x"}')
    assert first["result"] == "x1"
    assert (
        shell.json("run", "night:adds", "--external-id", "nightly-1", "--input", '{"label": "x"}')["job_id"]
        == (first["job_id"])
    )
    assert shell.json("explain", "nightly-1")["job"]["job_id"] == first["job_id"]
    shell("run", "night:adds", "--external-id", "nightly-1", "--input", '{"label": "y"}', code=1)
    assert "another input" in shell.errors
    assert len(shell.json("jobs")) == 1


def test_failed_job_exits_with_1_and_instructions(shell: Shell) -> None:
    assert "RuntimeError: a bad night" in shell("run", "night.py:fails", code=1)
    story = shell("explain", "last")
    job_id = shell.json("jobs")[0]["job_id"]
    assert story.splitlines()[-1].strip() == f"overnight resume {job_id}"
    assert shell.json("run", "night.py:fails", code=1)["error"]["class"] == "RuntimeError"
    assert [job["state"] for job in shell.json("jobs", "--state", "failed", "-n", "1")] == ["failed"]
    assert shell.json("jobs", "--state", "parked") == []


def test_only_ids_go_to_standard_output_when_detached(shell: Shell) -> None:
    job_id = shell("run", "night.py:adds", "--detach").strip()
    (listed,) = shell.json("jobs")
    assert (listed["job_id"], listed["state"]) == (job_id, "queued")
    assert "overnight resume" in shell("explain", job_id)
    assert shell("resume", job_id).startswith("succeeded")


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_approval_continues_the_job(shell: Shell) -> None:
    out = shell("run", "night.py:asks", code=3)
    assert "waits for approval" in out
    listed = shell("reviews")
    assert "Go on?" in listed
    assert "amount: 3" in listed
    (review,) = shell.json("reviews")
    assert (review["kind"], review["state"], review["detail"]) == ("approval", "pending", {"amount": 3})
    assert f"overnight reviews approve {review['review_id']}" in shell("explain", "last")
    shell("reviews", "approve", review["review_id"], "--done", code=2)
    assert "of kind approval" in shell.errors
    assert "or here: overnight resume job_" in shell("reviews", "approve", review["review_id"], "--note", "fine")
    shell("reviews", "reject", review["review_id"], code=1)
    assert "already answered 'approve' by" in shell.errors
    assert "result  true" in shell("resume", "last")
    assert "“fine”" in shell("explain", "last")
    assert shell("reviews").startswith("No pending reviews")
    assert shell.json("reviews", "list", "--all")[0]["decided_by"]


def test_unknown_effect_requires_done_or_not_done(shell: Shell) -> None:
    shell("run", "night.py:pays", code=3)
    review = shell.json("reviews")[0]["review_id"]
    shell("reviews", "approve", review, code=1)
    assert "`done`" in shell.errors
    assert "`not_done`" in shell.errors
    shell("reviews", "approve", review, "--provider-id", "B-7", code=2)
    assert "require --done" in shell.errors
    shell("reviews", "approve", review, "--done", "--result", "paid", code=2)
    assert "--result is not JSON" in shell.errors
    decided = shell.json("reviews", "approve", review[:20], "--done", "--provider-id", "B-7", "--result", '"paid"')
    assert (decided["state"], decided["answer"]) == ("decided", "done")
    assert "result  paid" in shell("resume", "last")
    assert "provider id B-7" in shell("explain", "last")


def test_not_done_repeats_an_effect_and_rejection_fails_it(shell: Shell) -> None:
    shell("run", "night.py:pays", code=3)
    shell("reviews", "approve", shell.json("reviews")[0]["review_id"], "--not-done", "--by", "anna")
    shell("resume", "last", code=3)
    story = shell("explain", "last")
    assert "anna reports that it was not done" in story
    assert "2 tool calls · 0 steps · 1 retry" in story
    shell("run", "night.py:pays", code=3)
    shell("reviews", "reject", shell.json("reviews")[-1]["review_id"], "--note", "give up")
    shell("resume", "last", code=1)
    assert "not done: rejected by zoe: give up" in shell("explain", "last")


def test_cancel_ends_a_job(shell: Shell) -> None:
    shell("run", "night.py:asks", code=3)
    assert "is cancelled" in shell("cancel", "last", "--by", "anna")
    assert "cancelled by anna" in shell("explain", "last")
    shell("cancel", "last", code=1)
    shell("resume", "last", code=1)
    assert "cannot be resumed" in shell.errors


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_leaves_the_job_resumable(shell: Shell) -> None:
    process = shell.start("run", "night.py:adds", "count=200", PART_S="0.05")
    shell.wait("step_committed")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert re.search(r"Resume with: overnight resume job_[0-9a-f]{32}", errors)
    assert "result  19900" in shell("resume", "last")
    story = shell("explain", "last")
    assert "its worker was stopped" in story
    assert re.search(r"\d+ recorded answers? at no cost", story)


def lose_the_worker(shell: Shell) -> None:
    """As a supervisor that saw it die, so that no lease has to run out."""
    with open_store(str(shell.folder / ".overnight" / "ledger.db")) as store:
        (job,) = asyncio.run(Ledger(store).jobs())
        assert job.lease_owner is not None
        assert asyncio.run(Operations(store).expire_leases(job.lease_owner)) == 1


def test_kill_9_is_recovered_and_shown(shell: Shell, provider: SpawnedProvider) -> None:
    provider.reset()
    process = shell.start("run", "night.py:adds", "count=2", OVERNIGHT_CRASH_AT="effect_called")
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    story = shell("explain", "last")
    assert "0 crashes survived" in story, "nobody knows of the crash yet"
    lose_the_worker(shell)
    assert "succeeded" in shell("resume", "last")
    story = shell("explain", "last")
    assert "1 crash survived" in story
    assert "confirmed by the status check" in story
    assert provider.stats()["paid_calls"] == 1
    assert len((shell.folder / "sent").read_text().splitlines()) == 1


def test_follow_ends_with_the_job_or_ctrl_c(shell: Shell) -> None:
    job_id = shell("run", "night.py:asks", "--detach").strip()
    interrupted = shell.start("events", job_id, "--follow", "--json")
    assert interrupted.stdout is not None
    assert json.loads(interrupted.stdout.readline())["event"] == "created"
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=30)
    assert (interrupted.returncode, errors) == (130, "")
    following = shell.start("events", job_id, "--follow")
    shell("cancel", job_id)
    out, _ = following.communicate(timeout=30)
    assert following.returncode == 0
    assert "cancelled" in out.splitlines()[-1]


def test_closed_pipe_is_no_error(shell: Shell) -> None:
    shell("run", "night.py:adds", "count=50")
    process = shell.start("events", "last")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(30)


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES = [
    (["explain", "nope"], 1, "Not found: job nope"),
    (["explain", "job_"], 1, "matches several jobs"),
    (["jobs", "--state", "done"], 2, "expected one of queued, running"),
    (["jobs", "--before", "zzz"], 2, "--before zzz"),
    (["jobs", "-n", "0"], 2, ""),
    (["jobs", "--stat", "x"], 2, ""),
    (["frobnicate"], 2, ""),
    (["run", "night"], 1, "module:function"),
    (["run", "night.py:nothing"], 1, "night.py has adds, asks, fails, pays"),
    (["run", "missing.py:x"], 1, "no such file"),
    (["run", "missing_module:x"], 1, "No module named"),
    (["run", "night.py:adds", "oops"], 2, "KEY=VALUE"),
    (["run", "night.py:adds", "count=1", "--input", '{"count": 2}'], 2, "given twice"),
    (["run", "night.py:adds", "--input", "{"], 2, "--input is not JSON"),
    (["run", "night.py:adds", "--input", "3"], 2, "an object of named arguments"),
    (["run", "night.py:adds", "what=1"], 1, "what"),
    (["run", "night.py:adds", "--external-id", "a\nb"], 1, "--external-id"),
    (["run", "night.py:adds", "--tenant", ""], 1, "--tenant"),
    (["reviews", "approve", "rev_nope"], 1, "Not found: review rev_nope"),
    (["reviews", "reject", "rev_nope", "--note", "x" * 3000], 2, "--note"),
    (["reviews", "reject", "rev_nope", "--by", ""], 1, "rev_nope"),
    (["up", "--port", "0"], 2, ""),
    (["up", "--jobs", "nosuch"], 1, "--jobs nosuch"),
    (["worker", "--jobs", "nosuch.py"], 1, "--jobs nosuch.py"),
    (["worker", "--jobs", "rooms.inner.nosuch"], 1, "--jobs rooms.inner.nosuch"),
    (["run", "broken.py:x"], 1, "broken.py:3)"),
    (["run", "unreadable.py:x"], 1, "SyntaxError"),
    (["demo", "--maildir", "missing"], 1, "missing"),
]


def test_errors_are_one_clear_line(shell: Shell) -> None:
    shell("run", "night.py:adds")
    shell("run", "night.py:adds")
    (shell.folder / "broken.py").write_text("\n\n1 / 0\n")
    (shell.folder / "unreadable.py").write_text("def (\n")
    (shell.folder / "rooms" / "inner").mkdir(parents=True)  # packages without __init__.py
    for words, code, said in MISTAKES:
        assert shell(*words, code=code) == "" or code == 2
        assert said in shell.errors, (words, shell.errors)
        if said:
            assert shell.errors.startswith("overnight: "), words
            assert len(shell.errors.splitlines()) == 1, (words, shell.errors)
    assert len(shell.json("jobs")) == 2, "a mistake makes no job"


def test_reading_creates_no_ledger(shell: Shell) -> None:
    for words in (["jobs"], ["explain", "last"], ["reviews"], ["cancel", "last"], ["reviews", "approve", "rev_1"]):
        shell(*words, code=1)
        assert "no ledger at" in shell.errors
    assert not (shell.folder / ".overnight").exists()


def test_missing_database_is_one_clear_error(shell: Shell) -> None:
    shell.environment["DATABASE_URL"] = "postgresql://127.0.0.1:1/none?connect_timeout=2"
    shell("jobs", code=1)
    assert shell.errors.startswith("overnight: ")
    shell.environment["DATABASE_URL"] = "mysql://u:hunter2@h/x"
    shell("jobs", code=1)
    assert "hunter2" not in shell.errors


# ── the brain ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_init_writes_a_valid_brain_and_never_overwrites(shell: Shell) -> None:
    out = shell("init", "fresh")
    assert "wrote fresh/routing.yaml" in out
    assert "no problems found" in shell("check", "fresh")
    shell("init", "fresh", code=1)
    assert "already exists" in shell.errors


def test_check_reports_every_problem_with_its_line(shell: Shell) -> None:
    (shell.folder / "brain" / "routing.yaml").write_text("default_model: small\nbudget:\n  x: 1\nroutes: 3\n")
    out = shell("check", code=1)
    assert "routing.yaml:2:1: error: " in out
    assert "routing.yaml:4:9: error: " in out
    assert "budgets" in out, "the nearest known name"
    assert "2 errors, 1 warning" in out
    found = shell.json("check", code=1)
    assert [each["line"] for each in found["problems"] if each["severity"] == "error"] == [2, 4]
    assert found["errors"] == 2
    shell("run", "night.py:adds", code=1)
    assert "routing.yaml:2:1" in shell.errors, "a job does not start on a broken brain"
    shell("check", "missing", code=1)


# ── shape ────────────────────────────────────────────────────────────────────────────────────────────────────────────

READING = ["jobs", "explain", "events", "reviews", "check"]


def test_help_shows_examples_and_every_command() -> None:
    runner = CliRunner()

    def shown(*words: str) -> str:
        return runner.invoke(program, words, prog_name="overnight").output

    whole = shown("--help")
    for command in ("up", "demo", "init", "check", "jobs", "run", "explain", "events", "resume", "cancel", "reviews"):
        assert re.search(rf"\b{command}\b", whole)
        assert "Example" in shown(command, "--help")
    for command in READING:
        assert "--json" in shown(command, "--help")
    assert "--show-completion" in whole
    assert re.fullmatch(r"overnight \d+\.\d+\.\d+\n", shown("--version"))


def test_help_of_the_program_imports_no_command() -> None:
    code = (
        "import sys; sys.argv = ['overnight', '--help']\n"
        "from overnight.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "own = {'overnight', 'overnight.cli', *('overnight.cli.' + n for n in ('errors', 'lazy_group', 'program', 'terminal'))}\n"
        "slow = {'asyncio', 'cryptography', 'httpx', 'msgspec', 'rich', 'ssl'}\n"
        "found = {n for n in sys.modules if n.partition('.')[0] == 'overnight'} - own | slow & set(sys.modules)\n"
        "print(sorted(found), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name}\s+{re.escape(entry.summary[:40])}", done.stdout, re.MULTILINE), name


def test_program_help_matches_command_help() -> None:
    loaded = LazyCommands(COMMANDS)
    for name, entry in COMMANDS.items():
        assert " ".join((loaded[name].help or "").split()).startswith(entry.summary), name


def test_reading_commands_import_no_heavy_modules(shell: Shell) -> None:
    shell("run", "night.py:adds")
    code = (
        "import sys; sys.argv = ['overnight', 'jobs']\n"
        "from overnight.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'httptools', 'uvloop', 'psycopg', 'overnight.gateway', 'overnight.jobs', 'overnight.brain', 'overnight.api'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n"


def test_pipe_receives_plain_lines(shell: Shell) -> None:
    shell("run", "night.py:fails", code=1)
    for words in (["jobs"], ["explain", "last"], ["events", "last"]):
        assert "\x1b" not in shell(*words)
    lines = [line for line in shell("explain", "last").splitlines() if "raised at" not in line]
    assert all(not line.startswith(" " * 12) for line in lines), "nothing is wrapped"
    narrow = shell("explain", "last", COLUMNS="40", PYTHONIOENCODING="ascii")
    whole = ("overnight resume", "/", "raised at")  # commands and places are not broken
    wide = [line for line in narrow.splitlines() if len(line) > 40 and not any(each in line for each in whole)]
    assert not wide


@pytest.mark.parametrize("dialect", ["postgres"])
def test_commands_work_on_postgresql(
    dialect: str, tmp_path: Path, provider: SpawnedProvider, request: pytest.FixtureRequest
) -> None:
    shell = Shell(tmp_path, provider.base_url, request.getfixturevalue(f"{dialect}_url"))
    shell("run", "night.py:asks", code=3)
    shell("reviews", "approve", shell.json("reviews")[0]["review_id"])
    assert "result  true" in shell("resume", "last")
    assert "succeeded" in shell("jobs")
    assert shell.json("explain", "last")["header"]["human_decisions"] == 1
    assert not (tmp_path / ".overnight").exists()
