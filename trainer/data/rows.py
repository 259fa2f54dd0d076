"""Rows: read them from JSONL, JSON, Parquet or a hub id, and check each against the format it claims.

Reading streams: no more than one row (one record batch of a Parquet file) is held, and a row of text is at most
`data.max_row_bytes` long. What is wrong with a row is a `RowProblem` that is *yielded* in the row's place, so that the
ledger counts it and reading goes on; what makes a whole source unreadable is raised. Nothing is dropped in silence:
blank lines, skipped files and unused fields are counted in `ReadCounts`. A key whose value is null counts as absent
everywhere (columnar files fill absent keys with null). docs/data.md lists what is repaired and what is refused.
This file is the only home of the `datasets` package; plain JSONL and JSON need neither it nor pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainer.data.chat import read_messages, read_tools
from trainer.data.problem import RowProblem, string
from trainer.data.strict_json import ArrayReader, Decoder, too_long
from trainer.runs import DataSettings, RowSource

Kind = Literal["chat", "completion", "text"]
SUFFIXES = (".jsonl", ".json", ".parquet")

_KEYS: dict[Kind, tuple[str, ...]] = {"chat": ("messages",), "completion": ("prompt", "completion"), "text": ("text",)}
_COLUMNS = ("messages", "tools", "prompt", "completion", "text")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CHUNK = 1 << 16  # bytes of an overlong line passed over at a time
_PARQUET_ROWS = 256  # rows of one record batch
_MAX_NAMES = 200  # names of unused fields that are told apart
_OTHERS = "(others)"
_UTF8 = b"\xef\xbb\xbf"  # a byte order mark that may stand before the first row
_STARTS = {  # how files begin that are not UTF-8 text, whatever their name says; the longest comes first
    b"\xff\xfe\0\0": ("utf32", "UTF-32 text; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    b"\0\0\xfe\xff": ("utf32", "UTF-32 text; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    b"\xff\xfe": ("utf16", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("utf16", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\x1f\x8b": ("packed", "gzip; unpack it (gunzip) and give the file that comes out"),
    b"PK\x03\x04": ("packed", "a ZIP archive; unpack it and give the file or folder that comes out"),
    b"\x28\xb5\x2f\xfd": ("packed", "Zstandard; unpack it (unzstd) and give the file that comes out"),
    b"PAR1": ("packed", "Parquet; name it .parquet"),
}


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One checked row.

    `line` is the line of a JSONL or JSON file, else the row's number, both from 1. `sha256` is that of the canonical
    JSON of what is used of the row (after renaming; unused fields left out), so rows that train alike hash alike.
    `messages` are as templates want them: content a string (or absent beside tool calls), arguments parsed, reasoning
    under `reasoning_content`; `trained` are the indices of the assistant messages that are learnt.
    """

    file: str
    line: int
    kind: Kind
    sha256: str
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    trained: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""

    @property
    def prompt_sha256(self) -> str:
        """Of what a sampler is given before the row's last answer; the row's own hash where that is nothing."""
        asked: Any = [self.messages[:-1], self.tools] if self.kind == "chat" else self.prompt
        return hashlib.sha256(canonical_json(asked)).hexdigest() if asked else self.sha256


@dataclass
class ReadCounts:
    """What reading passed over. `stopped`: `data.max_rows` was reached, so there may be rows that were not read."""

    blank_lines: int = 0
    skipped_files: list[str] = field(default_factory=list)
    unused_fields: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    def note_unused(self, names: Counter[str]) -> None:
        """Count a row's unused fields. After the first names (there may be millions) the rest are counted together."""
        for name, count in names.items():
            known = name in self.unused_fields or len(self.unused_fields) < _MAX_NAMES
            self.unused_fields[name[:_MAX_NAMES] if known else _OTHERS] += count


_Item = tuple[str, int, Any]  # file, line, and what stands there: a JSON value or a RowProblem


def read_rows(
    source: RowSource, settings: DataSettings, *, counts: ReadCounts | None = None
) -> Iterator[Row | RowProblem]:
    """Yield each row of `source`, or the problem that stands in its place, in the order of the files.

    Raises `FileNotFoundError` when there is no such file, `ValueError` when a setting, the folder or the hub id makes
    the source unreadable or the file is not the one whose sha256 `source` gives, and `RowProblem` for damage after
    which the rest of a file cannot be found.
    """
    counts = ReadCounts() if counts is None else counts
    _check_columns(settings.columns)
    for number, (file, line, item) in enumerate(_items(source, settings, counts)):
        if settings.max_rows is not None and number >= settings.max_rows:
            counts.stopped = True
            return
        yield _checked(item, settings, file=file, line=line, counts=counts)


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


