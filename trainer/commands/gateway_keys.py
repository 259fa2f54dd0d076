"""`gateway keys create|list|revoke`: the keys of a gateway that serves more than its own machine."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta

from trainer.errors import UsageError
from trainer.gateway import keys
from trainer.gateway.gateway import Gateway, checked_id
from trainer.gateway.permission_presets import PRESETS
from trainer.gateway.principal import CUSTOM, ROLES
from trainer.gateway.resources import accounts
from trainer.gateway.store import Resource
from trainer.gateway.timestamps import written
from trainer.runs import gateway_folder

_ACTIONS = ("create", "list", "revoke KEY_ID")

_LONGEST_DAYS = 36_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose key, and for how long."""
    parser.add_argument("--account", default="local", help="keys: the account (default: %(default)s)")
    parser.add_argument("--user", default="admin", help="keys create: the user (default: %(default)s)")
    parser.add_argument(
        "--role", choices=(*ROLES, CUSTOM), default="user", help="keys create: the role (default: %(default)s)"
    )
    parser.add_argument("--preset", choices=PRESETS, help="keys create --role custom: the permission preset")
    parser.add_argument("--name", default="default", help="keys create: a name for people (default: %(default)s)")
    parser.add_argument("--days", type=_days, help="keys create: how long it opens (default: until it is revoked)")


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LONGEST_DAYS:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected whole days, 1 to {_LONGEST_DAYS:,}; leave it out for a key that opens until it is "
            "revoked"
        )
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Do `keys create`, `keys list` or `keys revoke ID`."""
    action, *more = options.words[1:] or [""]
    wanted = {"create": 0, "list": 0, "revoke": 1}.get(action)
    if wanted is None or len(more) != wanted:
        raise UsageError(f"gateway keys: expected one of {', '.join(_ACTIONS)}")
    gateway = Gateway(gateway_folder())
    try:
        account = f"accounts/{checked_id(options.account, what='--account')}"
        if action == "create":
            _create(gateway, account, options)
        elif action == "list":
            for key in keys.keys_of(gateway.store, account):
                until = key.expire_time or "revoked"
                print(f"{key.key_id}  {key.prefix}...  {key.user_id} ({key.role})  {key.display_name}  until {until}")
        else:
            keys.revoke(gateway.store, account, more[0])
            print(f"revoked: {more[0]}")
    finally:
        gateway.close()
    return 0


def _create(gateway: Gateway, account: str, options: argparse.Namespace) -> None:
    user = checked_id(options.user, what="--user")
    if (options.role == CUSTOM) != bool(options.preset):
        raise UsageError(f"--role custom goes with --preset, and only that role: {', '.join(PRESETS)}")
    accounts.ensure(gateway, account, email=f"{user}@{options.account}")
    _ensure_user(gateway, account, user, options.role, preset=options.preset)
    expires = written(datetime.now(UTC) + timedelta(days=options.days)) if options.days else ""
    made, key = keys.create_key(gateway.store, account, user, options.role, options.name, expire_time=expires)
    print(f"key:     {key}")
    print(f"id:      {made.key_id}, {account}, {user} ({options.role})")
    print("It is shown only now; the gateway keeps its digest.")


def _ensure_user(gateway: Gateway, account: str, user: str, role: str, *, preset: str | None) -> None:
    """A record for the user. Raises UsageError for another role or preset than the user has."""
    name = f"{account}/users/{user}"
    with gateway.store.transaction() as transaction:
        found = transaction.find(name)
        if found is None:
            body = {
                "displayName": user, "role": role, "email": f"{user}@{account.removeprefix('accounts/')}",
                "state": "READY", "status": {"code": "OK", "message": ""},
                **({"permissionPreset": preset} if preset else {}),
            }  # fmt: skip
            transaction.insert(Resource(name=name, collection="users", parent=account, id=user, body=body))
        elif (had := (found.body.get("role"), found.body.get("permissionPreset"))) != (role, preset):
            raise UsageError(
                f"--role {role}{f' --preset {preset}' if preset else ''}: {name} has the role {had[0]}"
                f"{f' with {had[1]}' if had[1] else ''}; name that, or another --user "
                "(a PATCH of the user changes the role)"
            )
