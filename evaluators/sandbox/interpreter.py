"""Which Python runs in a jail, and which folders of the host it needs there.

The one decision: the supervisor runs the base interpreter without any site packages; a prepared environment's packages
are put on the path in the child only, since importing them is running their authors' code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Importing these does something to the process, or costs more than most evaluators would gain.
_NOT_PRELOADED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "test", "lib2to3", "ensurepip",
                  "multiprocessing", "concurrent", "threading", "readline", "site", "ctypes"}  # fmt: skip
_STATEFUL = {"subprocess", "multiprocessing", "os", "threading", "signal", "pty"}
_RUNS_TEXT = re.compile(rb"\b(exec|eval|compile|__import__|system|popen|fork)\s*\(")
_IMPORT = re.compile(
    rb"^[ \t;]*(?:from[ \t]+([A-Za-z_][\w.]*)[ \t]+import|import[ \t]+([A-Za-z_][\w., \t]*))", re.MULTILINE
)
_SYSTEM = ("/usr/bin/python3", "/usr/local/bin/python3")
_VERSION = re.compile(r"python3\.(\d+)")
_OLDEST = 11  # of Python 3
_LOOKED_AT = 1 << 20  # bytes of a file
_MOST_PRELOADED = 100


@dataclass(frozen=True)
class Interpreter:
    """executable: the base interpreter's path. readable: folders it needs. packages: site-packages for the child."""

    executable: str
    readable: tuple[str, ...]
    packages: tuple[str, ...]


@lru_cache(maxsize=64)
def interpreter(python: str | None, *, for_all: bool = False) -> Interpreter:
    """Of a prepared environment's `python`, or this process's own base when None.

    for_all: every user must be able to run it; where the own base lies in a closed folder, the system's Python takes
    its place if it is new enough. Raises `FileNotFoundError` when it is not there.
    """
    given = Path(python or getattr(sys, "_base_executable", "") or sys.executable)
    real = given.resolve(strict=True)
    if for_all and python is None and not is_open(real):
        real = next((one for one in map(Path.resolve, map(Path, _SYSTEM)) if _new_enough(one) and is_open(one)), real)
    home = real.parent.parent
    folders = [] if str(home) == "/usr" else [str(home / "bin"), str(home / "lib")]
    packages: list[str] = []
    environment = given.absolute().parent.parent
    if python is not None and (environment / "pyvenv.cfg").exists():
        packages = [str(path) for path in sorted(environment.glob("lib/python*/site-packages"))]
        folders.append(str(environment))
    return Interpreter(str(real), tuple(folders), tuple(packages))


def is_open(path: Path) -> bool:
    """Whether every user may read `path` and go through the folders above it."""
    return path.exists() and all(
        one.stat().st_mode & (0o001 if one.is_dir() else 0o004) for one in (path, *path.parents)
    )


def _new_enough(path: Path) -> bool:
    version = _VERSION.fullmatch(path.name)
    return version is not None and int(version[1]) >= _OLDEST


def preloads(sources: Iterable[bytes]) -> list[str]:
    """Standard library modules that the program's files import, anywhere in them: loaded once, before forking."""
    found: set[str] = set()
    for source in sources:
        found |= _imports(source)
    roots = {name.partition(".")[0] for name in found}
    allowed = (
        set(sys.stdlib_module_names) - _NOT_PRELOADED - {name for name in sys.stdlib_module_names if name[0] == "_"}
    )
    usable = (name for name in found if name.partition(".")[0] in roots & allowed and "__main__" not in name)
    return sorted(usable)[:_MOST_PRELOADED]


def seeded(sources: Iterable[bytes]) -> list[str]:
    """Packages with random generators that the program imports somewhere; the row seeds them as it does `random`."""
    return (
        ["numpy.random"] if any(name.partition(".")[0] == "numpy" for one in sources for name in _imports(one)) else []
    )


def shares_badly(sources: Iterable[bytes]) -> bool:
    """True for programs that start processes or run text as code: rows of theirs must not share a process."""
    for source in sources:
        roots = {name.partition(".")[0] for name in _imports(source)}
        if roots & _STATEFUL or _RUNS_TEXT.search(source):
            return True
    return False


def _imports(source: bytes) -> frozenset[str]:
    """By patterns: parsing hostile text is for the jail. A word too many costs an import, one too few a little time."""
    return _imports_of(source[:_LOOKED_AT])


@lru_cache(maxsize=64)
def _imports_of(source: bytes) -> frozenset[str]:
    found: set[str] = set()
    for match in _IMPORT.finditer(source):
        names = match[1] or match[2]
        found |= {name.split()[0] for name in names.decode().split(",") if name.split()}
    return frozenset(found)
