"""`overnight keys` in real processes: exit codes, stdout and stderr."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli_runs import run
from overnight.testing import SpawnedProvider
from recording_provider import recording_provider
from serving import gateway_process

OWN = "sk-acmes-own-key-4711"


class Shell:
    """Commands in an empty folder of their own."""

    def __init__(self, folder: Path, url: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OVERNIGHT_") and not k.endswith("_API_KEY")}
        self.environment = kept | {"OVERNIGHT_HOME": str(folder), "DATABASE_URL": url, "USER": "ann", "LOGNAME": "ann"}
        self.folder = folder

    def __call__(self, *words: str, stdin: str = "", code: int = 0, **environment: str) -> tuple[str, str]:
        ran = run(self.folder, self.environment | environment, "keys", *words, stdin=stdin)
        assert ran.code == code, ran
        return ran.out, ran.err

    def json(self, *words: str, **options: Any) -> Any:
        return json.loads(self(*words, "--json", **options)[0])


@pytest.fixture
def shell(store_url: str, tmp_path: Path) -> Shell:
    return Shell(tmp_path, store_url)


def test_key_is_created_shown_rotated_and_revoked(shell: Shell) -> None:
    out, told = shell(
        "create", "triage", "--model", "gpt-5.4*", "--expires-in", "90d", "--tenant", "acme", "--agent", "bot"
    )
    secret = out.strip()
    assert out == f"{secret}\n"  # alone, for $(…)
    assert secret.startswith("on_")
    assert "not shown again" in told
    assert "first key" in told
    assert shell.json("list") == [], "it is another tenant's"
    shell.environment["OVERNIGHT_TENANT"] = "acme"
    (listed,) = shell.json("list")
    assert (listed["name"], listed["tenant_id"], listed["models"], listed["agent_id"]) == (
        "triage",
        "acme",
        ["gpt-5.4*"],
        "bot",
    )
    assert (listed["created_by"], listed["state"], listed["starts_with"]) == ("ann", "active", secret[:15])
    assert "triage" in shell("list")[0]
    assert "first key" not in shell("create", "second", "--scope", "read", "--scope", "operate")[1]

    turned = shell.json("rotate", "triage", "--overlap", "1h", "--by", "bob")
    assert turned["key"] != secret
    assert (turned["key_id"], turned["rotated_by"], turned["previous_starts_with"]) == (
        listed["key_id"],
        "bob",
        secret[:15],
    )
    assert "rotated_by" in shell("show", "triage")[0]
    assert shell.json("revoke", listed["key_id"])["revoked_by"] == "ann"
    assert [key["name"] for key in shell.json("list")] == ["second"]
    assert {key["name"]: key["state"] for key in shell.json("list", "--all")} == {
        "triage": "revoked",
        "second": "active",
    }
    everything = "".join(
        shell(*words)[0] for words in (["list", "--all"], ["list", "--all", "--json"], ["show", "triage"])
    )
    assert secret[15:] not in everything
    assert turned["key"][15:] not in everything


def test_provider_key_is_read_from_stdin_or_env_and_never_shown(shell: Shell) -> None:
    master = {"OVERNIGHT_MASTER_KEY": "11" * 32}
    shell("provider", "set", "openai", "--tenant", "acme", stdin=f"{OWN}\n", **master)
    shell("provider", "set", "anthropic", "--from-env", "MINE", MINE=OWN, **master)
    listed = shell.json("provider", "list", "--all-tenants")
    assert [(key["provider"], key["tenant_id"], key["set_by"]) for key in listed] == [
        ("openai", "acme", "ann"),
        ("anthropic", "default", "ann"),
    ]
    turned = shell.json("rotate-master", OVERNIGHT_MASTER_KEY=f"{'22' * 32},{'11' * 32}")
    assert turned["sealed_anew"] == 2
    assert {key["master_id"] for key in shell.json("provider", "list", "--all-tenants")} == {turned["master_id"]}
    assert OWN not in shell("provider", "list")[0] + str(listed)
    shell("provider", "delete", "openai", "--tenant", "acme")
    assert len(shell.json("provider", "list", "--all-tenants")) == 1


@pytest.mark.parametrize(
    ("words", "stdin", "code", "says"),
    [
        (["create", "a;b"], "", 1, "name"),
        (["create", "k", "--scope", "all"], "", 1, "calls, effects, tools"),
        (["create", "k", "--expires-in", "soon"], "", 2, "such as 90d"),
        (["create", "k", "--expires-in", "0d"], "", 2, "would expire at once"),
        (["create", "k", "--expires-in", "3651d"], "", 2, "3650d"),
        (["create", "k", "--scope", "admin", "--model", "x"], "", 1, "cannot be limited"),
        (["show", "none"], "", 1, "overnight keys list"),
        (["rotate", "none"], "", 1, "none"),
        (["rotate", "none", "--expires-in", "0s"], "", 2, "would expire at once"),
        (["rotate", "none", "--overlap", "400d"], "", 2, "90d"),
        (["revoke", "none"], "", 1, "none"),
        (["provider", "set", "opena"], OWN, 1, "did you mean 'openai'"),
        (["provider", "set", "openai"], "", 1, "empty"),
        (["provider", "set", "openai", "--from-env", "NOT_THERE"], "", 2, "NOT_THERE"),
        (["provider", "delete", "openai"], "", 1, "provider key of"),
    ],
)
def test_errors_are_one_clear_line(shell: Shell, words: list[str], stdin: str, code: int, says: str) -> None:
    out, told = shell(*words, stdin=stdin, code=code)
    assert out == ""
    assert told.startswith("overnight: ")
    assert says in told
    assert told.count("\n") == 1


def test_shared_store_requires_an_explicit_master_key(shell: Shell, store_url: str) -> None:
    if store_url.startswith("postgres"):
        told = shell("provider", "set", "openai", stdin=OWN, code=1)[1]
        assert "OVERNIGHT_MASTER_KEY" in told
    else:
        shell("provider", "set", "openai", stdin=OWN)
    assert (shell.folder / "master.key").exists() == (not store_url.startswith("postgres"))


async def test_running_gateway_uses_new_keys(
    shell: Shell, store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    if store_url.startswith("postgres"):
        pytest.skip("the master key's file is made for a ledger on one machine")
    async with recording_provider() as upstream, httpx2.AsyncClient(timeout=30) as http:
        routing = f"""
