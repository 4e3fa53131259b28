"""Test modules are independent: what they share is in `tests/support` and in one `conftest.py`."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
IMPORT = re.compile(r"^\s*(?:from|import) (test_\w+)", re.MULTILINE)


def test_test_modules_import_no_other_test_module() -> None:
    modules = sorted(TESTS.rglob("*.py"))
    found = {path.name: names for path in modules if (names := IMPORT.findall(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_only_one_conftest_defines_shared_fixtures() -> None:
    assert [path for path in TESTS.rglob("conftest.py") if ".environments" not in path.parts] == [TESTS / "conftest.py"]
