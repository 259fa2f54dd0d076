"""A slim stand-in for `eval_protocol` and `reward_kit`, put into a jail where `requirements.txt` names neither.

The real package takes seconds to import and 200 MB; evaluators use a handful of its classes. The stand-in has those,
in plain Python, under the same names. What it lacks raises `ImportError` or `AttributeError` that names the way out: to
name the package in `requirements.txt`, so that the real one is built. Nothing here is imported by this program itself.
"""

from __future__ import annotations

from pathlib import Path

PACKAGES = ("eval_protocol", "reward_kit")


def files() -> dict[str, bytes]:
    """The stand-in as files of a program: path -> content."""
    root = Path(__file__).parent
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
