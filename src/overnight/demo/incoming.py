"""Parses a mail into bounded fields for the agent. Never raises, whatever the mail contains."""

import base64
import email
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email import policy
from email.errors import InvalidBase64LengthDefect
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from .html_text import MAX_HTML_CHARS, html_to_text

MAX_MAIL_BYTES: Final = 1_048_576
MAX_TEXT_CHARS: Final = 20_000
MAX_HEADER_CHARS: Final = 4_096
MAX_SUBJECT_CHARS: Final = 300
MAX_PARTS: Final = 100
MAX_PROBLEMS: Final = 20
MAX_REFERENCES: Final = 20

MESSAGE_ID: Final = re.compile(r"<[!-;=?-~]{1,250}>")
ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,9}")
_LAST_ADDRESS: Final = re.compile(rf"[^<>]*<({ADDRESS.pattern})>")
# Control characters, line separators, bidirectional overrides and lone surrogates.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_UNPRINTABLE_IN_TEXT: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
# Codecs that are not character sets; "idna" also takes quadratic time.
_NOT_CHARSETS: Final = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"})
_LIST_HEADERS: Final = ("list-id", "list-unsubscribe", "list-post")
_BY_PROGRAM: Final = frozenset({"bulk", "junk", "auto_reply"})


class IncomingMail(msgspec.Struct, frozen=True, kw_only=True):
    """One mail, bounded and printable in every field.

    `key` stays the same while the mail moves through the Maildir. `sender` is the reply address (Reply-To, else From),
    empty if it is invalid or missing; `from_address` is the address in From. `message_id` is `<…>` or empty.
    `auto_submitted` mail was sent by a program, `is_list` mail to a mailing list: neither may be answered. `problems`
    describes broken, missing or omitted parts.
    """

    key: str
    message_id: str = ""
    references: tuple[str, ...] = ()
    sender: str = ""
    sender_name: str = ""
    from_address: str = ""
    subject: str = ""
    text: str = ""
    date: datetime | None = None
    is_list: bool = False
    auto_submitted: bool = False
    attachments: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class _Structure(policy.Compat32):
    """A policy for the structure of a mail. It limits headers and does not parse them; they are parsed one at a time later."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:MAX_HEADER_CHARS]  # the library takes quadratic time for the parameters of a long one


_STRUCTURE: Final = _Structure()


def one_line(text: str, limit: int = MAX_HEADER_CHARS) -> str:
    """The text on a single printable line of at most `limit` characters."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())[:limit].rstrip()


def read_mail(key: str, data: bytes) -> IncomingMail:
    """Read one RFC 5322 message. Never raises: unreadable parts are named in `problems`. Reads at most 1 MiB."""
    problems: list[str] = []
    if len(data) > MAX_MAIL_BYTES:
        problems.append(f"larger than {MAX_MAIL_BYTES} bytes: the rest was not read")
    try:
        mail = _read(key, data[:MAX_MAIL_BYTES], problems)
    except (
        Exception
    ) as error:  # the email package raises many exception types on hostile input, including RecursionError
        problems.append(f"not readable as mail: {one_line(f'{type(error).__name__}: {error}', 200)}")
        mail = IncomingMail(key=key)
    return msgspec.structs.replace(mail, problems=tuple(dict.fromkeys(problems))[:MAX_PROBLEMS])


