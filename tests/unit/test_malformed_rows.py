"""Malformed files: each kind is repaired or refused as docs/data.md says, with file and line, in bounded memory."""

import gzip
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.data.problem import shown
from trainer.data.rows import ReadCounts, Row, RowProblem, read_rows
from trainer.data.strict_json import MAX_DEPTH, MAX_VALUES
from trainer.runs import DataSettings, RowSource

ROOT = Path(__file__).parents[2]
GOOD = b'{"text": "fine"}\n'
ASK = '{"role": "user", "content": "q"}'
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
ANSWER = '{"role": "assistant", "content": "a"}'


@dataclass(frozen=True)
class Kind:
    """`content` of the file `name`; `want` has each row read ("text" or kind) or refused (its code), by line."""

    content: bytes
    want: tuple[tuple[int, str], ...]
    says: str = ""
    name: str = "rows.jsonl"
    raised: bool = False  # the problem is the whole file's: raised after the rows of `want` but the last


def second(line: str | bytes, code: str, says: str = "") -> Kind:
    """`line` between two good ones."""
    raw = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    return Kind(GOOD + raw + b"\n" + GOOD, ((1, "fine"), (2, code), (3, "fine")), says)


def whole(content: bytes, code: str, says: str, *, name: str = "rows.jsonl", line: int = 1) -> Kind:
    return Kind(content, ((line, code),), says, name, raised=True)


