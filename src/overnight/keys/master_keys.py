"""Master keys: what providers' keys are sealed with (AES-256-GCM). The first of them seals, all of them open.

They come from OVERNIGHT_MASTER_KEY, or else from the file `master.key` in the home, which is made when a provider's key is
first kept; on one machine that is enough. They are never in the database: a copy of it gives nobody a provider's key.
"""

import base64
import binascii
import fcntl
import hashlib
import os
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from overnight.domain import BadInput, OvernightError
from overnight.files import make_folder, new_file, open_file

FILE = "master.key"
KEY_BYTES, NONCE_BYTES = 32, 12
_HOW = "make one with `openssl rand -base64 32`"


class SealedShut(OvernightError):
    """A kept secret cannot be opened: its master key is not here, or the row was tampered with."""


class Master(NamedTuple):
    """`master_id` names the key and does not give it away."""

    master_id: str
    key: bytes

    def __repr__(self) -> str:
        return f"<master key {self.master_id}>"


def _master(key: bytes) -> Master:
    return Master(hashlib.sha256(b"overnight master key\0" + key).hexdigest()[:12], key)


def _read(text: str, place: str) -> tuple[Master, ...]:
    """Keys of 32 bytes in base64 or hex, separated by commas or white space. Raises BadInput; what is wrong is not quoted."""
    found: list[Master] = []
    for word in text.replace(",", " ").split():
        try:
            plain = word.replace("-", "+").replace("_", "/")
            key = (
                bytes.fromhex(word)
                if len(word) == 2 * KEY_BYTES
                else base64.b64decode(plain + "=" * (-len(word) % 4), validate=True)
            )
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != KEY_BYTES:
            raise BadInput(f"{place}: a master key is 32 bytes in base64 or hex, and one of these is not; {_HOW}")
        found.append(_master(key))
    return tuple(found)


class Masters:
    """The master keys of this process. `given` is the text of OVERNIGHT_MASTER_KEY; `home` is where the file is looked for,
    and made when `makes_file`. Raises BadInput for keys that are none."""

    def __init__(self, given: str | None = None, home: Path | None = None, *, makes_file: bool = False) -> None:
        self._file = home / FILE if home is not None and not given else None
        self._makes_file = makes_file
        self._masters = _read(given, "OVERNIGHT_MASTER_KEY") if given else self._from_file()

    @property
    def in_file(self) -> Path | None:
        """Where they are kept; None when the environment gives them."""
        return self._file

    def first(self) -> Master:
        """The one that seals. Makes the file where there is none and it may; else raises BadInput, saying what to set."""
        if not self._masters and self._file is not None and self._makes_file:
            self._masters = self._made(self._file)
        if not self._masters:
            raise BadInput(
                f"there is no master key to seal with: set OVERNIGHT_MASTER_KEY, on every machine the same; {_HOW}"
            )
        return self._masters[0]

    def seal(self, secret: str, bound_to: Sequence[str]) -> tuple[str, bytes]:
        """(the master key's id, the sealed secret). It opens only for the same `bound_to`: a row copied elsewhere stays shut."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if self._file is not None:
            self._masters = self._from_file()  # a rotation may have put a new one first
        master, nonce = self.first(), os.urandom(NONCE_BYTES)
        return master.master_id, nonce + AESGCM(master.key).encrypt(nonce, secret.encode(), _binding(bound_to))

    def open(self, master_id: str, sealed: bytes, bound_to: Sequence[str]) -> str:
        """The secret. Raises SealedShut."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        master = self._by_id(master_id)
        if master is None:
            place = f"in {self._file}" if self._file else "in OVERNIGHT_MASTER_KEY"
            raise SealedShut(
                f"{' '.join(bound_to)}: sealed with the master key {master_id}, which is not {place}; put it there"
            )
        try:
            return AESGCM(master.key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _binding(bound_to)).decode()
        except InvalidTag:
            raise SealedShut(f"{' '.join(bound_to)}: what is stored was altered; set the key again") from None

    @contextmanager
    def turning(self, used: Collection[str]) -> Generator[Master]:
        """A new first master key for the length of a rotation, which no other rotation disturbs.

        In the file it stands before the one that sealed until now, which stays until the next rotation: somebody may be
        sealing with it this very moment. Of the older ones those in `used` stay. Where the environment gives the keys, its
        first is the new one.
        """
        if self._file is None:
            yield self.first()
            return
        self.first()
        lock = open_file(self._file.with_name(f"{FILE}.lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            present = self._from_file()
            older = [master for master in present[1:] if master.master_id in used]
            self._masters = (_master(os.urandom(KEY_BYTES)), *present[:1], *older)
            _draft(self._file, self._masters).replace(self._file)
            yield self._masters[0]
        finally:
            os.close(lock)

    def _by_id(self, master_id: str) -> Master | None:
        for _ in range(2):
            for master in self._masters:
                if master.master_id == master_id:
                    return master
            if self._file is None:
                return None
            self._masters = self._from_file()  # another process may have put a new one there
        return None

    def _from_file(self) -> tuple[Master, ...]:
        if self._file is None or not self._file.exists():
            return ()
        try:
            if self._file.stat().st_mode & 0o077:
                raise BadInput(f"{self._file}: others than its owner can read the master key; chmod 600 {self._file}")
            return _read(self._file.read_text("ascii"), str(self._file))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise BadInput(f"{self._file}: the master key cannot be read: {why}") from None

    def _made(self, file: Path) -> tuple[Master, ...]:
        """The first master key; where two processes make the file at once, both take what the quicker one wrote."""
        fresh = _draft(file, (_master(os.urandom(KEY_BYTES)),))
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass
        except OSError as error:
            raise BadInput(
                f"{file}: the master key cannot be kept: {error.strerror}; set OVERNIGHT_MASTER_KEY"
            ) from None
        finally:
            fresh.unlink()
        return self._from_file()


def _draft(file: Path, masters: tuple[Master, ...]) -> Path:
    """The whole text in a file beside it, on the disk, for its owner alone."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        make_folder(file.parent)
        with new_file(draft) as out:
            out.write(b"".join(base64.b64encode(master.key) + b"\n" for master in masters))
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise BadInput(f"{file}: the master key cannot be kept: {error.strerror}; set OVERNIGHT_MASTER_KEY") from None
    return draft


def _binding(bound_to: Sequence[str]) -> bytes:
    return "\0".join(("overnight provider key", *bound_to)).encode()
