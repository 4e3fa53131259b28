"""Commands for one tenant neither show nor change data of another tenant with the same names."""

import re
import secrets
import time
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from cli_runs import Ran, run
from command_line import ALL, JOBS, ROUTING, settled
from overnight.testing import SpawnedProvider

HOUR_US = 3_600_000_000
LIMITS = """
budgets:
  max_llm_calls_per_job: 20
  limits:
    - {scope: tenant, per: day, max_cost_usd: 5}
    - {scope: workflow, max_tokens: 1000000}
cache: {exact: {ttl_s: 3600}}
"""

# What each command is run with, for a tenant. A new command fails these tests until it stands in one of the three tables.
READS: dict[str, list[list[str]]] = {
    "jobs": [[], ["--children"], ["--state", "parked"]],
    "explain": [["nightly", "--content"], ["last"], ["asks"], ["pays"], ["fails"]],
    "events": [["nightly", "--content"], ["last"], ["queued"]],
    "cache": [[]],
    "circuits": [[]],
    "reviews": [[], ["--all"]],
    "reviews list": [[], ["--all"], ["--kind", "approval"]],
    "reviews show": [["REVIEW"]],
    "budget bounds": [[]],
    "budget": [[], ["--all"], ["--job", "asks"], ["--limits"]],
    "route replay": [["--routing", "brain/routing.yaml"], ["--routing", "brain/routing.yaml", "--job", "nightly"]],
    "keys list": [[], ["--all"]],
    "tools explain": [["refund", "--arguments", "{}"]],
    "keys show": [["robot"]],
    "keys provider list": [[]],
    "audit": [[]],
    "audit list": [[]],
    "audit effects": [[]],
    "receipt": [["nightly"], ["--agent", "night", "--day", "today"]],
    "notifications": [[]],
    "notifications list": [[]],
    "notifications deliveries": [[], ["--state", "failed"]],
}
ACTS: dict[str, list[list[str]]] = {
    "run": [["night.py:adds", "--external-id", "new", "--detach"], ["night.py:fails", "--external-id", "fails"]],
    "resume": [["fails"], ["queued"], ["nightly"]],
    "reviews approve": [["REVIEW", "--note", "fine"]],
    "reviews reject": [["QUARANTINE"]],
    "reviews edit": [["REVIEW", "--arguments", "{}"]],
    "reviews answer": [["REVIEW", "--text", "x"]],
    "reviews done": [["QUARANTINE", "--provider-id", "B-7"]],
    "reviews not-done": [["QUARANTINE"]],
    "reviews continue": [["REVIEW", "--usd", "1"]],
    "reviews decide": [["REVIEW", "approve"]],
    "reviews renew": [["REVIEW", "--hours", "1"]],
    "budget settle": [["call_unknown", "--usd", "1", "--why", "x"]],
    "budget top-up": [
        ["job", "pays", "--calls", "3", "--why", "x"],
        ["tenant", "TENANT", "--per", "day", "--usd", "1"],
        ["workflow", "adds", "--tokens", "7"],
    ],
    "cancel": [["asks"], ["queued"]],
    "circuits close": [["here@TENANT/small"]],
    "keys create": [["another"]],
    "keys rotate": [["robot"]],
    "keys allow": [["robot", "--jobs", "nightly*"]],
    "keys revoke": [["robot"]],
    "keys provider set": [["here", "--from-env", "SECRET"]],
    "keys provider delete": [["here"]],
    "notifications add webhook": [["more", "https://hooks.example.invalid/more"]],
    "notifications add email": [
        ["mail", "--to", "a@example.invalid", "--from", "b@example.invalid", "--server", "mail.invalid"]
    ],
    "notifications add slack": [["empty"]],
    "notifications test": [["ops"]],
    "notifications rotate": [["ops"]],
    "notifications retry": [["del_none"]],
    "notifications remove": [["ops"]],
}
ANSWERS = [name for name in ACTS if name.startswith("reviews ")]
"""The first decision of a review counts; the others are refused."""
NEUTRAL = {
    "up": "serves all tenants",
    "gateway": "serves all tenants",
    "api": "serves all tenants",
    "worker": "serves all tenants",
    "brain diff": "reads versions of the brain, which all tenants share",
    "brain history": "lists versions of the brain, which all tenants share",
    "reload": "changes the brain of all tenants",
    "demo": "has a folder of its own",
    "init": "writes a folder of files",
    "check": "reads a folder of files",
    "route explain": "reads routing.yaml alone",
    "tools list": "reads the contracts of the brain, which all tenants share",
    "keys rotate-master": "seals anew, and shows nothing of whom",
}


