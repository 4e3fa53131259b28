"""Vectors of questions: read from an embeddings answer, stored with the place of the answer, searched within one realm."""

from __future__ import annotations

import math
from array import array
from typing import Any, cast

import msgspec

from overnight.domain import Recorded, month_of
from overnight.ledger import recorded
from overnight.store import Store, Unit

from .rows import SQL, VectorRow

MAX_DIMENSIONS = 16_000
SEARCHED = 2_000
"""Vectors of a realm that a search compares, newest first. It takes some milliseconds."""

ALREADY_KNOWN = 0.9999
"""The minimum similarity of a question that needs no entry of its own."""

_decode = msgspec.json.Decoder().decode


class NearestEntry(msgspec.Struct, frozen=True):
    """The nearest recorded answer. `similarity` is the cosine: 1 is the same direction."""

    similarity: float
    answer: Recorded


def read_vector(body: bytes) -> list[float] | None:
    """The first embedding of an embeddings answer; None without a comparable one."""
    try:
        numbers: Any = _decode(body)["data"][0]["embedding"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, IndexError, TypeError):
        return None
    if not isinstance(numbers, list) or not 0 < len(cast("list[Any]", numbers)) <= MAX_DIMENSIONS:
        return None
    found = cast("list[Any]", numbers)
    if not all(type(each) in (float, int) for each in found):
        return None
    length = math.hypot(*found)
    # In single precision. A vector of length zero has no direction and cannot be compared.
    return [each / length for each in found] if math.isfinite(length) and length > 1e-12 else None


def packed_vector(numbers: list[float]) -> bytes:
    return array("f", numbers).tobytes()


async def nearest(
    store: Store, tenant_id: str, realm: bytes, numbers: list[float], but_of_job: str, *, until: float | None = None
) -> NearestEntry | None:
    """The most similar answered question of this tenant and realm, from another job. Raises StoreUnavailable."""
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "realm": realm,
        "vector": packed_vector(numbers),
        "numbers": numbers,
        "job_id": but_of_job,
        "now": store.clock(),
        "most": SEARCHED,
    }
    rows = await store.read(SQL["find_nearest"], values, until=until)
    if not rows:
        return None
    distance, job_id, *answer = rows[0]
    return NearestEntry(round(1.0 - distance, 6), recorded(job_id, answer))


class AddVector(msgspec.Struct, frozen=True):
    """Add the vector of an answered question. A search finds it until it expires."""

    tenant_id: str
    realm: bytes
    numbers: list[float]
    answer: Recorded
    ttl_us: int

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> None:
        answer = self.answer
        unit.append(
            SQL["insert_vector"],
            VectorRow(
                tenant_id=self.tenant_id,
                realm=self.realm,
                added_at=unit.now,
                job_id=answer.job_id,
                seq=answer.seq,
                month=month_of(answer.at),
                expires_at=unit.now + self.ttl_us,
                vector=packed_vector(self.numbers),
                numbers=self.numbers,
            ),
        )
