"""Gates: shares of the ledger above which a run is refused before it starts, each with its rows and its setting.

The one decision: what `data.bad_rows`, `data.overlong` and the chat template let through one row at a time must also
hold for the data as a whole, since a run on data of which half is cut off, or never learns to stop, ends well and
is worthless. `GateSettings` (trainer/runs.py) says of each gate what its share is of. The gates of the rows hold for
both sets; the two of the overlap stand in the ledger of the rows that are trained on.

Not seen: rows that differ by a space or by an earlier turn, and prompts that are asked in other words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from trainer.data.ledger import SHOWN, DataRefused, Gate, Ledger
from trainer.data.rows import Row
from trainer.runs import GateSettings

_LEARN_NOTHING = ("no_trained_token", "cut_before_answer")
_WAYS_OUT = {
    "dropped_rows": "mend the rows, or see whether data.format, data.columns and max_context_length fit them",
    "cut_tokens": "raise max_context_length, split the rows, or set data.overlong=drop",
    "untrained_rows": "give a message weight 1, raise max_context_length, or leave the rows out",
    "untrained_stops": "use a chat template that writes the stop token after each answer (jinja_template), or rows "
    "that fit max_context_length",
    "duplicate_rows": "leave the copies out; job.epochs repeats all rows alike",
    "overlap_rows": "take the rows out of one of the two files, or name no evaluation_dataset and set "
    "job.eval_auto_carveout=true (data.carveout=true of a dpo job)",
    "overlap_prompts": "take the prompts out of one of the two files, or name no evaluation_dataset and set "
    "job.eval_auto_carveout=true (data.carveout=true of a dpo job)",
}


def measure(ledger: Ledger, settings: GateSettings) -> list[Gate]:
    """The gates of one set of rows, as its ledger tells."""
    totals = ledger.totals()
    read, used, dropped = (totals["rows"][name] for name in ("read", "used", "dropped"))
    untrained = [row for row in range(len(ledger)) if ledger.reason(row) in _LEARN_NOTHING]
    cut = [row for row, tokens in enumerate(ledger.column("cut")) if tokens]
    unstopped = [row for row, stop in enumerate(ledger.column("stop")) if stop == 0]
    repeats = list(ledger.repeats())
    tokens, turns = totals["tokens"], totals["turns"]
    return [
        _gate("dropped_rows", settings, dropped, read, ledger.problems["dropped"]),
        _gate("cut_tokens", settings, tokens["cut"], tokens["total"], (_cut(ledger, row) for row in cut)),
        _gate("untrained_rows", settings, len(untrained), read, (_why(ledger, row) for row in untrained)),
        _gate("untrained_stops", settings, turns["trained"] - turns["stop_trained"], turns["trained"],
              (f"{ledger.place(row)}: a turn ends without a stop token" for row in unstopped)),
        _gate("duplicate_rows", settings, len(repeats), used,
              (f"{ledger.place(row)}: equals {ledger.place(first)}" for row, first in repeats)),
    ]  # fmt: skip


def overlap(trained: Sequence[Row], held_out: Sequence[Row], settings: GateSettings) -> list[Gate]:
    """The gates between the rows that are trained on and those held out; none where none is held out."""
    if not held_out:
        return []
    rows = {row.sha256: row for row in reversed(trained)}
    prompts = {row.prompt_sha256: row for row in reversed(trained)}
    same = [(row, rows[row.sha256]) for row in held_out if row.sha256 in rows]
    asked = [(row, prompts[row.prompt_sha256]) for row in held_out if row.prompt_sha256 in prompts]
    return [
        _gate(name, settings, len(pairs), len(held_out),
              (f"{ours.file}:{ours.line}: {word} {theirs.file}:{theirs.line}" for ours, theirs in pairs))
        for name, pairs, word in (("overlap_rows", same, "equals"), ("overlap_prompts", asked, "asks the same as"))
    ]  # fmt: skip


def check(ledger: Ledger, settings: GateSettings, *, more: Sequence[Gate] = ()) -> None:
    """Enter the gates of `ledger`, and `more`, into it. Raises `DataRefused` naming every gate that is exceeded."""
    ledger.gates = [*measure(ledger, settings), *more]
    exceeded = [gate for gate in ledger.gates if not gate.passed]
    if exceeded:
        refused = "\n".join(_refusal(gate) for gate in exceeded)
        raise DataRefused(f"dataset {ledger.source.name!r} is refused by its gates:\n{refused}", ledger)


def _gate(name: str, settings: GateSettings, count: int, of: int, words: Iterable[str]) -> Gate:
    return Gate(name, count, of, getattr(settings, name), list(islice(words, SHOWN)))


def _refusal(gate: Gate) -> str:
    enough = math.ceil(gate.measured * 1000) / 1000
    way_out = f"What to do: {_WAYS_OUT[gate.name]}; or set data.gates.{gate.name}={enough:g}."
    head = f"  {gate.name}: {gate.measured:.4g} measured ({gate.count:,} of {gate.of:,}), {gate.allowed:g} allowed"
    return "\n".join([head, *(f"    {row}" for row in gate.rows), f"    {way_out}"])


def _why(ledger: Ledger, row: int) -> str:
    return f"{ledger.place(row)}: {ledger.reason(row)}"


def _cut(ledger: Ledger, row: int) -> str:
    return f"{ledger.place(row)}: {ledger.column('cut')[row]:,} of {ledger.column('total')[row]:,} tokens cut off"
