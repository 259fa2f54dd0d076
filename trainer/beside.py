"""Work that stands beside a run and never fails it: reports, records of the environment.

The boundary is here and nowhere else: what goes wrong is told in one line on standard error (`worker.log`, where the
gateway started the worker), and the run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def beside(what: str, do: Callable[[], T]) -> T | None:
    """What `do` gives; None when it failed, and then one line that names `what`."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001  (the boundary)
        sys.stderr.write(f"{what} was not written: {type(error).__name__}: {error}\n")
        return None
