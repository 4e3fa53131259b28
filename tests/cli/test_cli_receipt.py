"""`overnight receipt` and `overnight audit effects` as real commands."""

import json
from pathlib import Path

import pytest

from command_line import Shell
from overnight.testing import SpawnedProvider

POSTS = """
import os
from pathlib import Path

import overnight

@overnight.effect
def post(text: str) -> object:
    Path("posted").write_text(text)
    raise TimeoutError("no answer")

@post.status_check
def posted(text: str, **_: object) -> object:
    if not os.environ.get("API_IS_UP"):
        return overnight.CANNOT_TELL
    return overnight.Done("MSG-9") if Path("posted").exists() else overnight.NOT_DONE

@overnight.job(agent="poster")
async def posts() -> None:
    overnight.about("order-7")
    await post("hello")
"""


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    made = Shell(tmp_path, provider.base_url)
    (tmp_path / "posting.py").write_text(POSTS)
    return made


def test_receipt_shows_effects_with_the_evidence(shell: Shell) -> None:
    shell("run", "night.py:adds")
    head, line, follows = shell("receipt", "last").splitlines()
    assert head.endswith(" adds succeeded: 1 done")
    assert line.startswith("✓ post ")
    assert "MSG-1" in line
    assert line.endswith("executed")
    assert follows.startswith("overnight explain job_")
    made = shell.json("receipt", "last")
    assert (made["counts"], made["settled"], made["none"], made["claims"]) == ({"committed": 1}, True, False, [])
    (effect,) = made["effects"]
    assert (effect["state"], effect["provider_id"], effect["found_by"]) == ("committed", "MSG-1", "executed")
    (by_key,) = shell.json("receipt", "--key", effect["key"])["effects"]
    assert by_key["effect_id"] == effect["effect_id"]
    assert "MSG-1" in shell("receipt", "--key", effect["key"])
    shell("receipt", "--key", "other", code=1)
    assert "no effect" in shell.errors


def test_receipt_in_ascii(shell: Shell) -> None:
    shell("run", "night.py:adds")
    assert shell("receipt", "last", PYTHONIOENCODING="ascii", LC_ALL="C").splitlines()[1].startswith("+ post ")


def test_verify_asks_again_and_changes_nothing(shell: Shell) -> None:
    shell("run", "posting.py:posts", code=3)
    (review,) = shell.json("reviews")
    (effect,) = shell.json("receipt", "last")["effects"]
    assert (effect["state"], effect["waits_for"]["review_id"]) == ("unknown", review["review_id"])
    assert "the status check cannot tell" in shell("receipt", "last", "--verify")
    shown = shell("receipt", "last", "--verify", API_IS_UP="1")
    assert "the status check finds it done MSG-9" in shown
    assert f"overnight reviews done {review['review_id']} --provider-id MSG-9" in shown
    assert shell.json("receipt", "last")["effects"][0]["state"] == "unknown"
    (shell.folder / "posting.py").unlink()
    unseen = shell.json("receipt", "last", "--verify")["effects"][0]["verified"]
    assert unseen["outcome"] == "unverifiable"
    assert "run the command where its worker runs" in unseen["why"]


def test_receipts_of_an_agent_and_a_day(shell: Shell) -> None:
    shell("run", "posting.py:posts", code=3)
    made = shell.json("receipt", "--agent", "poster", "--day", "today")
    assert (made["counts"], made["settled"], len(made["receipts"])) == ({"unknown": 1}, False, 1)
    assert "poster today: 1 jobs, 0 without any effect; effects: 1 unknown" in shell(
        "receipt", "--agent", "poster", "--day", "today"
    )
    assert shell.json("receipt", "--agent", "poster", "--day", "2020-01-31")["receipts"] == []
    for words in (("--agent", "poster"), ("last", "--key", "x"), (), ("--agent", "a", "--day", "31.1.")):
        shell("receipt", *words, code=2)


def test_audit_lists_effects_by_tool_record_and_state(shell: Shell) -> None:
    shell("run", "night.py:adds")
    shell("run", "posting.py:posts", code=3)
    every = [json.loads(line) for line in shell("audit", "effects", "--json").splitlines()]
    assert [each["state"] for each in every] == ["committed", "unknown"]
    assert [each["about"] for each in every] == [None, "order-7"]
    assert "hello" not in json.dumps(every)

    def count(*words: str) -> int:
        return len(shell("audit", "effects", *words, "--json").splitlines())

    assert count("--about", "order-7") == count("--state", "unknown") == count("--agent", "poster") == 1
    assert count("--tool", "post", "--all-tenants", "--since", "1h") == 2
    assert count("--tool", "other") == count("--by", "mia") == count("--tenant", "acme") == 0
    assert "about order-7" in shell("audit", "effects", "--job", "last")
    assert shell.json("audit")[0]["action"] == "brain.activated"


def test_explain_begins_with_the_receipt(shell: Shell) -> None:
    shell("run", "night.py:adds")
    shown = shell("explain", "last")
    assert shown.index("Receipt  1 done") < shown.index("tool post")
    assert shell.json("explain", "last")["receipt"]["counts"] == {"committed": 1}
    shell("run", "night.py:fails", code=1)
    assert "Receipt  ended without any effect" in shell("explain", "last")
