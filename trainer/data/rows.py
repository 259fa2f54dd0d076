"""Rows: read them from JSONL, JSON, Parquet or a hub id, and check each against the format it claims.

Reading streams: no more than one row (one record batch of a Parquet file) is held. What is wrong with a row is a
`RowProblem` that is *yielded* in the row's place, so that the ledger counts it and reading goes on; what makes a whole
source unreadable is raised. Nothing is dropped in silence: blank lines, skipped files and unused fields are counted
in `ReadCounts`. A key whose value is null counts as absent everywhere (columnar files fill absent keys with null).
This file is the only home of the `datasets` package; plain JSONL and JSON need neither it nor pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from trainer.runs import DataSettings, RowSource

Kind = Literal["chat", "completion", "text"]
SUFFIXES = (".jsonl", ".json", ".parquet")

_KEYS: dict[Kind, tuple[str, ...]] = {"chat": ("messages",), "completion": ("prompt", "completion"), "text": ("text",)}
_COLUMNS = ("messages", "tools", "prompt", "completion", "text")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 16  # characters read at a time from a JSON array
_PARQUET_ROWS = 256  # rows of one record batch

_BEFORE = {  # which message may stand before one of this role
    "system": ("the beginning",),
    "user": ("the beginning", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_REASONING = ("thinking", "reasoning", "reasoning_content")  # the first that is not empty wins
_MESSAGE_KEYS = {"role", "content", "weight", "trainable", "tool_calls", "tool_call_id", "name", "tools", *_REASONING}


class RowProblem(ValueError):
    """What is wrong with one row: `file`, `line` (counted from 1), a reason `code` and a `message` for people."""

    def __init__(self, code: str, message: str, *, file: str = "", line: int = 0) -> None:
        self.code, self.message, self.file, self.line = code, message, file, line
        super().__init__(code, message)

    def at(self, file: str, line: int) -> RowProblem:
        """This problem with its place filled in."""
        self.file, self.line = file, line
        return self

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} ({self.code})"


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


@dataclass
class ReadCounts:
    """What reading passed over. `stopped`: `data.max_rows` was reached, so there may be rows that were not read."""

    blank_lines: int = 0
    skipped_files: list[str] = field(default_factory=list)
    unused_fields: Counter[str] = field(default_factory=Counter)
    stopped: bool = False


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
        if isinstance(item, RowProblem):
            yield item.at(file, line)
            continue
        try:
            yield _check(item, settings, file=file, line=line, unused=counts.unused_fields)
        except RowProblem as problem:
            yield problem.at(file, line)


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


# --- Where rows come from ---


def _items(source: RowSource, settings: DataSettings, counts: ReadCounts) -> Iterator[_Item]:
    path = Path(source.path).expanduser()
    if path.is_dir():
        for file in _files_of(path, counts):
            yield from _file_items(file, counts)
    elif path.is_file():
        _check_digest(path, source.sha256)
        yield from _file_items(path, counts)
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


def _file_items(path: Path, counts: ReadCounts) -> Iterator[_Item]:
    if path.suffix == ".jsonl":
        return _jsonl_items(path, counts)
    if path.suffix == ".json":
        return _array_items(path)
    if path.suffix == ".parquet":
        return _parquet_items(path)
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


def _jsonl_items(path: Path, counts: ReadCounts) -> Iterator[_Item]:
    decoder, name = _Decoder(), str(path)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not raw.strip():
                counts.blank_lines += 1
                continue
            try:
                yield name, number, decoder.decode(raw.strip(b" \t\r\n").decode("utf-8"))
            except RowProblem as problem:
                yield name, number, problem
            except UnicodeDecodeError as error:
                message = f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
                yield name, number, RowProblem("not_utf8", message)


def _array_items(path: Path) -> Iterator[_Item]:
    name = str(path)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = _ArrayReader(stream)
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
            raise RowProblem("not_utf8", f"not UTF-8: {error.reason}; save the file as UTF-8").at(
                name, reader.line
            ) from error
        except RowProblem as problem:
            raise problem.at(name, reader.line) from problem.__cause__


def _parquet_items(path: Path) -> Iterator[_Item]:
    import pyarrow.parquet  # noqa: PLC0415  (only Parquet needs it)

    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield str(path), number, _without_nulls(row)


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


# --- Strict JSON ---


class _Decoder:
    """JSON as RFC 8259 has it and no more: no NaN, no duplicate keys, no lone surrogates, objects only.

    What a hook finds is kept and raised after the value was read whole, so that an array can be read on after it.
    """

    def __init__(self) -> None:
        self._found: RowProblem | None = None
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._not_a_number,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str) -> dict[str, Any]:
        """The object that `text` is. Raises `RowProblem`."""
        try:
            value = self._json.decode(text)
        except json.JSONDecodeError as error:
            self._found = None
            raise RowProblem("json", f"not JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            self._found = None
            raise RowProblem("json", "nested too deeply to be read") from error
        return self.judge(value)

    def raw_decode(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends; `judge` it next."""
        self._found = None
        return self._json.raw_decode(text, at)

    def judge(self, value: Any) -> dict[str, Any]:
        """`value` if it was sound and an object. Raises `RowProblem`."""
        found, self._found = self._found, None
        if found is not None:
            raise found
        if not isinstance(value, dict):
            raise RowProblem("not_an_object", f"a row is a JSON object, this is {_json_type(value)}")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RowProblem("surrogate", "holds half of a surrogate pair (\\ud800 to \\udfff alone)") from error
        return value

    def _keep(self, code: str, message: str) -> None:
        self._found = self._found or RowProblem(code, message)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            self._keep("duplicate_key", f"the key {twice!r} stands twice in one object; keep one of them")
        return result

    def _not_a_number(self, name: str) -> float:
        self._keep("not_finite", f"{name} is not JSON; write null or a number")
        return 0.0

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._keep("not_finite", f"the number {text[:40]} is beyond what a float holds")
        return value

    def _int(self, text: str) -> int:
        if len(text) <= 1000:  # far below Python's own limit on digits
            return int(text)
        self._keep("not_finite", f"an integer of {len(text)} digits")
        return 0


