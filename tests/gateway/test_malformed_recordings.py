"""A recorded answer that cannot be streamed is an error with a status, not a stream that is cut."""

import json
import subprocess
import sys
from pathlib import Path

from overnight.store import open_store
from overnight.testing import SpawnedProvider
from serving import serving

MESSAGE = {"role": "assistant", "content": "x", "tool_calls": [5]}
MALFORMED = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": MESSAGE}]}
EDIT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=5) as file:
    edited = file.execute("UPDATE event SET content = ? WHERE content IS NOT NULL", [sys.argv[2].encode()])
    assert edited.rowcount
"""
ROUTING = "default_model: gpt-5.4-mini\ncache: {exact: {ttl_s: 60}}\n"


async def test_malformed_recorded_answer_is_an_error(tmp_path: Path, provider: SpawnedProvider) -> None:
    path = tmp_path / "ledger.db"
    with open_store(str(path)) as store:
        async with serving(store, provider, ROUTING) as served:
            first = await served.ask(headers={"x-job-id": "a"})
            assert first.status_code == 200, first.text
            # In a process of its own: the end of a second connection of this one would drop the locks of the first.
            subprocess.run([sys.executable, "-c", EDIT, str(path), json.dumps(MALFORMED)], check=True)
            whole = await served.ask(headers={"x-job-id": "b"})
            assert (whole.status_code, whole.headers["x-overnight-cache"]) == (200, "exact")
            answer = await served.ask(stream=True, headers={"x-job-id": "c"})
            assert answer.status_code == 500, (answer.headers, answer.text)
            assert "recorded answer" in answer.json()["error"]["message"]
