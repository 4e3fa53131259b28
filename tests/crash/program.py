"""An external program of the storm: its own loop, model calls over HTTP, a restart after each kill.

`python -m tests.crash.program LABEL plain|stream` prints its result as one line of JSON. Exit code 75: it waits for a person.
"""

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import overnight

from .workload import ask_outside, blind, post

WAITS_FOR_PERSON = 75
LONGEST_WAIT_S = 30.0


def _connected(base_url: str) -> http.client.HTTPConnection:
    """Connect, waiting for a gateway that is being started again; nothing was sent yet, so this repeats nothing."""
    place = urlsplit(base_url)
    until = time.monotonic() + LONGEST_WAIT_S
    while True:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=LONGEST_WAIT_S)
        try:
            connection.connect()
        except OSError:
            connection.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return connection


def _call(job: Any, prompt: str, stream: bool) -> tuple[str, str]:
    """One model call over HTTP: the answer's text, and the id of the call behind it."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "stream": stream}
    connection = _connected(job.base_url)
    try:
        headers = {"content-type": "application/json", **job.headers}
        connection.request("POST", f"{urlsplit(job.base_url).path}/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{prompt}: {answer.status} {content[:300]!r}")
        call_id = answer.headers["x-overnight-call-id"]
        return (_streamed(content) if stream else _plain(content)), call_id
    finally:
        connection.close()


def _plain(content: bytes) -> str:
    return json.loads(content)["choices"][0]["message"]["content"]


def _streamed(content: bytes) -> str:
    text, finished = "", False
    for line in content.decode().splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        piece = json.loads(line.removeprefix("data: "))
        if "error" in piece:
            raise RuntimeError(str(piece["error"]))
        for choice in piece["choices"]:
            text += choice["delta"].get("content") or ""
            finished = finished or choice["finish_reason"] is not None
    if not finished:
        raise RuntimeError("the stream ended before its finish reason")
    return text


async def _say(job: Any, subject: str, stream: bool) -> str:
    text, call_id = await asyncio.to_thread(_call, job, f"say {subject}", stream)
    await ask_outside(op="heard", call_id=call_id)
    return text


async def _main(label: str, stream: bool) -> list[Any]:
    with overnight.attach(label) as job:
        said = list(await asyncio.gather(*(_say(job, f"{label}/both-{n}", stream) for n in range(2))))
        for number in range(2):
            said.append(await _say(job, f"{label}/{number}", stream))
            await post(f"{label}/{number}", said[-1])
        return [*said, await blind(f"{label}/hidden", "h")]


def expected(label: str, rejected: Collection[str]) -> list[Any]:
    """What a finished program prints."""
    said = [f"heard say {label}/{part}" for part in ("both-0", "both-1", "0", "1")]
    return [*said, "rejected" if f"{label}/hidden" in rejected else "h"]


def deeds(label: str, rejected: Collection[str]) -> set[str]:
    """The subjects that a finished program has done, each once."""
    return {f"{label}/{part}" for part in ("0", "1", "hidden")} - set(rejected)


def main() -> int:
    label, form = sys.argv[1:3]
    try:
        result = asyncio.run(_main(label, form == "stream"))
    except overnight.JobParked as parked:
        print(parked, file=sys.stderr)
        return WAITS_FOR_PERSON
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
