"""`gateway move|backup|restore`: where a gateway keeps its records and files, and copies of both."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import urlsplit

from trainer.errors import UsageError
from trainer.gateway import moving
from trainer.gateway.backup import Summary, backup, restore
from trainer.gateway.gateway import Gateway
from trainer.runs import gateway_folder

_HERE, _ENV = "here", "env"
_TO, _FILES_TO = "TRAINER_GATEWAY_TO", "TRAINER_GATEWAY_FILES_TO"  # other users can read a process's arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument(
        "--to",
        help=f"move, restore: the records' PostgreSQL URL; {_HERE!r}: SQLite in the state folder; {_ENV!r}: the URL "
        f"in {_TO}, which may hold a password",
    )
    parser.add_argument(
        "--files-to",
        help=f"move, restore: the files' bucket URL; {_HERE!r}: the state folder; {_ENV!r}: the URL in {_FILES_TO}",
    )


def move(options: argparse.Namespace) -> int:
    """`gateway move --to URL`, `--files-to URL`, or both."""
    _words(options, 0, "gateway move --to URL | --files-to URL")
    if not options.to and not options.files_to:
        raise UsageError("gateway move: name --to or --files-to")
    folder = gateway_folder()
    to, files_to = _url(options.to, _TO), _url(options.files_to, _FILES_TO)
    if options.to:
        moved = moving.move_records(folder, to)
        rows = ", ".join(f"{extent.rows} {name}" for name, extent in moved.items() if extent.rows)
        print(f"moved:   {rows or 'nothing'}")
    if options.files_to:
        print(f"moved:   {moving.move_files(folder, files_to)} files")
    return 0


def make_backup(options: argparse.Namespace) -> int:
    """`gateway backup FOLDER`, of a gateway that may go on meanwhile."""
    (target,) = _words(options, 1, "gateway backup FOLDER")
    gateway = Gateway(gateway_folder())
    try:
        _tell(backup(gateway.store, gateway.files, gateway.folder, Path(target)), target)
    finally:
        gateway.close()
    return 0


def bring_back(options: argparse.Namespace) -> int:
    """`gateway restore FOLDER`, into a state folder that is empty."""
    (source,) = _words(options, 1, "gateway restore FOLDER [--to URL] [--files-to URL]")
    to, files_to = _url(options.to, _TO), _url(options.files_to, _FILES_TO)
    found = restore(Path(source), gateway_folder(), url=to, files_url=files_to)
    _tell(found, str(gateway_folder()))
    return 0


def _words(options: argparse.Namespace, count: int, usage: str) -> list[str]:
    if len(options.words) != count + 1:
        raise UsageError(f"expected: python -m trainer {usage}")
    return options.words[1:]


def _url(text: str | None, variable: str) -> str | None:
    """What was typed, or stands in `variable`; None = here. Raises `UsageError` for a password among the arguments."""
    if text in (None, "", _HERE):
        return None
    if text == _ENV:
        if not os.environ.get(variable):
            raise UsageError(f"{variable}: not set; it is to hold the URL")
        return os.environ[variable]
    if urlsplit(text).password:
        raise UsageError(f"a password does not belong among arguments; put the URL into {variable} and type {_ENV!r}")
    return text


def _tell(summary: Summary, place: str) -> None:
    rows = ", ".join(f"{count} {name}" for name, count in summary.rows.items() if count)
    print(f"{place}: {rows or 'no rows'}, {summary.files} files of {summary.bytes} bytes")
