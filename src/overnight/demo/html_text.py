"""The text a person would see in an HTML mail."""

import re
from html.parser import HTMLParser
from typing import Final

MAX_HTML_CHARS: Final = 200_000
_UNSEEN_TAGS: Final = frozenset({"head", "script", "style", "template", "title", "object", "svg"})
_VOID_TAGS: Final = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"})
_SELF_CLOSING: Final = frozenset({"p", "li", "td", "th", "tr", "option", "dd", "dt"})
# What stands before and after an element: an empty line between paragraphs, a new line between rows.
_PARAGRAPHS: Final = frozenset({"p", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "section"})
_NEW_LINE: Final = "\x1e"
_BREAKS: Final = dict.fromkeys(_PARAGRAPHS, "\n") | dict.fromkeys(("div", "li", "tr", "hr"), _NEW_LINE)
_HIDING_STYLE: Final = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|opacity:0(?:\.0*)?(?![.\d])|mso-hide:all"
    r"|font-size:[01](?:\.\d*)?(?:px|pt|em|rem|%)?(?![.\d])|(?:max-)?(?:height|width):0(?:px|pt|em|%)?(?![.\d])"
    r"|text-indent:-\d{3,}|(?:left|top):-\d{3,}"
)
_SPACES: Final = re.compile(r"[ \t\r\f\v\xa0\u200b\u200c\ufeff]+")


def _hides(tag: str, attrs: list[tuple[str, str | None]]) -> bool:
    if tag in _UNSEEN_TAGS:
        return True
    for name, value in attrs:
        if name == "hidden":
            return True
        if name == "style" and _HIDING_STYLE.search(re.sub(r"\s+", "", (value or "").lower())):
            return True
    return False


class _Visible(HTMLParser):
    """Collects the text outside hidden elements; a link's address follows its text when the two differ."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden_chars = 0
        self._open: list[tuple[str, bool]] = []
        self._hidden = 0
        self._links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SELF_CLOSING and self._open and self._open[-1][0] == tag:
            self._pop()
        if not self._hidden:
            self.pieces.append("\n" if tag == "br" else _BREAKS.get(tag, " " if tag in {"td", "th"} else ""))
        if tag in _VOID_TAGS:
            return
        hides = _hides(tag, attrs)
        self._open.append((tag, hides))
        self._hidden += hides
        if tag == "a":
            self._links.append((dict(attrs).get("href") or "", len(self.pieces)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # HTML ignores the slash except on void elements: <div hidden/> hides what follows.
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not any(name == tag for name, _ in self._open[-200:]):
            return
        while self._pop() != tag:
            pass
        if not self._hidden:
            self.pieces.append(_BREAKS.get(tag, ""))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data.replace("\n", " "))
        elif self._open[-1][0] not in _UNSEEN_TAGS:
            self.hidden_chars += len(data.strip())

    def _pop(self) -> str:
        tag, hides = self._open.pop()
        if tag == "a":
            href, start = self._links.pop()
            shown = "".join(self.pieces[start:]).strip()
            if not self._hidden and href.startswith(("http://", "https://")) and shown != href:
                self.pieces.append(f" <{href[:300]}>")
        self._hidden -= hides
        return tag


def html_to_text(html: str) -> tuple[str, int]:
    """Return (visible text, number of characters that the mail hid from its reader).

    Scripts, styles, comments and elements hidden by attribute or inline style are left out. Rules in a `<style>` sheet
    are not evaluated. At most the first 200,000 characters are read.
    """
    parser = _Visible()
    parser.feed(html[:MAX_HTML_CHARS])
    parser.close()
    text = re.sub(rf"[ {_NEW_LINE}]*\n[ {_NEW_LINE}]*", "\n", "".join(parser.pieces))
    text = re.sub(rf"{_NEW_LINE}[ {_NEW_LINE}]*", "\n", text)
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip(), parser.hidden_chars
