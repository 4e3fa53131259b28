"""The effects of the effect storm, one for each kind of vendor; a job that does one of each, and a program that attaches.

    overnight worker --jobs tests.crash.effect_jobs
    python -m tests.crash.effect_jobs LABEL

A subject names one intention, so that the vendor can tell a repetition from a second intention. Exit code 75 of the program:
it waits for a person.
"""

import asyncio
import json
import os
import sys

import overnight
from vendor_client import Refused, VendorClient

from .effect_mutants import apply_mutant

WAITS_FOR_PERSON = 75
SETTLE_S = 1.5
"""Longer than the lag of a vendor's status, and than a request of a killed process is on its way."""
LIMIT_S = 2.0

apply_mutant(os.environ.get("EFFECT_MUTANT", ""))


def _vendor() -> VendorClient:
    return VendorClient(os.environ["VENDOR"])


def _did(account: str, subject: str, key: str) -> overnight.Done:
    return overnight.Done(_vendor().do(account, subject, subject, key), subject)


def _found(account: str, key: str, subject: str) -> object:
    state, provider_id = _vendor().status(account, key)
    if state == "pending":
        return overnight.CANNOT_TELL
    return overnight.NOT_DONE if provider_id is None else overnight.Done(provider_id, subject)


@overnight.effect(timeout_s=LIMIT_S, not_done=(Refused,), repeat_safe=True)
def keyed(subject: str, idempotency_key: str) -> str:
    return _did("keyed", subject, idempotency_key)  # type: ignore[return-value]


@overnight.effect(timeout_s=LIMIT_S, not_done=(Refused,))
def truthful(subject: str, idempotency_key: str) -> str:
    return _did("truthful", subject, idempotency_key)  # type: ignore[return-value]


@truthful.status_check
def find_truthful(idempotency_key: str, subject: str) -> object:
    return _found("truthful", idempotency_key, subject)


@overnight.effect(timeout_s=LIMIT_S, not_done=(Refused,), settle_after_s=SETTLE_S)
def lagging(subject: str, idempotency_key: str) -> str:
    return _did("lagging", subject, idempotency_key)  # type: ignore[return-value]


@lagging.status_check
def find_lagging(idempotency_key: str, subject: str) -> object:
    return _found("lagging", idempotency_key, subject)


@overnight.effect(timeout_s=LIMIT_S, not_done=(Refused,))
def blind(subject: str, idempotency_key: str) -> str:
    return _did("blind", subject, idempotency_key)  # type: ignore[return-value]


EFFECTS = {"keyed": keyed, "truthful": truthful, "lagging": lagging, "blind": blind}


async def attempted(account: str, subject: str) -> str:
    """The end of one effect, in one word."""
    try:
        await EFFECTS[account](subject)
    except overnight.EffectFailed as error:
        return "rejected" if error.error_class == "rejected" else "failed"
    return "done"


@overnight.job
async def one_of_each(label: str) -> list[str]:
    """One effect after the other would let a single unknown one hold up the rest."""
    return list(await asyncio.gather(*(attempted(account, f"{label}/{account}") for account in EFFECTS)))


def main() -> int:
    label = sys.argv[1]
    parked, ended = False, list[str]()
    try:
        with overnight.attach(label, name="effects"):
            for account in EFFECTS:
                try:
                    ended.append(asyncio.run(attempted(account, f"{label}/{account}")))
                except overnight.JobParked as wait:
                    parked = True
                    last = wait
            if parked:
                raise last
    except overnight.JobParked:
        return WAITS_FOR_PERSON
    print(json.dumps(ended), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
