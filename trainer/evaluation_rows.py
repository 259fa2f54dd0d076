"""The rows of an evaluation, read strictly and as often as they are wanted; nothing of them is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluators.rows import Row
from trainer.data.json_lines import check_start, json_lines
from trainer.data.problem import RowProblem
from trainer.data.strict_json import ArrayReader
from trainer.runs import DataSettings

Item = tuple[int, Row]
_LONGEST = DataSettings().max_row_bytes


class Rows:
    """The rows of files, one after the other, with their numbers from 0. Iterating raises `RowProblem` with the place.

    A file is JSON lines; with `arrays`, one whose name ends in .json may be an array.
    change: what is made of each row. most: only the first so many; 0 = all. shown: how a file is called in problems.
    """

    def __init__(
        self, files: Sequence[Path], *, arrays: bool = False, change: Callable[[dict[str, Any]], Row] | None = None,
        most: int = 0, shown: Callable[[Path], str] = lambda path: path.name,
    ) -> None:  # fmt: skip
        self._files, self._arrays, self._change, self._most = files, arrays, change, most
        self._shown = shown

    def __iter__(self) -> Iterator[Item]:
        index = 0
        for path in self._files:
            for row in self._of(path):
                if self._most and index >= self._most:
                    return
                yield index, self._change(row) if self._change else row
                index += 1

    def _of(self, path: Path) -> Iterator[dict[str, Any]]:
        reader = _items if self._arrays and path.suffix == ".json" else json_lines
        name = self._shown(path)
        try:
            for number, row in reader(path, _LONGEST):
                if isinstance(row, RowProblem):
                    raise row.at(name, number)
                if row is not None:
                    yield row
        except RowProblem as problem:
            raise problem.at(name, problem.line) from None


def _items(path: Path, longest: int) -> Iterator[tuple[int, dict[str, Any] | RowProblem | None]]:
    """The items of a file that is one array, else its lines."""
    check_start(path)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = ArrayReader(stream, longest)
        try:
            if reader.peek() == "[":
                yield from reader.items()
                return
        except UnicodeDecodeError:
            raise RowProblem("not_utf8", "not UTF-8 here or further on; save it so").at("", reader.line) from None
        except RowProblem as problem:
            raise problem.at("", reader.line) from None
    yield from json_lines(path, longest)
