"""Addresses over REST and on the command line: secrets are shown once, within the tenant, and with the scope only."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from api_keys import key_for
from cli_runs import run
from command_line import Shell
from overnight.domain import BadInput
from overnight.keys import Keyring
from overnight.ledger import list_audit
from overnight.notifications import NewAddress
from overnight.outgoing import AddressPolicy
from overnight.store import Store
from overnight.testing import SpawnedProvider
from receivers import LOCAL, addresses_of, ask, ended, masters, receiver, sending
from serving import Served, serving

ADDRESSES = "/api/v1/notifications/addresses"


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(store, provider, hosts=None, outgoing=LOCAL, keys=Keyring(store, masters(tmp_path))) as running:
        yield running


async def test_address_over_rest(served: Served, tmp_path: Path) -> None:
    admin = await key_for(served, name="boss", scopes=("keys.admin",))
    async with receiver() as hook:
        body = {"name": "ops", "kind": "webhook", "url": hook.url, "kinds": ["approval"]}
        made = await served.http.post(ADDRESSES, json=body, headers=admin)
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store"), made.text
        secret = made.json()["secret"]
        assert (await served.http.post(ADDRESSES, json=body, headers=admin)).status_code == 409
        tested = await served.http.post(f"{ADDRESSES}/ops/test", headers=admin)
        assert tested.json() == {"outcome": "delivered", "why": None}
        assert hook.arrivals[0].is_signed_by(secret)
        async with sending(served.store, tmp_path):
            review = await ask(served.store, tenant="acme")
            await ended(served.store, tmp_path)
        shown = await served.http.get("/api/v1/notifications/deliveries", headers=admin)
        [delivery] = shown.json()["deliveries"]
        assert (delivery["review_id"], delivery["state"], delivery["address"]) == (review.review_id, "delivered", "ops")
        retry = f"/api/v1/notifications/deliveries/{delivery['delivery_id']}/retry"
        assert (await served.http.post(retry, headers=admin)).status_code == 409
        rotated = await served.http.post(f"{ADDRESSES}/ops/rotate", json={"overlap_ms": 0}, headers=admin)
    answers = [await served.http.get(path, headers=admin) for path in (ADDRESSES, f"{ADDRESSES}/ops")]
    text = " ".join([*(each.text for each in answers), repr(await list_audit(served.store, "acme"))])
    for hidden in (secret, rotated.json()["secret"], "very-secret-path"):
        assert hidden not in text
    assert [entry.action for entry in await list_audit(served.store, "acme")][:3] == [
        "notification_address.rotated",
        "notification_address.tested",
        "notification_address.created",
    ]
    other = await key_for(served, "zeta", scopes=("keys.admin",))
    caller = await key_for(served, scopes=("calls", "jobs.read", "reviews.decide"))
    for method, path in (
        ("GET", f"{ADDRESSES}/ops"),
        ("DELETE", f"{ADDRESSES}/ops"),
        ("POST", f"{ADDRESSES}/ops/test"),
        ("POST", f"{ADDRESSES}/ops/rotate"),
        ("POST", retry),
    ):
        assert (await served.http.request(method, path, headers=other)).status_code == 404
        assert (await served.http.request(method, path, headers=caller)).status_code == 403
    assert (await served.http.get("/api/v1/notifications/deliveries", headers=other)).json() == {"deliveries": []}
    assert (await served.http.delete(f"{ADDRESSES}/ops", headers=admin)).status_code == 204
    assert (await served.http.get(ADDRESSES, headers=admin)).json() == {"addresses": []}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": "ftp://hooks.example.com"}, "url"),
        ({"url": "https://user:pass@hooks.example.com"}, "url"),
        ({"url": "http://hooks.example.com"}, "https"),
        ({"url": "https://hooks.example.com/\r\nx"}, "url"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"links": "maybe"}, "links"),
        ({"kinds": ("else",)}, "kinds"),
        ({"server": "smtp.example.com"}, "email"),
    ],
)
async def test_invalid_addresses_are_refused(
    store: Store, tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    new = NewAddress(**{"name": "ops", "kind": "webhook", "url": "https://hooks.example.com", **fields})
    with pytest.raises(BadInput, match=problem):
        await addresses_of(store, tmp_path, AddressPolicy()).add("default", new, "ann")


def test_address_on_the_command_line(tmp_path: Path, provider: SpawnedProvider) -> None:
    shell = Shell(tmp_path, provider.base_url)
    made = shell.json("notifications", "add", "webhook", "ops", "https://hooks.example.com/secret-path")
    assert made["secret"].startswith("whsec_")
    assert "secret-path" not in json.dumps(made)
    slack = run(
        tmp_path,
        shell.environment,
        "notifications",
        "add",
        "slack",
        "night",
        stdin="https://hooks.slack.example/T0/B0\n",
    )
    assert (slack.code, "T0" in slack.out + slack.err) == (0, False)
    mail = ("--to", "ann@example.com", "--from", "o@example.com", "--server", "smtp.example.com", "--username", "o")
    done = run(tmp_path, shell.environment, "notifications", "add", "email", "mail", *mail, stdin="hunter22\n")
    assert (done.code, "hunter22" in done.out + done.err) == (0, False)
    assert [each["name"] for each in shell.json("notifications")] == ["mail", "night", "ops"]
    rotated = shell.json("notifications", "rotate", "ops", "--overlap", "2h")
    assert rotated["secret"] != made["secret"]
    assert "ops" in shell("notifications", "remove", "ops")
    assert shell.json("notifications", "deliveries") == []
    shell("notifications", "add", "webhook", "bad", "http://10.0.0.1/", code=1)
    turned = shell.json("keys", "rotate-master")
    assert turned["addresses_sealed_anew"] == 2


async def test_night_is_answered_by_link(tmp_path: Path, provider: SpawnedProvider) -> None:
    """`overnight up`: a job asks, the worker tells the receiver, and the form on the gateway's port answers."""
    shell = Shell(tmp_path, provider.base_url)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    shell.environment |= {"OVERNIGHT_PUBLIC_URL": url, "OVERNIGHT_OUTGOING_ALLOW": "127.0.0.0/8"}
    async with receiver() as hook:
        await asyncio.to_thread(shell, "notifications", "add", "webhook", "ops", hook.url)
        job = (await asyncio.to_thread(shell.json, "run", "night.py:asks", "--detach"))["job_id"]
        process = shell.start("up", "--port", str(port), "--jobs", "night.py")
        try:
            data = (await hook.count(1))[0].json["data"]
            async with httpx2.AsyncClient() as client:
                async with asyncio.timeout(30):
                    while (page := await client.get(data["link"])).status_code != 200:
                        await asyncio.sleep(0.1)
                assert "Go on?" in page.text
                form = {"answer": "approve", "digest": data["digest"]}
                assert (await client.post(data["link"], data=form, headers={"origin": url})).status_code == 200
            async with asyncio.timeout(30):
                while True:
                    with suppress(apsw.Error):
                        found = await asyncio.to_thread(shell.json, "jobs")
                        if found[0]["state"] == "succeeded":
                            break
                    await asyncio.sleep(0.1)
        finally:
            process.send_signal(signal.SIGINT)
            out, err = await asyncio.to_thread(process.communicate)
    told = await asyncio.to_thread(shell, "explain", job)
    assert "sent to ops (webhook)" in told
    assert "link:ops" in told
    token = data["link"].rpartition("/")[2]
    assert token not in out + err + told
