"""Write `constraints.txt` from the virtual environment this runs in: `python scripts/refresh_constraints.py`.

Run it in an environment made with `pip install -e '.[dev,deepspeed]'` after the tests have passed there. A local build
tag (`+cpu`) is left off, so that the same line takes the CPU build here and the CUDA build on a GPU machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HEAD = """\
# Versions known to work together; `pip install -c constraints.txt` makes an install repeatable.
# scripts/refresh_constraints.py writes this file.
"""
_NOT_PINNED = {"gateway-trainer", "pip", "setuptools", "wheel"}


def main() -> None:
    """Freeze and write."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pinned = []
    for line in frozen:
        name, _, version = line.partition("==")
        if version and name.lower() not in _NOT_PINNED:
            pinned.append(f"{name}=={version.split('+')[0]}")
    target = Path(__file__).resolve().parent.parent / "constraints.txt"
    target.write_text(_HEAD + "\n".join(sorted(pinned, key=str.lower)) + "\n")
    print(f"{len(pinned)} versions in {target}")


if __name__ == "__main__":
    main()
