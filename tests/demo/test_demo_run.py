"""The whole demo: two kills, an approval, an unknown refund that a scripted person settles, and the receipt of it."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_demo_ends_with_a_settled_receipt(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    command = [sys.executable, "-m", "overnight", "demo", "--json", "--seed", "3"]
    environment = kept | {"OVERNIGHT_HOME": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["mails_handled"], facts["sent"], facts["duplicates"], facts["missing"]) == (51, 31, 0, 0)
    assert (facts["refunds"], facts["refund_duplicates"]) == (2, 0)
    receipt = facts["receipt"]
    assert (receipt["counts"], receipt["settled"], receipt["unexecuted"]) == ({"committed": 33}, True, [])
    assert receipt["found_by"]["confirmed"] >= 1
    assert [claim["verdict"] for claim in receipt["claims"]] == ["supported", "supported"]
    assert facts["approvals"] == {"approved": 1}
