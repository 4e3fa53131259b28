"""Each framework in an environment of its own: they disagree about versions."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HOME = Path(__file__).parent / ".environments"
PROJECT = Path(__file__).parents[2]
REQUIREMENTS = {
    "openai_agents": ["openai-agents>=0.24"],
    "pydantic_ai_agent": ["pydantic-ai-slim[openai,anthropic]>=2.68"],
    "autogen_agent": ["autogen-agentchat>=0.7.5", "autogen-ext[openai]>=0.7.5"],
    "claude_agent": ["claude-agent-sdk>=0.2.187"],
    "crewai_agent": ["crewai>=1.15.30"],
    "providers_library": ["-c", str(PROJECT / "requirements.lock"), "-e", f"{PROJECT}[providers]"],
}


def python(client: str) -> Path:
    """The interpreter of a client's environment, made on first use; `.ready` is written last."""
    folder = HOME / client
    ready = folder / ".ready"
    wanted = "\n".join(REQUIREMENTS[client])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"setting up {client} …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *REQUIREMENTS[client]], check=True)
        ready.write_text(wanted)
    return folder / "bin" / "python"
