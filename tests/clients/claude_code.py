"""Claude Code, the command-line program: Anthropic messages, streamed, a command that it runs by itself."""

import json
import os
import subprocess

from client_report import CUSTOM_HEADERS, asked_of_program, report, write_program

environment = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ["HOME"],
    "ANTHROPIC_BASE_URL": os.environ["GATEWAY"],
    "ANTHROPIC_API_KEY": "unused",
    "ANTHROPIC_CUSTOM_HEADERS": CUSTOM_HEADERS,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "ENABLE_TOOL_SEARCH": "false",
    "IS_SANDBOX": "1",
}
write_program()
program = os.path.join(os.environ["PACKAGES"], "node_modules", "@anthropic-ai", "claude-code-linux-x64", "claude")
command = [program, "-p", "How is the weather in Berlin?", "--model", "claude-opus-4.6", "--verbose"]
command += ["--output-format", "stream-json", "--include-partial-messages", "--dangerously-skip-permissions"]
done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
lines = [json.loads(line) for line in done.stdout.splitlines()]
report(lines[-1]["result"], sum(line["type"] == "stream_event" for line in lines), asked_of_program())
