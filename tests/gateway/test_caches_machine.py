"""Random calls against a simple model of the exact cache: tenants, jobs, attempts, time, failures."""

import asyncio
import itertools
import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caching import CACHE, EXACT, caching
from machine_parts import examples
from overnight.store import open_store
from overnight.testing import SpawnedProvider
from serving import Served

TTL_US = 3_600_000_000
RULES = """
rules:
  - {match: {user_contains: tool}, answer: {tool_calls: [{name: file, arguments: {n: 1}}]}}
  - {match: {user_contains: cut}, answer: {text: 'cut {count}', finish_reason: length}}
  - {match: {user_contains: fail}, fault: {status: 400}}
  - {match: {user_contains: weak, after: 1, times: 2}, fault: {status: 400}}
  - {answer: 'answer {count}'}
"""
TENANTS, JOBS = ("t1", "t2"), ("j1", "j2", "j3")
QUESTIONS = ("plain", "plain too", "weak", "tool", "cut", "fail")
KEPT = {"plain", "plain too", "weak"}

asks = st.tuples(
    st.just("ask"), st.sampled_from(TENANTS), st.sampled_from(JOBS), st.sampled_from(QUESTIONS), st.booleans()
)
crowds = st.tuples(
    st.just("crowd"), st.sampled_from(TENANTS), st.integers(2, 4), st.sampled_from(("plain", "tool", "cut"))
)
begun = st.tuples(st.just("begin anew"), st.sampled_from(TENANTS), st.sampled_from(JOBS))
passed = st.tuples(st.just("pass"), st.sampled_from((TTL_US // 2, TTL_US - 1, 1)))
programs = st.lists(st.one_of(asks, asks, asks, crowds, begun, passed), min_size=1, max_size=30)


class Model:
    """What should happen. `now` is the clock of the store, too."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000
        self.entries: dict[tuple[str, str], tuple[int, str]] = {}
        self.asked: set[tuple[str, str, str]] = set()
        self.attempts: dict[tuple[str, str], int] = {}
        self.begun: set[tuple[str, str]] = set()
        self.recorded: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
        self.given: dict[tuple[str, str, str], int] = defaultdict(int)

    def expect(self, tenant: str, job: str, question: str) -> tuple[str | None, str | None]:
        """(how, the answer as far as it is known): `replayed`, `exact` or `miss`."""
        place, attempt = (tenant, job, question), self.attempts.setdefault((tenant, job), 1)
        self.begun.add((tenant, job))
        older = [text for of, text in self.recorded[place] if of < attempt]
        if self.given[place] < len(older):
            self.given[place] += 1
            return None, older[self.given[place] - 1]
        entry = self.entries.get((tenant, question))
        if place not in self.asked and entry is not None and entry[0] > self.now:
            return "exact", entry[1]
        return "miss", None

    def learn(self, tenant: str, job: str, question: str, how: str | None, text: str | None) -> None:
        if how is None:
            return
        place = (tenant, job, question)
        self.asked.add(place)
        if text is None:
            return
        self.recorded[place].append((self.attempts.get((tenant, job), 1), text))
        entry = self.entries.get((tenant, question))
        if how == "miss" and question in KEPT and (entry is None or entry[0] <= self.now):
            self.entries[tenant, question] = (self.now + TTL_US, text)


class Player:
    """Plays a program against a gateway and holds it to the model."""

    def __init__(self, served: Served, model: Model) -> None:
        self.served, self.model = served, model
        self._fresh = itertools.count()

    async def play(self, run: str, program: list[Any]) -> None:
        for what, *details in program:
            if what == "pass":
                await asyncio.sleep(0.03)  # what rides with the next batch has gone
                self.model.now += details[0]
            elif what == "begin anew":
                place = (run + details[0], run + details[1])
                if place in self.model.begun:  # no attempt is skipped
                    self.model.begun.remove(place)
                    self.model.attempts[place] += 1
                    for question in QUESTIONS:
                        self.model.given[*place, question] = 0
            elif what == "ask":
                tenant, job, question, stream = details
                await self._ask(run + tenant, run + job, question, stream)
            else:
                await self._crowd(run + details[0], details[1], details[2])

    async def _ask(self, tenant: str, job: str, question: str, stream: bool) -> None:
        how, expected = self.model.expect(tenant, job, question)
        told_how, text = await self._call(tenant, job, question, stream)
        assert told_how == how, (tenant, job, question)
        assert expected in (None, text)
        self.model.learn(tenant, job, question, how, text)

    async def _crowd(self, tenant: str, size: int, question: str) -> None:
        """Several jobs that never asked before ask the same at once."""
        jobs = [f"{tenant} {next(self._fresh)}" for _ in range(size)]
        how, expected = self.model.expect(tenant, jobs[0], question)
        told = await asyncio.gather(*(self._call(tenant, job, question, False) for job in jobs))
        hits = size if how == "exact" else size - 1 if question in KEPT else 0
        assert sorted(str(each[0]) for each in told) == ["exact"] * hits + ["miss"] * (size - hits)
        if hits:
            assert len({text for _, text in told}) == 1
            assert expected in (None, told[0][1])
        for job, (told_how, text) in sorted(zip(jobs, told, strict=True), key=lambda each: each[1][0] != "miss"):
            self.model.attempts.setdefault((tenant, job), 1)
            self.model.learn(tenant, job, question, told_how, text)

    async def _call(self, tenant: str, job: str, question: str, stream: bool) -> tuple[str | None, str | None]:
        attempt = self.model.attempts.get((tenant, job), 1)
        headers = {"x-tenant-id": tenant, "x-job-id": job, "x-job-attempt": str(attempt)}
        answer = await self.served.ask(question, headers=headers, stream=stream)
        assert answer.status_code == (400 if "error" in answer.text else 200), answer.text
        how = answer.headers.get(CACHE)
        assert (how is None) == ("x-overnight-replayed" in answer.headers)
        return how, said(answer.text) if answer.status_code == 200 else None


def said(body: str) -> str:
    if not body.startswith("data: "):
        message = json.loads(body)["choices"][0]["message"]
        return message["content"] or message["tool_calls"][0]["function"]["name"]
    pieces = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    deltas = [piece["choices"][0]["delta"] for piece in pieces if piece["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return text or next(delta["tool_calls"][0]["function"]["name"] for delta in deltas if delta.get("tool_calls"))


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


def test_random_programs_agree_with_the_model(store_url: str, provider: SpawnedProvider) -> None:
    model = Model()
    runs = itertools.count()
    with asyncio.Runner() as runner, open_store(store_url, lambda: model.now) as store:
        context = caching(store, provider, EXACT)
        cached = runner.run(context.__aenter__())

        @examples(40, 1500)
        @given(programs)
        def play(program: list[Any]) -> None:
            runner.run(Player(cached.served, model).play(f"run {next(runs)} ", program))

        try:
            play()
        finally:
            runner.run(context.__aexit__(None, None, None))