default_model: m
providers: {{house: {{base_url: "{upstream.base_url}", models: [m], api_key_env: HOUSE_KEY}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}}}
"""
        with gateway_process(store_url, provider, tmp_path, routing) as process:
            shell.environment["OVERNIGHT_BRAIN"] = str(tmp_path / "brain")
            hello = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}

            async def provider_of(secret: str, tenant: str) -> tuple[int, int]:
                headers = {"api-key": secret, "x-tenant-id": tenant}
                before = len(upstream.seen)
                answer = await http.post(f"{process.url}/v1/chat/completions", json=hello, headers=headers)
                return answer.status_code, len(upstream.seen) - before

            assert await provider_of("none", "acme") == (200, 0)
            secret = shell("create", "k", "--tenant", "acme")[0].strip()
            assert await provider_of(secret, "acme") == (200, 0)
            shell("provider", "set", "house", "--tenant", "acme", stdin=OWN)
            time.sleep(2.0)
            assert await provider_of("none", "acme") == (401, 0)
            assert await provider_of(secret, "acme") == (200, 1)
            assert upstream.seen[-1]["authorization"] == f"Bearer {OWN}"
            shell("rotate-master")
            time.sleep(2.0)
            assert await provider_of(secret, "acme") == (200, 1)
            assert upstream.seen[-1]["authorization"] == f"Bearer {OWN}"


@pytest.mark.parametrize("role", ["gateway", "up"])
def test_without_keys_only_loopback_is_served(shell: Shell, role: str) -> None:
    command = [sys.executable, "-m", "overnight", role, "--host", "0.0.0.0", "--port", "1"]
    environment = shell.environment | {"OVERNIGHT_AUTH": "off"}
    done = subprocess.run(
        command, check=False, env=environment, cwd=shell.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "OVERNIGHT_AUTH=off is only allowed on loopback" in done.stderr
    environment["OVERNIGHT_AUTH"] = "maybe"
    done = subprocess.run(
        command, check=False, env=environment, cwd=shell.folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "auto, required, off" in done.stderr) == (1, True)
