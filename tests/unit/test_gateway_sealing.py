"""Secrets at rest: what is sealed opens with its key, for its record, unaltered, and not otherwise."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trainer.gateway.errors import GatewayError
from trainer.gateway.sealing import KEY_FILE, KEY_VARIABLE, Sealer, new_key

NAME = "accounts/local/secrets/s"


def sealer(folder: Path, **environment: str) -> Sealer:
    return Sealer(folder, environment=environment)


def test_sealed_and_opened(tmp_path: Path) -> None:
    one = sealer(tmp_path)
    sealed = one.seal(b"hunter2", about=NAME)
    assert "hunter2" not in sealed
    assert b"hunter2" not in base64.urlsafe_b64decode(sealed.split(".")[2] + "==")
    assert sealed != one.seal(b"hunter2", about=NAME)  # a nonce of its own each time
    assert sealer(tmp_path).open(sealed, about=NAME) == b"hunter2"  # another process
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_the_cipher_is_the_one_it_says(tmp_path: Path) -> None:
    key = new_key()
    sealed = sealer(tmp_path, **{KEY_VARIABLE: key}).seal(b"v", about=NAME)
    content = base64.urlsafe_b64decode(sealed.split(".")[2] + "==")
    raw = base64.urlsafe_b64decode(key + "=")
    assert len(raw) == 32
    assert AESGCM(raw).decrypt(content[:12], content[12:], NAME.encode()) == b"v"
    assert list(tmp_path.iterdir()) == []  # the environment's key is not written down


def test_moved_or_altered_it_does_not_open(tmp_path: Path) -> None:
    one = sealer(tmp_path)
    sealed = one.seal(b"hunter2", about=NAME)
    with pytest.raises(GatewayError, match="DATA_LOSS") as caught:
        one.open(sealed, about=NAME + "2")
    assert "hunter2" not in str(caught.value)
    form, key, content = sealed.split(".")
    for index in range(len(content)):
        other = content[:index] + ("A" if content[index] != "A" else "B") + content[index + 1 :]
        if base64.urlsafe_b64decode(other + "==") == base64.urlsafe_b64decode(content + "=="):
            continue  # the last character's spare bits
        with pytest.raises(GatewayError, match="DATA_LOSS"):
            one.open(f"{form}.{key}.{other}", about=NAME)
    for text in ("", "hunter2", "sealed1", f"sealed1.{key}.", f"sealed1.{key}.!!", f"sealed2.{key}.{content}"):
        with pytest.raises(GatewayError, match="DATA_LOSS"):
            one.open(text, about=NAME)


def test_keys_change(tmp_path: Path) -> None:
    one, other = sealer(tmp_path), sealer(tmp_path)
    old = one.seal(b"v", about=NAME)
    assert one.current(old)
    one.rotate()
    assert not one.current(old)
    new = one.seal(one.open(old, about=NAME), about=NAME)
    assert one.current(new)
    assert other.open(new, about=NAME) == b"v"  # a process that was there before
    assert sealer(tmp_path).open(old, about=NAME) == b"v"
    one.forget()
    assert sealer(tmp_path).open(new, about=NAME) == b"v"
    with pytest.raises(GatewayError, match=r"secrets/s is sealed with the key [0-9a-f]{8}.*set the secret anew"):
        sealer(tmp_path).open(old, about=NAME)


def test_the_environment_s_keys(tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    old = sealer(tmp_path, **{KEY_VARIABLE: first}).seal(b"v")
    both = sealer(tmp_path, **{KEY_VARIABLE: f"{second} {first}"})
    assert both.open(old) == b"v"
    assert not both.current(old)
    assert sealer(tmp_path, **{KEY_VARIABLE: second}).open(both.seal(b"w")) == b"w"
    for change in (both.rotate, both.forget):
        with pytest.raises(GatewayError, match="newest first"):
            change()
    with pytest.raises(GatewayError, match="not among those of TRAINER_SECRET_KEY"):
        sealer(tmp_path, **{KEY_VARIABLE: second}).open(old)
    with pytest.raises(GatewayError, match="key 2 is not 32 bytes") as caught:
        sealer(tmp_path, **{KEY_VARIABLE: f"{first} hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    sealer(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o640)
    with pytest.raises(GatewayError, match="chmod 600"):
        sealer(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o600)
    (tmp_path / KEY_FILE).write_text("")
    with pytest.raises(GatewayError, match="has no key"):
        sealer(tmp_path)
