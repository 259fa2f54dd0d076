"""`sweep.html`: one page that compares a sweep's members, made from `sweep.json` and the members' metrics.

One file that loads nothing and runs no script, readable on a phone. The template (`sweep_page.jinja`) escapes every
value; the one drawing is inline SVG made here of numbers alone. Lines differ in colour and in dashes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from trainer import __version__
from trainer.charts import Point, number, thinned, ticks
from trainer.disk import write_whole
from trainer.report_page import CSP
from trainer.sweeps import MemberState, Sweep, held_out_curve, table

PAGE = "sweep.html"
_TEMPLATE = Path(__file__).with_suffix(".jinja")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 250, 58, 14, 14, 40  # units of the viewBox
_HUES = (212, 24, 145, 285, 345, 190, 55, 95)
_DASHES = ("none", "7 4", "2 4", "10 4 2 4")
_BUCKETS = 200


def write_page(sweep: Sweep, folder: Path) -> Path:
    """Write the page into the sweep's folder and return its path."""
    path = folder / PAGE
    write_whole(path, render(sweep, folder).encode())
    return path


def render(sweep: Sweep, folder: Path) -> str:
    """The page's HTML."""
    heading, *cells = table(sweep)
    tones = {MemberState.DONE: "good", MemberState.FAILED: "bad"}
    rows = [
        {"cells": [one.removesuffix(" *") for one in row], "best": member.number == sweep.best,
         "tone": tones.get(member.state, "")}
        for row, member in zip(cells, sweep.members, strict=True)
    ]  # fmt: skip
    curves = _curves(sweep, folder, words=[row[1] for row in cells])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        csp=CSP, sweep=sweep, heading=heading, rows=rows, summary=summary(sweep), budget=_budget(sweep),
        messages=[(one.number, one.message) for one in sweep.members if one.message], curves=curves,
        drawing=Markup(_draw(curves)) if curves else "",  # noqa: S704  (made of numbers alone)
        hues=_HUES, version=__version__,
    )  # fmt: skip


def summary(sweep: Sweep) -> str:
    """How many members stand where, in words."""
    counts = {state: sum(one.state is state for one in sweep.members) for state in MemberState}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    best = "" if sweep.best is None else f"; best: member {sweep.best}"
    return f"{len(sweep.members)} members: {words}{best}"


def _budget(sweep: Sweep) -> str:
    tokens, budget = sum(one.result.tokens for one in sweep.members), sweep.budget
    used = f"{sweep.seconds / 60:.1f} minutes, {tokens:,} tokens, {sum(one.started for one in sweep.members)} runs used"
    limits = {"runs": budget.max_runs, "minutes": budget.max_minutes, "tokens": budget.max_tokens}
    given = ", ".join(f"{value:,} {name}" for name, value in limits.items() if value is not None)
    return f"{used}; budget: {given or 'none'}" + (f"; spent: {sweep.spent}" if sweep.spent else "")


def _curves(sweep: Sweep, folder: Path, *, words: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for member, said in zip(sweep.members, words, strict=True):
        points = [one for one in held_out_curve(folder / str(member.number)) if math.isfinite(one[1])]
        if points:
            style = len(found)
            found.append(
                {"number": member.number, "words": said, "points": thinned(points, _BUCKETS),
                 "style": style % len(_HUES), "dashes": _DASHES[style // len(_HUES) % len(_DASHES)]}
            )  # fmt: skip
    return found


def _draw(curves: Sequence[dict[str, Any]]) -> str:
    points: list[Point] = [point for one in curves for point in one["points"]]
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = (0.0 if 0 < low < high / 2 else low), (high if high > low else low + 1.0)
    right = max([1.0, *(x for x, _ in points)])

    def x(value: float) -> float:
        return _LEFT + value / right * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Held-out loss of {len(curves)} members, '
             f'from {number(low)} to {number(high)}; the numbers are in the table above">']  # fmt: skip
    for value in ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in (one for one in ticks(0.0, right) if one == int(one)):
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">optimizer step</text>')
    for one in curves:
        where = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in one["points"])
        parts.append(f'<polyline class="c{one["style"]}" stroke-dasharray="{one["dashes"]}" points="{where}"/>')
    return "".join([*parts, "</svg>"])
