"""The bytes of every reply of the quirks, split at random places, give the same answers, records and bills."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from quirk_gateway import QuirkGateway, Split, quirk_gateway
from quirk_rows import Quirk

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Quirk] = [row for name in MODULES for row in import_module(name).ROWS if row.splits]
CASES = [(row, client, mode) for row in ROWS for client, mode in row.cases()]
SEEDS = range(40 if os.environ.get("OVERNIGHT_EXPLORE") else 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[QuirkGateway]:
    async with quirk_gateway(tmp_path_factory.mktemp("splittings")) as running:
        yield running


def split_at_random(random: Random) -> Split:
    """Pieces of 1 to `longest` bytes; every tenth reply byte for byte."""

    def split(sent: bytes) -> Sequence[bytes]:
        longest = random.choice((1, 7, 60, 60, 400, 400, 400, 2000, 2000, 2000)) if len(sent) < 4000 else 2000
        pieces, at = list[bytes](), 0
        while at < len(sent):
            size = random.randint(1, longest)
            pieces.append(sent[at : at + size])
            at += size
        return pieces

    return split


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("quirk", "client", "mode"), CASES, ids=[f"{row.name}-{client}-{mode}" for row, client, mode in CASES]
)
async def test_split_replies_give_the_same_answer_record_and_bill(
    gateway: QuirkGateway, quirk: Quirk, client: str, mode: str
) -> None:
    _, whole = await gateway.run(quirk, client, mode)
    for seed in SEEDS:
        _, split = await gateway.run(quirk, client, mode, split_at_random(Random(f"{quirk.name} {client} {seed}")))
        assert split.facts() == whole.facts(), seed
