"""Standard streams that go away, and letters that they lack: whatever writes to them goes on."""

import io
import os
import subprocess
import sys
from pathlib import Path

from trainer.output import Steady

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from trainer.output import steady; steady(); "


def ran(code: str, shell: str) -> subprocess.CompletedProcess[str]:
    """A Python program with steady streams, as `shell` starts it ("$@" is the program)."""
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path):
    told = f"[print('x' * 5000) for _ in range(100)]; open({str(tmp_path / 'done')!r}, 'w').close()"
    found = ran(told, '{ "$@"; echo "status $?" >&2; } | head -c 1')
    assert (found.stdout, found.stderr) == ("x", "status 0\n")
    assert (tmp_path / "done").exists()


def test_a_full_disk_behind_a_redirection_ends_nothing():
    found = ran("print('x', flush=True); print('y'); print('went on', file=sys.stderr)", '"$@" > /dev/full')
    assert (found.returncode, found.stderr) == (0, "went on\n")


def test_a_closed_stream_is_no_number_for_the_next_file(tmp_path: Path):
    path = tmp_path / "state"
    code = (
        f"import subprocess; file = open({str(path)!r}, 'wb'); print('told'); "
        "subprocess.run(['echo', 'a child'], check=True); file.write(b'kept'); file.close()"
    )
    assert ran(code, '"$@" >&- 2>&-').returncode == 0
    assert path.read_bytes() == b"kept"


def test_letters_that_the_encoding_lacks_are_escaped():
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("a\u00e9\u0c36\n")
    stream.flush()
    assert raw.getvalue() == b"a\\xe9\\u0c36" + os.linesep.encode()
    assert stream.encoding == "ascii"
