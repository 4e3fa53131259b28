"""Makes the deliveries that are due, in the process that serves the sink."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from overnight.domain import Fenced, OvernightError
from overnight.store import Store, crash_point

from .deliveries import BeginDelivery, FinishDelivery, RecoverDelivery
from .links import may_decide, new_token, token_digest
from .messages import Message, message_of
from .outcomes import Delivered, NotDelivered, Outcome
from .rows import SQL, AddressRow, options_of
from .sender import MessageSender

log = logging.getLogger("overnight.notifications")
FIRST_DELAY_S, LONGEST_DELAY_S = 5.0, 3600.0
IDLE_S, LONGEST_IDLE_S, RETRY_S = 0.05, 1.0, 2.0
MAX_IN_FLIGHT, MAX_PER_ADDRESS = 16, 4
FINISH_TRIES = 5


def delay_s(attempt: int, asked_s: float | None = None) -> float:
    """The time until the next attempt: it doubles, with a random part, and is not shorter than what the receiver asked for."""
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 20))
    return max(random.uniform(longest / 2, longest), asked_s or 0.0)  # noqa: S311 - no secret


class Dispatcher:
    """Claims due deliveries, makes one attempt for each, and records the outcome.

    Args:
        owner: the name of this process, which serves the sink.
        delay: see `delay_s`.
    """

    def __init__(
        self,
        store: Store,
        sender: MessageSender,
        owner: str,
        public_url: str = "",
        delay: Callable[[int, float | None], float] = delay_s,
    ) -> None:
        self._store, self._sender, self._owner = store, sender, owner
        self._public_url, self._delay = public_url, delay
        self._loop: asyncio.Task[None] | None = None
        self._in_flight: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._paused: dict[str, float] = {}
        self._news = asyncio.Event()

    async def recover(self) -> None:
        """End the attempts of processes that served the sink before. Raises Fenced, StoreUnavailable."""
        for delivery_id, job_id, address_id in await self._store.read(SQL["list_begun"], {}):
            await self._store.commit(RecoverDelivery(delivery_id, job_id, address_id, self._owner))

    def start(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End all attempts. Their deliveries are recovered by the process that serves the sink next."""
        if self._loop is not None:
            self._loop.cancel()
            self._loop = None
        for _, task in self._in_flight.values():
            task.cancel()

    def wake(self) -> None:
        """Look for new deliveries at once. May be called in another thread: the event is only a hint."""
        self._news.set()

    async def _run(self) -> None:
        idle, trouble = IDLE_S, ""
        while True:
            self._news.clear()
            try:
                found = await self._start_due()
                trouble = ""
            except Fenced:
                return
            except OvernightError as error:
                found = 0
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("notifications: %s; trying again", trouble)
            except Exception:
                found = 0
                log.exception("notifications failed by a fault of their own; trying again")
            idle = IDLE_S if found else min(idle * 2, LONGEST_IDLE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._news.wait()

    async def _start_due(self) -> int:
        """Start attempts, as many as there is room for. Returns how many."""
        started, now = 0, self._store.clock()
        loop_time = asyncio.get_running_loop().time()
        for (address_id,) in await self._store.read(SQL["list_due_addresses"], {"now": now}):
            busy = sum(held == address_id for held, _ in self._in_flight.values())
            room = min(MAX_PER_ADDRESS - busy, MAX_IN_FLIGHT - len(self._in_flight))
            if room <= 0 or self._paused.get(address_id, 0.0) > loop_time:
                continue
            values = {"address_id": address_id, "now": now, "most": room + busy}
            for delivery_id, job_id, review_id in await self._store.read(SQL["list_due"], values):
                if delivery_id in self._in_flight or room <= 0:
                    continue
                attempt = self._attempt(delivery_id, job_id, address_id, review_id)
                task = asyncio.create_task(attempt)
                self._in_flight[delivery_id] = (address_id, task)
                task.add_done_callback(lambda _, key=delivery_id: self._ended(key))
                room, started = room - 1, started + 1
        return started

    def _ended(self, delivery_id: str) -> None:
        self._in_flight.pop(delivery_id, None)
        self._news.set()  # there is room again

    async def _attempt(self, delivery_id: str, job_id: str, address_id: str, review_id: str) -> None:
        token = new_token() if self._public_url else None
        try:
            attempt = await self._store.commit(
                BeginDelivery(
                    delivery_id=delivery_id,
                    job_id=job_id,
                    address_id=address_id,
                    review_id=review_id,
                    owner=self._owner,
                    token_digest=None if token is None else token_digest(token),
                )
            )
            if attempt is None:
                return
            crash_point("notification_claimed")
            options = options_of(attempt.address)
            has_link = token is not None and options.links != "none"
            message = message_of(
                attempt.review,
                delivery_id,
                options,
                link=f"{self._public_url}/reviews/{token}" if has_link else "",
                can_decide=has_link and may_decide(attempt.review, attempt.address),
            )
            outcome = await self._send(attempt.address, message)
            crash_point("notification_sent")
            delay = self._delay_after(outcome, attempt.number, address_id)
            await self._finish(
                FinishDelivery(
                    delivery_id=delivery_id,
                    job_id=job_id,
                    address_id=address_id,
                    number=attempt.number,
                    outcome=outcome,
                    delay_us=int(delay * 1_000_000),
                )
            )
        except OvernightError as error:
            log.warning("notification %s: %s; trying again", delivery_id, error)

    async def _send(self, address: AddressRow, message: Message) -> Outcome:
        try:
            return await self._sender.send(address, message, self._store.clock())
        except OvernightError as error:  # its secrets cannot be decrypted
            return NotDelivered(str(error))
        except Exception as error:
            log.exception("a notification could not be sent")
            return NotDelivered(f"internal error: {type(error).__name__}; see the log of the worker")

    def _delay_after(self, outcome: Outcome, number: int, address_id: str) -> float:
        if isinstance(outcome, Delivered):
            return 0.0
        delay = self._delay(number, outcome.retry_after_s)
        if outcome.retry_after_s is not None:
            # The receiver limits the rate of all messages to it.
            self._paused[address_id] = asyncio.get_running_loop().time() + outcome.retry_after_s
        return delay

    async def _finish(self, command: FinishDelivery) -> None:
        """Record an outcome; while the store does not answer, again. What is not recorded is recovered later."""
        for last_try in (*[False] * (FINISH_TRIES - 1), True):
            try:
                state = await self._store.commit(command)
            except OvernightError:
                if last_try:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                if state in ("failed", "unknown"):
                    log.warning("notification %s: %s", command.delivery_id, state)
                return
