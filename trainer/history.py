"""What a run's folder tells about it: its state, its numbers, its checkpoints. Reads files only."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.errors import UsageError
from trainer.jobs import JobState
from trainer.report import Event
from trainer.runs import RunSpec, find_runs, home

LOCK = "worker.lock"


@dataclass(frozen=True)
class History:
    """A run as its files tell it. `interrupted`: it was training, and no worker holds it now."""

    folder: Path
    spec: RunSpec
    state: JobState
    message: str
    percent: int
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    model: dict[str, Any] | None
    interrupted: bool

    @property
    def words(self) -> str:
        """The state for people."""
        word = self.state.removeprefix("JOB_STATE_").lower().replace("_", " ")
        return f"{word} (interrupted)" if self.interrupted else word


def read(folder: Path) -> History:
    """Read the run in `folder`. Raises `UsageError` when there is none or one of its files cannot be read."""
    spec = spec_of(folder)
    try:
        return _told(folder, spec, events(folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(
            f"{folder}: its files cannot be read ({in_short(error)}); put back what was changed, or start a new run"
        ) from error


def spec_of(folder: Path) -> RunSpec:
    """The description of the run in `folder`. Raises `UsageError` when there is none, or of another version."""
    try:
        return RunSpec.load(folder)
    except FileNotFoundError:
        raise UsageError(f"{folder}: there is no run.json, so this is no run's folder") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{folder / 'run.json'}: cannot be read by this version ({in_short(error)})") from error


def _told(folder: Path, spec: RunSpec, journal: Sequence[Event]) -> History:
    state, message, percent = JobState.CREATING, "", 0
    checkpoints: dict[str, dict[str, Any]] = {}
    model = None
    for event in journal:
        body = event.body
        if event.kind == "state":
            state, message = JobState(body["state"]), body["message"]
        elif event.kind == "progress":
            percent = body["percent"]
        elif event.kind == "checkpoint":
            checkpoints[body["id"]] = body
        elif event.kind == "model":
            model = body
    kept = [body for body in checkpoints.values() if Path(body["path"]).exists()]
    metrics, evaluation = _last_metrics(folder)
    moving = not state.terminal and state is not JobState.PAUSED
    return History(folder, spec, state, message, percent, metrics, evaluation, kept, model, moving and not held(folder))


def in_short(error: Exception) -> str:
    """An error in one line; of pydantic's the first, with the place it is at."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return (str(error).splitlines() or [type(error).__name__])[0]


def events(folder: Path) -> list[Event]:
    """All whole events of a run's journal, in order. Raises `ValueError` naming the line that is none."""
    path = folder / "sync.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    found = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            found.append(Event.model_validate_json(line))
        except ValidationError as error:
            raise ValueError(f"sync.jsonl, line {number}: {in_short(error)}") from error
    return found


def parked(folder: Path) -> list[str]:
    """What the gateway refused for good, a line for each: the event's number and kind, and the gateway's words."""
    path = folder / "sync_parked.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    records = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    kinds = [one.get("event", {}).get("kind", "?") for one in records]
    return [f"event {one['key']} ({kind}): {one['error']['message']}" for one, kind in zip(records, kinds, strict=True)]


def held(folder: Path) -> bool:
    """True while a worker is at work on the run."""
    path = folder / LOCK
    if not path.exists():
        return False
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def find(word: str) -> Path:
    """The folder of the run that `word` names: a folder, a run's id, or an unambiguous part of it, or 'last'.

    Raises `UsageError` listing the runs there are.
    """
    direct = Path(word).expanduser()
    if (direct / "run.json").is_file():
        return direct.absolute()
    runs = find_runs(home())
    if word == "last" and runs:
        return runs[-1]
    names = {run: str(run.relative_to(home())) for run in runs}  # a sweep's members are SWEEP/NUMBER
    exact = [run for run in runs if word in (run.name, names[run])]
    matching = exact or [run for run in runs if word in names[run]]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{word!r} names several runs: {', '.join(names[run] for run in matching[-5:])}")
    known = ", ".join(names[run] for run in runs[-5:]) or "none yet"
    raise UsageError(f"{word!r}: no such run in {home()} (the newest: {known}; TRAINER_HOME chooses another place)")


def _last_metrics(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "metrics.jsonl"
    train: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # torn by a crash; the worker cuts it off when it resumes
            if "loss" in values:
                train = values
            elif any(name.startswith("eval/") for name in values):
                evaluation = values
    return train, evaluation
