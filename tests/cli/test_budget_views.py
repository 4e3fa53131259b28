"""Views and changes of budgets on the command line and over HTTP, each within its tenant."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import ROUTING, Shell
from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

LIMITS = (
    "budgets: {max_llm_calls_per_job: 2, limits: [{scope: tenant, per: day, max_cost_usd: 5},"
    " {scope: tenant, per: month, max_tokens: 1000000}, {scope: agent, only: 'r*', max_llm_calls: 3}]}"
)
ASKS = """
import overnight

@overnight.job
async def asks(count: int) -> int:
    for number in range(count):
        await overnight.chat(f"question {number}")
    return count
"""


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    made = Shell(tmp_path, provider.base_url)
    (tmp_path / "asks.py").write_text(ASKS)
    (tmp_path / "brain" / "routing.yaml").write_text(ROUTING.format(url=provider.base_url) + LIMITS + "\n")
    return made


# ── on the command line ──────────────────────────────────────────────────────────────────────────────────────────────


def test_budget_stop_is_shown_topped_up_and_resumed(shell: Shell) -> None:
    shell("run", "asks.py:asks", "count=4", code=3)
    (job,) = shell.json("jobs")
    by_scope: dict[tuple[str, str], Any] = {(each["scope"], each["per"]): each for each in shell.json("budget")}
    assert by_scope["job", "total"]["llm_calls"] == {"limit": 2, "added": 0, "spent": 2, "reserved": 0, "left": 0}
    day = by_scope["tenant", "day"]
    assert (day["cost_usd"]["limit"], day["id"], len(day["window"])) == (5.0, "default", 10)
    assert 0 < day["cost_usd"]["spent"] == pytest.approx(5.0 - day["cost_usd"]["left"])
    assert by_scope["tenant", "month"]["tokens"]["spent"] > 0
    shown = shell("budget")
    assert f"job {job['job_id']}" in shown
    assert "tenant default" in shown

    topped = shell.json(
        "budget", "top-up", "job", job["job_id"][:20], "--calls", "5", "--why", "worth it", "--by", "ann"
    )
    assert topped["woken"] == [job["job_id"]]
    assert topped["llm_calls"] == {"limit": 7, "added": 5, "spent": 2, "reserved": 0, "left": 5}
    assert "result  4" in shell("resume", "last")
    assert "ann added 5 calls to the budget of job" in shell("explain", "last")
    assert shell.json("budget", "--job", "last", "--all")[0]["llm_calls"]["spent"] == 4
    assert all(each["scope"] != "job" for each in shell.json("budget")), "a finished job has nothing left to spend"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["tenant", "default", "--usd", "1"], 1, "limited per day and per month: select one with"),
        (["tenant", "default", "--per", "week", "--usd", "1"], 1, "not one of total, day, month"),
        (["village", "x", "--usd", "1"], 1, "not one of job, step"),
        (["agent", "nobody", "--usd", "1"], 1, "has no limit in routing.yaml"),
        (["agent", "reader", "--usd", "lots"], 2, "expected an amount in dollars"),
        (["agent", "reader", "--usd", "-1"], 2, "expected an amount in dollars"),
        (["agent", "reader", "--usd", "inf"], 2, "expected an amount in dollars"),
        (["agent", "reader"], 1, "an amount above 0"),
        (["agent", "reader[2026-11-21]", "--calls", "1"], 1, "is not allowed"),
        (["job", "job_0123", "--calls", "1"], 1, "Not found: job job_0123"),
    ],
)
def test_invalid_top_ups_are_rejected_with_instructions(shell: Shell, words: list[str], code: int, error: str) -> None:
    shell("run", "asks.py:asks", "count=1")
    shell("budget", "top-up", *words, code=code)
    assert error in shell.errors


def test_reading_budgets_creates_no_ledger(shell: Shell) -> None:
    shown = shell("budget")
    assert re.search(r"each job +total +llm calls +2\n", shown)
    assert re.search(r"tenant default +day +cost +\$5", shown)
    assert re.search(r"agent r\* +total +llm calls +3\n", shown)
    assert "no spending yet" in shown
    assert shell.json("budget") == []
    assert len(shell.json("budget", "--limits")) == 4
    shell("budget", "--job", "last", code=1)
    assert "no ledger at" in shell.errors
    assert not (shell.folder / ".overnight").exists()


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def key_for(served: Served, tenant: str, *scopes: str, **more: Any) -> tuple[str, dict[str, str]]:
    row, secret = await Keys(served.store).create(
        tenant, NewKey(name=f"{tenant}-{'-'.join(scopes)}", scopes=scopes, **more), "ann"
    )
    return row.key_id, {"authorization": f"Bearer {secret}"}


async def test_tenant_reads_its_budgets_and_operator_tops_up(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(LIMITS)) as served:
        for tenant in ("acme", "other"):
            headers = {"x-tenant-id": tenant, "x-agent-name": "reader", "x-job-id": "j"}
            statuses = [(await served.ask(f"{n}", headers=headers)).status_code for n in range(3)]
            assert statuses == [200, 200, 402]
        assert (await served.http.post("/api/v1/budgets", json={"scope": "agent", "id": "reader"})).status_code == 401

        _, reader = await key_for(served, "acme", "read")
        _, admin = await key_for(served, "acme", "instance.admin")
        mine = (await served.http.get("/api/v1/budgets", headers=reader)).json()["budgets"]
        assert {each["tenant_id"] for each in mine} == {"acme"}
        assert {(each["scope"], each["per"]) for each in mine} == {
            ("agent", "total"),
            ("tenant", "day"),
            ("tenant", "month"),
            ("job", "total"),
        }
        wanted = {"scope": "job", "id": "j", "calls": 1, "usd": 0.5, "why": "more"}
        assert (await served.http.post("/api/v1/budgets", json=wanted, headers=reader)).status_code == 403
        answer = await served.http.post("/api/v1/budgets", json=wanted, headers=admin)
        assert answer.status_code == 201
        assert (answer.json()["llm_calls"]["left"], answer.json()["woken"]) == (1, [])
        one = (await served.http.get("/api/v1/budgets?job=j", headers=reader)).json()["budgets"]
        assert [(each["scope"], each["llm_calls"]["limit"]) for each in one] == [("job", 3)]

        foreign = {"scope": "tenant", "id": "other", "usd": 1}
        assert (await served.http.post("/api/v1/budgets", json=foreign, headers=admin)).status_code == 400
        for body in (
            {"scope": "job", "id": "j"},
            {"scope": "job", "id": "nothing", "calls": 1},
            {"scope": "x", "id": "y"},
        ):
            refused = await served.http.post("/api/v1/budgets", json=body, headers=admin)
            assert refused.status_code in {400, 404}
            assert refused.headers["content-type"] == "application/problem+json"
        odd = {"scope": "job", "id": "j", "dollars": 3}
        assert "dollars" in (await served.http.post("/api/v1/budgets", json=odd, headers=admin)).json()["detail"]
        assert (await served.http.get("/api/v1/budgets?jobs=j", headers=reader)).status_code == 400


async def test_each_key_has_its_own_budget_and_rate_limit(store: Store, provider: SpawnedProvider) -> None:
    limits = (
        "budgets: {limits: [{scope: key, per: month, max_llm_calls: 2}]}\nrate_limits: [{scope: key, concurrency: 5}]"
    )
    async with serving(store, provider, routed(limits)) as served:
        key_id, one = await key_for(served, "acme", "call", "read")
        _, other = await key_for(served, "acme", "call")
        assert [(await served.ask(f"{n}", headers=one)).status_code for n in range(3)] == [200, 200, 402]
        assert (await served.ask(headers=other)).status_code == 200
        found = (await served.http.get("/api/v1/budgets", headers=one)).json()["budgets"]
        assert (key_id, 2) in [(each["id"], each["llm_calls"]["spent"]) for each in found]
        assert json.dumps(found).count(key_id) == 1
