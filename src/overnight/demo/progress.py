"""Progress of the demo on standard error: one updated line on a terminal, a few plain lines elsewhere."""

import sys
import time
from collections import Counter

from overnight.domain import Recorded

EVERY_S = 1.5


class Progress:
    """Counts events and shows progress. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._moving = sys.stderr.isatty()
        self._counts: Counter[str] = Counter()
        self._mails = 0
        self._shown_at = 0.0
        self._began = time.monotonic()

    def begin(self, mails: int, live: bool) -> None:
        self._mails = mails
        model = "models: real" if live else "models: a scripted provider, without key and network"
        self.say(f"{mails} mails in the inbox; {model}")

    def add_event(self, event: Recorded) -> None:
        """Count an event, and show important ones."""
        name, facts = event.facts.event, event.facts
        self._counts[name] += 1
        if name == "step_committed" and facts.name == "file_away":
            self._counts["handled"] += 1
        if name == "fallback_taken" and self._counts[name] == 1:
            decision = facts.decision or {}
            self.say(f"{decision.get('from', 'the model')} failed; fallback to {decision.get('to', 'another')}")
        if name == "worker_lost":
            self.say("the worker is lost; another worker takes over the job")
        if name == "replay_ended":
            self.say(
                f"recovered: {(facts.detail or {}).get('answers', 0)} recorded answers replayed; new calls from here on"
            )
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown_at < (0.1 if self._moving else EVERY_S):
            return
        self._shown_at = now
        line = (
            f"[{now - self._began:5.1f} s] {self._counts['handled']}/{self._mails} mails handled,"
            f" {self._counts['model_succeeded']} model calls, {self._counts['tool_succeeded']} sent"
        )
        sys.stderr.write(f"\r\x1b[2K{line}" if self._moving else f"{line}\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        if not self._quiet:
            start = "\r\x1b[2K" if self._moving else ""
            sys.stderr.write(f"{start}[{time.monotonic() - self._began:5.1f} s] {text}\n")
            sys.stderr.flush()

    def end(self) -> None:
        if self._moving and not self._quiet:
            sys.stderr.write("\r\x1b[2K")