class _ArrayReader:
    """Reads the items of a JSON array one by one; `line` is where reading stands."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at, self.line = stream, "", 0, 1
        self._decoder = _Decoder()

    def items(self) -> Iterator[tuple[int, Any]]:
        """Each item with its first line; a sound JSON value that is no row comes as its `RowProblem`.

        Raises `RowProblem` where the text stops being a JSON array: nothing after that place can be read.
        """
        self._take()
        if self.peek() == "]":
            self._take()
        else:
            while True:
                self.peek()
                line, value = self.line, self._value()
                try:
                    yield line, self._decoder.judge(value)
                except RowProblem as problem:
                    yield line, problem
                mark = self.peek()
                if mark not in (",", "]"):
                    raise RowProblem("json", f"after an item comes ',' or ']', not {mark!r}; the rest cannot be read")
                self._take()
                if mark == "]":
                    break
        if self.peek():
            raise RowProblem("json", "text after the array's end")

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        while True:
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  (it matches nothing, too)
            self._move(end)
            if end < len(self._text) or not self._more():
                return self._text[end : end + 1]

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():  # it may only be that the item goes on
                    continue
                raise RowProblem("json", f"not JSON: {error.msg}; the rest of the file cannot be read") from error
            except RecursionError as error:
                raise RowProblem("json", "nested too deeply; the rest of the file cannot be read") from error
            if end == len(self._text) and self._more():
                continue
            self._move(end)
            return value

    def _take(self) -> None:
        self._move(self._at + 1)

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        kept = self._text[self._at :]
        chunk = self._stream.read(max(_CHUNK, len(kept)))  # doubling keeps a long item linear
        self._text, self._at = kept + chunk, 0
        return bool(chunk)


# --- What a row must be ---


def _check_columns(columns: dict[str, str]) -> None:
    unknown = sorted(set(columns) - set(_COLUMNS))
    if unknown:
        raise ValueError(
            f"data.columns: {', '.join(unknown)}: no such field of a row; allowed are {', '.join(_COLUMNS)}, "
            "each naming the column it is read from: {prompt: question, completion: answer}"
        )


def _check(item: Any, settings: DataSettings, *, file: str, line: int, unused: Counter[str]) -> Row:
    row = {key: value for key, value in _renamed(item, settings.columns).items() if value is not None}
    kind = _kind(row, settings.format)
    known = {*_KEYS[kind], "tools"} if kind == "chat" else set(_KEYS[kind])
    unused.update(key for key in row if key not in known)
    if kind == "chat":
        tools = _tools(row.get("tools"), unused)
        messages, trained = _messages(row["messages"], unused)
        used: dict[str, Any] = {"messages": messages, "tools": tools, "trained": trained}
    else:
        used = {key: _string(row[key], key) for key in _KEYS[kind]}
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


def _messages(value: Any, unused: Counter[str]) -> tuple[tuple[dict[str, Any], ...], tuple[int, ...]]:
    if not isinstance(value, list) or not value:
        raise RowProblem("messages", f"messages must be an array with at least one message, not {_json_type(value)}")
    messages: list[dict[str, Any]] = []
    trained: list[int] = []
    call_ids: set[str] = set()
    before = "the beginning"
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RowProblem("messages", f"{where} must be an object, not {_json_type(message)}")
        given = {key: item for key, item in message.items() if item is not None}
        before = _role(given, where, before=before)
        unused.update(f"messages[].{key}" for key in given if key not in _MESSAGE_KEYS)
        messages.append(_message(given, where, unused=unused))
        if _is_trained(given, where, unused=unused):
            trained.append(index)
        call_ids |= {call["id"] for call in messages[-1].get("tool_calls", ()) if "id" in call}
        _check_call_id(messages[-1], where, call_ids=call_ids)
    if before != "assistant":
        raise RowProblem(
            "grammar", f"the last message is of {before}, it must be the assistant's (the answer to learn)"
        )
    return tuple(messages), tuple(trained)


def _role(given: dict[str, Any], where: str, *, before: str) -> str:
    role = given.get("role")
    if not isinstance(role, str) or role not in _BEFORE:
        raise RowProblem("role", f"{where}.role is {role!r}; allowed are {', '.join(_BEFORE)}")
    if before not in _BEFORE[role]:
        raise RowProblem(
            "grammar", f"{where}: {role} stands after {before}; it may follow {' or '.join(_BEFORE[role])}"
        )
    return role


def _message(given: dict[str, Any], where: str, *, unused: Counter[str]) -> dict[str, Any]:
    role = given["role"]
    if given.get("tools"):
        raise RowProblem("message_tools", f"{where}.tools: tools of one message cannot be rendered; give tools per row")
    content, thoughts = _content(given.get("content"), where, unused=unused)
    reasoning = _reasoning(given, where, thoughts=thoughts, unused=unused)
    calls = _tool_calls(given.get("tool_calls"), where, unused=unused)
    if role != "assistant" and (reasoning or calls):
        name = "reasoning" if reasoning else "tool_calls"
        raise RowProblem("field_of_role", f"{where}: {name} on a message of {role}; only the assistant has it")
    if content is None and not reasoning and not calls:
        raise RowProblem(
            "content", f"{where}.content is missing; only an assistant that calls tools or reasons may lack it"
        )
    result: dict[str, Any] = {"role": role}
    if content is not None:
        result["content"] = content
    if reasoning:
        result["reasoning_content"] = reasoning
    if calls:
        result["tool_calls"] = calls
    for key, of in (("tool_call_id", ("tool",)), ("name", tuple(_BEFORE))):
        if key in given:
            result[key] = _string(given[key], f"{where}.{key}")
            if role not in of:
                raise RowProblem("field_of_role", f"{where}: {key} on a message of {role}; only {of[0]} has it")
    return result


def _content(value: Any, where: str, *, unused: Counter[str]) -> tuple[str | None, str]:
    """The content's text (None if there is none) and the text of its thinking parts."""
    if value is None or isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        raise RowProblem("content", f"{where}.content must be a string, null or parts, not {_json_type(value)}")
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for number, part in enumerate(value):
        place = f"{where}.content[{number}]"
        type_ = part.get("type") if isinstance(part, dict) else None
        if type_ not in texts:
            raise RowProblem("part_type", _unreadable_part(place, type_))
        texts[type_].append(_string(part.get(type_), f"{place}.{type_}"))
        unused.update(f"messages[].content[].{key}" for key in part if key not in ("type", type_))
    text = "".join(texts["text"]) if texts["text"] or not texts["thinking"] else None
    return text, "".join(texts["thinking"])


