"""Damaged brain files, from a fixed seed: loading returns a brain or its problems within a time limit."""

import random
import signal
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from overnight.brain import Brain, BrainError, Problem, check_brain, load_brain, write_starter

SEED = 20260131
LONGEST_S = 20
"""A load that takes so long hangs: far more than any takes on a busy machine."""
MOST_BYTES = 16 * 1024 * 1024
ROUTING = b"""
default_model: gpt-5.4-mini
local_model: qwen3:8b
providers:
  house: {base_url: "http://127.0.0.1:1/v1", models: [a, "b-*"], api_key_env: HOUSE_KEY, apis: [chat], residency: [eu]}
prices: {a: {input_usd_per_mtok: 1.5, output_usd_per_mtok: 2}, "house/*": {input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
routes:
  r:
    model: a
    fallbacks: [b-1]
    when_all_open: wait
    max_output_tokens: 4096
retries: {max_attempts: 2, backoff_ms: 1}
deadlines: {default_ms: 5000, queue_ms: 100, total_ms: 9000}
breakers: {failures: 3, window_ms: 60000, cool_down_ms: 1000}
budgets: {max_cost_per_job_usd: 0.5, limits: [{scope: tenant, per: day, max_cost_usd: 50}, {scope: agent, only: "s-*"}]}
rate_limits: [{scope: tenant, requests_per_minute: 600, tokens_per_minute: 100000, concurrency: 20}]
guards: {same_call: 25, no_progress_turns: 50}
alarms: {cost_factor: 3, least_jobs: 10}
limits: {max_body_bytes: 33554432, default_max_output_tokens: 8192}
cache: {exact: {ttl_s: 3600}, prompt_markers: true}
"""
PROMPT = b"---\nname: reply\nversion: 2\nvariables: [subject]\n---\nAnswer {{subject}} in one line.\n"
POLICY = b"version: 1\nrules: [{tool: send_mail, allow: &x [a, b]}, {tool: pay, allow: *x, max_usd: 5}]\n"
TOOL = b'{"name": "send_mail", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}'
VALID = {
    "routing.yaml": ROUTING,
    "prompts/reply.md": PROMPT,
    "policies/mail.yaml": POLICY,
    "tools/send_mail.json": TOOL,
    "tools/send_mail.yaml": POLICY,
    "memory/facts.yaml": POLICY,
}
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"- ",
    b"\n",
    b"\t",
    b"  ",
    b"'",
    b'"',
    b"|\n",
    b">\n",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object:os.system ",
    b"!!binary ",
    b"%YAML 1.1\n",
    b"---\n",
    b"...\n",
    b"? ",
    b"#",
    b"\x00",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"1" * 5000,
    b"1e400",
    b"-1",
    b".inf",
    b".nan",
    b"0x" + b"f" * 999,
    b"0o17",
    b"1:30:00",
    b"2026-01-31",
    b"2026-99-99",
    b"~",
    b"null",
    b"true",
    b"{{",
    b"}}",
    b"\xd9\xa1\xd9\xa2",
    b"9223372036854775808",
    b"*" * 200,
    b"[" * 3000,
    b"{a: " * 2000,
    b"- " * 3000,
    b"? " * 2000,
    b"a" * 30_000,
    b"**/*?[!" * 50,
]
WORDS = [
    b"providers",
    b"routes",
    b"model",
    b"prices",
    b"budgets",
    b"limits",
    b"scope",
    b"only",
    b"when",
    b"a",
    b"r",
    b"*",
]


