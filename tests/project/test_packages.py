"""Packages: locked with hashes, a pinned build back end, and a correct bill of materials."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("", "-build", "-demo", "-dev", "-providers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lock(name: str) -> str:
    return (ROOT / f"requirements{name}.lock").read_text()


def pinned(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", lock(name), re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes_and_no_url(name: str) -> None:
    blocks = re.split(r"^(?=[a-z0-9])", lock(name), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pinned(name)) > 0
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in lock(name)
    assert not re.search(r"^--", lock(name), re.MULTILINE), "an option, such as an index"


def test_the_build_back_end_is_pinned() -> None:
    assert PROJECT["build-system"]["requires"] == [f"setuptools=={pinned('-build')['setuptools']}"]


def test_gateway_install_excludes_demo_libraries() -> None:
    assert not {"aiosmtpd", "atpublic"} & pinned("").keys()
    assert "aiosmtpd" in pinned("-demo")
    assert not any("aiosmtpd" in each for each in PROJECT["project"]["dependencies"])
    for name in ("-demo", "-dev", "-providers"):
        assert pinned("").items() <= pinned(name).items(), "one version of each package in all locks"


def test_demo_error_names_the_missing_extra(tmp_path: Path) -> None:
    lacks = "import sys; sys.modules['aiosmtpd'] = None; from overnight.cli import main; main()"
    command = [sys.executable, "-c", lacks, "demo"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "overnight: the demo's mail server is an extra: pip install 'overnight[demo]'\n"


def test_make_installs_only_locked_packages() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    installs = [line for line in lines if "$(INSTALL)" in line or "pip install" in line]
    assert installs
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []


def test_bill_of_materials_matches_the_lock() -> None:
    done = subprocess.run([sys.executable, "sbom.py"], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == (ROOT / "sbom.cdx.json").read_text()
