"""Effects over HTTP: claims, reports, replays, and what is refused."""

from typing import Any

from serving import Served

PATH = "/api/v1/effects"


async def claim(served: Served, key: str = "k1", headers: dict[str, str] | None = None, **body: Any) -> Any:
    body = {"tool": "refund", "arguments": {"payment": "pay_7", "usd": 40}, **body}
    return await served.http.post(PATH, json=body, headers={"idempotency-key": key, **(headers or {})})


async def report(served: Served, claimed: Any, verb: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    told = claimed.json()
    body = {"claim_id": told["claim_id"], **body}
    return await served.http.post(f"{PATH}/{told['effect_id']}/{verb}", json=body, headers=headers)


async def test_claim_commit_and_replay(served: Served) -> None:
    claimed = await claim(served, holder="p7")
    assert claimed.status_code == 201, claimed.text
    run = claimed.json()
    assert run["verdict"] == "run"
    assert (run["arguments"], run["attempt"]) == ({"payment": "pay_7", "usd": 40}, 1)
    assert run["claim_id"].startswith("clm_")
    assert claimed.headers["location"] == f"{PATH}/{run['effect_id']}"
    done = await report(served, claimed, "commit", provider_id="re_81", result={"id": "re_81"})
    assert done.status_code == 200, done.text
    assert (done.json()["state"], done.json()["found_by"]) == ("committed", "reported")
    again = await claim(served, holder="p8")
    assert again.status_code == 200, again.text
    assert again.json() == {
        "verdict": "committed",
        "effect_id": run["effect_id"],
        "job_id": run["job_id"],
        "provider_id": "re_81",
        "result": {"id": "re_81"},
        "replayed": True,
    }
    assert await served.story(run["job_id"]) == ["created", "tool_called", "tool_succeeded", "completed"]
    shown = (await served.http.get(f"{PATH}/{run['effect_id']}")).json()
    assert (shown["state"], shown["result"], shown["arguments"]) == ("committed", {"id": "re_81"}, run["arguments"])
