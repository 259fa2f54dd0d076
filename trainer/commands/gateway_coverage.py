"""`gateway coverage`: for every operation of the contract, what this gateway does about it."""

from __future__ import annotations

import argparse

from trainer.errors import UsageError
from trainer.gateway import coverage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The form."""
    parser.add_argument("--markdown", action="store_true", help="coverage: the table of the README")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    if options.words[1:]:
        raise UsageError(f"gateway coverage: takes no words, got {' '.join(options.words[1:])!r}; leave them out")
    if options.markdown:
        print(coverage.markdown(), end="")
        return 0
    rows = coverage.rows()
    width = max(len(row.operation.id) for row in rows)
    for row in rows:
        print(f"{row.status:<10}{row.operation.id:<{width}}  {row.note}".rstrip())
    counts = ", ".join(f"{count} {status}" for status, count in coverage.totals(rows).items())
    print(f"\n{len(rows)} operations: {counts}")
    return 0
