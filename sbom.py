"""The bill of materials of a gateway, from the lock: CycloneDX 1.6, one component for each package, with the hashes of its files.

python sbom.py > sbom.cdx.json
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
_PINNED = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;\\]+)(?P<more>.*)$", re.IGNORECASE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def packages(lock: str) -> list[tuple[str, str, list[str]]]:
    """(name, version, hashes) of each package of a lock file."""
    found: list[tuple[str, str, list[str]]] = []
    for line in lock.splitlines():
        if pinned := _PINNED.match(line):
            found.append((pinned["name"], pinned["version"], []))
        if hashed := _HASH.search(line):
            found[-1][2].append(hashed[1])
    return found


def bill(lock: str) -> dict[str, object]:
    """The document. It is the same for the same lock: it bears no time and no random number."""
    components = [
        {
            "type": "library",
            "bom-ref": f"{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "properties": [{"name": "overnight:sha256", "value": each} for each in hashes],
        }
        for name, version, hashes in packages(lock)
    ]
    subject = {"type": "application", "bom-ref": "overnight", "name": "overnight"}
    dependencies = [{"ref": "overnight", "dependsOn": [each["bom-ref"] for each in components]}]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": dependencies,
    }


def text_of(document: dict[str, object]) -> str:
    """The document with one component a line, so that a change of one package is a change of one line."""
    components = document["components"]
    assert isinstance(components, list)
    lines = ",\n".join(json.dumps(each) for each in components)
    mark = json.dumps("components of the lock")
    return json.dumps(document | {"components": json.loads(mark)}, indent=1).replace(mark, f"[\n{lines}\n ]") + "\n"


if __name__ == "__main__":
    sys.stdout.write(text_of(bill((HERE / "requirements.lock").read_text())))
