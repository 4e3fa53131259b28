"""What each client does with a refusal: how many requests it sends, how long it takes, what it shows.

    python -m tests.clients.by_hand.measure_refusals [CLIENT …]

Prints a row of Markdown per client; `docs/reference/clients.md` holds the table. Requests are counted in the access log.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..environments import HERE
from ..served_gateway import client_environment, command_of, served_gateway

LIMIT_S = 100
CLIENTS = [
    ("openai_agents", "responses", "plain"),
    ("pydantic_ai_agent", "chat", "plain"),
    ("autogen_agent", "chat", "plain"),
    ("crewai_agent", "chat", "plain"),
    ("litellm_agent", "chat", "plain"),
    ("vercel_ai", "chat", "plain"),
    ("anthropic_typescript", "messages", "plain"),
    ("claude_agent", "messages", "streamed"),
    ("claude_code", "messages", "streamed"),
    ("codex", "responses", "streamed"),
]
BUSY = "limits: {default_max_output_tokens: 1000}\ndeadlines: {queue_ms: 200}\n"
REFUSALS = {
    402: (HERE / "rules.yaml", "budgets: {max_cost_per_job_usd: 0.000001}\n"),
    429: (HERE / "rules.yaml", BUSY + "rate_limits:\n  - {scope: tenant, tokens_per_minute: 1000}\n"),
    500: ("rules:\n  - fault: {status: 500}\n", "retries: {max_attempts: 1}\n"),
}


def measure(client: str, form: str, way: str, status: int) -> str:
    """Run one client against one refusal; return the cell of the table."""
    rules, routing = REFUSALS[status]
    scripts = HERE if (HERE / f"{client}.py").exists() or client == "vercel_ai" else HERE / "by_hand"
    with tempfile.TemporaryDirectory() as home:
        log = Path(home, "access.jsonl")
        with served_gateway(rules, routing, OVERNIGHT_ACCESS_LOG=str(log)) as gateway:
            env = client_environment(gateway, "refused", Path(home))
            command = [*command_of(client, scripts / f"{client}.py", env), form, way]
            began = time.monotonic()
            with subprocess.Popen(
                command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                try:
                    out, err = process.communicate(timeout=LIMIT_S)
                    ended = f"{time.monotonic() - began:.0f} s"
                except subprocess.TimeoutExpired:
                    process.kill()
                    out, err = process.communicate()
                    ended = f"still trying after {LIMIT_S} s"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    calls = [line for line in lines if line["method"] == "POST"]
    statuses = sorted({line["status"] for line in calls})
    print(client, status, (out.strip().splitlines()[-1:] + err.strip().splitlines()[-1:]), file=sys.stderr)
    return f"{len(calls)} requests ({', '.join(map(str, statuses))}), {ended}"


def main() -> None:
    print("| client | " + " | ".join(map(str, REFUSALS)) + " |\n|---|" + "---|" * len(REFUSALS))
    for client, form, way in CLIENTS:
        if len(sys.argv) == 1 or client in sys.argv[1:]:
            print(
                f"| {client} | " + " | ".join(measure(client, form, way, status) for status in REFUSALS) + " |",
                flush=True,
            )


main()
