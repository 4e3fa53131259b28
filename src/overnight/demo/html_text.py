"""The visible text of an HTML mail."""

import html
import re
from collections.abc import Iterator
from typing import Final

MAX_HTML_CHARS: Final = 200_000
_MAX_TAG_CHARS: Final = 2_000
_UNSEEN_TAGS: Final = frozenset({"head", "template", "object", "svg"})
_RAW_END: Final = {tag: re.compile(f"</{tag}", re.IGNORECASE) for tag in ("script", "style", "title")}
_VOID_TAGS: Final = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"})
_SELF_CLOSING: Final = frozenset({"p", "li", "td", "th", "tr", "option", "dd", "dt"})
# The separators around an element: an empty line between paragraphs, a new line between rows.
_PARAGRAPHS: Final = frozenset({"p", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "section"})
_NEW_LINE: Final = "\x1e"
_BREAKS: Final = dict.fromkeys(_PARAGRAPHS, "\n") | dict.fromkeys(("div", "li", "tr", "hr"), _NEW_LINE)

# Possessive quantifiers: an unclosed tag must fail in linear time.
_TAG: Final = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)((?:[^>"']++|"[^"]*+"|'[^']*+')*+)>""")
_NAME: Final = re.compile(r"<(/?)([a-zA-Z][^\s/><]{0,40}+)")
_ATTRIBUTE: Final = re.compile(r"""([^\s=/"']++)(?:\s*+=\s*+("[^"]*+"|'[^']*+'|[^\s"']++))?""")
_HIDING_STYLE: Final = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|opacity:0(?:\.0*)?(?![.\d])|mso-hide:all"
    r"|font-size:[01](?:\.\d*)?(?:px|pt|em|rem|%)?(?![.\d])|(?:max-)?(?:height|width):0(?:px|pt|em|%)?(?![.\d])"
    r"|text-indent:-\d{3,}|(?:left|top):-\d{3,}"
)
_SPACES: Final = re.compile(r"[ \t\r\f\v\xa0\u200b\u200c\ufeff]+")

_Token = str | tuple[str, str, str]


def html_to_text(source: str) -> tuple[str, int]:
    """Return (visible text, number of hidden characters).

    Scripts, styles, comments and elements hidden by attribute or inline style are omitted. The address of a link follows
    its text if the two differ. Rules in a `<style>` sheet are not evaluated. Reads at most 200,000 characters.
    """
    page = _Page()
    for token in _tokens(source[:MAX_HTML_CHARS]):
        if isinstance(token, str):
            page.text(token)
        elif token[0]:
            page.close(token[1])
        else:
            page.open(token[1], token[2])
    lines: list[str] = []
    for paragraph in "".join(page.pieces).split("\n"):
        rows = (_SPACES.sub(" ", row).strip() for row in paragraph.split(_NEW_LINE))
        lines += [row for row in rows if row] or [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip(), page.hidden_chars


def _tokens(source: str) -> Iterator[_Token]:
    """Text, and tags as ("/" or "", name, attributes).

    Takes time linear in the length. The standard library's parser takes minutes for 200 kB of unclosed tags.
    """
    at = 0
    while (start := source.find("<", at)) >= 0:
        yield source[at:start]
        if source.startswith("<!--", start):
            at = _past(source, "-->", start + 4)
        elif tag := _TAG.match(source, start, start + _MAX_TAG_CHARS):
            at = tag.end()
            name = tag[2].lower()
            yield tag[1], name, tag[3]
            if name in _RAW_END and not tag[1]:
                end = _RAW_END[name].search(source, at)
                at = end.start() if end else len(source)
        elif name := _NAME.match(source, start):
            # The tag is too long to parse, so its style is unknown: omitted text is safer than visible hidden text.
            at = _past(source, ">", start)
            yield name[1], name[2].lower(), " hidden"
        elif source.startswith(("<!", "<?"), start):
            at = _past(source, ">", start)
        else:
            at = start + 1
            yield "<"
    yield source[at:]


def _past(source: str, mark: str, start: int) -> int:
    end = source.find(mark, start)
    return len(source) if end < 0 else end + len(mark)


class _Page:
    """The open elements at a position, and the visible text up to it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.hidden_chars = 0
        self._open: list[tuple[str, bool]] = []
        self._hidden = 0
        self._links: list[tuple[str, int]] = []

    def text(self, source: str) -> None:
        if not self._hidden:
            self.pieces.append(html.unescape(source.replace("\n", " ")))
        elif self._open[-1][0] not in _UNSEEN_TAGS:
            self.hidden_chars += len(source.strip())

    def open(self, tag: str, source: str) -> None:
        if tag in _SELF_CLOSING and self._open and self._open[-1][0] == tag:
            self._pop()
        if not self._hidden:
            self.pieces.append("\n" if tag == "br" else _BREAKS.get(tag, " " if tag in {"td", "th"} else ""))
        if tag in _VOID_TAGS:
            return
        found = [(m[1].lower(), html.unescape((m[2] or "").strip("\"'"))) for m in _ATTRIBUTE.finditer(source)]
        attributes = dict(reversed(found))  # the first of repeated attributes counts
        style = re.sub(r"\s+|/\*.*?\*/", "", attributes.get("style", "").lower())
        hides = tag in _UNSEEN_TAGS or "hidden" in attributes or _HIDING_STYLE.search(style) is not None
        self._open.append((tag, hides))
        self._hidden += hides
        if tag == "a":
            self._links.append((attributes.get("href", ""), len(self.pieces)))

    def close(self, tag: str) -> None:
        if not any(name == tag for name, _ in self._open[-100:]):
            return
        while self._pop() != tag:
            pass
        if not self._hidden:
            self.pieces.append(_BREAKS.get(tag, ""))

    def _pop(self) -> str:
        tag, hides = self._open.pop()
        if tag == "a":
            href, start = self._links.pop()
            shown = "".join(self.pieces[start:]).strip()
            if not self._hidden and href.startswith(("http://", "https://")) and shown != href:
                self.pieces.append(f" <{href[:300]}>")
        self._hidden -= hides
        return tag
