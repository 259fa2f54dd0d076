"""Everything that a run's folder holds, read for a report: leniently, and without keeping quiet about it.

A folder may be anything between described and finished, cut off by a crash, or damaged. What is missing is empty
here; what cannot be read is left out and named in `problems`. Only `run.json` must be there and be readable.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import checkpoints, history
from trainer.checkpoints import Checkpoint, CheckpointCorrupt
from trainer.environment import ENVIRONMENT, LINEAGE
from trainer.errors import UsageError
from trainer.history import History
from trainer.jobs import JobState
from trainer.report import Event
from trainer.runs import RunSpec

SERIES = (
    "loss",
    "eval/loss",
    "eval/exact_match",
    "eval/preference",
    "margin",
    "log_odds",
    "accuracy",
    "chosen_reward",
    "rejected_reward",
    "chosen_logprob",
    "rejected_logprob",
    "kl_k3",
    "learning_rate",
    "grad_norm",
    "perf/tokens_per_second",
    "perf/seconds",
    "tokens",
)
_TEXTS = ("error.txt", "hang.txt", "sync_parked.jsonl")
_TREES = ("estimate.json", "confession.json")
_TEXT_CHARS = 8_000  # of each text, from its end


@dataclass
class RunFiles:
    """What was found. `series`: values by step; `texts` and `trees`: files that a run has only sometimes, by name."""

    history: History
    events: list[Event] = field(default_factory=list)
    ledgers: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, dict[int, float]] = field(default_factory=lambda: {name: {} for name in SERIES})
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    trees: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.history.folder

    @property
    def spec(self) -> RunSpec:
        """The run's description."""
        return self.history.spec


def read(folder: Path) -> RunFiles:
    """Read the run in `folder`. Raises `UsageError` when it has no readable `run.json`."""
    problems: list[str] = []
    events = _events(folder, problems)
    files = RunFiles(_history(folder, events), events=events, problems=problems)
    for path in sorted(folder.glob("ledger*.json"), key=lambda path: (path.name != "ledger.json", path.name)):
        files.ledgers |= {path.name: found} if (found := _mapping(path, problems)) else {}
    for name in ("metrics.jsonl", "perf.jsonl"):
        _numbers(folder / name, files)
    files.samples = {
        when: [one for one in answers if isinstance(one, dict)]
        for when, answers in _mapping(folder / "samples.json", problems).items()
        if isinstance(answers, list)
    }
    files.checkpoints = _checkpoints(folder / "checkpoints", problems)
    attempts = _mapping(folder / ENVIRONMENT, problems).get("attempts")
    files.attempts = [one for one in attempts if isinstance(one, dict)] if isinstance(attempts, list) else []
    files.lineage = _mapping(folder / LINEAGE, problems)
    files.texts = {name: _end(folder / name) for name in _TEXTS if (folder / name).is_file()}
    found = {name: _json(folder / name, problems) for name in _TREES}
    files.trees = {name: tree for name, tree in found.items() if tree is not None}
    return files


def _events(folder: Path, problems: list[str]) -> list[Event]:
    try:
        return history.events(folder)
    except (ValueError, OSError) as error:
        problems.append(f"sync.jsonl: cannot be read ({_first_line(error)}); the state is not known")
        return []


def _history(folder: Path, events: list[Event]) -> History:
    """The run's history; where its files are damaged, what the journal's states tell."""
    spec = history.spec_of(folder)
    try:
        return history.read(folder)
    except (UsageError, AttributeError):  # the files at fault are named where they are read
        states = [event.body for event in events if event.kind == "state"] or [{}]
        state = JobState(states[-1].get("state", JobState.UNSPECIFIED))
        message = str(states[-1].get("message", ""))
        return History(folder, spec, state, message, 0, {}, {}, [], None, False)


def _numbers(path: Path, files: RunFiles) -> None:
    """Enter the numbers of a .jsonl file into the series. Of a step written twice (a restart) the later one stands."""
    if not path.is_file():
        return
    unreadable = 0
    with path.open("rb") as stream:
        for line in stream:
            try:
                values = json.loads(line)
                step = int(values["step"])
            except (ValueError, KeyError, TypeError):
                unreadable += 1
                continue
            for name in files.series.keys() & values.keys():
                if isinstance(values[name], int | float):
                    files.series[name][step] = float(values[name])
    if unreadable:
        files.problems.append(f"{path.name}: {unreadable:,} lines cannot be read (the last one may be half written)")


def _checkpoints(root: Path, problems: list[str]) -> list[Checkpoint]:
    found = []
    for path in checkpoints.every(root) if root.is_dir() else []:
        try:
            found.append(checkpoints.read(path))
        except CheckpointCorrupt as error:
            problems.append(str(error))
    return found


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    value = _json(path, problems)
    if value is not None and not isinstance(value, dict):
        problems.append(f"{path.name}: is no JSON object")
    return value if isinstance(value, dict) else {}


def _json(path: Path, problems: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        problems.append(f"{path.name}: cannot be read ({_first_line(error)})")
        return None


def _end(path: Path) -> str:
    """The end of a text, which is where it says what happened."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        lines = deque(stream, maxlen=200)
    text = "".join(lines)
    return text if len(text) <= _TEXT_CHARS else f"[...]{text[-_TEXT_CHARS:]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
