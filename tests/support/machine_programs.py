"""Random job programs, their external world, and a model that computes their results."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import strategies as st

import overnight
from overnight.jobs import NOT_DONE, Done, Retry

Node = list[Any]
Body = list[Node]


class World:
    """What stands outside of the jobs and survives every worker: providers, people, and what job code has seen."""

    def __init__(self) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.by_name: dict[str, set[str]] = {}
        self.failures: Counter[str] = Counter()
        self.troubles: Counter[str] = Counter()
        self.seen: dict[str, Any] = {}
        self.changed: list[str] = []
        self.fickle: set[str] = set()
        self.frozen = False
        self._nonces = 0

    def nonce(self) -> int:
        self._nonces += 1
        return self._nonces

    def observe(self, name: str, value: Any) -> Any:
        """Job code was given this value: it must be given the same one whenever it is run again, unless a retry asks afresh."""
        if name not in self.fickle and self.seen.setdefault(name, value) != value:
            self.changed.append(f"{name}: {self.seen[name]} became {value}")
        return value

    def asks_afresh(self) -> None:
        """A failed job is tried again: what is no effect may come out otherwise."""
        self.seen = {name: value for name, value in self.seen.items() if name.startswith("effect")}

    def act(self, name: str, key: str) -> dict[str, Any]:
        assert not self.frozen, "a lost worker acted"
        self.calls[key] += 1
        self.by_name.setdefault(name, set()).add(key)
        return self.done.setdefault(key, {"effect": name, "nonce": self.nonce()})


world = World()


def begin() -> World:
    """A new world for a new example."""
    global world  # noqa: PLW0603
    world = World()
    return world


# ── what job code calls ──────────────────────────────────────────────────────────────────────────────────────────────


@overnight.step
async def leaf(name: str, interleaving: list[str]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"step": name, "nonce": world.nonce()}


async def stumbling(name: str, times: int) -> dict[str, Any]:
    await asyncio.sleep(0)
    if world.failures[name] < times:
        world.failures[name] += 1
        raise ValueError(f"{name} stumbles")
    return {"step": name, "nonce": world.nonce()}


async def _effect(name: str, mood: str, idempotency_key: str) -> dict[str, Any]:
    await asyncio.sleep(0)
    first = not world.troubles[name]
    if mood == "refused":
        raise overnight.NotDone("no such mailbox")
    if mood == "lost before" and first:
        world.troubles[name] += 1
        raise ConnectionError("cut before it was done")
    result = world.act(name, idempotency_key)
    await asyncio.sleep(0)
    if mood == "lost after" and first:
        world.troubles[name] += 1
        raise ConnectionError("cut after it was done")
    return result


async def _check(idempotency_key: str, name: str, mood: str) -> Any:
    await asyncio.sleep(0)
    return Done(idempotency_key, world.done[idempotency_key]) if idempotency_key in world.done else NOT_DONE


checked = overnight.effect(tool="checked")(_effect)
checked.status_check(_check)
blind = overnight.effect(tool="blind")(_effect)


# ── the interpreter ──────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def program(body: Body) -> list[Any]:
    return await _run(body, [])


async def _run(body: Body, log: list[str] | None) -> list[Any]:
    """`log` is shared by the branches of a job; what stands in it becomes part of what later steps are asked with, so that
    a replay that delivers answers in another order diverges."""
    results: list[Any] = []
    for node in body:
        results.append(await _node(node, log))
        if log is not None:
            log.append(str(node[1]))
    return results


async def _node(node: Node, log: list[str] | None) -> Any:
    kind, name = node[0], node[1]
    match kind:
        case "step":
            return world.observe(name, await leaf(name, list(log or [])))
        case "flaky":
            policy = Retry(attempts=node[2] + 1, backoff_s=0.0005)
            return world.observe(name, await overnight.step(name=name, retry=policy)(stumbling)(name, node[2]))
        case "doomed":
            return await overnight.step(name=name)(stumbling)(name, 1_000_000)
        case "fails once":
            return await overnight.step(name=name)(stumbling)(name, 1)
        case "effect":
            act = checked if node[3] else blind
            try:
                return world.observe(name, await act(name, node[2]))
            except overnight.EffectFailed:
                return world.observe(name, "refused")
        case "nest":
            return await overnight.step(name=name)(_run)(node[2], None)
        case "nest twice":
            world.fickle |= {each for each in named(node[2]) if not each.startswith("effect")}
            policy = Retry(attempts=2, backoff_s=0.0005)
            return await overnight.step(name=name, retry=policy)(_stumbling_run)(name, node[2])
        case "timeout":
            try:
                async with overnight.timeout(node[3]):
                    await _run(node[2], log)
            except TimeoutError:
                return world.observe(name, "too late")
            return world.observe(name, "in time")
        case "gather":
            return await asyncio.gather(*(_run(each, log) for each in node[2]))
        case "crowd":
            return await _crowd(node[2], log)
        case "pool":
            return await _pool(node[2], log)
        case "try":
            try:
                return ["fine", await _run(node[2], log)]
            except Exception:
                return ["caught"]
        case "approve":
            said = await overnight.approval(name)
            return world.observe(name, {"approved": said.approved, "nonce": said.note})
        case "sleep":
            await overnight.sleep(node[2])
            return "slept"
        case "value":
            # Durable no later than what is asked next, so it is a later step that tells whether it stayed the same.
            drawn = [overnight.random(), overnight.uuid(), str(overnight.now())]
            if log is not None:
                log.append(str(drawn))
            return {"value": name, "nonce": drawn}
        case "child":
            return await program(node[2])
    raise AssertionError(kind)


async def _crowd(bodies: list[Body], log: list[str] | None) -> list[Any]:
    """Branches that wait for each other, of which all come to their end although one fails."""
    room = asyncio.Semaphore(1)

    async def alone(body: Body) -> list[Any]:
        async with room:
            return await _run(body, log)

    results = await asyncio.gather(*(alone(each) for each in bodies), return_exceptions=True)
    return _all_or_first_error(results)


async def _pool(body: Body, log: list[str] | None) -> list[Any]:
    """Two branches that take the next node each from a common line: who does what depends on who is faster."""
    line, results = list(body), dict[str, Any]()

    async def takes() -> None:
        while line:
            node = line.pop(0)
            results[node[1]] = await _node(node, log)

    _all_or_first_error(await asyncio.gather(takes(), takes(), return_exceptions=True))
    return [results[node[1]] for node in body]


def _all_or_first_error(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _stumbling_run(name: str, body: Body) -> list[Any]:
    results = await _run(body, None)
    await stumbling(name, 1)
    return results


def named(body: Body) -> set[str]:
    """The names of all nodes in a body."""
    found: set[str] = set()
    for node in body:
        found.add(node[1])
        for inner in node[2] if node[0] in CROWDS else [node[2]] if node[0] in BODIES else []:
            found |= named(inner)
    return found


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Failed(Exception):
    """The program fails here."""


def plain(body: Body) -> list[Any]:
    """What a run without any loss comes to. Raises Failed."""
    return [_plain(node) for node in body]


def _plain(node: Node) -> Any:
    kind, name = node[0], node[1]
    match kind:
        case "step" | "flaky" | "fails once":
            return {"step": name}
        case "doomed":
            raise Failed
        case "effect":
            return "refused" if node[2] == "refused" else {"effect": name}
        case "nest" | "nest twice" | "child" | "pool":
            return plain(node[2])
        case "timeout":
            return EITHER
        case "gather" | "crowd":
            return [plain(each) for each in node[2]]
        case "try":
            try:
                fine = ["fine", plain(node[2])]
            except Failed:
                return ["caught"]
            return Maybe(fine) if _may_fail(node[2]) else fine
        case "approve":
            return {"approved": True}
        case "sleep":
            return "slept"
        case "value":
            return {"value": name}
    raise AssertionError(kind)


def acts(body: Body, *, late: bool) -> set[str]:
    """The effects that a plain run does; `late`: what lies in timeouts included."""
    done: set[str] = set()

    def walk(nodes: Body) -> None:
        for node in nodes:
            match node[0]:
                case "effect" if node[2] != "refused":
                    done.add(node[1])
                case "doomed":
                    raise Failed
                case "nest" | "nest twice" | "child":
                    walk(node[2])
                case "pool":
                    _walk_beside(walk, [[each] for each in node[2]])
                case "timeout" if late:
                    walk(node[2])
                case "try" if late or not _may_fail(node[2]):
                    try:
                        walk(node[2])
                    except Failed:
                        continue
                case "gather" | "crowd":
                    _walk_beside(walk, node[2])

    _walks(walk, body)
    return done


def _walk_beside(walk: Any, bodies: list[Body]) -> None:
    """A branch that fails does not stop its siblings."""
    failed = [_walks(walk, each) for each in bodies]
    if any(failed):
        raise Failed


def _walks(walk: Any, body: Body) -> bool:
    try:
        walk(body)
    except Failed:
        return True
    return False


class Maybe(list[Any]):
    """What a `try` comes to, unless it caught something that failed once."""


def _may_fail(body: Body) -> bool:
    return any(name.startswith("fails once") for name in named(body))


def matches(result: Any, wanted: Any) -> bool:
    """Whether a result is what the model wants; a timeout may have come or not."""
    if isinstance(wanted, Maybe) and result == ["caught"]:
        return True
    if wanted == EITHER:
        return result in {"in time", "too late"}
    if isinstance(wanted, list):
        return (
            isinstance(result, list)
            and len(result) == len(wanted)
            and all(matches(*pair) for pair in zip(result, wanted, strict=True))
        )
    return bool(result == wanted)


def without_nonces(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nonces(each) for key, each in value.items() if key != "nonce"}
    return [without_nonces(each) for each in value] if isinstance(value, list) else value


# ── random programs ──────────────────────────────────────────────────────────────────────────────────────────────────

BODIES = frozenset({"nest", "nest twice", "try", "child", "timeout", "pool"})
CROWDS = frozenset({"gather", "crowd"})
EITHER = "in time or too late"
MOODS = ("fine", "fine", "fine", "lost before", "lost after", "refused")
KINDS = {
    "step": st.just(["step", "?"]),
    "flaky": st.builds(lambda fails: ["flaky", "?", fails], st.integers(1, 2)),
    "effect": st.builds(lambda mood, check: ["effect", "?", mood, check], st.sampled_from(MOODS), st.booleans()),
    "approve": st.just(["approve", "?"]),
    "sleep": st.builds(lambda seconds: ["sleep", "?", seconds], st.sampled_from([0.002, 30])),
    "value": st.just(["value", "?"]),
    "doomed": st.just(["try", "?", [["doomed", "?"]]]),
    "fails once": st.just(["fails once", "?"]),
}


def bodies(*kinds: str, most: int = 3, depth: int = 3) -> st.SearchStrategy[Body]:
    """Programs of these kinds of nodes; each node gets a name of its own."""
    leaves = st.one_of(*(KINDS[kind] for kind in kinds if kind in KINDS))
    nodes: st.SearchStrategy[Any] = leaves
    for _ in range(depth - 1):
        inner = st.lists(nodes, min_size=1, max_size=most)
        shapes = [
            st.builds(lambda kind, body: [kind, "?", body], st.just(kind), inner)
            for kind in ("nest", "nest twice", "try", "child", "pool")
            if kind in kinds
        ]
        if "timeout" in kinds:
            shapes.append(
                st.builds(lambda body, s: ["timeout", "?", body, s], inner, st.sampled_from([0.002, 0.01, 0.05, 20]))
            )
        shapes += [
            st.builds(lambda kind, each: [kind, "?", each], st.just(kind), st.lists(inner, min_size=2, max_size=3))
            for kind in ("gather", "crowd")
            if kind in kinds
        ]
        nodes = st.one_of(leaves, leaves, *shapes)
    return st.lists(nodes, min_size=1, max_size=most + 1).map(_named)


def _named(body: Body) -> Body:
    count = 0

    def name(nodes: Body) -> Body:
        nonlocal count
        named: Body = []
        for node in nodes:
            count += 1
            copy = [node[0], f"{node[0]}-{count}", *node[2:]]
            if node[0] in BODIES:
                copy[2] = name(node[2])
            elif node[0] in CROWDS:
                copy[2] = [name(each) for each in node[2]]
            named.append(copy)
        return named

    return name(body)
