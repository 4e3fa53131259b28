"""Walks over all commands and paths: each one that changes keys, budgets, circuits or the brain leaves an audit entry."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer import main as typer_main

import cli_runs
from api_keys import key_for
from overnight.api.routes import ROUTES
from overnight.cli.program import program
from overnight.gateway import list_circuits
from overnight.keys import Keyring, MasterKeys
from overnight.ledger import list_audit
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from receivers import failed_delivery, receiver
from serving import Served, routed, serving

READS = {
    "check", "brain diff", "brain history", "keys list", "keys show", "keys provider list",
    "route explain", "route replay", "tools explain", "tools list",
    "jobs", "explain", "receipt", "events", "audit list", "audit effects", "cache", "reviews list", "reviews show",
    "budget bounds", "notifications list", "notifications deliveries",
}  # fmt: skip
ONLY_FILES = {"init"}
ANSWERS = ("approve", "edit", "reject", "answer", "done", "not-done", "continue", "decide", "renew")
IN_LOGS_OF_JOBS = {"resume", "cancel"} | {f"reviews {answer}" for answer in ANSWERS}
PROCESSES = {"up", "demo", "gateway", "api", "worker", "run"}
"""Each starts a process, whose brain is audited when it is another one than before."""
AUDITED_COMMANDS = {
    "run": "brain.activated",
    "reload": "brain.reloaded",
    "keys create": "key.created",
    "keys rotate": "key.rotated",
    "keys revoke": "key.revoked",
    "keys allow": "key.allowance_changed",
    "keys rotate-master": "master_key.rotated",
    "keys provider set": "provider_key.set",
    "keys provider delete": "provider_key.deleted",
    "circuits close": "circuit.closed",
    "budget settle": "cost.settled",
    "budget top-up": "budget.topped_up",
    **{f"notifications add {kind}": "notification_address.created" for kind in ("webhook", "slack", "email")},
    "notifications rotate": "notification_address.rotated",
    "notifications test": "notification_address.tested",
    "notifications remove": "notification_address.removed",
    "notifications retry": "notification.retried",
}
PATHS_IN_LOGS_OF_JOBS = {"POST /api/v1/jobs/{job}/" + verb for verb in ("attempts", "complete", "cancel")} | {
    "POST /api/v1/reviews/{review}/" + verb for verb in ("decide", "renew")
}
AUDITED_PATHS = {
    "POST /api/v1/budgets": "budget.topped_up",
    "POST /api/v1/bounds/{call}/settle": "cost.settled",
    "POST /api/v1/keys": "key.created",
    "POST /api/v1/keys/{key}/rotate": "key.rotated",
    "POST /api/v1/keys/{key}/allow": "key.allowance_changed",
    "POST /api/v1/keys/{key}/revoke": "key.revoked",
    "PUT /api/v1/provider-keys/{provider}": "provider_key.set",
    "DELETE /api/v1/provider-keys/{provider}": "provider_key.deleted",
    "POST /api/v1/notifications/addresses": "notification_address.created",
    "POST /api/v1/notifications/addresses/{address}/rotate": "notification_address.rotated",
    "POST /api/v1/notifications/addresses/{address}/test": "notification_address.tested",
    "DELETE /api/v1/notifications/addresses/{address}": "notification_address.removed",
    "POST /api/v1/notifications/deliveries/{delivery}/retry": "notification.retried",
}
MASTER = "11" * 32
CUT = "rules: [{fault: {cut_after_chunks: 0}}]"
PRICES = "prices: {gpt-5.4-mini: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n"
JOB = "import overnight\n@overnight.job\nasync def ends() -> None:\n    pass\n"


def leaves(command: Any, name: tuple[str, ...] = ()) -> Iterator[str]:
    inner: dict[str, Any] = getattr(command, "commands", {})
    for part, each in inner.items():
        yield from leaves(each, (*name, part))
    if not inner:
        yield " ".join(name)


def test_every_command_and_path_is_classified() -> None:
    classified = READS | ONLY_FILES | IN_LOGS_OF_JOBS | PROCESSES | set(AUDITED_COMMANDS)
    assert set(leaves(typer_main.get_group(program))) == classified
    changing = {f"{each.method} {each.template}" for each in ROUTES if each.method != "GET" and each.part == "rest"}
    assert changing == PATHS_IN_LOGS_OF_JOBS | set(AUDITED_PATHS)


class Walk:
    """Runs commands and requests, and checks the new audit entry of each."""

    def __init__(self, served: Served, url: str, folder: Path, headers: dict[str, str]) -> None:
        self.served, self.folder, self.headers = served, folder, headers
        self.seen, self.done = set[str](), set[str]()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
        self.environment = kept | {
            "DATABASE_URL": url, "OVERNIGHT_HOME": str(folder), "OVERNIGHT_BRAIN": str(folder / "brain"),
            "OVERNIGHT_TENANT": "acme", "OVERNIGHT_MASTER_KEY": MASTER, "SECRET": "sk-second",
        }  # fmt: skip

    async def entry(self, action: str) -> dict[str, Any]:
        entries = [entry.public() for entry in await list_audit(self.served.store)]
        new = [each for each in entries if each["audit_id"] not in self.seen]
        self.seen |= {each["audit_id"] for each in new}
        entry, *_ = [each for each in new if each["action"] == action]
        assert entry["before"] != entry["after"], entry
        return entry

    async def command(self, name: str, *words: str, stdin: str = "") -> None:
        by = () if name == "run" else ("--by", "zoe")
        words = (*name.split(), *words, *by)
        ran = await asyncio.to_thread(cli_runs.run, self.folder, self.environment, *words, stdin=stdin)
        assert ran.code == 0, ran
        entry = await self.entry(AUDITED_COMMANDS[name])
        assert name == "run" or (entry["actor"], entry["key_id"]) == ("zoe", None)
        self.done.add(name)

    async def request(self, path: str, name: str = "", /, **body: Any) -> None:
        method, template = path.split()
        url = "/".join(name if part.startswith("{") else part for part in template.split("/"))
        answer = await self.served.http.request(method, url, json=body or None, headers=self.headers)
        assert answer.is_success, answer.text
        entry = await self.entry(AUDITED_PATHS[path])
        assert (entry["tenant_id"], entry["actor"], entry["key_id"][:4]) == ("acme", "admin", "key_")
        self.done.add(path)


async def bounds(served: Served, headers: dict[str, str]) -> list[str]:
    """Two calls of unknown cost, whose failures a circuit counts."""
    served.provider.set_rules(CUT)
    for _ in range(2):
        await served.ask(max_tokens=64, headers={"x-job-id": "cut", **headers})
    return [each.facts.call_id for each in await served.events("cut", "acme") if each.facts.event == "model_failed"][:2]


async def notifications(walk: Walk, store: Store) -> None:
    """Every change of an address, and of what was sent to it."""
    walk.environment["OVERNIGHT_OUTGOING_ALLOW"] = "127.0.0.0/8"
    async with receiver() as hook:
        await walk.command("notifications add webhook", "ops", hook.url)
        await walk.command("notifications add slack", "alerts", stdin="https://hooks.example.com/sk-first\n")
        mail = ("--to", "a@example.com", "--from", "o@example.com", "--server", "smtp.example.com", "--username", "o")
        await walk.command("notifications add email", "mail", *mail, stdin="sk-second\n")
        await walk.command("notifications rotate", "ops")
        await walk.command("notifications test", "ops")
        await walk.command("notifications retry", failed_delivery(store, "acme"))
        await walk.command("notifications remove", "ops")
        path = "/api/v1/notifications/addresses"
        await walk.request(f"POST {path}", name="ops", kind="webhook", url="https://127.0.0.1:1/sk-first")
        await walk.request(f"POST {path}/{{address}}/rotate", "ops")
        await walk.request(f"POST {path}/{{address}}/test", "ops")
        retry = "POST /api/v1/notifications/deliveries/{delivery}/retry"
        await walk.request(retry, failed_delivery(store, "acme"))
        await walk.request(f"DELETE {path}/{{address}}", "ops")


async def test_every_change_is_audited(tmp_path: Path, provider: SpawnedProvider, empty_ledger: Path) -> None:
    url = str(shutil.copy(empty_ledger, tmp_path / "ledger.db"))
    routing = tmp_path / "brain" / "routing.yaml"
    routing.parent.mkdir()
    routing.write_text(routed(PRICES))
    (tmp_path / "ends.py").write_text(JOB)
    with open_store(url) as store:
        keys = Keyring(store, MasterKeys(MASTER))
        async with serving(store, provider, routed(PRICES), hosts=None, keys=keys) as served:
            headers = await key_for(served, name="admin", scopes=("calls", "keys.admin", "instance.admin"))
            walk = Walk(served, f"sqlite:///{url}", tmp_path, headers)
            assert await walk.entry("key.created")
            await walk.command("run", "ends.py:ends", "--detach")
            routing.write_text(routed(PRICES + "deadlines: {total_ms: 5000}\n"))
            await walk.command("reload")
            first, second = await bounds(served, headers)
            await walk.command("circuits close", (await list_circuits(store))[0].target)
            await walk.command("budget settle", first, "--usd", "0", "--why", "w")
            await walk.request("POST /api/v1/bounds/{call}/settle", second, usd=0, why="w")
            await walk.command("budget top-up", "agent", "bot", "--per", "total", "--calls", "5", "--why", "w")
            await walk.request("POST /api/v1/budgets", scope="agent", id="bot", per="total", calls=5, why="w")
            await walk.command("keys provider set", "openai", "--from-env", "SECRET")
            walk.environment["OVERNIGHT_MASTER_KEY"] = f"{'22' * 32},{MASTER}"
            await walk.command("keys rotate-master")
            assert [each.action for each in await list_audit(store, "acme", limit=1)] == ["provider_key.resealed"]
            await walk.command("keys provider delete", "openai")
            await walk.request("PUT /api/v1/provider-keys/{provider}", "openai", key="sk-first")
            await walk.request("DELETE /api/v1/provider-keys/{provider}", "openai")
            await walk.command("keys create", "k")
            await walk.command("keys allow", "k", "--tools", "refund*")
            await walk.command("keys rotate", "k")
            await walk.command("keys revoke", "k")
            await walk.request("POST /api/v1/keys", name="k2")
            await walk.request("POST /api/v1/keys/{key}/rotate", "k2")
            await walk.request("POST /api/v1/keys/{key}/allow", "k2", tools=["refund*"])
            await walk.request("POST /api/v1/keys/{key}/revoke", "k2")
            await notifications(walk, store)
            assert walk.done == set(AUDITED_COMMANDS) | set(AUDITED_PATHS)
            entries = [entry.public() for entry in await list_audit(store)]
    assert not any(secret in repr(entries) for secret in ("sk-first", "sk-second", MASTER, "22" * 32))
