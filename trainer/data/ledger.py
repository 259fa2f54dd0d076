"""The ledger: what became of every row and of every token, and `prepare`, which turns a source into datums with it.

The one decision: nothing may vanish. Every row that was read stands in the ledger as used, dropped or refused with a
reason, and the token counts must add up (total = kept + cut + dropped, kept = trained + masked), per row and in sum;
`save` and `prepare` check that and raise if they do not.

`ledger.json`, totals first:

    version, source, settings        what was read and how
    totals.rows                      read, used, dropped, refused, held_out, duplicates, blank_lines
    totals.tokens                    total, kept, masked, trained, cut, dropped
    totals.turns                     trained, stop_trained (how many of them learn their stop token)
    gates                            of each gate (trainer/data/gates.py): name, measured and allowed (shares), passed,
                                     count and of (what the share is made of), rows (the first that count, in words)
    reasons, unused_fields           counts by name
    skipped_files, stopped_at_max_rows, warnings, problems (the first 20 refused and dropped, in words)
    codes, files                     what the numbers in rows.status, rows.reason and rows.file stand for
    rows                             one array per column, all of one length, in reading order:
                                     file, line, status, reason, total, kept, masked, trained, cut, dropped,
                                     stop (1 all trained turns learn to stop, 0 not all, -1 none trained),
                                     held_out, sha256 ("" where the row could not be read)

A row's tokens are counted before shifting; `trained` counts those that are learnt (never the first). Rows that could
not be rendered count 0 tokens. A preference pair is one row: its tokens are those of both sides, its turns two. The
sha256 is `Row.sha256`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.data.datum import Example, Pair, from_row
from trainer.data.render import Rendered, Renderer, RenderError
from trainer.data.rows import ReadCounts, Row, RowProblem, read_rows
from trainer.runs import DataSettings, RowSource

Status = Literal["used", "dropped", "refused"]
MIN_ROWS = 3  # the gateway's documented minimum of examples in a data set
_STATUSES: tuple[Status, ...] = ("used", "dropped", "refused")
_TOKENS = ("total", "kept", "masked", "trained", "cut", "dropped")
SHOWN = 5  # rows that a refusal names
_KEPT_PROBLEMS = 20  # problems that the ledger keeps in words
_CHUNK = 256  # rows rendered at a time
_WAYS_OUT = {
    "overlong": "set data.overlong=cut or drop, or raise max_context_length",
    "no_trained_token": "give a message weight 1 or set data.bad_rows=drop",
    "no_column": "mend data.columns, which names the column that each field is read from",
    "column_clash": "mend data.columns, which names the column that each field is read from",
}


class DataRefused(ValueError):
    """The data cannot be trained on as it is. `ledger` says what was found, as far as reading went."""

    def __init__(self, message: str, ledger: Ledger) -> None:
        super().__init__(message)
        self.ledger = ledger


@dataclass(frozen=True)
class Gate:
    """What one gate measured: `count` of `of` is the share `measured`; `rows` are the first that count, in words."""

    name: str
    count: int
    of: int
    allowed: float
    rows: list[str]

    @property
    def measured(self) -> float:
        """The share, 0 where there is nothing to have a share of."""
        return self.count / self.of if self.of else 0.0

    @property
    def passed(self) -> bool:
        """Whether the share is one that is allowed."""
        return self.measured <= self.allowed

    def document(self) -> dict[str, Any]:
        """As `ledger.json` has it."""
        return {"name": self.name, "measured": self.measured, "allowed": self.allowed, "passed": self.passed,
                "count": self.count, "of": self.of, "rows": self.rows}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one row; `reason` is "" when it is used whole. Counts are tokens."""

    status: Status
    reason: str = ""
    total: int = 0
    kept: int = 0
    trained: int = 0
    turns: int = 0
    stop_turns: int = 0

    def tokens(self) -> tuple[int, ...]:
        """total, kept, masked, trained, cut, dropped."""
        lost = self.total - self.kept
        used = self.status == "used"
        return (self.total, self.kept, self.kept - self.trained, self.trained, lost * used, lost * (not used))