class House:
    """One ledger with two tenants in it, and the command line of either."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.file = folder, folder / ".overnight" / "ledger.db"
        (folder / "brain").mkdir()
        (folder / "brain" / "routing.yaml").write_text(ROUTING.format(url=url) + LIMITS)
        (folder / "night.py").write_text(JOBS)
        self.environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "USER": "zoe", "TZ": "UTC", "SECRET": "sk-x"}

    def __call__(self, tenant: str, *words: str, codes: tuple[int, ...] = (0,)) -> Ran:
        """The command for a tenant that the settings do not name."""
        option = ["--tenant", tenant] if tenant else []
        ran = run(self.folder, self.environment, *words, *option)
        assert "Traceback" not in ran.err
        assert ran.code in codes, (words, ran)
        return ran

    def json(self, tenant: str, *words: str) -> Any:
        return msgspec.json.decode(self(tenant, *words, "--json").out)

    def fill(self, tenant: str) -> None:
        """The same for every tenant, but for ids."""
        self(
            tenant, "run", "night.py:adds", "--external-id", "nightly", f"label={'again' if tenant == 'a' else 'once'}"
        )
        self(tenant, "run", "night.py:asks", "--external-id", "asks", codes=(3,))
        self(tenant, "run", "night.py:pays", "--external-id", "pays", codes=(3,))
        self(tenant, "run", "night.py:fails", "--external-id", "fails", codes=(1,))
        self(tenant, "run", "night.py:adds", "--external-id", "queued", "--detach")
        self(tenant, "keys", "create", "robot")
        self(tenant, "keys", "provider", "set", "here", "--from-env", "SECRET")
        self(tenant, "notifications", "add", "webhook", "ops", "https://hooks.example.invalid/ops")
        with apsw.Connection(str(self.file)) as connection:
            columns = (
                "account, model, failed_at, not_before, openings, open_until, opened_at, why, changed_at, probe_until"
            )
            now = time.time_ns() // 1000
            values = (
                f"here@{tenant}",
                "small",
                f"[{now}]",
                0,
                1,
                now + HOUR_US,
                now,
                f"told to {tenant} alone",
                now,
                0,
            )
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO circuit ({columns}) VALUES ({marks})", values)

    def rows(self, tenant: str) -> dict[str, list[Any]]:
        """Every row of a tenant."""
        found: dict[str, list[Any]] = {}
        with apsw.Connection(str(self.file)) as connection:
            ask = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            ask += " AND sql NOT LIKE 'CREATE VIRTUAL%'"
            for (table,) in list(connection.execute(ask)):
                names = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if "tenant_id" in names:
                    where = "tenant_id = :tenant"
                elif "job_id" in names:
                    where = "job_id IN (SELECT job_id FROM job WHERE tenant_id = :tenant)"
                elif table == "circuit":
                    where = "account LIKE '%@' || :tenant"
                else:
                    continue
                found[table] = sorted(
                    map(repr, connection.execute(f"SELECT * FROM {table} WHERE {where}", {"tenant": tenant}))
                )
        return found

    def named(self, tenant: str, words: list[str]) -> list[str]:
        """Words with what only this tenant has put in."""
        kinds = {"REVIEW": "approval", "QUARANTINE": "quarantine"}
        reviews = self.json(tenant, "reviews") if kinds.keys() & set(words) else []
        ids = {word: each["review_id"] for word, kind in kinds.items() for each in reviews if each["kind"] == kind}
        return [ids.get(word, word).replace("TENANT", tenant) for word in words]


@pytest.fixture
def house(tmp_path: Path, provider: SpawnedProvider) -> House:
    return House(tmp_path, provider.base_url)


def test_every_command_has_the_tenant_option() -> None:
    assert sorted(ALL) == sorted([*READS, *ACTS, *NEUTRAL]), "say in this file what the command shows or changes"
    for name, command in ALL.items():
        options = {word for parameter in command.params for word in parameter.opts}
        assert ("--tenant" in options) == (name not in NEUTRAL), name


def test_output_does_not_depend_on_other_tenants(house: House) -> None:
    house.fill("a")

    def seen() -> dict[tuple[str, ...], str]:
        shown: dict[tuple[str, ...], str] = {}
        for name, runs in READS.items():
            for words in runs:
                for form in ([], ["--json"]) if words == runs[0] else (["--json"],):
                    ran = house("a", *name.split(), *house.named("a", words), *form)
                    shown[(name, *words, *form)] = settled(ran.out + ran.err)
        return shown

    alone = seen()
    house.fill("b")
    house.fill("default")
    together = seen()
    assert together == alone
    assert all(text.strip() for text in alone.values())


def test_commands_change_only_their_tenant(house: House) -> None:
    for tenant in ("b", "a"):
        house.fill(tenant)
    before, mine = house.rows("b"), house.rows("a")
    assert all(
        before[table] for table in ("job", "event", "circuit", "review", "budget", "virtual_key", "provider_key")
    )
    for name, runs in ACTS.items():
        for words in runs:
            house("a", *name.split(), *house.named("a", words), codes=(0, 1, 2, 3))
            after = house.rows("b")
            assert after == before, (name, words, {table for table in after if after[table] != before[table]})
            now = house.rows("a")
            assert now != mine or (name, words[0]) in {
                ("run", "night.py:fails"),
                ("resume", "nightly"),
                ("cancel", "queued"),
                ("budget settle", "call_unknown"),
                ("notifications add slack", "empty"),  # its URL comes from standard input
                ("notifications retry", "del_none"),
                *((name, words[0]) for name in ANSWERS if name not in {"reviews approve", "reviews reject"}),
            }
            mine = now


def test_ids_of_another_tenant_are_not_found(house: House) -> None:
    for tenant in ("b", "a"):
        house.fill(tenant)
    job = house.json("b", "explain", "asks")["job"]["job_id"]
    review = house.json("b", "reviews")[0]["review_id"]
    key = house.json("b", "keys", "show", "robot")["key_id"]
    before = house.rows("b")
    for words, named in (
        (["explain", job], job),
        (["explain", job[:20]], job[:20]),
        (["events", job], job),
        (["resume", job], job),
        (["cancel", job], job),
        (["budget", "--job", job], job),
        (["budget", "top-up", "job", job, "--calls", "1"], job),
        (["route", "replay", "--routing", "brain/routing.yaml", "--job", job], job),
        (["reviews", "approve", review], review),
        (["reviews", "reject", review], review),
        (["keys", "show", key], key),
        (["keys", "rotate", key], key),
        (["keys", "revoke", key], key),
        (["circuits", "close", "here@b/small"], "here@b/small"),
    ):
        for tenant in ("a", ""):
            ran = house(tenant, *words, codes=(1,))
            same = [secrets.token_hex(18) if word == named else word for word in words]
            nowhere = house(tenant, *same, codes=(1,))
            assert ran.err.replace(named, "X") == nowhere.err.replace(same[words.index(named)], "X"), (
                "it tells that it is there"
            )
    assert house.rows("b") == before
    assert house.json("b", "explain", job)["job"]["external_id"] == "asks"
    house("b", "cancel", job)


def test_ambiguous_name_lists_all_matches(house: House) -> None:
    first = house("a", "run", "night.py:adds", "--detach").out.strip()
    second = house("a", "run", "night.py:adds", "--detach", "--external-id", first[:12]).out.strip()
    other = house("b", "run", "night.py:adds", "--detach").out.strip()
    for words in (
        ["explain", first[:12]],
        ["cancel", first[:12]],
        ["budget", "top-up", "job", first[:12], "--calls", "1"],
    ):
        ran = house("a", *words, codes=(1,))
        assert first in ran.err
        assert second in ran.err
        assert other not in ran.err
        assert len(ran.err.splitlines()) == 1
    house("a", "cancel", first)


def test_tenant_defaults_to_settings_and_all_is_explicit(house: House) -> None:
    for tenant in ("b", "a"):
        house(tenant, "run", "night.py:adds", "--detach", "--external-id", "same")
    assert house.json("", "jobs") == []
    house.environment["OVERNIGHT_TENANT"] = "a"
    assert [each["tenant_id"] for each in house.json("", "jobs")] == ["a"]
    assert house.json("", "explain", "same")["job"]["tenant_id"] == "a"
    assert {each["tenant_id"] for each in house.json("", "jobs", "--all-tenants")} == {"a", "b"}
    house("a", "jobs", "--all-tenants", codes=(2,))
    house("b", "budget", "top-up", "tenant", "a", "--usd", "1", "--per", "day", codes=(2,))
    told = house("b", "explain", "same").out
    assert re.search(r"overnight resume job_\w+ --tenant b", told), "a command that is shown works as it stands"
    assert "--tenant" not in house("a", "explain", "same").out


def test_option_before_the_subcommand_applies(house: House) -> None:
    house.fill("a")
    for words in (
        ["budget", "--tenant", "b", "top-up", "job", "asks", "--calls", "1"],
        ["reviews", "--tenant", "b", "list"],
        ["circuits", "--tenant", "b", "close", "here@b/small"],
    ):
        ran = house("", *words, codes=(2,))
        assert "--tenant must come after the subcommand" in ran.err
