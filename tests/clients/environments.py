"""One environment for each framework, since their dependencies conflict."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HOME = Path(__file__).parent / ".environments"
PROJECT = Path(__file__).parents[2]
INSTALLS: dict[str, list[list[str]]] = {
    "openai_agents": [["openai-agents>=0.24"]],
    "pydantic_ai_agent": [["pydantic-ai-slim[openai,anthropic]>=2.68"]],
    "autogen_agent": [["autogen-agentchat>=0.7.5", "autogen-ext[openai]>=0.7.5"]],
    "claude_agent": [["claude-agent-sdk>=0.2.187"]],
    "crewai_agent": [["crewai>=1.15.30"]],
    # As a user installs the extra: packages by their hashes, then the project alone.
    "providers_library": [
        ["--require-hashes", "-r", str(PROJECT / "requirements-build.lock")],
        ["--require-hashes", "-r", str(PROJECT / "requirements-providers.lock")],
        ["--no-index", "--no-build-isolation", "--no-deps", "-e", str(PROJECT)],
    ],
}
"""Arguments of each `pip install` of an environment."""


def python(client: str) -> Path:
    """The interpreter of a client's environment, made on first use; `.ready` is written last."""
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
