"""Maildir on disk: read, move, deliver, and find mail by Message-ID."""

import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from overnight.files import make_folder, new_file, open_file

from .incoming import MAX_MAIL_BYTES, MESSAGE_ID, IncomingMail, one_line, read_mail

MAX_MAILS: Final = 10_000
_MAX_HEADER_BYTES: Final = 65_536
_FOLDER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9_-]{1,64}){0,3}")
_SUBFOLDERS: Final = ("tmp", "new", "cur")
_ID_HEADER: Final = re.compile(rb"^message-id:[ \t]*(?:\r?\n[ \t]+)?([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_HEADER_END: Final = re.compile(rb"\r?\n\r?\n")


class MaildirError(Exception):
    """The folder is not a Maildir, or does not contain the named mail. The message names both."""


def create_maildir(path: Path) -> None:
    """Create a Maildir at `path`; existing content is kept."""
    for name in _SUBFOLDERS:
        make_folder(path / name)


def read_maildir(path: str | os.PathLike[str], *, limit: int = 1_000) -> list[IncomingMail]:
    """Read up to `limit` mails (at most 10,000) of a Maildir's inbox, `new/` and `cur/`, oldest delivery first.

    Broken and unreadable mails are in the list, with their `problems`. Raises MaildirError when `path` is no Maildir.
    """
    maildir = Path(path)
    if not (maildir / "new").is_dir() or not (maildir / "cur").is_dir():
        raise MaildirError(f"{maildir}: not a Maildir, it has no new/ and cur/; name the folder that contains them")
    places = sorted(_inbox(maildir).items(), key=lambda item: _delivery_order(item[0]))
    mails = [_read_file(key, place) for key, place in places[: min(limit, MAX_MAILS)]]
    first_with: dict[str, str] = {}
    for number, mail in enumerate(mails):
        first = first_with.setdefault(mail.message_id, mail.key) if mail.message_id else mail.key
        if first != mail.key:
            problem = f"same Message-ID as {first}"
            mails[number] = msgspec.structs.replace(mail, problems=(*mail.problems, problem))
    return mails


def file_into(path: str | os.PathLike[str], key: str, folder: str) -> bool:
    """Move a mail from the inbox into the Maildir++ folder (`Answered` is `.Answered/`), marked as seen; durable.

    Returns False if the mail is already there. Raises MaildirError if the mail is missing, or the folder name is invalid.
    """
    maildir = Path(path)
    if not _FOLDER.fullmatch(folder):
        raise MaildirError(f"{maildir}: {folder!r} is not a valid folder name; use letters, digits, '-' and '_'")
    target = maildir / f".{folder}"
    if not (target / "cur").is_dir():
        create_maildir(target)
        os.close(open_file(target / "maildirfolder", os.O_WRONLY | os.O_CREAT))
        _sync(target)
        _sync(maildir)
    while (place := _inbox(maildir).get(key)) is not None:
        unique, _, flags = place.name.partition(":2,")
        filed = target / "cur" / f"{unique}:2,{''.join(sorted({*flags, 'S'}))}"
        if filed.exists() and place.exists():  # in this order, because another process may have moved it just now
            raise MaildirError(f"{maildir}: mail {key!r} is in the inbox and in .{folder}; remove one of the two")
        try:
            place.rename(filed)
        except FileNotFoundError:  # another process moved it or changed its flags in the meantime
            continue
        _sync(filed.parent)
        _sync(place.parent)
        return True
    if any(_key(name) == key for name in _names(target / "cur")):
        return False
    raise MaildirError(f"{maildir}: no mail {key!r} in the inbox or in .{folder}; it was deleted or filed elsewhere")


def deliver(path: str | os.PathLike[str], data: bytes, *, unique: str | None = None) -> str:
    """Deliver into `new/` and return the file's name. After the return, the mail survives a crash of the machine."""
    maildir = Path(path)
    name = unique or f"{int(time.time())}.P{os.getpid()}R{secrets.token_hex(8)}.local"
    waiting, delivered = maildir / "tmp" / name, maildir / "new" / name
    try:
        with new_file(waiting) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        waiting.rename(delivered)
    except BaseException:
        waiting.unlink(missing_ok=True)
        raise
    _sync(delivered.parent)
    return name


def find_by_message_id(path: str | os.PathLike[str], message_id: str) -> str | None:
    """The file name of the mail with this Message-ID (`<…>`) in any folder; None if there is none.

    Raises ValueError for an invalid Message-ID, because "not found" would then mean "not sent".
    """
    if not MESSAGE_ID.fullmatch(message_id):
        raise ValueError(f"{message_id!r} is not a Message-ID; expected <id@domain>")
    return next((name for name, ids in _all_message_ids(Path(path)) if message_id in ids), None)


def count_by_message_id(path: str | os.PathLike[str]) -> dict[str, int]:
    """The number of mails per Message-ID, in all folders."""
    return dict(Counter(message_id for _, ids in _all_message_ids(Path(path)) for message_id in ids))


def _key(name: str) -> str:
    # Everything before the flags; a name that is not UTF-8 is written with escapes so that the key is plain text.
    return name.partition(":")[0].encode("utf-8", "backslashreplace").decode()


def _delivery_order(key: str) -> tuple[int, str]:
    seconds = re.match(r"[0-9]{1,15}", key)
    return (int(seconds[0]) if seconds else 0, key)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _inbox(maildir: Path) -> dict[str, Path]:
    # cur/ is read last: a mail that another program moves meanwhile is then found once, in its new place.
    return {_key(name): maildir / sub / name for sub in ("new", "cur") for name in _names(maildir / sub)}


def _read_file(key: str, place: Path) -> IncomingMail:
    try:
        return read_mail(key, _bytes(place, MAX_MAIL_BYTES + 1))
    except OSError as error:
        return IncomingMail(key=key, problems=(f"file not readable: {one_line(str(error.strerror or error), 200)}",))


def _bytes(place: Path, limit: int) -> bytes:
    # A symbolic link could lead out of the Maildir, and a pipe would block forever.
    handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(limit)


def _all_message_ids(maildir: Path) -> Iterator[tuple[str, set[str]]]:
    """(file name, its Message-IDs) for every mail in the inbox and in every folder below it."""
    if not (maildir / "new").is_dir():
        raise MaildirError(f"{maildir}: not a Maildir, it has no new/, so its received mail is unknown")
    folders = [maildir, *sorted(folder for folder in maildir.glob(".*") if folder.is_dir())]
    for place in (folder / sub / name for folder in folders for sub in ("new", "cur") for name in _names(folder / sub)):
        with suppress(FileNotFoundError):  # moved to cur/ since it was listed, where it is found again
            if stat.S_ISREG(place.lstat().st_mode):
                head = _HEADER_END.split(_bytes(place, _MAX_HEADER_BYTES), maxsplit=1)[0]
                lines = (line.decode("latin-1") for line in _ID_HEADER.findall(head))
                yield place.name, {found for line in lines for found in MESSAGE_ID.findall(line)}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