def _unreadable_part(place: str, type_: Any) -> str:
    if isinstance(type_, str) and re.search("image|audio|video|file", type_):
        return f"{place} is of type {type_!r}: the model reads text only; remove the part, or leave the row out"
    return f"{place} is of type {type_!r}; allowed are text and thinking"


def _reasoning(given: dict[str, Any], where: str, *, thoughts: str, unused: Counter[str]) -> str:
    values = {key: _string(given[key], f"{where}.{key}") for key in _REASONING if key in given}
    winner = next((key for key in _REASONING if values.get(key)), None)
    if winner is None:
        return thoughts
    if thoughts:
        raise RowProblem("reasoning", f"{where} has both thinking parts and {winner}; keep one of them")
    unused.update(f"messages[].{key}" for key, value in values.items() if value and value != values[winner])
    return values[winner]


def _is_trained(given: dict[str, Any], where: str, *, unused: Counter[str]) -> bool:
    weight, trainable = given.get("weight"), given.get("trainable")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        raise RowProblem("weight", f"{where}.weight is {weight!r}; allowed are 0 and 1")
    if not isinstance(trainable, bool | None):
        raise RowProblem("trainable", f"{where}.trainable is {trainable!r}; allowed are true and false")
    if given["role"] == "assistant":
        return trainable if trainable is not None else weight != 0
    if trainable:
        raise RowProblem(
            "trainable", f"{where}.trainable is true on a message of {given['role']}; only the assistant's"
        )
    if weight:
        unused[f"messages[].weight (1 on {given['role']})"] += 1
    return False