def _read(key: str, data: bytes, problems: list[str]) -> IncomingMail:
    message = email.message_from_bytes(data, policy=_STRUCTURE)
    headers = _Headers(message, problems)
    text, attachments = _content(message, problems)
    from_name, from_address = headers.address("from")
    reply_name, reply_to = headers.address("reply-to")
    sender = reply_to or from_address
    if not sender:
        problems.append("no valid reply address")
    ids = MESSAGE_ID.findall(headers.raw("message-id"))
    if not ids:
        problems.append("no Message-ID")
    references = MESSAGE_ID.findall(headers.raw("references")) or MESSAGE_ID.findall(headers.raw("in-reply-to"))
    precedence = headers.raw("precedence").strip().lower()
    submitted = headers.raw("auto-submitted").strip().lower()
    return IncomingMail(
        key=key,
        message_id=ids[0] if ids else "",
        references=tuple(references[-MAX_REFERENCES:]),
        sender=sender,
        sender_name=(reply_name if reply_to else "") or from_name,
        from_address=from_address,
        subject=headers.text("subject", MAX_SUBJECT_CHARS),
        text=text,
        date=headers.date(),
        is_list=precedence in {"bulk", "list"} or any(name in headers for name in _LIST_HEADERS),
        auto_submitted=submitted not in {"", "no"}
        or precedence in _BY_PROGRAM
        or headers.raw("return-path").strip() == "<>"
        or message.get_content_type() == "multipart/report",
        attachments=attachments,
    )


class _Headers:
    """The headers of one message, decoded one at a time: the library's parser is slow and raises on some of them."""

    def __init__(self, message: Message, problems: list[str]) -> None:
        self._values: dict[str, str] = {}
        self._problems = problems
        for name, value in message.raw_items():
            lower = name.lower()
            if lower not in self._values:
                self._values[lower] = str(value)
            elif lower in {"from", "reply-to", "subject", "date", "message-id"}:
                problems.append(f"{lower.capitalize()}: repeated; the first one is used")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def raw(self, name: str) -> str:
        return self._values.get(name, "")

    def text(self, name: str, limit: int) -> str:
        decoded = str(self._parsed(name) or "")
        if _UNPRINTABLE.search(decoded):
            self._problems.append(f"{name.capitalize()}: line breaks or control characters were replaced by spaces")
        return one_line(decoded, limit)

    def address(self, name: str) -> tuple[str, str]:
        """(display name, address), both empty unless the first address is plain ASCII and complete."""
        parsed = self._parsed(name)
        if parsed is None:  # the display name broke the parser; a separate address at the end is still valid
            ends_with = _LAST_ADDRESS.fullmatch(self.raw(name).strip())
            return "", ends_with[1] if ends_with else ""
        if not parsed.addresses:
            return "", ""
        address = str(parsed.addresses[0].addr_spec)
        if not ADDRESS.fullmatch(address):
            self._problems.append(f"{name.capitalize()}: invalid address")
            address = ""
        return one_line(str(parsed.addresses[0].display_name), 200), address

    def date(self) -> datetime | None:
        raw = self.raw("date").strip()
        if not raw:
            self._problems.append("no Date")
            return None
        try:
            date = parsedate_to_datetime(raw)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, IndexError):
            self._problems.append("Date: not a date")
            return None

    def _parsed(self, name: str) -> Any:
        raw = self.raw(name)
        if not raw.isascii():
            self._problems.append(f"{name.capitalize()}: raw 8-bit bytes")
            raw = _decode(raw.encode("utf-8", "surrogateescape"), "utf-8")
        try:
            header = policy.default.header_factory(name, re.sub(r"[\r\n]+", "", raw))
        except Exception as error:  # known to raise IndexError, AttributeError, ValueError and more on broken input
            self._problems.append(f"{name.capitalize()}: not readable ({type(error).__name__})")
            return None
        self._problems.extend(f"{name.capitalize()}: {_defect(d)}" for d in header.defects)
        return header


