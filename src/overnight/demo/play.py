"""Runs the demo: creates the mailbox, starts servers and a worker, kills the worker twice, counts and reports."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from overnight.domain import FINISHED, BadInput, Recorded, usd_text
from overnight.files import copy_file, make_folder
from overnight.jobs import Operations
from overnight.ledger import JobRow, Ledger
from overnight.process_environment import load_settings_brain, take_secrets
from overnight.reports import Receipt, load_receipt, public_receipt
from overnight.reviews import list_reviews
from overnight.roles import child_command, child_environment
from overnight.settings import Settings
from overnight.store import Store, open_store
from overnight.story import ReceiptLine, receipt_head, receipt_lines
from overnight.supervisor import Child, ProcessTree
from overnight.testing import ScriptedProvider, start_scripted_provider

from .corpus import demo_expected, make_demo_maildir
from .counting import count_calls, count_mailbox
from .maildir import create_maildir, read_maildir
from .payments import refunds_in
from .person import answer_reviews
from .progress import Progress
from .triage import Desk, triage

KILL_AFTER_MAIL = 7
PAUSE_MS = 3_000
GIVE_UP_S = 170.0


class Stage:
    """One run of the demo: its folder, processes and kills."""

    def __init__(
        self, settings: Settings, secrets: dict[str, str], folder: Path, live: bool, seed: int, progress: Progress
    ) -> None:
        self.settings, self.folder, self.live, self.progress = settings, folder, live, progress
        self.environment = child_environment(settings) | secrets
        self.random = random.Random(seed)  # noqa: S311 it chooses when to kill, nothing secret
        self.inbox, self.received, self.payments = folder / "inbox", folder / "received", folder / "payments.jsonl"
        self.crashes = 0
        self.tree = ProcessTree(lambda _: None)
        self.provider: ScriptedProvider | None = None
        self.mail_server: asyncio.subprocess.Process | None = None

    async def open(self, stack: contextlib.AsyncExitStack, store: Store) -> Desk:
        """Start the mail server, the provider and the worker. Returns the arguments of the job."""
        create_maildir(self.received)
        command = [sys.executable, "-P", "-m", "overnight.demo.mail_server", "--maildir", str(self.received)]
        command += ["--pause-after", str(KILL_AFTER_MAIL), "--pause-ms", str(PAUSE_MS)]
        pipe = asyncio.subprocess.PIPE
        self.mail_server = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        stack.push_async_callback(_end, self.mail_server)
        assert self.mail_server.stdout is not None
        place = json.loads(await self.mail_server.stdout.readline())
        offline: list[str] = []
        if not self.live:
            rules = Path(__file__).with_name("rules.yaml")
            self.provider = await stack.enter_async_context(start_scripted_provider(rules))
            offline = ["--offline-base-url", self.provider.base_url]

        async def died(_: int) -> None:
            await Operations(store).expire_dead_workers()

        worker = [*child_command("worker"), *offline]
        stack.push_async_callback(self.tree.stop)
        await self.tree.start(Child("worker", worker, died, environment=self.environment))
        return Desk(str(self.inbox), place["host"], place["port"], str(self.received), str(self.payments))

    def kill_worker(self, why: str) -> None:
        pid = self.tree.pid("worker")
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.crashes += 1
            self.progress.say(f"kill -9 of the worker {why}")

    async def kill_at_worst_moment(self) -> None:
        """Kill the worker between the acceptance of a mail and its response, so the effect cannot be committed yet."""
        assert self.mail_server is not None
        assert self.mail_server.stdout is not None
        while line := await self.mail_server.stdout.readline():
            if b"accepted" in line:
                self.kill_worker("after the server accepted a mail, before the commit")
                return

    async def kill_at_random(self, ledger: Ledger, job_id: str) -> None:
        """Kill the worker again, a random number of events after the first recovery."""
        while self.crashes == 0 or not _recovered(await ledger.events(job_id)):  # noqa: ASYNC110 another process does it
            await asyncio.sleep(0.05)
        at = (await ledger.job(job_id)).last_seq + self.random.randint(5, 90)
        while (job := await ledger.job(job_id)).last_seq < at:
            if job.state in FINISHED:
                return
            await asyncio.sleep(0.01)
        self.kill_worker("at a random moment")

    async def watch(self, ledger: Ledger, job_id: str) -> JobRow:
        """Show progress until the job finishes or waits for a person."""
        after, until = 0, time.monotonic() + GIVE_UP_S
        while True:
            job = await ledger.job(job_id)
            for event in await ledger.events(job_id, after):
                after = event.seq
                self.progress.add_event(event)
            stuck = (
                job.state == "parked" and job.wake_at is None and not await list_reviews(ledger.store, job_id=job_id)
            )
            if job.state in FINISHED or stuck:
                return await ledger.job(job_id)
            if time.monotonic() > until:
                raise BadInput(f"the demo did not finish in {GIVE_UP_S:.0f} s; see `overnight explain {job_id}`")
            await asyncio.sleep(0.1)


def _recovered(events: list[Recorded]) -> bool:
    return any(event.facts.event == "replay_ended" for event in events)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await process.wait()
            return
    process.kill()


def _lay_out(stage: Stage, maildir: Path | None) -> int:
    """Copy the mailbox to the folder of the run, so that the original stays unchanged. Returns the number of mails."""
    if maildir is None:
        return make_demo_maildir(stage.inbox)
    count = len(read_maildir(maildir))
    if count == 0:
        raise BadInput(f"{maildir}: no mail in new/ or cur/ of this Maildir")
    create_maildir(stage.inbox)
    for place in (*(maildir / "new").iterdir(), *(maildir / "cur").iterdir()):
        if not place.name.startswith(".") and place.is_file():
            copy_file(place, stage.inbox / place.parent.name / place.name)
    return count


async def _show(stage: Stage, maildir: Path | None) -> tuple[dict[str, Any], Receipt]:
    mails = _lay_out(stage, maildir)
    stage.progress.begin(mails, stage.live)
    store = open_store(stage.settings.database_url)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        desk = await stage.open(stack, store)
        job = await Operations(store).create(triage, (desk,), external_id=f"demo-{stage.folder.name}", actor="demo")
        ledger = Ledger(store)
        killers = [asyncio.create_task(stage.kill_at_worst_moment())]
        killers.append(asyncio.create_task(stage.kill_at_random(ledger, job.job_id)))
        person = asyncio.create_task(answer_reviews(store, job.job_id, stage.payments, stage.progress.say))
        try:
            job = await stage.watch(ledger, job.job_id)
        finally:
            for task in (*killers, person):
                task.cancel()
        if job.state != "succeeded":
            raise BadInput(f"the job is {job.state}, not succeeded; see `overnight explain {job.job_id}`")
        receipt = await load_receipt(ledger, job)
        answers = Counter(review.answer for review in receipt.reviews if review.answer is not None)
        return await _count(stage, ledger, job, maildir is None) | {"approvals": dict(answers)}, receipt


async def _count(stage: Stage, ledger: Ledger, job: JobRow, own_corpus: bool) -> dict[str, Any]:
    outcomes: list[dict[str, Any]] = msgspec.json.decode(job.result or b"[]")
    if own_corpus:
        to_answer = {key for key, expected in demo_expected().items() if expected.answer}
    else:
        to_answer = {outcome["key"] for outcome in outcomes if outcome["answered"]}
    mailbox = count_mailbox(stage.received, to_answer)
    events = await ledger.events(job.job_id)
    calls = count_calls(await stage.provider.calls() if stage.provider is not None else None, events)
    usage = await ledger.usage(job.job_id)
    refunds = refunds_in(stage.payments)
    cost, bound = sum(each[-2] for each in usage), sum(each[-1] for each in usage)
    return {
        "job_id": job.job_id,
        "mails_handled": len(outcomes),
        "sent": mailbox.sent,
        "duplicates": mailbox.duplicates,
        "missing": mailbox.missing,
        "crashes": stage.crashes,
        "model_calls_paid": calls.paid,
        "model_calls_lost": calls.lost,
        "model_calls_replayed": calls.replayed,
        "fallbacks": sum(event.facts.event == "fallback_taken" for event in events),
        "cost_usd": cost / 1_000_000,
        "bound_usd": bound / 1_000_000,
        "unexpected": mailbox.unexpected,
        "refunds": len(refunds),
        "refund_duplicates": len(refunds) - len({refund["order"] for refund in refunds}),
        "duration_s": round(((job.finished_at or job.created_at) - job.created_at) / 1e6, 2),
    }


def play(
    maildir: Path | None = None,
    live: bool = False,
    json_output: bool = False,
    seed: int | None = None,
    settings: Settings | None = None,
) -> int:
    """Run the demo and print the counts; 0 if no mail was sent twice and none is missing.

    `maildir` is copied first and never changed. `live` calls the real models with the keys of the environment.
    """
    if live and not os.environ.get("OPENAI_API_KEY"):
        raise BadInput(
            "--live requires OPENAI_API_KEY in the environment; without --live, responses come from a scripted provider"
        )
    if find_spec("aiosmtpd") is None:
        raise BadInput("the demo's mail server is an extra: pip install 'overnight[demo]'")
    chosen = settings or Settings.from_environment()
    if not os.environ.get("OVERNIGHT_BRAIN"):
        chosen = msgspec.structs.replace(chosen, brain=Path(__file__).with_name("brain"))
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    folder = chosen.home / "demo" / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
    make_folder(folder)
    progress = Progress(quiet=json_output)
    # The mail server and the provider need no key; only the worker receives keys.
    secrets = take_secrets(load_settings_brain(chosen))
    stage = Stage(chosen, secrets, folder, live, seed, progress)
    facts, receipt = asyncio.run(_show(stage, maildir))  # plain asyncio: see `roles.up`
    progress.end()
    if json_output:
        shown = public_receipt(receipt, with_content=False)
        parts = ("counts", "found_by", "settled", "none", "unexecuted", "claims")
        print(json.dumps(facts | {"receipt": {name: shown[name] for name in parts}}))
    else:
        _report(facts, stage, seed)
        _print_receipt(receipt, receipt_lines(receipt, time.time_ns() // 1_000))
    wrong = facts["duplicates"] + facts["missing"] + facts["refund_duplicates"]
    return 0 if wrong == 0 and receipt.settled else 1


def _command() -> str:
    """The command that starts this program in the current shell."""
    if shutil.which("overnight"):
        return "overnight"
    beside = Path(sys.executable).with_name("overnight")
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m overnight"


def _print_receipt(receipt: Receipt, lines: Iterable[ReceiptLine]) -> None:
    """The receipt without the replies that were simply sent."""
    print(f"\n{receipt_head(receipt)}")
    plain = 0
    for line in lines:
        if line.text.startswith("send_reply") and line.text.endswith("executed"):
            plain += 1
        else:
            print(f"{line.mark} {line.text}")
    print(f"· {plain} more replies, all executed: {_command()} receipt {receipt.job_id}")


def _report(facts: dict[str, Any], stage: Stage, seed: int) -> None:
    cost = usd_text(round(facts["cost_usd"] * 1_000_000))
    bound = usd_text(round(facts["bound_usd"] * 1_000_000))
    counted = "at the provider" if not stage.live else "in the ledger"
    lines = [
        f"mails handled     {facts['mails_handled']}",
        f"sent              {facts['sent']}     counted in the receiving mailbox, {stage.received}",
        f"duplicates        {facts['duplicates']}",
        f"missing           {facts['missing']}",
        f"crashes survived  {facts['crashes']}     kill -9 of the worker; seed {seed}",
        f"model calls       {facts['model_calls_paid']} paid, counted {counted}; {facts['model_calls_lost']} repeated after"
        f" a kill during the call; {facts['model_calls_replayed']} responses replayed at no cost",
        f"fallbacks         {facts['fallbacks']}",
        f"refunds           {facts['refunds']}      counted at the payment provider; {facts['refund_duplicates']} duplicates",
        f"cost              {cost}     known{'' if stage.live else '; by list prices, nothing was paid'}",
        f"unknown cost      {bound}     at most, in addition: upper bounds of the calls lost in the crashes",
        "",
        "SMTP has no status query. After a crash, the status check therefore searches the receiving mailbox, in place of the",
        "API of a mail provider.",
        "The payment provider has none either, and lost one answer: a person looks, and decides. That person is scripted here;",
        f"without the script, the job would wait in `{_command()} reviews`.",
        "",
        f"What happened?    {_command()} explain {facts['job_id']}",
    ]
    print("\n".join(lines))
