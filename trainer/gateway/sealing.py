"""Secrets at rest: sealed with AES-256-GCM (NIST SP 800-38D), by keys that lie apart from the records.

The keys come from the environment's TRAINER_SECRET_KEY, or else from `secret.key` in the state folder, which is made at
the first use and only its owner can read. The first key seals; those after it still open what they have sealed, so
that keys can be changed while the gateway is up (`secret_rotation.py`): a process that has read the file sees that it
is another one. Whoever seals does it inside the transaction that stores the result, so that no value comes in under a
key that is being dropped. What is sealed names its key and is bound to what it is `about`: moved to another record, it
does not open. This protects copies of the database, not a machine whose key file is read too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trainer.gateway.errors import GatewayError

KEY_VARIABLE = "TRAINER_SECRET_KEY"
KEY_FILE = "secret.key"
SEALED = "sealed1"
_KEY_BYTES, _NONCE_BYTES = 32, 12


class Sealer:
    """Seals and opens with the keys of one state folder, newest first."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._path = folder / KEY_FILE
        given = (os.environ if environment is None else environment).get(KEY_VARIABLE, "")
        self._from_environment = bool(given.strip())
        if self._from_environment:
            self._take(given.split(), KEY_VARIABLE)
        else:
            _make(self._path, [new_key()])
            self._read()

    def seal(self, value: bytes, *, about: str = "") -> str:
        """`value`, unreadable without the key; `about` is what it belongs to, as the name of its record."""
        self._refresh()
        name, key = next(iter(self._keys.items()))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        content = nonce + AESGCM(key).encrypt(nonce, value, about.encode())
        return f"{SEALED}.{name}.{base64.urlsafe_b64encode(content).decode().rstrip('=')}"

    def open(self, sealed: str, *, about: str = "") -> bytes:
        """What was sealed. Raises FAILED_PRECONDITION without its key, DATA_LOSS where it was altered or moved."""
        form, name, content = ([*sealed.split("."), "", ""])[:3]
        try:
            raw = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))
        except (ValueError, binascii.Error):
            raw = b""
        if form != SEALED or len(raw) < _NONCE_BYTES:
            raise GatewayError("DATA_LOSS", f"{about or 'a secret'}: what is stored is not a sealed value")
        if name not in self._keys and not self._from_environment:
            self._read()  # another process may have changed the keys
        if name not in self._keys:
            raise GatewayError(
                "FAILED_PRECONDITION",
                f"{about or 'a secret'} is sealed with the key {name}, which is not among those of {self._place()}; "
                "add that key there, or set the secret anew",
                reason="SECRET_KEY_MISSING",
            )
        try:
            return AESGCM(self._keys[name]).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], about.encode())
        except InvalidTag as error:
            raise GatewayError(
                "DATA_LOSS", f"{about or 'a secret'}: what is stored does not open; set the secret anew"
            ) from error

    def current(self, sealed: str) -> bool:
        """True where the newest key has sealed it."""
        self._refresh()
        return sealed.split(".")[1:2] == [next(iter(self._keys))]

    @property
    def from_environment(self) -> bool:
        """True where the keys are the environment's, which alone can change them."""
        return self._from_environment

    @property
    def count(self) -> int:
        """How many keys open something."""
        self._refresh()
        return len(self._keys)

    def rotate(self) -> None:
        """Make a new key, which seals from now on; then `open` and `seal` again whatever is not `current`.

        The file is durable before this returns. Raises FAILED_PRECONDITION where the keys are the environment's.
        """
        self._must_be_file()
        self._read()
        _write(self._path, [new_key(), *map(_text, self._keys.values())])
        self._read()

    def forget(self) -> None:
        """Drop all keys but the newest; what the others have sealed is lost. Raises as `rotate` does."""
        self._must_be_file()
        _write(self._path, [_text(next(iter(self._keys.values())))])
        self._read()

    def _must_be_file(self) -> None:
        if self._from_environment:
            raise GatewayError(
                "FAILED_PRECONDITION",
                f"the keys come from {KEY_VARIABLE}, newest first, with spaces between them: change them there",
            )

    def _refresh(self) -> None:
        """Read the file again if it is no longer the one that was read."""
        if not self._from_environment and _identity(self._path) != self._seen:
            self._read()

    def _place(self) -> str:
        return KEY_VARIABLE if self._from_environment else str(self._path)

    def _read(self) -> None:
        self._seen = _identity(self._path)
        if self._path.stat().st_mode & 0o077:
            raise GatewayError(
                "FAILED_PRECONDITION",
                f"{self._path} can be read by others than its owner; chmod 600 it, and change the secrets",
            )
        self._take(self._path.read_text(encoding="ascii").split(), str(self._path))

    def _take(self, texts: Iterable[str], place: str) -> None:
        self._keys: dict[str, bytes] = {}
        for number, text in enumerate(texts, start=1):
            try:
                key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (ValueError, binascii.Error):
                key = b""
            if len(key) != _KEY_BYTES:
                raise GatewayError(
                    "FAILED_PRECONDITION",
                    f"{place}: key {number} is not {_KEY_BYTES} bytes in URL-safe base64; make one with: "
                    'python -c "from trainer.gateway.sealing import new_key; print(new_key())"',
                )
            self._keys[hashlib.sha256(key).hexdigest()[:8]] = key
        if not self._keys:
            raise GatewayError("FAILED_PRECONDITION", f"{place} has no key; restore it from a backup")


def new_key() -> str:
    """A random key, as the key file and the environment have it."""
    return _text(secrets.token_bytes(_KEY_BYTES))


def _text(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def _make(path: Path, keys: list[str]) -> None:
    """Write the key file unless there is one; of two processes that start at once, one makes it for both."""
    if path.exists():
        return
    temporary = _temporary(path, keys, secrets.token_hex(8))
    try:
        path.hardlink_to(temporary)
    except FileExistsError:  # the other process was first: its key is the key
        pass
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def _write(path: Path, keys: list[str]) -> None:
    """Replace the key file; what a kill leaves behind is overwritten the next time."""
    _temporary(path, keys, "next").replace(path)
    _sync_folder(path.parent)


def _temporary(path: Path, keys: list[str], ending: str) -> Path:
    temporary = path.with_name(f"{path.name}.{ending}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write("\n".join(keys) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int, int]:
    """What is another number when the file is replaced, or written."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
