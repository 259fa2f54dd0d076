"""An upload's rows: the kinds of docs/data.md, each taken or refused with file and line, in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_malformed_rows import KINDS
from trainer.gateway import dataset_rows
from trainer.gateway.errors import GatewayError

# A worker takes rows of several formats; a data set has one.
LINES = {name: kind for name, kind in KINDS.items() if kind.name.endswith(".jsonl") and name != "mixed schemas"}


@pytest.mark.parametrize("name", LINES)
def test_each_malformed_kind_is_refused_by_line_or_taken(tmp_path: Path, name: str) -> None:
    kind = LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(kind.content)
    lines = [line for line, code in kind.want if code not in ("fine", "a", "b", "text", "chat", "completion")]
    try:
        found = dataset_rows.check([path], declared=None)
    except GatewayError as error:
        assert error.code == "INVALID_ARGUMENT"
        assert error.message.startswith("rows.jsonl:")
        assert int(error.message.split(":")[1]) in lines
        assert len(error.message) < 500
    else:
        assert found.count == sum(1 for line in kind.content.splitlines() if line.strip())


_CHILD = """
import re, sys
from pathlib import Path
from trainer.gateway import dataset_rows
from trainer.gateway.errors import GatewayError
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    dataset_rows.check([Path(sys.argv[1])], declared=None)
except GatewayError as error:
    print((peak() - before) >> 10, error.message)
"""


def test_a_line_of_100_mb_is_refused_by_its_number_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"text": "fine"}\n{"text": "')
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')
    done = subprocess.run([sys.executable, "-c", _CHILD, path], capture_output=True, text=True, check=True)
    grown, message = done.stdout.split(" ", 1)
    assert message.startswith("rows.jsonl:2: ") and "2,097,152 bytes" in message
    assert int(grown) < 64
