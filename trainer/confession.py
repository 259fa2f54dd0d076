"""What a run took, beside what was estimated: `confession.json`, one line, and the next estimate's measurements.

Everything is read from the run's folder, so a run of several attempts confesses as one: its seconds are theirs summed
(`trainer.times`), its peak is the highest of them. Steps that a crash made it go over twice count in seconds, and in
steps and tokens once. Errors are (estimated - actual) / actual.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from trainer import checkpoints, machine
from trainer.disk import write_whole
from trainer.estimate import Estimate, Workload, clock, other_seconds, read_estimate, size
from trainer.prices import read_prices
from trainer.runs import Closed, RunSpec
from trainer.throughput import Measured, keep_measured
from trainer.times import Times, lines_of, times_of

CONFESSION = "confession.json"
_LEAST_SECONDS = 2.0  # of training, else the speed of its first steps would pass for the speed of this machine


class Line(Closed):
    """One estimated quantity; None = unknown, and an error of None where it has no meaning."""

    name: str
    unit: str
    estimated: float | None
    actual: float | None
    error: float | None = Field(description="(estimated - actual) / actual.")


def confess(spec: RunSpec, folder: Path, *, load: Workload, throughput: Path | None = None) -> str | None:
    """Write `confession.json`, remember the speed, and return the line to print; None without an estimate.

    To be called by the worker that ended the run, before its last state. throughput: None = `<home>/throughput.json`.
    """
    estimated = read_estimate(folder)
    if estimated is None:
        return None
    times, metrics = times_of(folder), lines_of(folder / "metrics.jsonl")
    steps = [one for one in metrics if "loss" in one]
    tokens = int(sum(one["tokens"] for one in steps))
    found = _compared(estimated, folder, times=times, steps=steps)
    document = {"version": 1, "times": times.model_dump(), "lines": [one.model_dump() for one in found]}
    write_whole(folder / CONFESSION, json.dumps(document, indent=1).encode() + b"\n")
    if estimated.workshop and times.attempts == 1 and times.training >= _LEAST_SECONDS:
        rate = tokens / times.training
        expected = other_seconds(spec, load, rate)
        keep_measured(
            Measured(
                where=estimated.workshop, tokens_per_step=tokens / len(steps), tokens_per_second=rate,
                startup_seconds=times.startup, other_ratio=times.other / expected if expected > 0 else 1.0,
            ),
            throughput,
        )  # fmt: skip
    return "estimate against actual: " + ", ".join(_words(one) for one in found)


def _compared(estimated: Estimate, folder: Path, *, times: Times, steps: list[dict[str, Any]]) -> list[Line]:
    tokens = int(sum(one["tokens"] for one in steps))
    kept = [checkpoints.read(path) for path in checkpoints.every(folder / "checkpoints")]
    cost = read_prices().cost(tokens=tokens, seconds=times.total, parameters=estimated.parameters)
    memory, sizes = estimated.memory, estimated.sizes
    return [
        _line("steps", "", estimated.steps, len(steps)),
        _line("tokens", "", estimated.tokens, tokens),
        _line("trained tokens", "", estimated.trained_tokens, int(sum(one["trained_tokens"] for one in steps))),
        _line("seconds", "s", estimated.seconds, times.total),
        _line("peak memory", "bytes", memory.peak if memory else None, _peak(estimated, folder)),
        _line("checkpoint", "bytes", sizes.checkpoint if sizes else None, kept[-1].bytes if kept else None),
        _line("cost", estimated.currency, estimated.cost, cost),
    ]


def _peak(estimated: Estimate, folder: Path) -> int:
    """Of this process, and of earlier attempts' by what they wrote at each step."""
    gpu = machine.peak_gpu() if estimated.device == "cuda" else None
    if gpu is not None:
        return gpu
    earlier = [one["perf/peak_mb"] for one in lines_of(folder / "perf.jsonl") if "perf/peak_mb" in one]
    return max(machine.peak_resident(), int(max(earlier, default=0.0) * (1 << 20)))


def _line(name: str, unit: str, estimated: float | None, actual: float | None) -> Line:
    error = None
    if estimated is not None and actual is not None:
        error = (estimated - actual) / actual if actual else 0.0 if estimated == actual else None
    return Line(name=name, unit=unit, estimated=estimated, actual=actual, error=error)


def _words(one: Line) -> str:
    def shown(value: float | None) -> str:
        if value is None:
            return "unknown"
        if one.unit == "bytes":
            return size(int(value))
        return clock(value) if one.unit == "s" else f"{value:,.2f} {one.unit}" if one.unit else f"{value:,.0f}"

    if one.error == 0:
        return f"{one.name} {shown(one.actual)} (exact)"
    error = "" if one.error is None else f" ({one.error:+.1%})"
    return f"{one.name} {shown(one.estimated)} against {shown(one.actual)}{error}"