# --- Where rows come from ---


def _items(source: RowSource, settings: DataSettings, counts: ReadCounts) -> Iterator[_Item]:
    path = Path(source.path).expanduser()
    if path.is_dir():
        for file in _files_of(path, counts):
            yield from _file_items(file, settings, counts)
    elif path.is_file():
        _check_digest(path, source.sha256)
        yield from _file_items(path, settings, counts)
    elif _HUB_ID.fullmatch(source.path) and path.suffix not in SUFFIXES:
        yield from _hub_items(source.path, settings.split)
    else:
        raise FileNotFoundError(
            f"dataset {source.name!r}: there is no file or folder {source.path!r}, and it is not a hub id (owner/name)"
        )


def _files_of(folder: Path, counts: ReadCounts) -> list[Path]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    files = [path for path in entries if path.is_file() and path.suffix in SUFFIXES]
    counts.skipped_files += [str(path) for path in entries if path not in files]
    if not files:
        raise ValueError(
            f"dataset folder {folder}: holds no {', '.join(SUFFIXES)} file (subfolders are not searched); "
            "give the folder that holds the files themselves"
        )
    return files


def _file_items(path: Path, settings: DataSettings, counts: ReadCounts) -> Iterator[_Item]:
    if path.suffix == ".jsonl":
        return _jsonl_items(path, settings.max_row_bytes, counts)
    if path.suffix == ".json":
        return _array_items(path, settings.max_row_bytes)
    if path.suffix == ".parquet":
        return _parquet_items(path)
    if path.suffix == ".gz":
        _check_start(path)
        raise RowProblem("not_gzip", "not gzip, though named .gz; name it by what it holds (.jsonl)").at(str(path), 1)
    raise ValueError(f"dataset {path}: files of rows end in {', '.join(SUFFIXES)}, this one in {path.suffix!r}")


def _check_digest(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected:
        raise ValueError(
            f"dataset {path}: sha256 is {actual}, but the run was made for {expected}: the file has changed since; "
            "put the old file back, or start a new run"
        )


def _check_start(path: Path) -> None:
    """Raise `RowProblem` where the first bytes say that the file is no UTF-8 text."""
    with path.open("rb") as stream:
        head = stream.read(4)
    found = next((what for start, what in _STARTS.items() if head.startswith(start)), None)
    if found is None and len(head) == 4 and (head[0::2] == b"\0\0") != (head[1::2] == b"\0\0"):
        found = _STARTS[b"\xff\xfe"]  # every other byte is 0: UTF-16 without its mark
    if found:
        code, what = found
        raise RowProblem(code, f"the file is {what}").at(str(path), 1)


def _jsonl_items(path: Path, longest: int, counts: ReadCounts) -> Iterator[_Item]:
    _check_start(path)
    decoder, name = Decoder(), str(path)
    with path.open("rb") as stream:
        for number, line in _lines(stream, longest):
            if isinstance(line, RowProblem):
                yield name, number, line
                continue
            text = line.removeprefix(_UTF8 if number == 1 else b"")
            if text.strip():
                yield name, number, _decoded(text, decoder)
            else:
                counts.blank_lines += 1


def _lines(stream: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | RowProblem]]:
    """Each line with its number; of one that is over `longest` bytes only its length is known."""
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) <= longest or line.endswith(b"\n"):
            yield number, line
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
            length += len(line)
        yield number, RowProblem("too_long", too_long(longest, length - line.endswith(b"\n")))


