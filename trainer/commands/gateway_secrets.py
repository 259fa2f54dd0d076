"""`gateway secrets rotate`: seal every secret with a new key, and drop the old ones.

The server may be up. With keys in TRAINER_SECRET_KEY: stop it, set the variable to "NEW OLD", rotate, and start it with
NEW alone. Gateways that share their records in PostgreSQL need the variable: a key file serves one folder only.
"""

from __future__ import annotations

import argparse

from trainer.errors import UsageError
from trainer.gateway.gateway import Gateway
from trainer.gateway.sealing import KEY_FILE, KEY_VARIABLE
from trainer.gateway.secret_rotation import rotate
from trainer.runs import gateway_folder


def run(options: argparse.Namespace) -> int:
    """Do `secrets rotate`. 1 where a secret could not be opened: the old keys stay then."""
    if options.words[1:] != ["rotate"]:
        raise UsageError("gateway secrets: expected: python -m trainer gateway secrets rotate")
    gateway = Gateway(gateway_folder())
    try:
        done = rotate(gateway.store, gateway.folder)
    finally:
        gateway.close()
    print(f"sealed anew: {done.values} values of {done.records} records")
    for message in done.broken:
        print(f"left as it is: {message}")
    if done.broken:
        print(f"Old keys are kept. Set these secrets anew, or bring their key back into {KEY_FILE}, and rotate again.")
        return 1
    if done.dropped:
        print(f"dropped: {done.dropped} old {'key' if done.dropped == 1 else 'keys'} from {KEY_FILE}")
    else:
        print(f"{KEY_VARIABLE} can do without all keys but its first")
    return 0
