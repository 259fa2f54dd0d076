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
from typing import Any, Literal

from trainer.data.chat import read_messages, read_tools
from trainer.data.json_lines import check_start, json_lines
from trainer.data.pairs import PAIR_KEYS, Side, read_pair
from trainer.data.problem import RowProblem, string
from trainer.data.strict_json import ArrayReader
from trainer.runs import DataSettings, RowSource

Kind = Literal["chat", "completion", "text", "pair"]
SUFFIXES = (".jsonl", ".json", ".parquet")

_KEYS: dict[Kind, tuple[str, ...]] = {"chat": ("messages",), "completion": ("prompt", "completion"), "text": ("text",)}
_COLUMNS = ("messages", "tools", "prompt", "completion", "text", *sorted(PAIR_KEYS - {"prompt", "tools"}))
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PARQUET_ROWS = 256  # rows of one record batch
_MAX_NAMES = 200  # names of unused fields that are told apart
_OTHERS = "(others)"


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One checked row.

    `line` is the line of a JSONL or JSON file, else the row's number, both from 1. `sha256` is that of the canonical
    JSON of what is used of the row (after renaming; unused fields left out), so rows that train alike hash alike.
    `messages` are as templates want them: content a string (or absent beside tool calls), arguments parsed, reasoning
    under `reasoning_content`; `trained` are the indices of the assistant messages that are learnt. Of a pair, `sides`
    are chosen and rejected as rows (chat or completion) of one prompt.
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
    sides: tuple[Row, ...] = ()

    @property
    def answered(self) -> Row:
        """The row whose answer is to be given: itself, or the chosen side of a pair."""
        return self.sides[0] if self.sides else self

    @property
    def prompt_sha256(self) -> str:
        """Of what a sampler is given before the row's last answer; the row's own hash where that is nothing."""
        if self.sides:
            return self.sides[0].prompt_sha256
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
    source: RowSource, settings: DataSettings, *, counts: ReadCounts | None = None, pairs: bool = False
) -> Iterator[Row | RowProblem]:
    """Yield each row of `source`, or the problem that stands in its place, in the order of the files. `pairs`: the
    rows are to be preference pairs, and otherwise none of them.

    Raises `FileNotFoundError` when there is no such file, `ValueError` when a setting, the folder or the hub id makes
    the source unreadable or the file is not the one whose sha256 `source` gives, and `RowProblem` for damage after
    which the rest of a file cannot be found.
    """
    counts = ReadCounts() if counts is None else counts
    _check_columns(settings.columns)
    if settings.format != "auto" and pairs != (settings.format == "pair"):
        wanted = "auto or pair" if pairs else "auto, chat, completion or text"
        raise ValueError(f"data.format: {settings.format} is not what this job learns from; set it to {wanted}")
    for number, (file, line, item) in enumerate(_items(source, settings, counts)):
        if settings.max_rows is not None and number >= settings.max_rows:
            counts.stopped = True
            return
        yield _checked(item, settings, file=file, line=line, counts=counts, pairs=pairs)


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
        yield from _hub_items(source.path, settings.split, settings.subset)
    else:
        raise FileNotFoundError(
            f"dataset {source.name!r}: there is no file or folder {source.path!r}, and it is not a hub id (owner/name)"
        )


def _files_of(folder: Path, counts: ReadCounts) -> list[Path]:
    hidden = (".", "_")  # marks of other programs, passed over; said where such a file looks like rows
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(hidden) or path.suffix in SUFFIXES)
    files = [
        path for path in entries
        if path.is_file() and path.suffix in SUFFIXES and not path.name.startswith(hidden)
    ]  # fmt: skip
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
        check_start(path)
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


def _jsonl_items(path: Path, longest: int, counts: ReadCounts) -> Iterator[_Item]:
    for number, item in json_lines(path, longest):
        if item is None:
            counts.blank_lines += 1
        else:
            yield str(path), number, item


def _array_items(path: Path, longest: int) -> Iterator[_Item]:
    check_start(path)
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


def _hub_items(name: str, split: str, subset: str | None) -> Iterator[_Item]:
    from datasets import load_dataset  # noqa: PLC0415  (heavy, and only hub ids need it)
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        rows = load_dataset(name, subset, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"dataset {name!r}: no such file or folder here, and as a hub id its split {split!r} cannot be loaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            "Give the path of a local file, check data.split and data.subset, or load it once while online (it is then "
            "cached)"
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


def _checked(
    item: Any, settings: DataSettings, *, file: str, line: int, counts: ReadCounts, pairs: bool
) -> Row | RowProblem:
    if isinstance(item, RowProblem):
        return item.at(file, line)
    unused: Counter[str] = Counter()
    check = _check_pair if pairs else _check
    try:
        return check(item, settings, file=file, line=line, unused=unused)
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


def _check_pair(item: Any, settings: DataSettings, *, file: str, line: int, unused: Counter[str]) -> Row:
    row = {key: value for key, value in _renamed(item, settings.columns).items() if value is not None}
    sides = tuple(_side(one, file=file, line=line) for one in read_pair(row, unused))
    if sides[0].sha256 == sides[1].sha256:
        raise RowProblem("identical_pair", "chosen and rejected are the same; there is nothing to prefer")
    together = canonical_json([side.sha256 for side in sides])
    return Row(file=file, line=line, kind="pair", sha256=hashlib.sha256(together).hexdigest(), sides=sides)


def _side(side: Side, *, file: str, line: int) -> Row:
    used: dict[str, Any]
    if side.messages:
        trained = (len(side.messages) - 1,)
        used = {"messages": side.messages, "tools": side.tools, "trained": trained}
        kind: Kind = "chat"
    else:
        used, kind = {"prompt": side.prompt, "completion": side.completion}, "completion"
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
        raise RowProblem(
            "format", f"a preference pair ({_names(row)}), which supervised fine-tuning cannot use; train with job=dpo"
        )
    raise RowProblem("format", f"the row has {_names(row)}; {_FORMATS}, or name the columns with data.columns")


_FORMATS = "a chat row has messages, a completion row prompt and completion, a text row text"


def _names(row: dict[str, Any]) -> str:
    names = ", ".join(name[:40] for name in sorted(row)[:12])
    return f"the keys {names}" + (f" and {len(row) - 12:,} more" if len(row) > 12 else "") if row else "no keys"