def _tool_calls(value: Any, where: str, *, unused: Counter[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list | None):
        raise RowProblem("tool_calls", f"{where}.tool_calls must be an array, not {_json_type(value)}")
    calls = []
    for number, call in enumerate(value or []):
        place = f"{where}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem("tool_calls", f'{place} must be {{"function": {{"name": ..., "arguments": ...}}}}')
        if call.get("type") not in (None, "function"):
            raise RowProblem("tool_calls", f"{place}.type is {call['type']!r}; allowed is 'function'")
        arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
        result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if call.get("id") is not None:
            result["id"] = _string(call["id"], f"{place}.id")
        unused.update(f"messages[].tool_calls[].{key}" for key in call if key not in ("id", "type", "function"))
        unused.update(f"messages[].tool_calls[].function.{key}" for key in function if key not in ("name", "arguments"))
        calls.append(result)
    return calls


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            return _Decoder().decode(value)
        except RowProblem as problem:
            raise RowProblem(
                "tool_calls", f"{where} is a string that is no JSON object: {problem.message}"
            ) from problem
    if not isinstance(value, dict):
        raise RowProblem("tool_calls", f"{where} must be an object or its JSON as a string, not {_json_type(value)}")
    return value


def _check_call_id(message: dict[str, Any], where: str, *, call_ids: set[str]) -> None:
    call_id = message.get("tool_call_id")
    if call_id is not None and call_ids and call_id not in call_ids:
        raise RowProblem(
            "tool_call_id", f"{where}.tool_call_id {call_id!r} answers no call; calls are {', '.join(sorted(call_ids))}"
        )


def _tools(value: Any, unused: Counter[str]) -> tuple[dict[str, Any], ...]:
    """A row's tools; columnar sets often hold them as one JSON string, because their shapes differ."""
    if isinstance(value, str):
        try:
            value = _Decoder().decode(f'{{"tools": {value}}}')["tools"]
        except RowProblem as problem:
            raise RowProblem("tools", f"tools is a string that is no JSON array: {problem.message}") from problem
    if not isinstance(value, list | None):
        raise RowProblem("tools", f"tools must be an array, not {_json_type(value)}")
    for number, tool in enumerate(value or []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem("tools", f'tools[{number}] must be {{"type": "function", "function": {{"name": ...}}}}')
    return tuple(value or ())


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowProblem("type", f"{where} must be a string, not {_json_type(value)}")
    return value


def _names(row: dict[str, Any]) -> str:
    return "the keys " + ", ".join(sorted(row)[:12]) if row else "no keys"


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    empty = "an empty array" if value == [] else None
    return empty or names.get(type(value)) or ("a number" if isinstance(value, int | float) else type(value).__name__)
