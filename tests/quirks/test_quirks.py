"""Quirks: what real upstreams send, and what each client, the log and the bill make of it.

A quirk is one row of data in `rows_*.py` beside this file: what the upstream sends as bytes, what clients get, what the log
holds, what is billed. This module runs each row against a served gateway, once per client format and mode. The official SDKs
read each response, and its faults are failures: an unknown shape, a block inside another block, usage told twice. Then a
second and a third attempt of the job ask again: each must get the recorded answer, streamed and whole, at no cost.

To add a quirk, add a row to the `ROWS` of the module that fits. A new module needs only the name `rows_*.py` and `ROWS`:

    Quirk(
        name="usage-as-strings",                      # unique, words joined by hyphens
        source="https://…",                           # where it was reported or documented
        target="chat",                                # the format, and the model, of the upstream
        stream=[sse(chunk("hello"), chunk(finish="stop"), usage_chunk({…}), DONE)],
        whole=[body(completion("hello", usage={…}))],
        gets=Gets(text="hello", finish="stop", usage=(10, 2)),
        each={"messages": Gets(…)},                   # where one client format gets something else
    )

Two replies in `stream` answer a first and a second attempt; the last one repeats. A target that fails twice is followed by the
model `spare`, which answers well: `asked=("chat", "chat", "spare")`. All fields: `tests/support/quirk_rows.py`. To run some
rows: `pytest tests/quirks -k usage`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

import pytest
import pytest_asyncio

from quirk_gateway import QuirkGateway, quirk_gateway
from quirk_rows import Quirk

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Quirk] = [row for name in MODULES for row in import_module(name).ROWS]
CASES = [(row, client, mode) for row in ROWS for client, mode in row.cases()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[QuirkGateway]:
    async with quirk_gateway(tmp_path_factory.mktemp("quirks")) as running:
        yield running


def test_names_of_quirks_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("quirk", "client", "mode"), CASES, ids=[f"{row.name}-{client}-{mode}" for row, client, mode in CASES]
)
async def test_quirk_reaches_client_log_and_bill_as_its_row_says(
    gateway: QuirkGateway, quirk: Quirk, client: str, mode: str
) -> None:
    found = await gateway.check(quirk, client, mode)
    assert not found, "\n".join(found)
