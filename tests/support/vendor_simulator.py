"""A vendor in a process of its own: it does deeds, behaves badly, and is the judge of what was done.

    python vendor_simulator.py --port 0 --seed 7 --file arrivals.jsonl

The first line of output is `{"port": …}`. The file keeps every arrival before anything is done with it, every deed and every
answer, so they survive this process. Requests are HTTP, one per connection:

- POST /ACCOUNT/do `{"subject", "value", "caller"}` with `Idempotency-Key`: do it. A subject names one intention.
- GET /ACCOUNT/status?key=K: `{"state": "done" | "none" | "pending", "id"}`.
- GET /arrivals, GET /deeds: everything so far. GET /pending: the number of requests whose work is still to come.
- POST /plan `{"subject": […behaviours]}`: what becomes of its next requests. POST /calm: from now on everything works.

Accounts differ in what they offer:

- keyed: a key is done once. A status is not offered.
- truthful: keys are ignored; the status is right, and says when work is still to come.
- lagging: keys are ignored; the status shows a deed only once it is `LAG_S` old.
- blind: keys are ignored; the status is not offered.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
LAG_S = 0.4
LATE_S = 0.9
"""How long after its arrival a late request is worked on: its caller has stopped waiting by then."""
WEIGHTS = {
    "works": 12,
    "is_slow": 2,
    "hangs_after": 1,
    "works_late": 1,
    "resets_before": 1,
    "resets_after": 1,
    "errs_before": 1,
    "errs_after": 1,
    "refuses": 1,
    "lies": 1,
    "truncates": 1,
}
"""Behaviours, and how often each is drawn. Except for `resets_before`, `errs_before`, `refuses` and `lies`, the work is done."""
NO_WORK = frozenset({"resets_before", "errs_before", "refuses", "lies"})
KEYED = "keyed"
WITH_STATUS = frozenset({"truthful", "lagging"})


class Vendor:
    """The state, and the file that it is read from at the start."""

    def __init__(self, file: Path, seed: str) -> None:
        self._seed, self.calm = seed, False
        self.arrivals: list[Json] = []
        self.deeds: list[Json] = []
        self.plan: dict[str, list[str]] = {}
        self._of_subject: Counter[str] = Counter()
        self._by_key: dict[tuple[str, str], Json] = {}
        self._pending: Counter[tuple[str, str]] = Counter()
        self._keys: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        for line in file.read_text().splitlines():
            self._take(json.loads(line))

    def _take(self, record: Json) -> None:
        if "arrival" in record:
            self.arrivals.append(record)
            self._of_subject[record["subject"]] += 1
        elif "deed" in record:
            self.deeds.append(record)
            self._by_key.setdefault((record["account"], record["key"]), record)
        else:
            self.arrivals[record["said_to"] - 1]["said"] = record["said"]

    def keep(self, record: Json) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")
        self._take(record)

    @property
    def pending(self) -> int:
        return self._pending.total()

    def arrived(self, account: str, key: str, asked: Json) -> Json:
        """Keep the arrival; what becomes of it is drawn from the seed, the subject and its count alone."""
        subject = str(asked["subject"])
        behaviour = "works"
        if planned := self.plan.get(subject):
            behaviour = planned.pop(0)
        elif not self.calm:
            chance = random.Random(f"{self._seed}|{account}|{subject}|{self._of_subject[subject]}")
            behaviour = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if behaviour == "works_late" and account == "lagging":
            behaviour = "hangs_after"  # no settling time could make its status true
        arrival = {
            "arrival": len(self.arrivals) + 1,
            "at": time.time(),
            "account": account,
            "subject": subject,
            "key": key,
            "value": asked.get("value"),
            "caller": asked.get("caller"),
            "behaviour": behaviour,
            "said": None,
        }
        self.keep(arrival)
        return arrival

    async def work(self, arrival: Json, delay_s: float) -> Json:
        """Do it, once per key where keys are honoured."""
        account, key = arrival["account"], arrival["key"]
        self._pending[account, key] += 1
        try:
            async with self._keys[account, key] if account == KEYED else contextlib.nullcontext():
                if account == KEYED and (known := self._by_key.get((account, key))) is not None:
                    return known
                await asyncio.sleep(delay_s)
                deed = {
                    "deed": len(self.deeds) + 1,
                    "id": f"done_{len(self.deeds) + 1}",
                    "at": time.time(),
                    "by": arrival["arrival"],
                    **{name: arrival[name] for name in ("account", "subject", "key", "value", "caller")},
                }
                self.keep(deed)
                return deed
        finally:
            self._pending[account, key] -= 1

    def status(self, account: str, key: str) -> Json:
        deed = self._by_key.get((account, key))
        if account == "lagging":
            shown = deed is not None and time.time() - deed["at"] >= LAG_S
            return {"state": "done", "id": deed["id"]} if deed is not None and shown else {"state": "none", "id": None}
        if deed is not None:
            return {"state": "done", "id": deed["id"]}
        return {"state": "pending" if self._pending[account, key] else "none", "id": None}


class Connection:
    """One request and what becomes of it."""

    def __init__(self, vendor: Vendor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._vendor, self._reader, self._writer = vendor, reader, writer

    async def serve(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
            }
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
            await self._answer(method, urlsplit(target), headers, json.loads(body or b"{}"))
        self._writer.close()

    async def _answer(self, method: str, target: Any, headers: Json, body: Json) -> None:
        vendor = self._vendor
        match [method, *target.path.strip("/").split("/")]:
            case ["POST", account, "do"]:
                await self._do(vendor.arrived(account, headers.get("idempotency-key", ""), body))
            case ["GET", account, "status"] if account in WITH_STATUS:
                await self._say(200, vendor.status(account, parse_qs(target.query)["key"][0]))
            case ["GET", "arrivals"]:
                await self._say(200, {"arrivals": vendor.arrivals})
            case ["GET", "deeds"]:
                await self._say(200, {"deeds": vendor.deeds})
            case ["GET", "pending"]:
                await self._say(200, {"pending": vendor.pending})
            case ["POST", "plan"]:
                vendor.plan |= body
                await self._say(200, {})
            case ["POST", "calm"]:
                vendor.calm = True
                await self._say(200, {})
            case _:
                await self._say(404, {"error": "not offered"})

    async def _do(self, arrival: Json) -> None:
        vendor, behaviour = self._vendor, arrival["behaviour"]
        if behaviour in NO_WORK:
            await self._without_work(arrival)
            return
        delay_s = {"works_late": LATE_S, "is_slow": 0.15}.get(behaviour, 0.0)
        # Its caller may leave at any moment; what it asked for is done all the same.
        deed = await asyncio.shield(asyncio.ensure_future(vendor.work(arrival, delay_s)))
        match behaviour:
            case "hangs_after" | "works_late":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(30):
                        await self._reader.read()
            case "resets_after":
                self._reset()
            case "errs_after":
                await self._told(arrival, 500, {"error": "internal error"})
            case "truncates":
                answer = _response(200, {"id": deed["id"], "value": arrival["value"]})
                self._writer.write(answer[: len(answer) - 12])
                await self._writer.drain()
            case _:
                await self._told(arrival, 200, {"id": deed["id"], "value": arrival["value"]})

    async def _without_work(self, arrival: Json) -> None:
        match arrival["behaviour"]:
            case "errs_before":
                await self._told(arrival, 500, {"error": "internal error"})
            case "refuses":
                await self._told(arrival, 422, {"error": "refused: nothing was done"})
            case "lies":
                await self._told(arrival, 200, {"id": f"lie_{arrival['arrival']}", "value": arrival["value"]})
            case _:
                self._reset()

    async def _told(self, arrival: Json, status: int, body: Json) -> None:
        self._vendor.keep({"said_to": arrival["arrival"], "said": body.get("id") or status})
        await self._say(status, body)

    async def _say(self, status: int, body: Json) -> None:
        self._writer.write(_response(status, body))
        await self._writer.drain()

    def _reset(self) -> None:
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def _response(status: int, body: Json) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + content


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--calm", action="store_true", help="everything works, except for what is planned")
    options = parser.parse_args()
    vendor = Vendor(options.file, options.seed)
    vendor.calm = options.calm

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(vendor, reader, writer).serve()

    server = await asyncio.start_server(serve, "127.0.0.1", options.port, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    async with server:
        # Standard input ends with the process that started this one.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
