"""Text of providers made fit for events, logs and answers: bounded, printable, without secrets. Pure."""

from __future__ import annotations

import re

MAX_MESSAGE = 500
_SECRET = re.compile(
    r"""\b(?:api[\s_-]?key|authorization|password|secret|access[\s_-]?token)\b
      (?:\s+(?:provided|is))?["']?\s*[:=]\s*["']?(?:(?:bearer|basic)\s+)?[^\s"',;&}]{4,}
    | \b(?:bearer|basic)\s+[^\s"',;]{8,}
    | [?&](?:key|api[_-]?key|token|access_token|sig|signature)=[^\s"'&]+
    | \b(?:(?:sk|rk|pk|csk|xai|pplx|nvapi)-|(?:sk|rk|pk|gsk|ghp|gho|hf|r8|tgp|fw)_)[\w*.-]{6,}
    | \bAIza[\w*-]{10,} | \bAKIA\w{12,} | \beyJ[\w-]{8,}(?:\.[\w-]*){1,2}
    | \b[\w-]{40,}""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def scrubbed(text: str, limit: int = MAX_MESSAGE) -> str:
    """One printable line of at most ``limit`` characters, without anything that looks like a key."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    line = _SECRET.sub("[secret]", line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
