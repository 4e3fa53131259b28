"""Codex, the command-line program: Responses, streamed, a command that it runs by itself."""

import json
import os
import subprocess
from pathlib import Path

from client_report import HEADERS, asked_of_program, report, write_program

SETTINGS = """
model = "gpt-5.4"
model_provider = "overnight"
[model_providers.overnight]
name = "Overnight"
base_url = "{gateway}/v1"
env_key = "OVERNIGHT_KEY"
wire_api = "responses"
http_headers = {{ {headers} }}
"""
home = Path(os.environ["HOME"], "codex")
home.mkdir()
headers = ", ".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in HEADERS.items())
(home / "config.toml").write_text(SETTINGS.format(gateway=os.environ["GATEWAY"], headers=headers))
write_program()
program = os.path.join(os.environ["PACKAGES"], "node_modules", "@openai", "codex", "bin", "codex.js")
command = [os.environ["NODE"], program, "exec", "--json", "--skip-git-repo-check"]
command += ["--dangerously-bypass-approvals-and-sandbox", "How is the weather in Berlin?"]
environment = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ["HOME"],
    "CODEX_HOME": str(home),
    "OVERNIGHT_KEY": "unused",
}
done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
items = [line["item"] for line in map(json.loads, done.stdout.splitlines()) if line["type"] == "item.completed"]
answer = "".join(item["text"] for item in items if item["type"] == "agent_message")
report(answer, len(items), asked_of_program())
