"""LangGraph as a peer: a graph of 10 nodes in a row, `durability="sync"`, so each node waits for its checkpoint.

    bench/.peers/langgraph/bin/python bench/peer_langgraph.py --store sqlite --concurrency 32

The nodes do nothing and the state is one small value: this is the cost of durability and nothing else. Value: nodes per
second over all threads. A peer in its best shape: uvloop; WAL with `synchronous=FULL` on SQLite; on PostgreSQL a
checkpointer and connection for every job (`--shared`: one for all, as most code has it; its lock lets one job write).
Every thread that ended is read back from the store: a figure without durable nodes behind it is not printed.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict

import peers

NODES = 10


def command(store: str, concurrency: int, seconds: float, dsn: str | None = None) -> list[str]:
    """The command line of one run, for `measure.Workload`."""
    line = [peers.python("langgraph"), __file__, "--store", store]
    line += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
    return [*line, "--dsn", dsn] if dsn else line


class State(TypedDict):
    count: int


def graph() -> Any:
    from langgraph.graph import END, START, StateGraph

    async def node(state: State) -> State:
        return {"count": state["count"] + 1}

    builder = StateGraph(State)
    names = [f"node_{number}" for number in range(NODES)]
    for name in names:
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder


@asynccontextmanager
async def checkpointers(store: str, dsn: str | None, concurrency: int, shared: bool) -> AsyncIterator[list[Any]]:
    """One checkpointer per concurrent job; the same one for all on SQLite, which has one writer anyway."""
    async with AsyncExitStack() as stack:
        if store == "sqlite":
            from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

            home = stack.enter_context(tempfile.TemporaryDirectory())
            saver = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(Path(home) / "langgraph.db")))
            await saver.setup()  # switches to WAL
            await saver.conn.execute("PRAGMA synchronous=FULL")
            yield [saver] * concurrency
        else:
            from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

            opened = [
                await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(dsn or ""))
                for _ in range(1 if shared else concurrency)
            ]
            await opened[0].setup()
            yield opened * (concurrency if shared else 1)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    async with checkpointers(options.store, options.dsn, options.concurrency, options.shared) as savers:
        compiled = [graph().compile(checkpointer=saver) for saver in savers]
        prefix = f"{time.time_ns()}"
        finished: list[tuple[Any, dict[str, Any]]] = []

        async def job(app: Any, thread: str) -> None:
            config = {"configurable": {"thread_id": thread}}
            await app.ainvoke({"count": 0}, config, durability="sync")
            finished.append((app, config))

        async def worker(number: int, until: float) -> None:
            jobs = 0
            while time.perf_counter() < until:
                await job(compiled[number], f"{prefix}-{number}-{jobs}")
                jobs += 1

        await job(compiled[0], f"{prefix}-warm")
        finished.clear()
        began = time.perf_counter()
        await asyncio.gather(*(worker(number, began + options.seconds) for number in range(options.concurrency)))
        elapsed = time.perf_counter() - began
        for app, config in finished:
            if (stored := (await app.aget_state(config)).values) != {"count": NODES}:
                raise SystemExit(f"thread {config} was not stored: {stored}")
    nodes = len(finished) * NODES
    return {"value": nodes / elapsed, "unit": "nodes/s", "jobs": len(finished), "nodes": nodes, "elapsed_s": elapsed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], required=True)
    parser.add_argument("--dsn", help="of a running PostgreSQL")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--shared", action="store_true", help="one PostgreSQL checkpointer for all jobs")
    import uvloop

    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