def _defect(defect: object) -> str:
    """`StartBoundaryNotFoundDefect` as `start boundary not found`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(defect).__name__.removesuffix("Defect")).lower()


def _content(message: Message, problems: list[str]) -> tuple[str, tuple[str, ...]]:
    """(best plain text, names of attachments)."""
    plain: list[str] = []
    html: list[str] = []
    attachments: list[str] = []
    for count, part in enumerate(_leaves(message, problems)):
        if count == MAX_PARTS:
            problems.append(f"more than {MAX_PARTS} parts: the rest was not read")
            break
        kind = part.get_content_type()
        name = part.get_filename()
        if name or part.get_content_disposition() == "attachment" or kind not in {"text/plain", "text/html"}:
            attachments.append(_attachment_name(name, kind))
        else:
            (plain if kind == "text/plain" else html).append(_part_text(part, problems))
    text = "\n\n".join(t for t in plain if t.strip())
    if not text and html:
        text, hidden = html_to_text("\n".join(html))
        if hidden:
            problems.append(f"{hidden} characters hidden in the HTML were left out")
    text = _UNPRINTABLE_IN_TEXT.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        problems.append("no text")
    if len(text) > MAX_TEXT_CHARS:
        problems.append(f"text cut after {MAX_TEXT_CHARS} characters")
    return text[:MAX_TEXT_CHARS], tuple(attachments)


def _leaves(message: Message, problems: list[str]) -> Iterator[Message]:
    """The parts with content, in order. An attached message is one part: its text is not part of this mail."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        problems.extend(_defect(d) for d in part.defects)
        payload: Any = part.get_payload()
        if part.get_content_maintype() == "multipart" and isinstance(payload, list):
            waiting.extend(reversed(payload))  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield part


def _attachment_name(name: str | None, kind: str) -> str:
    if not name:
        return kind[:100]
    header: Callable[..., Any] = policy.default.header_factory
    decoded = str(header("subject", one_line(name))) if "=?" in name else name
    return one_line(re.split(r"[/\\]", decoded)[-1], 120) or kind[:100]


def _part_text(part: Message, problems: list[str]) -> str:
    payload: Any = part.get_payload(decode=True)
    data: bytes = payload if isinstance(payload, bytes) else b""
    if any(isinstance(defect, InvalidBase64LengthDefect) for defect in part.defects):
        problems.append("base64 is truncated: only the existing part was read")
        data = _base64_without_end(data)
    charset = part.get_content_charset("us-ascii")
    try:
        text = data.decode("cp1252" if charset == "iso-8859-1" else charset) if charset not in _NOT_CHARSETS else None
    except (LookupError, ValueError):
        text = None
    if text is None:
        problems.append(f"text is not in its declared charset {one_line(charset, 40)}")
        text = _decode(data, charset)
    is_html = part.get_content_type() == "text/html"
    limit = MAX_HTML_CHARS if is_html else MAX_TEXT_CHARS
    if len(text) > limit:
        problems.append(f"text cut after {limit} characters")
        text = text[:limit]
    if not is_html and str(part.get_param("format")).lower() == "flowed":
        text = _unflow(text, delete_space=str(part.get_param("delsp")).lower() == "yes")
    return text


def _base64_without_end(data: bytes) -> bytes:
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", data)
    return base64.b64decode(digits[: len(digits) // 4 * 4])


def _decode(data: bytes, charset: str) -> str:
    """Decode text whose declared charset failed: as UTF-8, else that charset with replacements, else Windows-1252."""
    try:
        return getincrementaldecoder("utf-8")().decode(data)  # incremental: the last character may be cut in half
    except UnicodeDecodeError:
        several_bytes = {"shift_jis", "gb18030", "gb2312", "euc-jp", "euc-kr", "big5", "iso-2022-jp"}
        return data.decode(charset if charset in several_bytes else "cp1252", "replace")


def _unflow(text: str, *, delete_space: bool) -> str:
    """RFC 3676: a line that ends in a space continues in the next line of the same quote depth."""
    lines: list[str] = []
    open_depth: int | None = None
    for line in text.splitlines():
        content = line.lstrip(">")
        depth = len(line) - len(content)
        content = content.removeprefix(" ")
        if open_depth == depth and lines and content != "-- ":
            lines[-1] += content
        else:
            lines.append(">" * depth + (" " if depth else "") + content)
        flows = content.endswith(" ") and content != "-- "
        open_depth = depth if flows else None
        if flows and delete_space:
            lines[-1] = lines[-1][:-1]
    return "\n".join(lines)
