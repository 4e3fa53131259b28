"""An offline model provider: OpenAI chat completions, Responses and embeddings, Anthropic messages and Gemini over HTTP. A
rules file determines answers and faults.

    python -m overnight.testing.scripted_provider --rules FILE --port 0

prints one JSON line `{"event": "ready", "base_url": ...}` when it listens. It calls no model and checks no key. The
`/_scripted/` paths are open to anyone who can reach the port, so it listens on loopback by default.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from .scripted_counts import Counts, request_fingerprint
from .scripted_embeddings import EMBEDDINGS
from .scripted_gemini import count_tokens as count_gemini_tokens
from .scripted_gemini import wire_of
from .scripted_http import FOREVER, Connection, Ending, HttpRequest, Step
from .scripted_messages import count_tokens
from .scripted_messages_wire import MESSAGES
from .scripted_responses import RESPONSES
from .scripted_rules import NO_FAULT, Call, Fault, RuleSet
from .scripted_wire import (
    CHAT,
    CREATED,
    STREAM_HEAD,
    Refused,
    Reply,
    Wire,
    compose,
    error_response,
    framed,
    response,
)

BACKLOG = 4_096
RESET_DELAY_S = 0.02
"""The delay before a reset, so that written bytes are sent: a reset discards the socket's buffer."""

_encode = msgspec.json.encode
_sorted_json = msgspec.json.Encoder(order="deterministic").encode


class Provider:
    """The rules, the counters, and the steps that answer a request."""

    def __init__(self, rules: RuleSet, counts: Counts) -> None:
        self.rules = rules
        self.counts = counts
        self._routes: dict[bytes, dict[bytes, Callable[[HttpRequest], Iterator[Step]]]] = {
            b"/v1/chat/completions": {b"POST": partial(self._asked, CHAT)},
            b"/v1/responses": {b"POST": partial(self._asked, RESPONSES)},
            b"/v1/embeddings": {b"POST": partial(self._asked, EMBEDDINGS)},
            b"/v1/messages": {b"POST": partial(self._asked, MESSAGES)},
            b"/v1/messages/count_tokens": {b"POST": self._count_tokens},
            b"/v1/models": {b"GET": self._models},
            b"/_scripted/stats": {b"GET": self._stats},
            b"/_scripted/calls": {b"GET": self._calls},
            b"/_scripted/reset": {b"POST": self._reset},
            b"/_scripted/rules": {b"POST": self._set_rules},
        }

    def answer(self, http: HttpRequest) -> Iterator[Step]:
        """The steps that answer one HTTP request."""
        path = http.target.partition(b"?")[0]
        methods = self._routes.get(path)
        if methods is None and path.startswith((b"/v1/models/", b"/v1beta/models/")):
            methods = {b"GET": self._model, b"POST": self._addressed}
        if methods is None:
            url = path.decode("latin-1")[:200]
            return iter((error_response(404, f"Unknown request URL: {url}.", "unknown_url"),))
        if handler := methods.get(http.method):
            return handler(http)
        allowed = b", ".join(methods).decode()
        return iter((error_response(405, f"Use {allowed} here.", "method_not_supported"),))

    def _asked(self, wire: Wire, http: HttpRequest) -> Iterator[Step]:
        self.counts.requests += 1
        self.counts.in_flight += 1
        try:
            yield from self._answered(wire, http)
        finally:
            self.counts.in_flight -= 1

    def _answered(self, wire: Wire, http: HttpRequest) -> Iterator[Step]:
        try:
            call = wire.read(http.body, http.headers)
        except Refused as problem:
            yield self._refused(wire, 400, str(problem))
            return
        taken = self.rules.first(call, time.monotonic())
        fault = taken.rule.fault if taken else NO_FAULT
        if fault.status is not None:
            if fault.delay_ms:
                yield fault.delay_ms / 1000
            yield self._refused(wire, fault.status, fault.message, fault.code, fault.retry_after_ms)
            return
        if fault.reset and fault.cut_after_chunks is None:
            if fault.delay_ms:
                yield fault.delay_ms / 1000
            yield Ending.RESET
            return
        fingerprint = request_fingerprint(call.model, call.request.messages)
        nth = self.counts.pay(fingerprint, call.model, call.last_user)
        if fault.stall:
            yield FOREVER
        if fault.delay_ms:
            yield fault.delay_ms / 1000
        reply = compose(call, taken, fingerprint, nth)
        if call.request.stream:
            yield from _streamed(wire, reply, call, fault)
        else:
            yield from _plain(wire, reply, call, fault)

    def _refused(
        self,
        wire: Wire,
        status: int,
        message: str | None = None,
        code: str | None = None,
        retry_after_ms: int | None = None,
    ) -> bytes:
        self.counts.errors_by_status[status] += 1
        return wire.error(status, message, code, retry_after_ms)

    def _count_tokens(self, http: HttpRequest) -> Iterator[Step]:
        try:
            yield response(200, _encode({"input_tokens": count_tokens(http.body, http.headers)}))
        except Refused as problem:
            yield MESSAGES.error(400, str(problem), None, None)

    def _addressed(self, http: HttpRequest) -> Iterator[Step]:
        """A request in Gemini's format, whose path holds the model and the method."""
        name = unquote(http.target.partition(b"?")[0].decode("latin-1").partition("/models/")[2])
        if name.endswith(":countTokens"):
            return iter((response(200, count_gemini_tokens(http.body)),))
        wire = wire_of(name)
        return iter((error_response(404, "Unknown method."),)) if wire is None else self._asked(wire, http)

    def _models(self, _http: HttpRequest) -> Iterator[Step]:
        data = [_model_card(name) for name in self.rules.model_names()]
        yield response(200, _encode({"object": "list", "data": data}))

    def _model(self, http: HttpRequest) -> Iterator[Step]:
        name = http.target.partition(b"?")[0].removeprefix(b"/v1/models/").decode("latin-1")
        known = name in self.rules.model_names()
        yield response(200, _encode(_model_card(name))) if known else error_response(404)

    def _stats(self, _http: HttpRequest) -> Iterator[Step]:
        rules = [{"name": rule.name, "line": rule.line, "taken": rule.taken} for rule in self.rules.rules]
        yield response(200, _encode(self.counts.stats() | {"rules": rules}))

    def _calls(self, _http: HttpRequest) -> Iterator[Step]:
        yield response(200, _encode(self.counts.calls()))

    def _reset(self, _http: HttpRequest) -> Iterator[Step]:
        self.counts.reset()
        for rule in self.rules.rules:
            rule.reset()
        yield response(200, b"{}")

    def _set_rules(self, http: HttpRequest) -> Iterator[Step]:
        # The YAML reader is slow to import, and most providers receive their rules at the start or never.
        from .scripted_rules_file import RulesError, parse_rules

        query = parse_qs(http.target.partition(b"?")[2].decode("latin-1"))
        mode = query.get("mode", ["replace"])[0]
        if mode not in ("replace", "prepend"):
            yield error_response(400, f"`mode` must be replace or prepend, not {mode[:40]!r}.")
            return
        try:
            rules = parse_rules(http.body.decode(), query.get("source", ["rules"])[0][:200])
        except UnicodeDecodeError as problem:
            yield error_response(400, f"Rules must be UTF-8 text: {problem}.")
        except RulesError as problem:
            body = {"message": str(problem), "type": "rules_error", "param": None, "code": "rules_error"}
            yield response(400, _encode({"error": body, "problems": problem.problems}))
        else:
            self.rules = rules.before(self.rules) if mode == "prepend" else rules
            yield response(200, _encode({"rules": len(self.rules.rules)}))


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "scripted"}