def _decoded(line: bytes, decoder: Decoder) -> Any:
    try:
        return decoder.decode(line.strip(b" \t\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowProblem("not_utf8", f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8")
    except RowProblem as problem:
        return problem


def _array_items(path: Path, longest: int) -> Iterator[_Item]:
    _check_start(path)
    name = str(path)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = ArrayReader(stream, longest)
        try:
            if reader.peek() != "[":
                raise RowProblem(
                    "json",
                    f"a .json file holds one array of rows, but this one begins with {reader.peek()!r}; "
                    "name it .jsonl if each line is an object",
                )
            for line, item in reader.items():
                yield name, line, item
        except UnicodeDecodeError as error:
            message = f"not UTF-8 here or further on ({error.reason}); save the file as UTF-8"
            raise RowProblem("not_utf8", message).at(name, reader.line) from None
        except RowProblem as problem:
            raise problem.at(name, reader.line) from None


def _parquet_items(path: Path) -> Iterator[_Item]:
    import pyarrow.parquet  # noqa: PLC0415  (only Parquet needs it)

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield str(path), number, _without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"not Parquet, or damaged from here on: {str(error).splitlines()[0]}"
        raise RowProblem("parquet", message).at(str(path), number + 1) from error


def _hub_items(name: str, split: str) -> Iterator[_Item]:
    from datasets import load_dataset  # noqa: PLC0415  (heavy, and only hub ids need it)
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = load_dataset(name, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"dataset {name!r}: no such file or folder here, and as a hub id its split {split!r} cannot be loaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            "Give the path of a local file, check data.split, or load it once while online (it is cached then)"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield name, number, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A value of a columnar file without the nulls that stand for absent keys."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


# --- What a row must be ---


def _check_columns(columns: dict[str, str]) -> None:
    unknown = sorted(set(columns) - set(_COLUMNS))
    if unknown:
        raise ValueError(
            f"data.columns: {', '.join(unknown)}: no such field of a row; allowed are {', '.join(_COLUMNS)}, "
            "each naming the column it is read from: {prompt: question, completion: answer}"
        )


def _checked(item: Any, settings: DataSettings, *, file: str, line: int, counts: ReadCounts) -> Row | RowProblem:
    if isinstance(item, RowProblem):
        return item.at(file, line)
    unused: Counter[str] = Counter()
    try:
        return _check(item, settings, file=file, line=line, unused=unused)
    except RowProblem as problem:
        return problem.at(file, line)
    finally:
        counts.note_unused(unused)


def _check(item: Any, settings: DataSettings, *, file: str, line: int, unused: Counter[str]) -> Row:
    row = {key: value for key, value in _renamed(item, settings.columns).items() if value is not None}
    kind = _kind(row, settings.format)
    known = {*_KEYS[kind], "tools"} if kind == "chat" else set(_KEYS[kind])
    unused.update(key for key in row if key not in known)
    if kind == "chat":
        tools = read_tools(row.get("tools"), unused)
        messages, trained = read_messages(row["messages"], unused)
        used: dict[str, Any] = {"messages": messages, "tools": tools, "trained": trained}
    else:
        used = {key: string(row[key], key) for key in _KEYS[kind]}
    return Row(file=file, line=line, kind=kind, sha256=hashlib.sha256(canonical_json(used)).hexdigest(), **used)


def _renamed(item: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    if not columns:
        return item
    result = {key: value for key, value in item.items() if key not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in item:
            raise RowProblem("no_column", f"data.columns reads {ours} from {theirs!r}; the row has {_names(item)}")
        if ours in result:
            raise RowProblem("column_clash", f"data.columns reads {ours} from {theirs!r}, but the row has {ours} too")
        result[ours] = item[theirs]
    return result


def _kind(row: dict[str, Any], format_: str) -> Kind:
    found: list[Kind] = [kind for kind, keys in _KEYS.items() if all(key in row for key in keys)]
    if format_ != "auto":
        if format_ in found:
            return next(kind for kind in found if kind == format_)
        raise RowProblem("format", f"data.format={format_}: the row has {_names(row)}; {_FORMATS}")
    if len(found) == 1:
        return found[0]
    if found:
        raise RowProblem("format", f"the row could be {' or '.join(found)}: say which with data.format")
    if {"chosen", "rejected", "preferred_output", "samples"} & set(row):
        raise RowProblem("format", f"a preference pair ({_names(row)}), which supervised fine-tuning cannot use")
    raise RowProblem("format", f"the row has {_names(row)}; {_FORMATS}, or name the columns with data.columns")


_FORMATS = "a chat row has messages, a completion row prompt and completion, a text row text"


def _names(row: dict[str, Any]) -> str:
    names = ", ".join(name[:40] for name in sorted(row)[:12])
    return f"the keys {names}" + (f" and {len(row) - 12:,} more" if len(row) > 12 else "") if row else "no keys"
