"""External text cannot control a terminal: tables, JSON, timelines, logs and tracebacks."""

import io
import logging
from pathlib import Path

import pytest

from command_line import ACTS, ROUTING, on_terminal
from overnight.supervisor import LogLines
from overnight.testing import SpawnedProvider

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31mred\x1b[8mhidden\u202eesrever\u2066\rover"
CODE = f"""
import logging, os, sys, threading, warnings
import overnight

EVIL = {EVIL!r}

async def evil() -> str:
    logging.getLogger("own").warning(EVIL)
    print(EVIL)
    sys.stderr.writelines([EVIL, "\\n"])
    warnings.warn(EVIL)
    thread = threading.Thread(target=lambda: 1 / 0 if not EVIL else exec("raise ValueError(EVIL)", globals()))
    thread.start()
    thread.join()
    if os.environ.get("FAILS"):
        raise RuntimeError(EVIL)
    return EVIL

nightly = overnight.job(evil, name="night" + EVIL)
evil = nightly
"""


@pytest.fixture
def folder(tmp_path: Path, provider: SpawnedProvider) -> Path:
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "routing.yaml").write_text(ROUTING.format(url=provider.base_url))
    (tmp_path / "odd.py").write_text(CODE)
    return tmp_path


def test_external_text_cannot_control_a_terminal(folder: Path) -> None:
    shown = {
        "run": on_terminal(folder, "run", "odd.py:evil"),
        "fails": on_terminal(folder, "run", "odd.py:evil", FAILS="1"),
        "debug": on_terminal(folder, "run", "odd.py:evil", "--json", FAILS="1", OVERNIGHT_DEBUG="1"),
        "jobs": on_terminal(folder, "jobs"),
        "json": on_terminal(folder, "jobs", "--json"),
        "explain": on_terminal(folder, "explain", "last", "--content"),
        "explain json": on_terminal(folder, "explain", "last", "--json", "--content"),
        "events": on_terminal(folder, "events", "last", "--content"),
        "events json": on_terminal(folder, "events", "last", "--json", "--content"),
        "words": on_terminal(folder, "explain", EVIL.replace("\x00", "")),
        "no latin": on_terminal(folder, "run", "odd.py:evil", LC_ALL="C"),
    }
    for name, text in shown.items():
        found = ACTS.search(text)
        assert found is None, (name, found, text)
    assert "owned" in shown["run"], "it is shown, as text"
    assert "\x1b[" in shown["jobs"], "our own colours are left"


def test_requested_traceback_cannot_control_a_terminal(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(
        "import overnight.settings as s\n"
        f"def broken(): raise ZeroDivisionError({EVIL!r})\n"
        "s.Settings.from_environment = staticmethod(broken)\n"
    )
    for debug in ("", "1"):
        text = on_terminal(folder, "jobs", PYTHONPATH=str(folder), OVERNIGHT_DEBUG=debug)
        assert "ZeroDivisionError" in text
        assert ("Traceback" in text) == bool(debug)
        assert ACTS.search(text) is None, text


def test_help_and_demo_keep_their_own_formatting(folder: Path) -> None:
    assert "\x1b[1m" in on_terminal(folder, "jobs", "--help")


def test_log_escapes_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_DEBUG", "1")
    stream = io.StringIO()
    log = logging.Logger("night")
    log.addHandler(LogLines("worker", stream))
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("a fault %s", EVIL)
    assert "Traceback" in stream.getvalue()
    assert ACTS.search(stream.getvalue()) is None, stream.getvalue()