def bomb() -> bytes:
    """Nine levels of nine references: a thousand million leaves where they are followed."""
    lines = [b"l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"l%d: &l%d [%s]" % (n, n, b", ".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 10)]
    return b"\n".join(lines) + b"\nroutes: *l9\nproviders: *l9\n"


SPECIAL = [
    bomb(),
    bomb().replace(b"routes", b"prices"),
    b"a: &a [*a]",
    b"&a {a: *a}",
    b"routes: &r {r: *r}",
    b"<<: &a {<<: *a}",
    b"",
    b"\n" * 20_000,
    b"[" * 20_000,
    b"{" * 20_000,
    b"-\n" * 20_000,
    b"x: " * 10_000,
    b"- " * 20_000,
    b"? " * 20_000,
    b"a: 'x" * 20_000,
    b"&" * 100_000,
    b"!" * 100_000,
    b"".join(b"k%d: 1\n" % n for n in range(3_000)),
    b"\xff" * 1000,
    b"\x00" * 1000,
    b"a: " + b"9" * 100_000,
]


def mutated(random_: random.Random, content: bytes) -> bytes:
    for _ in range(random_.choice((1, 1, 2, 4, 12))):
        at, to = sorted(random_.randrange(len(content) + 1) for _ in range(2))
        match random_.randrange(7):
            case 0:
                content = content[:at] + random_.choice(PIECES) + content[at:]
            case 1:
                content = content[:at] + content[min(to, at + 40) :]
            case 2:
                content = content[:at] + content[at:to] * 2 + content[to:]
            case 3:
                content = content[:at] + random_.randbytes(random_.randrange(1, 6)) + content[at + 1 :]
            case 4:
                content = content[:at] + random_.choice(WORDS) + content[at:]
            case 5:
                words = content.split(b" ")
                random_.shuffle(words) if random_.random() < 0.1 else words.__setitem__(
                    random_.randrange(len(words)), random_.choice(PIECES)
                )
                content = b" ".join(words)
            case _:
                lines = content.split(b"\n")
                one, other = random_.randrange(len(lines)), random_.randrange(len(lines))
                lines[one], lines[other] = lines[other], random_.choice((b"  ", b"")) + lines[one]
                content = b"\n".join(lines)
    return content[:300_000]


def made_up(random_: random.Random, depth: int = 0) -> bytes:
    """YAML in flow form, with names that a brain knows and values of any kind."""
    kind = random_.randrange(6) if depth < 5 else 5
    if kind < 2:
        pairs = (random_.choice(WORDS) + b": " + made_up(random_, depth + 1) for _ in range(random_.randrange(4)))
        return b"{" + b", ".join(pairs) + b"}"
    if kind == 2:
        return b"[" + b", ".join(made_up(random_, depth + 1) for _ in range(random_.randrange(4))) + b"]"
    return random_.choice((*WORDS, b"1", b"-1", b"1e400", b".nan", b"null", b"''", b"true", b"2026-01-31", b"1" * 5000))


@contextmanager
def within(seconds: int, what: str) -> Iterator[None]:
    def late(*_: Any) -> None:
        pytest.fail(f"not done within {seconds} s: {what[:500]}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def load(files: dict[str, bytes], named: str) -> None:
    """A brain or its problems, each at a place in its file, in a text that can be printed."""
    with within(LONGEST_S, f"{named}: {files!r}"):
        problems: Sequence[Problem] = ()
        try:
            Brain.from_files(files)
        except BrainError as error:
            problems, said = error.problems, str(error)
            said.encode()
        except Exception as error:
            pytest.fail(f"{named} raised {error!r} for {files!r}"[:3000])
        assert len(problems) < 100_000
        assert all(problem.line >= 1 and problem.column >= 1 and str(problem) for problem in problems)


@pytest.mark.parametrize("name", VALID)
def test_damaged_files_give_only_problems(name: str) -> None:
    random_ = random.Random(f"{SEED} {name}")
    for number in range(150 if name == "routing.yaml" else 50):
        load({name: mutated(random_, VALID[name])}, f"mutation {number} of {name}")


def test_generated_files_give_problems() -> None:
    random_ = random.Random(SEED)
    for number in range(150):
        content = b"\n".join(b"%b: %b" % (word, made_up(random_)) for word in random_.sample(WORDS[:6], 3))
        load({"routing.yaml": content, "policies/p.yaml": content}, f"made up {number}")


@pytest.mark.parametrize("name", ["routing.yaml", "prompts/reply.md", "policies/mail.yaml", "tools/send_mail.json"])
def test_expensive_files_load_in_bounded_time(name: str) -> None:
    for number, content in enumerate(SPECIAL):
        body = b"---\n" + content + b"\n---\nx\n" if name.endswith(".md") else content
        load({name: body}, f"special {number} of {name}")


def test_multiplying_references_use_bounded_memory() -> None:
    tracemalloc.start()
    try:
        for content in SPECIAL[:6]:
            load({"routing.yaml": content, "policies/p.yaml": content}, "a bomb")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_a_folder_of_damaged_files_is_checked_and_loaded(tmp_path: Path) -> None:
    write_starter(tmp_path)
    random_ = random.Random(SEED)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    for _ in range(30):
        path = random_.choice(files)
        path.write_bytes(mutated(random_, whole[path]))
        with within(LONGEST_S, str(path)):
            check_brain(tmp_path)
            with suppress(BrainError):
                load_brain(tmp_path)
        path.write_bytes(whole[path])
    assert not [problem for problem in check_brain(tmp_path) if problem.severity == "error"]
