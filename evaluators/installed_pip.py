"""The pip of this machine: where it is, and which index it has by default. It is never imported here."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
import zipfile
from functools import lru_cache
from pathlib import Path

_INDEX_FILE = "_internal/models/index.py"
_INDEX = re.compile(r"^PyPI = PackageIndex\(\s*[\"']([^\"']+)[\"']", re.MULTILINE)


class PipMissing(ValueError):
    """There is no pip to build with, or it is none that is known; the message says what to do."""


def pip_place() -> Path:
    """The folder of the package `pip`, or a wheel of it, such as comes with Python. Raises `PipMissing`."""
    spec = importlib.util.find_spec("pip")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    places = [Path(sysconfig.get_path("stdlib"), "ensurepip/_bundled")]
    places += [Path(folder) for folder in (sysconfig.get_config_var("WHEEL_PKG_DIR"),) if folder]  # as Debian has it
    found = [path for place in places for path in sorted(place.glob("pip-*.whl"))]
    if not found:
        raise PipMissing(f"{sys.executable} has no pip to build with: python -m ensurepip")
    return found[-1]


@lru_cache(maxsize=1)
def default_index() -> str:
    """The index that pip uses where none is configured, as its own source says. Raises `PipMissing`."""
    place = pip_place()
    try:
        if place.is_dir():
            source = (place / _INDEX_FILE).read_text(encoding="utf-8")
        else:
            with zipfile.ZipFile(place) as wheel:
                source = wheel.read(f"pip/{_INDEX_FILE}").decode()
    except (OSError, KeyError):
        source = ""
    match = _INDEX.search(source)
    if match is None:
        raise PipMissing(
            f"no index is configured for pip, and {place} does not tell its own: set index-url in pip.conf"
        )
    return f"{match[1].rstrip('/')}/simple"
