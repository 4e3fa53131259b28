"""Calls of a Codex session form one job, by its headers or by the body."""

from typing import Any

import pytest

from serving import Served

NAMED: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "session-id": ({"session-id": "s1", "thread-id": "t1"}, {}),
    "session_id": ({"session_id": "s1", "conversation_id": "t1"}, {}),
    "thread-id": ({"thread-id": "s1"}, {}),
    "client_metadata": ({}, {"client_metadata": {"session_id": "s1", "thread_id": "t1", "turn": "1"}}),
    "all": ({"session-id": "s1"}, {"client_metadata": {"session_id": "other"}, "prompt_cache_key": "t1"}),
}


@pytest.mark.parametrize("name", NAMED)
async def test_session_forms_a_job(served: Served, name: str) -> None:
    headers, fields = NAMED[name]
    jobs: set[str] = set()
    for text in ("one", "two"):
        body = {"model": "gpt-5.4-mini", "input": text, **fields}
        answer = await served.http.post("/v1/responses", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        jobs.add(answer.headers["x-job-id"])
    assert len(jobs) == 1
    job = await served.ledger.job(jobs.pop())
    assert (job.session_id, job.external_id) == ("s1", "session:s1")


@pytest.mark.parametrize("value", [None, "x", [1], {}, {"session_id": ""}, {"session_id": 5}, {"session_id": "a b;c"}])
async def test_other_client_metadata_forms_no_job(served: Served, value: Any) -> None:
    jobs: set[str] = set()
    for text in ("one", "two"):
        body = {"model": "gpt-5.4-mini", "input": text, "client_metadata": value}
        answer = await served.http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        jobs.add(answer.headers["x-job-id"])
    assert len(jobs) == 2
