"""Serve the embedded gateway on this machine, with a scheduler that runs the jobs posted to it.

python -m trainer gateway --port 8787             serve; on loopback single-user, and no key is asked for
python -m trainer gateway --slots 2               two jobs at a time
python -m trainer gateway keys create --account team-a --role admin
python -m trainer gateway keys list --account team-a | keys revoke KEY_ID
python -m trainer gateway secrets rotate          a new key for the secrets at rest; the server may be up meanwhile
python -m trainer gateway --host 0.0.0.0          with keys, beyond this machine
python -m trainer gateway coverage [--markdown]   what becomes of each operation of the contract
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import get_args

from trainer.commands import gateway_coverage, gateway_keys, gateway_secrets, gateway_store
from trainer.compose import for_job
from trainer.errors import UsageError
from trainer.gateway import logs
from trainer.gateway.access import is_loopback
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import DELETE_STATES, Gateway, GatewayOptions
from trainer.gateway.scheduler import Scheduler
from trainer.gateway.server import serve
from trainer.jobs import Job
from trainer.launch import here
from trainer.runs import Inputs, RunSpec, gateway_folder

ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "keys": gateway_keys.run,
    "secrets": gateway_secrets.run,
    "coverage": gateway_coverage.run,
    "move": gateway_store.move,
    "backup": gateway_store.make_backup,
    "restore": gateway_store.bring_back,
}


_OWNERS: dict[str, tuple[str, ...]] = {  # options by name, and whose they are; all others belong to the server
    **dict.fromkeys(("account", "user", "role", "preset", "name", "days"), ("keys",)),
    "markdown": ("coverage",),
    "to": ("move", "restore"),
    "files_to": ("move", "restore"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, and the actions besides."""
    parser.add_argument("words", nargs="*", metavar="ACTION", help=f"{' or '.join(ACTIONS)}; none: serve")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="port; 0 = any free one (default: %(default)s)")
    parser.add_argument(
        "--ask-keys", action="store_true", help="ask for keys on loopback too; elsewhere they always are"
    )
    parser.add_argument("--base-url", help="what signed URLs begin with, behind a proxy (default: as it was asked)")
    parser.add_argument("--slots", type=_slots, default=1, metavar="N", help="jobs that run at a time (default: 1)")
    parser.add_argument("--log", choices=logs.FORMATS, default="text", help="form of the log (default: %(default)s)")
    parser.add_argument("--log-requests", action="store_true", help="log every request")
    parser.add_argument(
        "--trainer-delete-state", choices=get_args(DELETE_STATES), default="deleted", metavar="STATE",
        help="what a DELETE of a trainer leaves: deleted, for 30 days; or cancelled, to be resumed (default: deleted)",
    )  # fmt: skip
    gateway_keys.add_arguments(parser)
    gateway_coverage.add_arguments(parser)
    gateway_store.add_arguments(parser)


def describe(kind: str, job: Job, run_id: str, inputs: Inputs) -> RunSpec:
    """The run of a job that came over the wire: the shipped configuration around it."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return for_job(kind, job, base_path=inputs.base_model).spec(run_id, inputs, created=created)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted, or do the action."""
    try:
        action = ACTIONS.get(options.words[0]) if options.words else _serve
        if action is None:
            raise UsageError(f"gateway {options.words[0]}: no such action; there are {', '.join(ACTIONS)}")
        _check_used(options, options.words[0] if options.words else "")
        return action(options)
    except GatewayError as error:
        raise UsageError(error.message) from error


def _check_used(options: argparse.Namespace, action: str) -> None:
    """Raise `UsageError` for an option that was given and is another action's."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    for one in parser._actions:
        owners = _OWNERS.get(one.dest, ("",))
        if one.option_strings and getattr(options, one.dest) != one.default and action not in owners:
            whose = " or ".join(f"gateway {owner}".strip() for owner in owners)
            raise UsageError(f"{one.option_strings[0]}: is of {whose}, and means nothing here; leave it out")


def _serve(options: argparse.Namespace) -> int:
    def scheduler(gateway: Gateway) -> Scheduler:
        return Scheduler(gateway, describe, launcher=here, slots=options.slots)

    asks_keys = options.ask_keys or not is_loopback(options.host)
    logs.configure(options.log, requests=options.log_requests)
    serve(
        gateway_folder(),
        options.host,
        options.port,
        background=scheduler,
        on_ready=lambda url: _ready(url, asks_keys),
        base_url=options.base_url,
        options=GatewayOptions(trainer_delete_state=options.trainer_delete_state),
        keys=asks_keys,
    )
    return 0


def _slots(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected how many jobs may run at a time, 1 or more")
    return int(text)


def _ready(url: str, asks_keys: bool) -> None:
    key, account = ("KEY", "ACCOUNT") if asks_keys else ("fw_local", "local")
    print(f"gateway: {url}", flush=True)
    print(f"state:   {gateway_folder()}", flush=True)
    print(f"clients: FIREWORKS_BASE_URL={url} FIREWORKS_API_KEY={key} FIREWORKS_ACCOUNT_ID={account}", flush=True)
