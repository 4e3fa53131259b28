"""Fair queueing: tenants take turns, and each tenant is served first come, first served."""

import asyncio
import selectors
from collections import Counter, defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_parts import examples
from overnight.gateway.admission.admission_queue import AdmissionQueue, QueuePosition

ROW = ("", "target", "model")
OTHER = ("", "target", "other model")


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def served_in_order(arrivals: list[str], leavers: set[int]) -> list[int]:
    """Everybody gets in line; some leave while they wait; the others are served one by one. The order in which they are."""
    lines, order = AdmissionQueue(), list[int]()
    turns = [lines.join(ROW, tenant) for tenant in arrivals]
    for number in sorted(leavers):
        turns[number].give_up()

    async def serve(number: int, turn: QueuePosition) -> None:
        await turn.reach_front(soon())
        order.append(number)
        await asyncio.sleep(0)
        turn.leave()

    await asyncio.gather(*(serve(n, turn) for n, turn in enumerate(turns) if n not in leavers))
    assert lines.join_any(lambda: [ROW], "anybody") is None, "an empty line is gone"
    return order


def in_turns(arrivals: list[str], leavers: set[int]) -> list[int]:
    """The same, written down: the first of the line, then tenant after tenant."""
    waiting: dict[str, deque[int]] = defaultdict(deque)
    order: list[int] = []
    front: int | None = None
    rota: deque[str] = deque()
    for number, tenant in enumerate(arrivals):
        if front is None:
            front = number
            continue
        if not waiting[tenant]:
            rota.append(tenant)
        waiting[tenant].append(number)

    def following() -> int | None:
        if not rota:
            return None
        tenant = rota.popleft()
        number = waiting[tenant].popleft()
        if waiting[tenant]:
            rota.append(tenant)
        return number

    for number in sorted(leavers):
        tenant = arrivals[number]
        if number == front and waiting[tenant]:
            front = waiting[tenant].popleft()  # its tenant keeps the turn
            if not waiting[tenant]:
                rota.remove(tenant)
        elif number == front:
            front = following()
        else:
            waiting[tenant].remove(number)
            if not waiting[tenant]:
                rota.remove(tenant)
    while front is not None:
        order.append(front)
        front = following()
    return order


@examples(200, 3000)
@given(st.lists(st.sampled_from("abc"), max_size=20), st.sets(st.integers(0, 19)))
def test_tenants_take_turns_in_arrival_order(arrivals: list[str], leavers: set[int]) -> None:
    gone = {number for number in leavers if number < len(arrivals)}
    assert asyncio.run(served_in_order(arrivals, gone)) == in_turns(arrivals, gone)


async def test_settlement_wakes_only_the_front() -> None:
    lines = AdmissionQueue()
    first, second = lines.join(ROW, "a"), lines.join(ROW, "a")
    await first.reach_front(soon())
    hearing = asyncio.create_task(first.wait_for_change(soon(), sleep_s=60))
    behind = asyncio.create_task(second.reach_front(soon()))
    await asyncio.sleep(0.01)
    assert not hearing.done()
    lines.settled(lambda: [OTHER])
    await asyncio.sleep(0.01)
    assert not hearing.done()
    lines.settled(lambda: [ROW])
    await asyncio.wait_for(hearing, 5)
    assert not behind.done()
    first.leave()
    await asyncio.wait_for(behind, 5)
    second.leave()


async def test_settlement_between_two_polls_is_not_missed() -> None:
    lines = AdmissionQueue()
    turn = lines.join(ROW, "a")
    await turn.reach_front(soon())
    lines.notify()  # while the store was being asked
    await asyncio.wait_for(turn.wait_for_change(soon(), sleep_s=60), 1)
    turn.leave()


async def test_front_polls_without_a_settlement() -> None:
    """Another process may have settled."""
    turn = AdmissionQueue().join(ROW, "a")
    await turn.reach_front(soon())
    await asyncio.wait_for(turn.wait_for_change(soon()), 5)
    turn.leave()


@pytest.mark.parametrize("place", ["front", "behind"])
async def test_waiting_ends_at_the_deadline(place: str) -> None:
    lines = AdmissionQueue()
    turns = [lines.join(ROW, "a"), lines.join(ROW, "a")]
    turn = turns[place == "behind"]
    with pytest.raises(TimeoutError):
        await turn.wait_for_change(soon(-1))
    for each in turns:
        each.leave()
    assert lines.join_any(lambda: [ROW], "a") is None


async def test_later_calls_queue_behind_waiting_ones() -> None:
    lines = AdmissionQueue()
    assert lines.join_any(lambda: pytest.fail("nobody waits, so nothing is asked"), "b") is None
    first = lines.join(ROW, "a")
    assert lines.join_any(lambda: [OTHER], "b") is None
    later = lines.join_any(lambda: [OTHER, ROW], "b")
    assert later is not None
    assert later.key == ROW
    later.leave()
    first.leave()


# ── two processes ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Instant(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Nothing is waited for: the time of the loop is moved on instead."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passed += timeout or 0.0
        return super().select(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose time passes only while all wait."""

    def __init__(self) -> None:
        self._instant = _Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.passed


async def share_of_each_client(clients: int, places: int, service_s: float, *, is_shared: bool) -> list[int]:
    """Eager clients, each a tenant, at two processes in turn, for a minute: how many answers each one gets."""
    loop, served = asyncio.get_running_loop(), Counter[int]()
    queues = [AdmissionQueue(lambda: is_shared) for _ in range(2)]
    free = places

    async def client(number: int) -> None:
        nonlocal free
        queue, tenant = queues[number % 2], str(number)
        while loop.time() < 60:
            position = queue.join_any(lambda: [ROW], tenant)
            if position is not None:
                await position.reach_front(loop.time() + 60)
            while True:
                await asyncio.sleep(0.002)  # a transaction
                if free > 0:
                    free -= 1
                    break
                position = position or queue.join(ROW, tenant)
                await position.wait_for_change(loop.time() + 60)
            if position is not None:
                position.admitted()
                position.leave()
            await asyncio.sleep(service_s)
            free += 1
            queue.settled(lambda: [ROW])
            served[number] += 1
            await asyncio.sleep(0.001)  # the way to the client and back

    await asyncio.gather(*map(client, range(clients)))
    return [served[number] for number in range(clients)]


def shares(clients: int, places: int, service_s: float, *, is_shared: bool = True) -> list[int]:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(share_of_each_client(clients, places, service_s, is_shared=is_shared))


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("clients", [6, 12])
def test_two_processes_share_a_row_evenly(clients: int, places: int) -> None:
    found = shares(clients, places, 1.0)
    assert sum(found) >= 0.95 * 60 * places
    assert max(found) <= 1.5 * min(found)


@pytest.mark.parametrize("service_s", [0.01, 0.1])
def test_yielding_leaves_short_calls_their_places(service_s: float) -> None:
    alone = shares(12, 2, service_s, is_shared=False)
    assert sum(shares(12, 2, service_s)) >= 0.95 * sum(alone)
