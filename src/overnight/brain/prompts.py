"""Prompts: prompts/*.md with optional front matter between two lines of ---, and variables such as {{ name }} in the text."""

import re
from collections.abc import Mapping

import msgspec

from overnight.brain.fields import Fields, Reader, list_of, text
from overnight.brain.nodes import Scalar, parse_yaml
from overnight.brain.problems import Problem, clipped, did_you_mean
from overnight.domain import BadInput

_FOLDER = "prompts/"
_VARIABLE = re.compile(r"\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\}\}")
_BRACES = re.compile(r"\{\{[^{}\r\n]{0,200}\}\}")

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

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables in the text, each once, in order."""
        return tuple(dict.fromkeys(_VARIABLE.findall(self.text)))

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with its variables replaced. Values are inserted as they are: braces in them are text.

        Raises BadInput for a missing or unknown variable, and for a value that is neither text nor a number.
        """
        known, place = self.variables, f"prompt {self.name}"
        for name, value in values.items():
            if name not in known:
                hint = did_you_mean(name, known) or "its text has none; write one as {{ name }}"
                raise BadInput(f"{place}: unknown variable {clipped(name)}; {hint}")
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                kind = type(value).__name__
                raise BadInput(f"{place}: variable {name} is of type {kind}; pass text or a number")
        missing = [name for name in known if name not in values]
        if missing:
            raise BadInput(f"{place}: missing {', '.join(missing)}; pass each variable of its text by name")
        return _VARIABLE.sub(lambda found: str(values[found[1]]), self.text)


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
    for found in _BRACES.findall(body):
        if not _VARIABLE.fullmatch(found):
            hint = "write a variable as {{ name }}: letters, digits and _"
            reader.problem(top, f"{clipped(found)} is no variable and stays as it is", hint, "warning")
    return msgspec.convert({"name": name, "text": body, **front}, Prompt), problems + reader.problems


def read_prompts(files: Mapping[str, bytes]) -> dict[str, Prompt]:
    """The prompts in the files of a valid brain, by name."""
    prompts: dict[str, Prompt] = {}
    for path, body in files.items():
        name = path.removeprefix(_FOLDER).removesuffix(".md")
        if is_prompt(path):
            prompts[name] = read_prompt(path, name, body.decode())[0]
    return prompts


def is_prompt(path: str) -> bool:
    """Whether a file of the brain is a prompt."""
    is_readme = path.rpartition("/")[2].upper().startswith("README")
    return path.startswith(_FOLDER) and path.endswith(".md") and not is_readme
