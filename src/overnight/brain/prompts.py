"""Prompts: prompts/*.md with optional front matter between two lines of ---."""

import msgspec

from overnight.brain.fields import Fields, Reader, list_of, text
from overnight.brain.nodes import Scalar, parse_yaml
from overnight.brain.problems import Problem

_LINE = r"[^\r\n]{1,1000}"
_FIELDS: Fields = {
    "description": ("description", text(_LINE, "one line of text")),
    "tags": ("tags", list_of(text(r"[^\s,]{1,64}", "a word"))),
}


class Prompt(msgspec.Struct, frozen=True):
    """A prompt. `name` is its path in prompts/ without .md; `text` is the content after the front matter."""

    name: str
    text: str
    description: str = ""
    tags: tuple[str, ...] = ()


def read_prompt(file: str, name: str, content: str) -> tuple[Prompt, list[Problem]]:
    """Parse one file. Returns the prompt and its problems. A file without front matter is all text."""
    lines = content.removeprefix("\ufeff").splitlines(keepends=True)
    reader = Reader(file)
    top = Scalar(1, 1, "", "null")
    front: dict[str, object] = {}
    problems: list[Problem] = []
    if lines and lines[0].rstrip() == "---":
        end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
        if end is None:
            reader.problem(top, "the front matter is not closed", "end it with a line of three dashes (---)")
            end = 0
        else:
            node, problems = parse_yaml(file, "".join(lines[1:end]), first_line=2)
            front = reader.section(node, "", _FIELDS)
        lines = lines[end + 1 :]
    body = "".join(lines).strip()
    if not body:
        reader.problem(top, "the prompt has no text", "write it below the front matter", "warning")
    return msgspec.convert({"name": name, "text": body, **front}, Prompt), problems + reader.problems
