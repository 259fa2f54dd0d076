"""How fast this machine has trained before: `<home>/throughput.json`, a line's worth of numbers for each finished run.

The next estimate of the same model size, kind of training and device uses the newest runs whose steps were most like
its own; without one, a run of another size scaled by parameters; without any, a built-in figure that is right within a
factor of three or so. Each speed says where it comes from.
"""

from __future__ import annotations

import fcntl
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from trainer.disk import write_whole
from trainer.runs import Closed, home

_FILE = "throughput.json"
_KEPT = 200
_CPU_FLOPS = 25e9  # of one thread in fp32, as measured on small matrices; of a GPU, a third of an H100's bf16
_GPU_FLOPS = 1.3e14
_CPU_MOST, _GPU_MOST = 12_000.0, 400_000.0  # tokens/s at which Python and launches, not arithmetic, are the limit
_STARTUP_SECONDS = 4.0
_LIKE = 4.0  # steps of up to so many times more or fewer tokens count as alike
_RUNS = 5  # the median of so many runs, the newest: one may have shared the machine
# Seconds at best and at worst over seconds as estimated: built in, scaled, from few runs, and at least.
_BUILT_IN, _SCALED, _FEW, _LEAST_SPREAD = (0.3, 3.0), (0.5, 2.5), (0.7, 1.5), (0.85, 1.2)
_ENOUGH = 3  # runs whose spread says something
Mode = Literal["lora", "full"]


class Workshop(Closed):
    """What speed depends on, but for the size of a step."""

    device: str = Field(description="CPU and threads, or the GPU's name.")
    parameters: int = Field(description="Of the base model.")
    mode: Mode = Field(description="Adapter or all parameters.")
    dtype: str = Field(description="Of the base weights.")
    recompute: bool = Field(description="Gradient checkpointing.")
    layout: str = Field(default="packed", description="How batches are laid out.")


class Measured(Closed):
    """One finished run. other_ratio: seconds of evaluating, answering and saving over what was estimated for them."""

    where: Workshop
    tokens_per_step: float
    tokens_per_second: float = Field(gt=0, description="Within optimizer steps.")
    startup_seconds: float = Field(ge=0, description="From reading the rows to the first step.")
    other_ratio: float = Field(ge=0)


class Speed(Closed):
    """What an estimate counts with, and where it comes from, in words."""

    tokens_per_second: float
    startup_seconds: float
    other_ratio: float
    source: str
    fastest: float = Field(default=1.0, description="Seconds at best over seconds as estimated, on a calm machine.")
    slowest: float = Field(default=1.0, description="Seconds at worst over seconds as estimated, on a calm machine.")


def speed(where: Workshop, tokens_per_step: float, *, known: Sequence[Measured], threads: int, gpu: bool) -> Speed:
    """The best guess there is."""
    here = [one for one in known if one.where.device == where.device]
    same = [one for one in here if one.where == where]
    like = same or [one for one in here if one.where.mode == where.mode] or here
    if not like:
        return _built_in(where, threads=threads, gpu=gpu)

    def unlike(one: Measured) -> float:
        size = abs(math.log(one.where.parameters / where.parameters))
        step = abs(math.log(one.tokens_per_step / tokens_per_step))
        return size + (0.0 if step <= math.log(_LIKE) else step)

    least = min(map(unlike, like))
    best = [one for one in like if unlike(one) == least][-_RUNS:]
    ratio = _flops(best[-1].where) / _flops(where)
    rates = [one.tokens_per_second for one in best]
    fastest, slowest = _spread(rates) if same else _SCALED
    words = "measured here" if same else f"scaled from a run of {best[-1].where.parameters:,} parameters here"
    return Speed(
        tokens_per_second=statistics.median(rates) * ratio,
        startup_seconds=statistics.median(one.startup_seconds for one in best),
        other_ratio=statistics.median(one.other_ratio for one in best),
        source=f"{words}, {len(best)} runs" if len(best) > 1 else words,
        fastest=fastest,
        slowest=slowest,
    )


def read_measured(path: Path | None = None) -> list[Measured]:
    """All that has been measured, oldest first. Raises `ValueError` naming a file that cannot be read."""
    path = path or home() / _FILE
    if not path.exists():
        return []
    try:
        return [Measured.model_validate(one) for one in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it, it is measured anew") from error


def keep_measured(one: Measured, path: Path | None = None) -> None:
    """Add a run; several workers may do so at once."""
    path = path or home() / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = [*read_measured(path), one][-_KEPT:]
        document = {"version": 1, "runs": [run.model_dump() for run in runs]}
        write_whole(path, json.dumps(document, indent=1).encode() + b"\n")


def _built_in(where: Workshop, *, threads: int, gpu: bool) -> Speed:
    arithmetic = (_GPU_FLOPS if gpu else _CPU_FLOPS * threads) / _flops(where)
    most = _GPU_MOST if gpu else _CPU_MOST * threads
    return Speed(
        tokens_per_second=1 / (1 / arithmetic + 1 / most),
        startup_seconds=_STARTUP_SECONDS,
        other_ratio=1.0,
        source="a built-in figure, nothing has been measured here",
        fastest=_BUILT_IN[0],
        slowest=_BUILT_IN[1],
    )


def _spread(rates: Sequence[float]) -> tuple[float, float]:
    """Seconds at best and at worst over the median's, by what the same runs have taken; few say little."""
    middle = statistics.median(rates)
    known = len(rates) >= _ENOUGH
    fastest, slowest = _LEAST_SPREAD if known else _FEW
    return min(middle / max(rates), fastest), max(middle / min(rates), slowest)


def _flops(where: Workshop) -> float:
    """Of one token: 2 a parameter forwards, 2 back to the input, 2 to the weights that train, 2 to recompute."""
    factor = 4 + 2 * (where.mode == "full") + 2 * where.recompute
    return factor * where.parameters