class Ledger:
    """Counts of one source, row by row. Add rows in reading order; `hold_out` afterwards marks what is not trained."""

    def __init__(self, source: RowSource, settings: DataSettings, *, max_context: int) -> None:
        self.source, self.settings, self.max_context = source, settings, max_context
        self.counts = ReadCounts()
        self.reasons: Counter[str] = Counter()
        self.problems: dict[str, list[str]] = {"refused": [], "dropped": []}
        self.refused: Counter[str] = Counter()
        self.gates: list[Gate] = []
        self.remarks: list[str] = []  # of whoever knows more than the rows; they are among the warnings
        self.turns = self.stop_turns = self.duplicates = 0
        self.spelling = 0  # rows whose text spells control tokens, which `spelled` counts by row
        self.spelled: Counter[str] = Counter()
        self._files: dict[str, int] = {}
        self._reason_codes: dict[str, int] = {"": 0}
        self._columns = {
            name: array("q") for name in ("file", "line", "status", "reason", *_TOKENS, "stop", "held_out")
        }
        self._hashes: list[str] = []
        self._seen: set[str] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, file: str, line: int, *, outcome: Outcome, sha256: str = "", message: str = "") -> None:
        """Enter one row; `message` says in words what is wrong with it."""
        stop = -1 if not outcome.turns else int(outcome.turns == outcome.stop_turns)
        values = (
            self._files.setdefault(file, len(self._files)),
            line,
            _STATUSES.index(outcome.status),
            self._reason_codes.setdefault(outcome.reason, len(self._reason_codes)),
            *outcome.tokens(),
            stop,
            0,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._hashes.append(sha256)
        self.duplicates += bool(sha256) and sha256 in self._seen
        self._seen.add(sha256)
        self.turns += outcome.turns
        self.stop_turns += outcome.stop_turns
        if outcome.reason:
            self.reasons[outcome.reason] += 1
        if outcome.status == "refused":
            self.refused[outcome.reason] += 1
        if message and len(kept := self.problems[outcome.status]) < _KEPT_PROBLEMS:
            kept.append(f"{file}:{line}: {message} ({outcome.reason})")

    def hold_out(self, indices: Sequence[int]) -> None:
        """Mark rows as held out of training; `indices` count the *used* rows, as `Prepared.datums` does."""
        used = [row for row, status in enumerate(self._columns["status"]) if status == 0]
        for index in indices:
            self._columns["held_out"][used[index]] = 1

    def column(self, name: str) -> array[int]:
        """One of the columns that the module's docstring names, but for sha256."""
        return self._columns[name]

    def place(self, row: int) -> str:
        """file:line of a row, counted from 0 in reading order."""
        return f"{list(self._files)[self._columns['file'][row]]}:{self._columns['line'][row]}"

    def reason(self, row: int) -> str:
        """Why a row was cut, dropped or refused; "" for a row that is used whole."""
        return list(self._reason_codes)[self._columns["reason"][row]]

    def repeats(self) -> Iterator[tuple[int, int]]:
        """Each used row that is equal to an earlier used one, and the first of these."""
        first: dict[str, int] = {}
        for row, (status, sha256) in enumerate(zip(self._columns["status"], self._hashes, strict=True)):
            if status == 0 and first.setdefault(sha256, row) != row:
                yield row, first[sha256]

    def totals(self) -> dict[str, dict[str, int]]:
        """Sums by rows, tokens and turns; see the module's docstring."""
        statuses = Counter(self._columns["status"])
        return {
            "rows": {
                "read": len(self),
                **{name: statuses[code] for code, name in enumerate(_STATUSES)},
                "held_out": sum(self._columns["held_out"]),
                "duplicates": self.duplicates,
                "blank_lines": self.counts.blank_lines,
            },
            "tokens": {name: sum(self._columns[name]) for name in _TOKENS},
            "turns": {"trained": self.turns, "stop_trained": self.stop_turns},
        }

    def check(self) -> None:
        """Raise `AssertionError` unless the counts add up, per row and in sum."""
        columns = [self._columns[name] for name in _TOKENS]
        for row, (total, kept, masked, trained, cut, dropped) in enumerate(zip(*columns, strict=True)):
            if (
                total != kept + cut + dropped
                or kept != trained + masked
                or min(kept, masked, trained, cut, dropped) < 0
            ):
                raise AssertionError(f"ledger row {row}: {dict(zip(_TOKENS, (c[row] for c in columns), strict=True))}")
        rows = self.totals()["rows"]
        if rows["read"] != rows["used"] + rows["dropped"] + rows["refused"]:
            raise AssertionError(f"ledger: rows do not add up: {rows}")

    def warnings(self) -> list[str]:
        """What a person should look at before training, in words."""
        totals, found = self.totals(), []
        if self.stop_turns < self.turns:
            found.append(
                f"{self.turns - self.stop_turns} of {self.turns} trained turns do not learn a stop token: "
                "the model may not stop there (a chat template without end-of-turn token, or rows cut off)"
            )
        if totals["rows"]["duplicates"]:
            found.append(f"{totals['rows']['duplicates']} rows are duplicates of earlier ones")
        if self.spelling:
            names = ", ".join(name for name, _ in self.spelled.most_common(SHOWN))
            found.append(
                f"{self.spelling} rows spell control tokens in their text ({names}), which the tokenizer makes of it: "
                "an answer that does teaches to write them"
            )
        for name, count in sorted(self.counts.unused_fields.items()):
            found.append(f"the field {name} is not used ({count} times)")
        if self.counts.skipped_files:
            names = self.counts.skipped_files
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            found.append(f"not read: {', '.join(names[:SHOWN])}{more}")
        if self.counts.stopped:
            found.append(f"reading stopped at data.max_rows={self.settings.max_rows}; there are more rows")
        return found + self.remarks

    def summary(self) -> list[str]:
        """The totals as lines for people, warnings last."""
        totals = self.totals()
        rows, tokens = totals["rows"], totals["tokens"]
        lines = [
            f"rows: {rows['read']:,} read, {rows['used']:,} used, {rows['dropped']:,} dropped, "
            f"{rows['refused']:,} refused, {rows['held_out']:,} held out",
            f"tokens: {tokens['total']:,} = {tokens['kept']:,} kept ({tokens['trained']:,} trained, "
            f"{tokens['masked']:,} masked) + {tokens['cut']:,} cut + {tokens['dropped']:,} dropped",
        ]
        lines += [f"  {count:,} x {reason}" for reason, count in self.reasons.most_common()]
        if self.gates:
            shares = [f"{gate.name} {gate.measured:.3g}/{gate.allowed:g}" for gate in self.gates]
            lines.append(f"gates (measured/allowed): {', '.join(shares)}")
        return lines + [f"note: {warning}" for warning in self.warnings()]

    def save(self, path: Path) -> Path:
        """Write the ledger as JSON (shape: the module's docstring) and return `path`."""
        self.check()
        document: dict[str, Any] = {
            "version": 1,
            "source": self.source.model_dump(),
            "settings": self.settings.model_dump() | {"max_context": self.max_context},
            "totals": self.totals(),
            "gates": [gate.document() for gate in self.gates],
            "reasons": dict(self.reasons.most_common()),
            "unused_fields": dict(sorted(self.counts.unused_fields.items())),
            "skipped_files": self.counts.skipped_files,
            "stopped_at_max_rows": self.counts.stopped,
            "warnings": self.warnings(),
            "problems": self.problems,
            "codes": {"status": list(_STATUSES), "reason": list(self._reason_codes)},
            "files": list(self._files),
        }
        columns = {name: column.tolist() for name, column in self._columns.items()} | {"sha256": self._hashes}
        head = json.dumps(document, indent=2, ensure_ascii=False).removesuffix("\n}")
        body = ",\n".join(
            f'    "{name}": {json.dumps(column, separators=(",", ":"))}' for name, column in columns.items()
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f'{head},\n  "rows": {{\n{body}\n  }}\n}}\n', encoding="utf-8")
        temporary.replace(path)
        return path


@dataclass(frozen=True, eq=False)
class Prepared:
    """A source made ready: `datums[i]` (of preference rows a `Pair`) was made from `rows[i]`; `ledger` has these and
    all other rows."""

    datums: list[Any] = field(repr=False)  # of Datum, or of Pair: `Example`
    rows: list[Row] = field(repr=False)
    ledger: Ledger = field(repr=False)

    @property
    def hashes(self) -> list[str]:
        """The sha256 of each row, for lineage."""
        return [row.sha256 for row in self.rows]

    @property
    def prompts(self) -> list[str]:
        """The sha256 of each row's prompt (`Row.prompt_sha256`), for `carve_out`."""
        return [row.prompt_sha256 for row in self.rows]


def prepare(
    source: RowSource,
    settings: DataSettings,
    *,
    renderer: Renderer,
    max_context: int,
    min_rows: int = MIN_ROWS,
    pairs: bool = False,
) -> Prepared:
    """Read, check, render and count `source`. `max_context` is the longest row in tokens (of a pair, each side's).
    `pairs`: rows are preference pairs, each counted as one row with the tokens of both sides.

    Raises `DataRefused` (with the ledger) when rows are refused, the source is damaged, or fewer than `min_rows` rows
    are left; `ValueError` or `FileNotFoundError` when it cannot be read at all or the chat template is broken.
    """
    ledger = Ledger(source, settings, max_context=max_context)
    prepared = Prepared([], [], ledger)
    items = read_rows(source, settings, counts=ledger.counts, pairs=pairs)
    try:
        while chunk := list(islice(items, _CHUNK)):
            _enter(chunk, prepared, renderer=renderer)
    except RowProblem as problem:
        raise DataRefused(f"dataset {source.name!r} is damaged: {problem}", ledger) from problem
    ledger.check()
    _refuse(ledger, min_rows=min_rows)
    return prepared


def carve_out(hashes: Sequence[str], fraction: float, *, max_rows: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices (trained on, held out), both ascending: about `fraction` of the rows, at most `max_rows`.

    `hashes` has one hash per row, of the row or of its prompt. It and `seed` alone rank a row, so the choice does not
    depend on the order of the rows, and rows of one hash land on one side. Raises `ValueError` when no row can be held
    out.
    """
    wanted = max(1, min(max_rows, int(len(hashes) * fraction)))
    copies = Counter(hashes)
    ranked = sorted(copies, key=lambda row: hashlib.sha256(f"{seed}:{row}".encode()).digest())
    chosen: set[str] = set()
    room = wanted
    for row in ranked:
        if copies[row] <= room and len(chosen) + 1 < len(copies):
            chosen.add(row)
            room -= copies[row]
    if not chosen:
        raise ValueError(
            f"eval_auto_carveout: no row of {len(hashes)} ({len(copies)} different) can be held out at a fraction "
            f"of {fraction}: rows that are equal or share a prompt stay together; name an evaluation_dataset, raise "
            "data.carveout_fraction, or set data.gates.overlap_prompts=1 to part the rows of a prompt"
        )
    held_out = [index for index, row in enumerate(hashes) if row in chosen]
    return [index for index, row in enumerate(hashes) if row not in chosen], held_out


def _enter(chunk: list[Row | RowProblem], prepared: Prepared, *, renderer: Renderer) -> None:
    parts = [part for item in chunk if isinstance(item, Row) for part in item.sides or (item,)]
    rendered: Iterator[Rendered | RenderError] = iter(renderer.render_batch(parts))
    ledger = prepared.ledger
    bad: Status = "dropped" if ledger.settings.bad_rows == "drop" else "refused"
    for item in chunk:
        if isinstance(item, RowProblem):
            ledger.add(item.file, item.line, outcome=Outcome(bad, item.code), message=item.message)
            continue
        results = [next(rendered) for _ in item.sides or (item,)]
        broken = next((result for result in results if isinstance(result, RenderError)), None)
        if broken is not None:
            outcome, message = Outcome(bad, broken.code), str(broken)
        else:
            whole = [result for result in results if isinstance(result, Rendered)]
            spelled = renderer.spelled(item)
            ledger.spelling += bool(spelled)
            ledger.spelled.update(spelled)
            outcome, message, example = made_of(whole, ledger.settings, max_context=ledger.max_context)
            if example is not None:
                prepared.datums.append(example)
                prepared.rows.append(item)
        ledger.add(item.file, item.line, outcome=outcome, sha256=item.sha256, message=message)


def made_of(
    sides: Sequence[Rendered], settings: DataSettings, *, max_context: int
) -> tuple[Outcome, str, Example | None]:
    """What becomes of a rendered row (or of a pair's two sides), what is wrong in words, and the example it makes."""
    judged = [judge(side, settings, max_context=max_context) for side in sides]
    kept = [side.cut(one.kept) for side, (one, _) in zip(sides, judged, strict=True)]
    outcome, message = judged[0] if len(sides) == 1 else _judge_pair(judged, kept, settings)
    if outcome.status != "used":
        return outcome, message, None
    datums = [from_row(one.ids, one.mask) for one in kept]
    return outcome, message, Pair(*datums) if len(datums) == 2 else datums[0]


def _judge_pair(
    judged: Sequence[tuple[Outcome, str]], kept: Sequence[Rendered], settings: DataSettings
) -> tuple[Outcome, str]:
    """One outcome of two: a pair is used if both sides are, and still differ."""
    total = sum(one.total for one, _ in judged)
    for name, (one, words) in zip(("chosen", "rejected"), judged, strict=True):
        if one.status != "used":
            return Outcome(one.status, one.reason, total=total), f"{name}: {words}"
    if np.array_equal(kept[0].ids, kept[1].ids):
        cut = any(one.reason for one, _ in judged)
        status: Status = "dropped" if cut or settings.bad_rows == "drop" else "refused"
        what = "what is left of both sides after the cut" if cut else "both sides as tokens"
        return Outcome(status, "identical_pair", total=total), f"{what} is the same; there is nothing to prefer"
    outcome = Outcome(
        "used",
        next((one.reason for one, _ in judged if one.reason), ""),
        total=total,
        kept=sum(one.kept for one, _ in judged),
        trained=sum(one.trained for one, _ in judged),
        turns=sum(one.turns for one, _ in judged),
        stop_turns=sum(one.stop_turns for one, _ in judged),
    )
    return outcome, ""


def judge(row: Rendered, settings: DataSettings, *, max_context: int) -> tuple[Outcome, str]:
    """What becomes of a rendered row, and what is wrong with it in words ("" if it is used)."""
    total = len(row.ids)
    if not row.mask.any():
        status: Status = "dropped" if settings.bad_rows == "drop" else "refused"
        return Outcome(status, "no_trained_token", total=total), "no token of the row is learnt"
    reason = ""
    if total > max_context:
        words = f"{total} tokens, max_context_length is {max_context}"
        if settings.overlong != "cut":
            return Outcome("dropped" if settings.overlong == "drop" else "refused", "overlong", total=total), words
        row, reason = row.cut(max_context), "cut"
        if not row.mask.any():
            return Outcome("dropped", "cut_before_answer", total=total), f"{words}: no learnt token is left"
    outcome = Outcome(
        "used",
        reason,
        total=total,
        kept=len(row.ids),
        trained=int(row.mask.sum()),
        turns=len(row.turns),
        stop_turns=sum(turn.stop_trained for turn in row.turns),
    )
    return outcome, ""


def _refuse(ledger: Ledger, *, min_rows: int) -> None:
    rows = ledger.totals()["rows"]
    shown = "".join(
        f"\n  {problem}" for problem in ledger.problems["refused" if rows["refused"] else "dropped"][:SHOWN]
    )
    if rows["refused"]:
        ways = [way for reason, way in _WAYS_OUT.items() if ledger.refused[reason]]
        if set(ledger.refused) - set(_WAYS_OUT):
            ways.append("mend the rows, or set data.bad_rows=drop to leave them out")
        raise DataRefused(
            f"dataset {ledger.source.name!r}: {rows['refused']} of {rows['read']} rows cannot be used "
            f"({_counted(ledger.refused)}):{shown}\n"
            f"What to do: {'; '.join(ways)}.",
            ledger,
        )
    if rows["used"] < min_rows:
        raise DataRefused(
            f"dataset {ledger.source.name!r}: {rows['used']} usable rows of {rows['read']} read, at least {min_rows} "
            f"are needed{f' ({_counted(ledger.reasons)})' if ledger.reasons else ''}.{shown}\n"
            "What to do: give more rows, or mend those that were dropped.",
            ledger,
        )


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
