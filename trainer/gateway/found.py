"""Finds the server that is up on a state folder, by the file it leaves there; light, so that a client starts fast."""

from __future__ import annotations

import json
from pathlib import Path

SERVER_LOCK = "server.lock"  # held by the server that is up
SERVER_FILE = "server.json"  # readable by its owner only: it holds the owner's key of this start, where keys are asked


def running_server(folder: Path) -> str | None:
    """The URL that `server.json` in `folder` names, or None where no server says it is up."""
    try:
        return str(json.loads((folder / SERVER_FILE).read_bytes())["url"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def owner_key(folder: Path) -> str | None:
    """The key that the server of `folder` takes from the folder's owner; None where it asks for none."""
    try:
        return json.loads((folder / SERVER_FILE).read_bytes()).get("key")
    except (FileNotFoundError, ValueError):
        return None
