"""OpenClaw, an agent turn of its command-line program: chat completions, streamed, a command that it runs by itself."""

import json
import os
import subprocess
from pathlib import Path

from client_report import HEADERS, asked_of_program, report, write_program

home = Path(os.environ["HOME"])
provider = {
    "baseUrl": os.environ["GATEWAY"] + "/v1",
    "apiKey": "unused",
    "api": "openai-completions",
    "headers": HEADERS,
    "models": [{"id": "gpt-5.4", "name": "GPT"}],
}
settings = {
    "models": {"providers": {"overnight": provider}},
    "agents": {"defaults": {"model": {"primary": "overnight/gpt-5.4"}, "workspace": str(home)}},
    "tools": {"profile": "coding", "exec": {"host": "gateway", "security": "full", "ask": "off"}},
}
(home / ".openclaw").mkdir()
(home / ".openclaw" / "openclaw.json").write_text(json.dumps(settings))
write_program()
program = os.path.join(os.environ["PACKAGES"], "node_modules", "openclaw", "openclaw.mjs")
command = [os.environ["NODE"], program, "agent", "--local", "--agent", "main", "--json", "--timeout", "120"]
command += ["--message", "How is the weather in Berlin?"]
environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
answer = json.loads(done.stdout)
report("".join(each["text"] for each in answer["payloads"]), 1, asked_of_program())