# Names as the first column of the table in docs/data.md has them; in [brackets] the text or code that is expected.
KINDS = {
    "byte order mark": Kind(b"\xef\xbb\xbf" + GOOD, ((1, "fine"),)),
    "CRLF line ends": Kind(GOOD.replace(b"\n", b"\r\n") * 2, ((1, "fine"), (2, "fine"))),
    "blank lines": Kind(b"\n \t\r\n" + GOOD + b"\n", ((3, "fine"),)),
    "no line end after the last row": Kind(GOOD + GOOD[:-1], ((1, "fine"), (2, "fine"))),
    "mixed schemas": Kind(
        GOOD + f'{{"messages": [{ASK}, {ANSWER}]}}\n'.encode() + b'{"prompt": "p", "completion": "c"}\n',
        ((1, "fine"), (2, "chat"), (3, "completion")),
    ),
    "empty content": Kind(
        f'{{"messages": [{{"role": "user", "content": ""}}, {ANSWER}]}}\n'.encode(), ((1, "chat"),)
    ),
    "escaped NUL": Kind(b'{"text": "a\\u0000"}\n', ((1, "a\0"),)),
    "huge integer in an unused field": second('{"text": "a", "n": ' + "9" * 5000 + "}", "not_finite", "5000 digits"),
    "UTF-16 with a mark": whole(GOOD.decode().encode("utf-16"), "utf16", "iconv"),
    "UTF-16 without a mark": whole(GOOD.decode().encode("utf-16-be"), "utf16", "UTF-8"),
    "UTF-32": whole(GOOD.decode().encode("utf-32"), "utf32", "UTF-8"),
    "Latin-1": second('{"text": "é"}'.encode("latin-1"), "not_utf8", "byte 11"),
    "lone surrogate, escaped": second('{"text": "\\ud83d"}', "surrogate", "surrogate"),
    "lone surrogate, as bytes": second('{"text": "\ud800"}', "not_utf8", "byte 11"),
    "NUL byte": second(b'{"text": "a\0b"}', "json", "NUL"),
    "tail of NUL bytes": Kind(GOOD + b"\0" * 4096, ((1, "fine"), (2, "json")), "NUL"),
    "NaN": second('{"text": "a", "x": NaN}', "not_finite", "NaN"),
    "Infinity": second('{"text": "a", "x": -Infinity}', "not_finite", "-Infinity"),
    "number beyond a float": second('{"text": "a", "x": 1e999}', "not_finite", "1e999"),
    "duplicate keys": second('{"text": "a", "text": "b"}', "duplicate_key", "'text'"),
    "row over data.max_row_bytes": second('{"text": "' + "x" * (2 << 20) + '"}', "too_long", "2,097,164 bytes"),
    "too many values (10^6 columns)": second(
        "{" + ",".join(f'"{number:x}":0' for number in range(MAX_VALUES + 1)) + "}", "too_many_values", "131,072"
    ),
    "nested too deeply (10^5)": second('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "json", "nested"),
    "nested a little too deeply": second(
        '{"text": "a", "x": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "json", "100 levels"
    ),
    "unterminated string": second('{"text": "a', "json", "Unterminated string"),
    "row cut off": Kind(GOOD + b'{"text": "a", "x": [1, ', ((1, "fine"), (2, "json")), "column"),
    "comment": second("// a row", "json", "no comments"),
    "comment after a row": second('{"text": "a"} # why', "json", "one object per line"),
    "trailing comma": second('{"text": "a",}', "json", "a comma after the last one"),
    "concatenated objects": second('{"text": "a"}{"text": "b"}', "json", "one object per line"),
    "CR line ends": Kind(b'{"text": "a"}\r{"text": "b"}\r', ((1, "json"),), "one object per line"),
    "single quotes": second("{'text': 'a'}", "json", "double quotes"),
    "array at the top of a .jsonl": second('[{"text": "a"}]', "not_an_object", "named .json"),
    "string or number as a row": second("12", "not_an_object", "a number"),
    "missing role": second(f'{{"messages": [{{"content": "q"}}, {ANSWER}]}}', "role", "messages[0].role is None"),
    "part without a type": second(
        f'{{"messages": [{{"role": "user", "content": [{{"type": ["text"]}}]}}, {ANSWER}]}}', "part_type", "content[0]"
    ),
    "keys of no format": second('{"question": "q"}', "format", "the keys question"),
    "gzip by name only": whole(GOOD, "not_gzip", "not gzip", name="rows.jsonl.gz"),
    "gzip": whole(gzip.compress(GOOD), "packed", "gunzip", name="rows.jsonl.gz"),
    "gzip under the name .jsonl": whole(gzip.compress(GOOD), "packed", "gunzip"),
    "ZIP or Zstandard under the name .jsonl": whole(b"PK\x03\x04" + GOOD, "packed", "unpack"),
    "Parquet under the name .jsonl": whole(b"PAR1" + GOOD, "packed", "name it .parquet"),
    "JSON lines under the name .parquet": whole(GOOD, "parquet", "not Parquet", name="rows.parquet"),
    "JSON lines under the name .json": whole(GOOD, "json", "name it .jsonl", name="rows.json"),
    "array with a row that is no row": Kind(
        b'[{"text": "fine"},\n 12,\n {"text": "fine"}]',
        ((1, "fine"), (2, "not_an_object"), (3, "fine")),
        "a number",
        "rows.json",
    ),
    "array with a fault": Kind(
        b'[{"text": "fine"},\n {"text" 1},\n' + b'{"text": "fine"},\n' * 9000 + b"1]",
        ((1, "fine"), (2, "json")), "rest of the file", "rows.json", raised=True,
    ),
    "array that is cut off": Kind(
        b'[{"text": "fine"},\n', ((1, "fine"), (2, "json")), "rest of the file", "rows.json", raised=True
    ),
    "array with a row over data.max_row_bytes": Kind(
        b'[{"text": "fine"},\n{"text": "' + b"x" * (5 << 20) + b'"}]',
        ((1, "fine"), (2, "too_long")), "data.max_row_bytes", "rows.json", raised=True,
    ),
    "array in UTF-16": whole('[{"text": "fine"}]'.encode("utf-16-le"), "utf16", "UTF-8", name="rows.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_kind_is_repaired_or_refused_with_file_and_line(tmp_path, kind):
    path = tmp_path / kind.name
    path.write_bytes(kind.content)
    found: list[Row | RowProblem] = []
    try:
        for one in read_rows(RowSource(name=path.name, path=str(path)), DataSettings()):
            found.append(one)
    except RowProblem as problem:
        assert kind.raised, problem
        found.append(problem)
    seen = tuple((one.line, one.code if isinstance(one, RowProblem) else one.text or one.kind) for one in found)
    assert seen == kind.want
    problems = [one for one in found if isinstance(one, RowProblem)]
    assert {one.file for one in found} == {str(path)}
    assert all(str(one).startswith(f"{path}:{one.line}: ") and kind.says in str(one) for one in problems)
    assert all(len(str(one)) < len(str(path)) + 400 for one in problems)


def test_the_table_in_the_documentation_has_each_kind_and_its_code():
    lines = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    table = {cells[0]: cells for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert len(KINDS) > 40
    for name, kind in KINDS.items():
        codes = {code for _, code in kind.want} - {"fine", "chat", "completion", "a\0"}
        assert set(re.findall(r"`(\w+)`", table[name][2])) == codes, name


def test_a_problem_does_not_keep_its_row_alive(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"')
    [problem] = read_rows(RowSource(name="rows", path=str(path)), DataSettings())
    assert isinstance(problem, RowProblem)
    assert (problem.__traceback__, problem.__cause__, problem.__context__) == (None, None, None)


def test_what_is_quoted_of_a_row_is_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    long = "x" * 100_000
    rows = [
        {"messages": [{"role": long, "content": "q"}]},
        {long: 1},
        {"text": "a", long: 1},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
    ]
    path.write_text("\n".join(map(json.dumps, [*rows, f'{{"{long}": 1, "{long}": 2}}'])))
    counts = ReadCounts()
    found = list(read_rows(RowSource(name="rows", path=str(path)), DataSettings(), counts=counts))
    assert all(len(str(one)) < 500 for one in found if isinstance(one, RowProblem))
    assert max(map(len, counts.unused_fields)) == 200
    assert len(shown({"a": [long] * 1000})) < 400


def test_the_names_of_unused_fields_are_bounded(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = (json.dumps({"text": "a", "id": 1} | {f"c{row}_{column}": 1 for column in range(100)}) for row in range(50))
    path.write_text("\n".join(lines))
    counts = ReadCounts()
    assert len(list(read_rows(RowSource(name="rows", path=str(path)), DataSettings(), counts=counts))) == 50
    assert counts.unused_fields["id"] == 50
    assert len(counts.unused_fields) == 201
    assert sum(counts.unused_fields.values()) == 50 * 101


def test_the_longest_row_is_a_setting(tmp_path):
    path = tmp_path / "rows.jsonl"
    fits = '{"text": "' + "x" * (1024 - 12) + '"}'
    path.write_text(fits + "\n" + fits.replace("x", "xx", 1) + "\n" + fits)
    settings = DataSettings(max_row_bytes=1024)
    first, second_, third = read_rows(RowSource(name="rows", path=str(path)), settings)
    assert isinstance(first, Row) and isinstance(third, Row)
    assert isinstance(second_, RowProblem)
    assert (second_.line, second_.code) == (2, "too_long")
    assert "data.max_row_bytes is 1,024" in second_.message


# The peak is this program's own (VmHWM): getrusage's ru_maxrss begins with that of the process that started it.
_CHILD = """
import sys
from pathlib import Path
from trainer.data.rows import RowProblem, read_rows
from trainer.runs import DataSettings, RowSource
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
source, settings = RowSource(name="rows", path=sys.argv[1]), DataSettings()
before, found = peak(), ""
try:
    for one in read_rows(source, settings):
        found = one.code if isinstance(one, RowProblem) else one.kind
        del one
except RowProblem as problem:
    found = problem.code
assert not {"transformers", "torch", "datasets", "pyarrow"} & set(sys.modules)
print(found, peak() - before)
"""

_MIB = 1 << 20


def _wide(head: str, tail: str) -> str:
    """The longest row whose text takes four bytes a character in memory though it has one in the file."""
    return head + "\U0001f600" + "x" * (2 * _MIB - len((head + tail).encode()) - 8) + tail


HEAVY = {
    "a line of 100 MB": ("jsonl", lambda: '{"text": "' + "x" * (100 * _MIB) + '"}', "too_long"),
    "10^5 levels": ("jsonl", lambda: '{"text": ' + "[" * 10**5 + "]" * 10**5 + "}", "json"),
    "10^5 levels of objects": ("jsonl", lambda: '{"a": ' * 10**5 + "1" + "}" * 10**5, "json"),
    "10^6 columns": ("jsonl", lambda: "{" + ",".join(f'"c{n}":{n}' for n in range(10**6)) + "}", "too_long"),
    "small columns": ("jsonl", lambda: "{" + ",".join(f'"{n:x}":0' for n in range(190_000)) + "}", "too_many_values"),
    "columns within the bounds": (
        "jsonl", lambda: '{"text": "t"' + "".join(f',"{n:x}":{{}}' for n in range(65_000)) + "}", "text",
    ),
    "empty arrays": ("jsonl", lambda: '{"text": "t", "x": [' + "[]," * 650_000 + "1]}", "too_many_values"),
    "escaped quotes, unterminated": ("jsonl", lambda: '{"text": "' + '\\"' * (_MIB - 50), "json"),
    "the longest text": ("jsonl", lambda: _wide('{"text": "', '"}'), "text"),
    "the longest part": (
        "jsonl",
        lambda: _wide(
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "',
            f'"}}, {{"type": "text", "text": "b"}}]}}, {ANSWER}]}}',
        ),
        "chat",
    ),
    "the longest arguments": (
        "jsonl",
        lambda: _wide(
            f'{{"messages": [{ASK}, {{"role": "assistant", "tool_calls": [{{"function": {{"name": "f", '
            '"arguments": "{\\"a\\": \\"',
            f'\\"}}"}}}}]}}, {{"role": "tool", "content": "t"}}, {ANSWER}]}}',
        ),
        "chat",
    ),
    "an array with a row of 100 MB": ("json", lambda: '[{"text": "' + "x" * (100 * _MIB) + '"}]', "too_long"),
    "an array with the longest row": ("json", lambda: '[{"text": "' + "\U0001f600" * (2 * _MIB - 99) + '"}]', "text"),
    "an array of 10^6 columns": (
        "json", lambda: "[{" + ",".join(f'"c{n}":{n}' for n in range(10**6)) + "}]", "too_many_values",
    ),
    "an array of 10^5 levels": ("json", lambda: '[{"text": ' + "[" * 10**5 + "]" * 10**5 + "}]", "json"),
    "many long rows, bad and good": (
        "jsonl", lambda: ("{" + _wide('"text": "', '"') + "\n" + _wide('{"text": "', '"}') + "\n") * 40, "text",
    ),
}  # fmt: skip


def _measured(path: Path, program: str) -> tuple[str, int]:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found, grown = result.stdout.split()
    return found, int(grown)


@pytest.mark.slow
@needs_proc
def test_the_measure_sees_what_is_held(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    _, grown = _measured(path, _CHILD.replace("        del one", "        kept = bytearray(80 << 20)"))
    assert 80 * 1024 <= grown < 90 * 1024


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("kind", HEAVY)
def test_reading_holds_less_than_64_mib(tmp_path, kind):
    suffix, make, want = HEAVY[kind]
    path = tmp_path / f"rows.{suffix}"
    path.write_text(make(), encoding="utf-8")
    found, grown = _measured(path, _CHILD)
    path.unlink()
    print(f"{kind}: {found}, {grown / 1024:.1f} MiB")
    assert found == want
    assert grown < 64 * 1024  # KiB
