"""Gemini CLI, the command-line program: Gemini's format, streamed, a command that it runs by itself."""

import json
import os
import subprocess
from pathlib import Path

from client_report import HEADERS, asked_of_program, report, write_program

settings = Path(os.environ["HOME"], ".gemini", "settings.json")
settings.parent.mkdir()
settings.write_text(json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}}))
write_program()
program = os.path.join(os.environ["PACKAGES"], "node_modules", "@google", "gemini-cli", "bundle", "gemini.js")
command = [os.environ["NODE"], program, "--yolo", "--model", "gemini-3-flash-preview", "--output-format", "stream-json"]
command += ["--prompt", "How is the weather in Berlin?"]
environment = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ["HOME"],
    "GEMINI_API_KEY": "unused",
    "GOOGLE_GEMINI_BASE_URL": os.environ["GATEWAY"],
    "GEMINI_CLI_CUSTOM_HEADERS": ", ".join(f"{name}: {value}" for name, value in HEADERS.items()),
    "GEMINI_CLI_TRUST_WORKSPACE": "true",
    "GEMINI_CLI_NO_RELAUNCH": "true",
}
done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
said = [line["content"] for line in lines if line["type"] == "message" and line["role"] == "assistant"]
report("".join(said), len(said), asked_of_program())
