"""Master keys, which encrypt provider keys (AES-256-GCM). The first one encrypts; all of them decrypt.

They come from OVERNIGHT_MASTER_KEY, else from the file `master.key` in the home. That file is created with the first
provider key, which suffices on one machine. Master keys are never in the database, so a copy of it reveals no provider key.
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
_HOW = "create one with `openssl rand -base64 32`"


class DecryptionFailed(OvernightError):
    """A stored secret cannot be decrypted: its master key is missing, or the row was altered."""


class MasterKey(NamedTuple):
    """One master key. `master_id` identifies the key without revealing it."""

    master_id: str
    key: bytes

    def __repr__(self) -> str:
        return f"<master key {self.master_id}>"


def _master(key: bytes) -> MasterKey:
    return MasterKey(hashlib.sha256(b"overnight master key\0" + key).hexdigest()[:12], key)


def _read(text: str, place: str) -> tuple[MasterKey, ...]:
    """Parse keys of 32 bytes in base64 or hex, separated by commas or white space. Raises BadInput, which quotes no key."""
    found: list[MasterKey] = []
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
            raise BadInput(f"{place}: invalid master key; expected 32 bytes in base64 or hex; {_HOW}")
        found.append(_master(key))
    return tuple(found)


class MasterKeys:
    """The master keys of this process.

    Args:
        given: the value of OVERNIGHT_MASTER_KEY; it takes precedence over the file.
        home: the folder of the file.
        makes_file: whether a missing file is created with the first use.

    Raises BadInput for invalid keys.
    """

    def __init__(self, given: str | None = None, home: Path | None = None, *, makes_file: bool = False) -> None:
        self._file = home / FILE if home is not None and not given else None
        self._makes_file = makes_file
        self._masters = _read(given, "OVERNIGHT_MASTER_KEY") if given else self._from_file()

    def first(self) -> MasterKey:
        """The key that encrypts. Creates the file if it is missing and may be created; else raises BadInput."""
        if not self._masters and self._file is not None and self._makes_file:
            self._masters = self._create_file(self._file)
        if not self._masters:
            raise BadInput(f"no master key: set OVERNIGHT_MASTER_KEY to the same value on every machine; {_HOW}")
        return self._masters[0]

    def encrypt(self, secret: str, bound_to: Sequence[str]) -> tuple[str, bytes]:
        """Encrypt a secret. Returns the id of the master key and the ciphertext, which decrypts only with the same `bound_to`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if self._file is not None:
            self._masters = self._from_file()  # a rotation may have added a new first key
        master, nonce = self.first(), os.urandom(NONCE_BYTES)
        return master.master_id, nonce + AESGCM(master.key).encrypt(nonce, secret.encode(), _binding(bound_to))

    def decrypt(self, master_id: str, sealed: bytes, bound_to: Sequence[str]) -> str:
        """Decrypt a secret. Raises DecryptionFailed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        master = self._by_id(master_id)
        if master is None:
            place = f"in {self._file}" if self._file else "in OVERNIGHT_MASTER_KEY"
            raise DecryptionFailed(
                f"{' '.join(bound_to)}: encrypted with the master key {master_id}, which is missing {place}; add it"
            )
        try:
            return AESGCM(master.key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _binding(bound_to)).decode()
        except InvalidTag:
            raise DecryptionFailed(f"{' '.join(bound_to)}: the stored key was altered; set it again") from None

    @contextmanager
    def rotation(self, used: Collection[str]) -> Generator[MasterKey]:
        """Add a new first master key, and lock out other rotations during the `with` block. Raises BadInput.

        The previous first key stays in the file until the next rotation, because another process may be encrypting with it.
        Older keys stay if they are in `used`. With OVERNIGHT_MASTER_KEY, its first key is the new one.
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
            _write_draft(self._file, self._masters).replace(self._file)
            yield self._masters[0]
        finally:
            os.close(lock)

    def _by_id(self, master_id: str) -> MasterKey | None:
        for _ in range(2):
            for master in self._masters:
                if master.master_id == master_id:
                    return master
            if self._file is None:
                return None
            self._masters = self._from_file()  # another process may have added a new key
        return None

    def _from_file(self) -> tuple[MasterKey, ...]:
        if self._file is None or not self._file.exists():
            return ()
        try:
            if self._file.stat().st_mode & 0o077:
                raise BadInput(f"{self._file}: other users can read the master key; run chmod 600 {self._file}")
            return _read(self._file.read_text("ascii"), str(self._file))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise BadInput(f"{self._file}: the master key cannot be read: {why}") from None

    def _create_file(self, file: Path) -> tuple[MasterKey, ...]:
        """Create the file with a first master key. Of two concurrent processes, both use the first file."""
        fresh = _write_draft(file, (_master(os.urandom(KEY_BYTES)),))
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass
        except OSError as error:
            raise BadInput(
                f"{file}: the master key cannot be stored: {error.strerror}; set OVERNIGHT_MASTER_KEY"
            ) from None
        finally:
            fresh.unlink()
        return self._from_file()


def _write_draft(file: Path, masters: tuple[MasterKey, ...]) -> Path:
    """Write the keys to a new temporary file in the same folder, flushed to disk and readable by its owner only."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        make_folder(file.parent)
        with new_file(draft) as out:
            out.write(b"".join(base64.b64encode(master.key) + b"\n" for master in masters))
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise BadInput(f"{file}: the master key cannot be stored: {error.strerror}; set OVERNIGHT_MASTER_KEY") from None
    return draft


def _binding(bound_to: Sequence[str]) -> bytes:
    return "\0".join(("overnight provider key", *bound_to)).encode()
