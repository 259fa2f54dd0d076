"""Folders of jails that have one: gone with their jail, and where their host was killed, gone with the next host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluators.sandbox import landlock

HOST = """
import sys
from evaluators.protocol import Limits, Program, Tier
from evaluators.sandbox.jail import Jail
program = Program({"p.py": b"def f(n): return n"}, "p.py::f")
jail = Jail(program, Limits(wall_seconds=60.0), tier=Tier.LANDLOCK)
assert not jail.load_error, jail.load_error
print(jail.folder, flush=True)
sys.stdin.read()
jail.close()
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Temporary files of hosts, where a jail's own user may pass."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def host(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a jail until its input ends, and the jail's folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate("")
    return process.returncode


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_the_folder_of_a_host_that_was_killed_goes_when_the_next_starts_and_that_of_one_that_lives_stays(
    temporary,
) -> None:
    killed, left = host(temporary)
    living, kept = host(temporary)
    killed.send_signal(signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert left.is_dir()
    assert kept.is_dir()
    third, own = host(temporary)
    assert not left.exists()
    assert kept.is_dir()
    assert own.is_dir()
    assert (ended(living), ended(third)) == (0, 0)
    assert list(temporary.iterdir()) == []
