"""Circuit breakers: rules, several processes on one store against a simple model, and local views."""

import asyncio
import itertools
import time
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from machine_parts import Open, examples, rows
from overnight.circuit_breakers.local_view import MIN_FAILURE_SHARE, CircuitBreakers, indicates_target_fault
from overnight.circuit_breakers.rows import (
    BreakerUpdate,
    CloseCircuit,
    RecordBreakerUpdate,
    forget_circuits,
    list_circuits,
)
from overnight.circuit_breakers.state import (
    MAX_RETRY_AFTER_MS,
    Circuit,
    claim_probe,
    cool_down_ms,
    count_failure,
    public_circuit,
    release_probe,
)
from overnight.domain import Event, new_id
from overnight.ledger import Ledger, NewJob
from overnight.providers.error_classes import CLASSES, Failure
from overnight.store import Store, open_store

MS = 1000
START = 1_795_000_000_000_000


class Policy(NamedTuple):
    failures: int = 3
    window_ms: int = 1000
    cool_down_ms: int = 500
    max_cool_down_ms: int = 3000


POLICY = Policy()


def failure(error_class: str = "server_error", retry_after_ms: int | None = None) -> Failure:
    known = CLASSES[error_class]  # type: ignore[index]
    return Failure(error_class, "x", "no", known.retryable, known.fallback, retry_after_ms)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────────────────────


def opened(now: int = 0, times: int = POLICY.failures) -> Circuit:
    circuit = Circuit("p", "m")
    for _ in range(times):
        count_failure(circuit, now, POLICY, "why")
    return circuit


def test_circuit_opens_at_the_failure_threshold() -> None:
    circuit = Circuit("p", "m")
    assert [count_failure(circuit, at * MS, POLICY, "w") for at in (0, 600, 1000, 1599)] == [False, False, False, True]
    assert (circuit.state(2098 * MS), circuit.state(2099 * MS)) == ("open", "half_open")


def test_late_failures_count_at_their_own_time() -> None:
    circuit = Circuit("p", "m")
    assert not any(count_failure(circuit, at * MS, POLICY, "w") for at in (5000, 3000, 5100, 2000))
    assert count_failure(circuit, 4900 * MS, POLICY, "w")


