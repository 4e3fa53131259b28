"""An SMTP server that stores accepted mail in a Maildir.

`python -m overnight.demo.mail_server --maildir DIR` prints `{"host": …, "port": …}` and serves 127.0.0.1 until its
standard input closes. A mail is on disk before it is acknowledged. With `--pause-after N` it prints `{"accepted": N}`
once the N-th mail is on disk, and delays the acknowledgement by `--pause-ms`, so that an observer can kill the client
in between.
"""

import argparse
import asyncio
import json
import logging
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from .maildir import create_maildir, deliver

HOST: Final = "127.0.0.1"
MAX_MAIL_BYTES: Final = 2_097_152
_log: Final = logging.getLogger(__name__)


class _Server(SMTP):
    line_length_limit = 65_536  # real mail exceeds the 1,000 of RFC 5321; a rejected mail is worse than a long line


class _Delivery:
    """Stores mail in a Maildir in the order of completion."""

    def __init__(self, maildir: Path, pause_after: Collection[int], pause_ms: int) -> None:
        self._maildir = maildir
        self._pause_after = frozenset(pause_after)
        self._pause_s = pause_ms / 1_000
        self._accepted = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002
        content = envelope.content
        lines = [f"Return-Path: <{envelope.mail_from or ''}>", *(f"Delivered-To: {to}" for to in envelope.rcpt_tos)]
        head = "".join(f"{line}\r\n" for line in lines).encode("ascii", "replace")
        try:
            # Not in a thread: a disconnect cancels this handler, and an interrupted delivery must not be counted.
            name = deliver(self._maildir, head + (content if isinstance(content, bytes) else b""))
        except OSError as error:
            _log.error("%s: mail not delivered, the sender may try again: %s", self._maildir, error)
            return "451 4.3.0 The mail could not be stored, try again later"
        self._accepted += 1
        if self._accepted in self._pause_after:
            with suppress(OSError):  # the mail is accepted even if standard output is closed
                print(json.dumps({"accepted": self._accepted}), flush=True)
            await asyncio.sleep(self._pause_s)
        return f"250 2.0.0 Ok: queued as {name}"


async def serve(maildir: Path, *, pause_after: Collection[int] = (), pause_ms: int = 400) -> None:
    """Serve a free port of 127.0.0.1 until standard input closes; announce the port as a line of JSON."""
    create_maildir(maildir)
    loop = asyncio.get_running_loop()
    delivery = _Delivery(maildir, pause_after, pause_ms)
    listening = await loop.create_server(
        lambda: _Server(
            delivery, data_size_limit=MAX_MAIL_BYTES, hostname="localhost", ident="Overnight demo", loop=loop
        ),
        HOST,
        0,
    )
    parent_gone = asyncio.Event()
    threading.Thread(target=_wait_for_parent, args=(loop, parent_gone), daemon=True).start()
    print(json.dumps({"host": HOST, "port": listening.sockets[0].getsockname()[1]}), flush=True)
    async with listening:
        await parent_gone.wait()


def _wait_for_parent(loop: asyncio.AbstractEventLoop, gone: asyncio.Event) -> None:
    with suppress(OSError):  # without standard input there is no parent to wait for
        while os.read(0, 4_096):
            pass
    with suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(gone.set)


def main() -> None:
    parser = argparse.ArgumentParser(prog="overnight.demo.mail_server", description=__doc__)
    parser.add_argument("--maildir", type=Path, required=True, help="folder for accepted mail; created if missing")
    parser.add_argument("--pause-after", type=int, action="append", default=[], metavar="N", help="may be repeated")
    parser.add_argument("--pause-ms", type=int, default=400, choices=range(60_001), metavar="MS", help="up to 60,000")
    options = parser.parse_args()
    asyncio.run(serve(options.maildir, pause_after=options.pause_after, pause_ms=options.pause_ms))


if __name__ == "__main__":
    main()
