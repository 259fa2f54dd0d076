"""`gateway move|backup|restore`: where a gateway keeps its records and files, and copies of both."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.errors import UsageError
from trainer.gateway import moving
from trainer.gateway.backup import Summary, backup, restore
from trainer.gateway.gateway import Gateway
from trainer.runs import gateway_folder

_HERE = "here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument(
        "--to", help=f"move, restore: the records' PostgreSQL URL; {_HERE!r}: SQLite in the state folder"
    )
    parser.add_argument("--files-to", help=f"move, restore: the files' bucket URL; {_HERE!r}: the state folder")


def move(options: argparse.Namespace) -> int:
    """`gateway move --to URL`, `--files-to URL`, or both."""
    _words(options, 0, "gateway move --to URL | --files-to URL")
    if not options.to and not options.files_to:
        raise UsageError("gateway move: name --to or --files-to")
    folder = gateway_folder()
    if options.to:
        moved = moving.move_records(folder, _url(options.to))
        rows = ", ".join(f"{extent.rows} {name}" for name, extent in moved.items() if extent.rows)
        print(f"moved:   {rows or 'nothing'}")
    if options.files_to:
        print(f"moved:   {moving.move_files(folder, _url(options.files_to))} files")
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
    found = restore(Path(source), gateway_folder(), url=_url(options.to), files_url=_url(options.files_to))
    _tell(found, str(gateway_folder()))
    return 0


def _words(options: argparse.Namespace, count: int, usage: str) -> list[str]:
    if len(options.words) != count + 1:
        raise UsageError(f"expected: python -m trainer {usage}")
    return options.words[1:]


def _url(text: str | None) -> str | None:
    return None if text in (None, "", _HERE) else text


def _tell(summary: Summary, place: str) -> None:
    rows = ", ".join(f"{count} {name}" for name, count in summary.rows.items() if count)
    print(f"{place}: {rows or 'no rows'}, {summary.files} files of {summary.bytes} bytes")