def _plain(wire: Wire, reply: Reply, call: Call, fault: Fault) -> Iterator[Step]:
    body = wire.whole(reply, call)
    if fault.broken_json:
        body = body[: len(body) // 2]
    data = response(200, body, b"%s: %s\r\n" % (wire.id_header, reply.request_id))
    if fault.cut_after_chunks is None:
        yield data
    else:
        if fault.cut_after_chunks:
            yield data[: -(len(body) // 2)]
        yield from _cut(fault)


def _streamed(wire: Wire, reply: Reply, call: Call, fault: Fault) -> Iterator[Step]:
    yield STREAM_HEAD % (wire.id_header, reply.request_id)
    for number, event in enumerate(wire.events(reply, call)):
        if number == fault.cut_after_chunks:
            break
        if number and fault.chunk_delay_ms:
            yield fault.chunk_delay_ms / 1000
        # The second event is the first with content, so that the client reads the broken event in mid-answer.
        yield framed(event[: len(event) // 2] + b"\n\n" if fault.broken_json and number == 1 else event)
    if fault.cut_after_chunks is None:
        yield wire.done
    else:
        yield from _cut(fault)


def _cut(fault: Fault) -> Iterator[Step]:
    if fault.reset:
        yield RESET_DELAY_S
        yield Ending.RESET
    yield Ending.CLOSE


async def serve(provider: Provider, host: str, port: int, until_stdin_closes: bool) -> None:
    """Listen until SIGTERM, SIGINT, or (if requested) the end of stdin. Prints the ready line on stdout."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    connections: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(provider.answer, connections), host, port, backlog=BACKLOG)
    port = server.sockets[0].getsockname()[1]
    base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    ready = {"event": "ready", "host": host, "port": port, "base_url": base_url, "pid": os.getpid()}
    print(_sorted_json(ready).decode(), flush=True)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_stdin, args=(loop, stop), daemon=True).start()
    await stop.wait()
    server.close()
    for connection in list(connections):
        connection.abort()


def _wait_for_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 1_024):
        continue
    # The loop may have ended already.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


def _run(main: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop

        uvloop.run(main)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, or 2 if the rules or the count file are invalid."""
    parser = argparse.ArgumentParser(prog="python -m overnight.testing.scripted_provider", description=__doc__)
    parser.add_argument("--rules", type=Path, help="YAML file of rules; without it, every answer is an echo")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 selects a free port")
    parser.add_argument(
        "--count-file",
        type=Path,
        help="file with one JSON line per paid call; survives kill -9 and is read at the next start",
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when stdin is closed (the parent ended)")
    options = parser.parse_args(arguments)
    try:
        rules = RuleSet()
        if options.rules:
            from .scripted_rules_file import parse_rules

            rules = parse_rules(options.rules.read_text(encoding="utf-8"), str(options.rules))
        provider = Provider(rules, Counts(options.count_file))
        _run(serve(provider, options.host, options.port, options.until_stdin_closes))
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
