"""A program of the effect storm that speaks HTTP: claim, do, report.

`python -m tests.crash.effect_program LABEL` prints what became of its effects. Exit code 75: it waits for a person.
Its environment: VENDOR and GATEWAYS, as `host:port`; several gateways are parted by commas.
"""

import json
import os
import sys

from effects_client import EffectsClient, WaitsForPerson, perform
from vendor_client import VendorClient

ACCOUNTS = ("keyed", "truthful", "lagging", "blind")
WAITS_FOR_PERSON = 75


def main() -> int:
    label = sys.argv[1]
    client, vendor = EffectsClient(os.environ["GATEWAYS"].split(","), label), VendorClient(os.environ["VENDOR"])
    ended: list[str] = []
    for account in ACCOUNTS:
        try:
            ended.append(perform(client, vendor, account, f"{label}/{account}"))
        except WaitsForPerson:
            ended.append("waits")
    print(json.dumps(ended), flush=True)
    return WAITS_FOR_PERSON if "waits" in ended else 0


if __name__ == "__main__":
    raise SystemExit(main())
