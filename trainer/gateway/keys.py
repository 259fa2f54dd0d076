"""API keys: made once, shown once, kept as a digest only.

A key is `fw_<id>_<secret>`: the id finds its row, and the SHA-256 of the whole key is compared in constant time. The
secret has 256 random bits, so a slow hash would add nothing. Nothing is cached: a revoked key is dead with the next
request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trainer.gateway.errors import GatewayError, invalid, not_found
from trainer.gateway.principal import CUSTOM, ROLES, Principal
from trainer.gateway.store import Store, now
from trainer.gateway.tables import api_keys
from trainer.jobs import RESOURCE_ID

_KEY = re.compile(r"fw_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_SHOWN = 8  # characters of a key that lists show
_USED_SECONDS = 60.0  # `last_used` is written this often at most
_log = logging.getLogger("trainer.gateway")
_NOBODY = hashlib.sha256(b"").hexdigest()  # compared with where no row is found, so that takes as long
_USER_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Key:
    """A key's record. Times are the gateway's text, "" for never."""

    key_id: str
    account: str
    user_id: str
    role: str
    display_name: str
    prefix: str
    annotations: dict[str, str]
    create_time: str
    expire_time: str = ""
    revoke_time: str = ""
    last_used: str = ""

    def shown(self) -> dict[str, Any]:
        """As the contract's gatewayApiKey has it; the key itself is not in it."""
        times = {"createTime": self.create_time, "expireTime": self.expire_time, "lastUsed": self.last_used}
        return {
            "keyId": self.key_id, "displayName": self.display_name, "prefix": self.prefix, "secure": True,
            "annotations": self.annotations, **{name: text for name, text in times.items() if text},
        }  # fmt: skip


def create_key(
    store: Store, account: str, user: str, role: str, display_name: str = "default", *,
    expire_time: str = "", annotations: Mapping[str, str] | None = None,
) -> tuple[Key, str]:  # fmt: skip
    """Make a key for `user` (an id) of `account` (`accounts/{id}`); returns its record and the key, shown only now.

    Raises INVALID_ARGUMENT for a role that there is not, an id that is none, or a name of more than 63 characters.
    """
    if role not in (*ROLES, CUSTOM):
        raise invalid(f"role: got {role[:80]!r}; expected one of {', '.join((*ROLES, CUSTOM))}", field="role")
    bare = account.removeprefix("accounts/")
    for what, text in (("account", bare), ("user", user)):
        if not RESOURCE_ID.fullmatch(text) or not _USER_ID.fullmatch(text):
            raise invalid(f"{what}: got {text[:80]!r}; expected lower-case letters, digits and '-'", field=what)
    if len(display_name) > 63:
        raise invalid("displayName: longer than 63 characters", field="displayName")
    key_id = secrets.token_hex(8)
    key = f"fw_{key_id}_{secrets.token_urlsafe(32)}"
    made = Key(
        key_id, f"accounts/{bare}", user, role, display_name or "default", key[:_SHOWN], dict(annotations or {}), now(),
        expire_time,
    )  # fmt: skip
    with store.transaction() as transaction:
        transaction.execute(api_keys.insert().values(**vars(made), digest=_digest(key)))
    return made, key


def revoke(store: Store, account: str, key_id: str, *, user: str | None = None) -> None:
    """End a key, at once and for good. Raises NOT_FOUND, also for one of another account or user."""
    mine = [api_keys.c.key_id == key_id, api_keys.c.account == account, api_keys.c.revoke_time == ""]
    if user is not None:
        mine.append(api_keys.c.user_id == user)
    with store.transaction() as transaction:
        done = transaction.execute(api_keys.update().where(*mine).values(revoke_time=now()))
    if done.rowcount != 1:
        raise not_found(f"key {key_id[:40]}", "list the user's keys for their ids")


def set_role(store: Store, account: str, user: str, role: str) -> None:
    """Give all of a user's keys another role, from the next request on."""
    with store.transaction() as transaction:
        mine = (api_keys.c.account == account, api_keys.c.user_id == user)
        transaction.execute(api_keys.update().where(*mine).values(role=role))


def keys_of(store: Store, account: str, user: str | None = None) -> list[Key]:
    """The keys of an account, or of one user of it, that are not revoked, oldest first."""
    mine = [api_keys.c.account == account, api_keys.c.revoke_time == ""]
    if user is not None:
        mine.append(api_keys.c.user_id == user)
    columns = [column for column in api_keys.c if column.name != "digest"]
    query = sa.select(*columns).where(*mine).order_by(api_keys.c.create_time, api_keys.c.key_id)
    with store.database.reading() as connection:
        return [Key(**dict(row)) for row in connection.execute(query).mappings()]


def key_of(store: Store, account: str, user: str, key_id: str) -> Key:
    """One key of a user. Raises NOT_FOUND, also for one that is revoked, or of another account or user."""
    for key in keys_of(store, account, user):
        if key.key_id == key_id:
            return key
    raise not_found(f"key {key_id[:40]}", "list the user's keys for their ids")


def any_key(store: Store) -> bool:
    """True when there is a key that opens something."""
    query = sa.select(api_keys.c.key_id).where(api_keys.c.revoke_time == "").limit(1)
    with store.database.reading() as connection:
        return connection.execute(query).first() is not None


class Verifier:
    """Says whose key was shown."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[str, float] = {}
        self._guard = threading.Lock()

    def verify(self, key: str) -> Principal:
        """The principal of `key`. Raises UNAUTHENTICATED for one that is unknown, revoked or expired."""
        match = _KEY.fullmatch(key)
        row = self._row(match[1]) if match else None
        fits = hmac.compare_digest(_digest(key), row.digest if row is not None else _NOBODY)
        if row is None or not fits or row.revoke_time or (row.expire_time and row.expire_time <= now()):
            raise unauthenticated("the API key is not known, has been revoked, or has expired")
        self._note(row.key_id)
        preset = self._preset(row) if row.role == CUSTOM else ""
        return Principal(row.account, row.user_id, row.role, email=_email(row), key_id=row.key_id, preset=preset)

    def _row(self, key_id: str) -> Any:
        with self._store.database.reading() as connection:
            return connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id)).first()

    def _preset(self, row: Any) -> str:
        """The permission preset that the user's record names now."""
        user = self._store.find(f"{row.account}/users/{row.user_id}")
        return "" if user is None else user.body.get("permissionPreset", "")

    def _note(self, key_id: str) -> None:
        moment = time.monotonic()
        with self._guard:
            if moment - self._noted.get(key_id, -_USED_SECONDS) < _USED_SECONDS:
                return
            self._noted = {key: when for key, when in self._noted.items() if moment - when < _USED_SECONDS}
            self._noted[key_id] = moment
        try:
            with self._store.transaction() as transaction:
                transaction.execute(api_keys.update().where(api_keys.c.key_id == key_id).values(last_used=now()))
        except GatewayError as error:  # records that cannot be written now can be read all the same
            _log.warning("key %s: its use could not be noted: %s", key_id, error)


def unauthenticated(what: str) -> GatewayError:
    """UNAUTHENTICATED, with the ways to show a key."""
    return GatewayError(
        "UNAUTHENTICATED", f"{what}; send one as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY' "
        "(python -m trainer gateway keys create makes one)",
    )  # fmt: skip


def _email(row: Any) -> str:
    return f"{row.user_id}@{row.account.removeprefix('accounts/')}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