def test_failed_probes_double_the_cool_down_to_a_maximum() -> None:
    circuit, now, waits = opened(), 0, []
    for number in range(6):
        waits.append((circuit.open_until - now) // MS)
        now = circuit.open_until
        assert claim_probe(circuit, now, f"call{number}", now + 10_000 * MS)
        assert count_failure(circuit, now, POLICY, "w", call=f"call{number}")
    assert waits == [500, 1000, 2000, 3000, 3000, 3000]
    assert cool_down_ms(10_000, POLICY) == 3000


def test_shorter_cool_down_never_replaces_a_longer_one() -> None:
    circuit = opened()
    count_failure(circuit, 1, POLICY, "w", retry_after_ms=60_000)
    until = circuit.open_until
    assert until == 60_000 * MS + 1
    count_failure(circuit, 2, POLICY, "w", retry_after_ms=10)
    count_failure(circuit, 3, POLICY, "w")
    assert circuit.open_until == until
    claim_probe(circuit, until, "c", until + 1)
    count_failure(circuit, until - 59_000 * MS, POLICY, "w", call="c")
    assert circuit.open_until >= until


def test_retry_after_before_opening_is_honoured_and_bounded() -> None:
    circuit = Circuit("p", "m")
    for wait in (None, 7_000, 20):
        count_failure(circuit, 0, POLICY, "w", retry_after_ms=wait)
    assert circuit.open_until == 7_000 * MS
    count_failure(circuit, 0, POLICY, "w", retry_after_ms=24 * 3600 * 1000)
    assert circuit.open_until == MAX_RETRY_AFTER_MS * MS


def test_one_probe_at_a_time_and_lost_probes_expire() -> None:
    circuit = opened()
    now = circuit.open_until
    assert not claim_probe(circuit, now - 1, "early", now + 100)
    assert claim_probe(circuit, now, "one", now + 100)
    assert not claim_probe(circuit, now + 99, "two", now + 200)
    assert claim_probe(circuit, now + 100, "two", now + 200)
    # The first one comes back late: it is no longer the probe, and does not speak for it.
    assert not count_failure(circuit, now + 101, POLICY, "w", call="one")
    assert not release_probe(circuit, "one")
    assert circuit.probe == "two"
    assert release_probe(circuit, "two")
    assert claim_probe(circuit, now + 102, "three", now + 300)


@given(st.lists(st.tuples(st.integers(0, 4000), st.none() | st.integers(0, 9000)), max_size=30))
def test_blocked_until_never_decreases(steps: list[tuple[int, int | None]]) -> None:
    circuit, now = Circuit("p", "m"), 0
    for wait, retry_after_ms in steps:
        now += wait * MS
        before = circuit.open_until
        call = "c" if claim_probe(circuit, now, "c", now + MS) else None
        count_failure(circuit, now, POLICY, "w", retry_after_ms, call)
        assert circuit.open_until >= before
        assert circuit.failures <= POLICY.failures


def test_classes_that_count_against_a_target_are_pinned() -> None:
    silent = {"rate_limited", "invalid_request", "not_found", "content_filter", "context_length", "circuit_open"}
    silent |= {"gateway_busy"}
    assert {name for name in CLASSES if not indicates_target_fault(failure(name), POLICY)} == silent
    assert indicates_target_fault(failure("rate_limited", POLICY.cool_down_ms), POLICY)
    assert not indicates_target_fault(failure("rate_limited", POLICY.cool_down_ms - 1), POLICY)
    assert indicates_target_fault(failure("rate_limited"), POLICY, probing=True)


def test_public_view_of_a_circuit() -> None:
    shown = public_circuit(opened(START), START)
    assert (shown["target"], shown["state"], shown["failures"], shown["why"]) == ("p/m", "open", 3, "why")
    assert public_circuit(Circuit("p", "m"), START)["open_until_at"] is None
    own = public_circuit(Circuit("p@acme", "m"), START)
    assert (own["target"], own["provider"], own["tenant_id"]) == ("p@acme/m", "p", "acme")


async def test_zero_threshold_disables_circuits(store: Store) -> None:
    circuits = CircuitBreakers(store, Policy(failures=0))
    assert [circuits.record_failure("p", "m", failure()) for _ in range(100)] == [None] * 100
    assert circuits.allows("p", "m")


# ── processes over one store, against a model ───────────────────────────────────────────────────────────────────────


class Flying(NamedTuple):
    process: int
    name: str
    token: str | None
    until: int


class Model:
    """One circuit as a person would tell it."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.asked_until = 0
        self.close()
        self.opened_events = self.closed_events = 0

    def close(self) -> None:
        self.is_open, self.until, self.times_open, self.prober, self.failures = False, 0, 0, None, []
        self.asked_until = 0

    def failed(self, at: int, retry_after_ms: int | None, token: str | None) -> None:
        if retry_after_ms:
            self.asked_until = max(self.asked_until, at + retry_after_ms * MS)
        if not self.is_open:
            self.failures.append(at)
            newest = max(self.failures)
            self.failures = [each for each in self.failures if newest - each < POLICY.window_ms * MS]
            if len(self.failures) < POLICY.failures:
                return
        elif not (self.prober and token == self.prober[0]):
            self.until = max(self.until, self.asked_until)
            return
        self.is_open, self.prober = True, None
        self.times_open += 1
        self.opened_events += 1
        pause = min(POLICY.max_cool_down_ms, POLICY.cool_down_ms * 2 ** (self.times_open - 1))
        self.until = max(self.until, at + pause * MS, self.asked_until)

    def answered(self) -> None:
        if self.is_open:
            self.close()
            self.closed_events += 1

    def may_probe(self, now: int) -> bool:
        return not self.is_open or (now >= self.until and (self.prober is None or now >= self.prober[1]))


class Fleet(RuleBasedStateMachine):
    """Processes call one target, see it fail and answer, die in mid-call, and look at the store now and then."""

    numbers = itertools.count()
    PROCESSES = 3

    def __init__(self, stores: list[Store], url: str, clock: Clock) -> None:
        super().__init__()
        self.stores, self.url, self.clock = stores, url, clock
        self.model_name = f"m{next(self.numbers)}"
        self.model = Model()
        self.loop = asyncio.new_event_loop()
        self.job_id = new_id("job")
        self.run(stores[0].commit(Open(NewJob(self.job_id, "default", "foreign", "j", state="running"))))
        self.circuits = [self.new_process(number) for number in range(self.PROCESSES)]
        self.changed = [0] * self.PROCESSES
        self.flying: list[Flying] = []
        self.unwritten: list[tuple[Flying, BreakerUpdate]] = []
        self.names = (f"call{number}" for number in itertools.count())
        self.highest = 0

    def teardown(self) -> None:
        self.loop.close()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def store(self, process: int) -> Store:
        return self.stores[process % len(self.stores)]

    def new_process(self, process: int) -> CircuitBreakers:
        return CircuitBreakers(self.store(process), POLICY)

    @rule(process=st.integers(0, PROCESSES - 1), patience_ms=st.sampled_from([50, 400, 5000]))
    def call(self, process: int, patience_ms: int) -> None:
        circuits, name, now = self.circuits[process], next(self.names), self.clock.now
        until, token = now + patience_ms * MS, None
        if not circuits.allows("p", self.model_name):
            circuit = circuits.open_circuit("p", self.model_name)
            assert circuit is not None
            if now < circuit.blocked_until:
                return
            free = self.model.may_probe(now)
            granted = self.run(circuits.probe(circuit, name, until))
            assert granted == free, "a probe is let through exactly when the shared circuit has room for one"
            self.changed[process] = now
            if not granted:
                return
            token = name
            if self.model.is_open:
                self.model.prober = (name, until)
        self.flying.append(Flying(process, name, token, until))

    @rule(
        data=st.data(),
        error=st.sampled_from([None, None, "server_error", "timeout", "invalid_request", "quota", "rate_limited"]),
        retry_after_ms=st.sampled_from([None, None, 100, 2500]),
        at_once=st.booleans(),
    )
    def call_ends(self, data: Any, error: str | None, retry_after_ms: int | None, at_once: bool) -> None:
        if self.flying:
            at = data.draw(st.integers(0, len(self.flying) - 1))
            self.end(at, failure(error, retry_after_ms) if error else None, at_once)

    def end(self, at: int, failed: Failure | None, at_once: bool) -> None:
        flying = self.flying.pop(at)
        circuits = self.circuits[flying.process]
        if failed is None:
            mark = circuits.record_success("p", self.model_name, flying.token)
        else:
            mark = circuits.record_failure("p", self.model_name, failed, flying.token)
        if mark is not None:
            self.changed[flying.process] = self.clock.now
            self.unwritten.append((flying, mark))
            if at_once:
                self.is_written(-1)

    def is_written(self, at: int) -> None:
        flying, mark = self.unwritten.pop(at)
        if mark.why is None:
            self.model.answered()
        else:
            self.model.failed(mark.at, mark.retry_after_ms, mark.call)
        self.run(
            self.store(flying.process).commit(
                RecordBreakerUpdate(self.job_id, mark, Event("model_failed", call_id=flying.name))
            )
        )

    @rule(data=st.data())
    def a_mark_is_written(self, data: Any) -> None:
        if self.unwritten:
            self.is_written(data.draw(st.integers(0, len(self.unwritten) - 1)))

    @rule(process=st.integers(0, PROCESSES - 1))
    def outage(self, process: int) -> None:
        """All calls of a process count_failure, until it makes none."""
        for _ in range(POLICY.failures):
            self.flying.append(Flying(process, next(self.names), None, 0))
            self.end(-1, failure(), at_once=True)
        assert not self.circuits[process].allows("p", self.model_name)

    @rule(data=st.data())
    def call_is_stopped(self, data: Any) -> None:
        if not self.flying:
            return
        flying = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if flying.token is None:
            return
        held = self.circuits[flying.process].open_circuit("p", self.model_name)
        self.run(self.circuits[flying.process].release("p", self.model_name, flying.token))
        if held is not None and self.model.prober and self.model.prober[0] == flying.token and held.probe is None:
            self.model.prober = None

    @rule(process=st.integers(0, PROCESSES - 1), error=st.sampled_from([None, "server_error", "stays away", "is late"]))
    def the_cool_down_ends(self, process: int, error: str | None) -> None:
        """A process comes at the first moment at which the circuit lets somebody try."""
        self.clock.now = max(self.clock.now, self.model.until)
        self.run(self.circuits[process].refresh())
        before = len(self.flying)
        self.call(process, 400)
        if len(self.flying) > before and error != "stays away":
            self.clock.now += (500 if error == "is late" else 10) * MS
            self.end(-1, failure() if error else None, at_once=True)

    @rule(process=st.integers(0, PROCESSES - 1))
    def dies(self, process: int) -> None:
        self.flying = [each for each in self.flying if each.process != process]
        self.unwritten = [each for each in self.unwritten if each[0].process != process]
        self.circuits[process] = self.new_process(process)
        self.changed[process] = 0

    @rule(process=st.integers(0, PROCESSES - 1))
    def looks(self, process: int) -> None:
        self.run(self.circuits[process].refresh())
        seen = self.circuits[process].open_circuit("p", self.model_name)
        closing = [mark for flying, mark in self.unwritten if flying.process == process and mark.why is None]
        if self.clock.now - self.changed[process] > 2_000_000 and not closing:
            assert (seen is not None) == self.model.is_open
        if closing and max(mark.at for mark in closing) == self.clock.now:
            assert seen is None, "closed here, although that is not written yet"
        if self.model.is_open and seen is not None:
            assert seen.open_until >= self.model.until

    @rule(ms=st.sampled_from([1, 40, 300, 500, 1000, 2500, 6000]))
    def time_passes(self, ms: int) -> None:
        self.clock.now += ms * MS

    @rule()
    def a_person_closes_it(self) -> None:
        self.run(self.stores[0].commit(CloseCircuit(("p", self.model_name), "ann")))
        self.model.close()

    @invariant()
    def the_row_is_the_model(self) -> None:
        where = f"WHERE model = '{self.model_name}' AND opened_at IS NOT NULL"
        found = rows(self.url, f"SELECT open_until, openings, probe FROM circuit {where}")
        if not self.model.is_open:
            assert found == []
            self.highest = 0
            return
        assert found == [(self.model.until, self.model.times_open, self.model.prober and self.model.prober[0])]
        assert self.model.until >= self.highest
        self.highest = self.model.until

    @invariant()
    def at_most_one_probe_is_under_way(self) -> None:
        now = self.clock.now
        if self.model.is_open:
            assert sum(each.token is not None and now < each.until for each in self.flying if self.is_probe(each)) <= 1

    def is_probe(self, flying: Flying) -> bool:
        return self.model.prober is not None and self.model.prober[0] == flying.token

    @invariant()
    def every_opening_and_closing_stands_in_the_log(self) -> None:
        found = rows(self.url, f"SELECT body FROM event WHERE job_id = '{self.job_id}'")
        names = [
            name for (body,) in found for name in ("circuit_opened", "circuit_closed") if name.encode() in bytes(body)
        ]
        assert names.count("circuit_opened") == self.model.opened_events
        assert names.count("circuit_closed") == self.model.closed_events


def test_processes_sharing_a_circuit_agree_with_the_model(store_url: str) -> None:
    clock = Clock()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other:
        run_state_machine_as_test(
            lambda: Fleet([one, other], store_url, clock), settings=examples(25, 500, stateful_step_count=40)
        )


# ── many at once, and alone ─────────────────────────────────────────────────────────────────────────────────────────


async def a_job(store: Store) -> str:
    job_id = new_id("job")
    await store.commit(Open(NewJob(job_id, "default", "foreign", "j", state="running")))
    return job_id


async def fails(store: Store, circuits: CircuitBreakers, job_id: str, model: str = "m", **more: Any) -> None:
    mark = circuits.record_failure("p", model, failure(**more))
    if mark is not None:
        await store.commit(RecordBreakerUpdate(job_id, mark, Event("model_failed", provider="p")))


async def test_failures_spread_over_processes_add_up(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        job_id = await a_job(one)
        fleet = [
            (one, CircuitBreakers(one, POLICY)),
            (other, CircuitBreakers(other, POLICY)),
            (one, CircuitBreakers(one, POLICY)),
        ]
        for store, circuits in fleet:
            await fails(store, circuits, job_id)
            assert circuits.allows("p", "m")
        for _, circuits in fleet:
            await circuits.refresh()
            assert not circuits.allows("p", "m")
            assert circuits.allows("p", "other")
        [opened] = [event.facts for event in await Ledger(one).events(job_id) if event.facts.event == "circuit_opened"]
        assert (opened.provider, opened.model) == ("p", "m")
        assert "3 failures within 1 s" in opened.decision["why"]


async def test_one_of_hundreds_of_calls_is_the_probe(store_url: str) -> None:
    clock = Clock()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other:
        job_id = await a_job(one)
        fleet = [(store, CircuitBreakers(store, POLICY)) for store in (one, other) for _ in range(4)]
        for _ in range(3):
            await fails(*fleet[0], job_id)
        clock.now += POLICY.cool_down_ms * MS
        for _, circuits in fleet:
            await circuits.refresh()

        async def ask(circuits: CircuitBreakers, name: str) -> bool:
            circuit = circuits.open_circuit("p", "m")
            return circuit is not None and await circuits.probe(circuit, name, clock.now + 1000 * MS)

        asked = [ask(circuits, f"{at}-{number}") for number in range(50) for at, (_, circuits) in enumerate(fleet)]
        assert sum(await asyncio.gather(*asked)) == 1
        clock.now += 1000 * MS  # the prober died
        asked = [ask(circuits, f"{at}-again") for at, (_, circuits) in enumerate(fleet)]
        for _, circuits in fleet:
            await circuits.refresh()
        assert sum(await asyncio.gather(*asked)) == 1


async def test_mostly_successful_target_stays_closed(store: Store) -> None:
    clock = Clock()
    circuits = CircuitBreakers(store, Policy(failures=3, window_ms=60_000))
    store.clock = clock
    for number in range(300):
        clock.now += 10 * MS
        if number % 10 == 0:
            circuits.record_failure("p", "m", failure())
        else:
            circuits.record_success("p", "m")
        assert circuits.allows("p", "m")
    for _ in range(2000):
        circuits.record_failure("p", "m", failure())
    assert not circuits.allows("p", "m")
    assert MIN_FAILURE_SHARE == 0.5


async def test_process_without_store_keeps_a_local_circuit(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    store.clock = clock
    circuits = CircuitBreakers(store, POLICY)
    await a_job(store)
    store.close()
    for _ in range(3):
        circuits.record_failure("p", "m", failure())
    await circuits.start()
    assert not circuits.allows("p", "m")
    clock.now += POLICY.cool_down_ms * MS
    circuit = circuits.open_circuit("p", "m")
    assert circuit is not None
    assert [await circuits.probe(circuit, name, clock.now + MS * 1000) for name in "ab"] == [True, False]
    assert circuits.record_success("p", "m", "a") is not None
    assert circuits.allows("p", "m")
    await circuits.close()


async def test_waiting_ends_at_cool_down_change_or_deadline(store: Store) -> None:
    clock = Clock()
    store.clock = clock
    circuits = CircuitBreakers(store, Policy(cool_down_ms=100_000, max_cool_down_ms=100_000))
    for _ in range(3):
        circuits.record_failure("p", "m", failure())
    circuit = circuits.open_circuit("p", "m")
    assert circuit is not None
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        await circuits.wait_for_change([circuit], loop.time() + 0.01)  # the deadline
        waiting = asyncio.create_task(circuits.wait_for_change([circuit], loop.time() + 1000))
        await asyncio.sleep(0)
        circuits.record_success("p", "m", "last resort")
        await waiting
        circuit.open_until = clock.now + 10 * MS
        await circuits.wait_for_change([circuit], loop.time() + 1000)
    assert not circuits._waiters


async def test_obsolete_rows_are_deleted(store: Store) -> None:
    clock = Clock()
    store.clock = clock
    store.writer._clock = clock
    circuits, job_id = CircuitBreakers(store, POLICY), await a_job(store)
    await fails(store, circuits, job_id, "once")
    for _ in range(3):
        await fails(store, circuits, job_id, "often")
    assert [each.model for each in await list_circuits(store)] == ["often", "once"]
    clock.now += 120_000_000
    await forget_circuits(store, clock.now - 60_000_000, clock.now - 24 * 3_600_000_000)
    assert [each.model for each in await list_circuits(store)] == ["often"]
    await forget_circuits(store, clock.now, clock.now)
    assert await list_circuits(store) == []


def test_checking_a_circuit_reads_no_store(tmp_path: Any) -> None:
    with open_store(str(tmp_path / "x.db")) as store:
        circuits = CircuitBreakers(store, POLICY)
        began = time.perf_counter()
        for _ in range(100_000):
            circuits.allows("p", "m")
        assert time.perf_counter() - began < 2  # 20 µs each would be a mistake of kind, not of speed
