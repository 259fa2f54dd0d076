"""`report.html` of an evaluation: means with intervals, how rows ended, the distribution of scores, the worst rows.

One file that loads nothing and runs no script. Rows and messages are hostile until escaped: the template
(`evaluation_page.jinja`) escapes every value, and characters that would hide or turn text are shown as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evaluators.outcomes import Interval, Summary, counts, values, worst
from evaluators.protocol import Result, Status, Tier
from evaluators.rows import answer, has_answer, question
from trainer import __version__
from trainer.charts import number
from trainer.disk import write_whole
from trainer.report_page import CSP

PAGE = "report.html"
_TEMPLATE = Path(__file__).with_suffix(".jinja")
WORST = 50
_TEXT = 1_500  # characters of a row's text
_BINS = 20
_WIDTH, _HEIGHT, _EDGE = 360, 160, 24  # units of the viewBox
_TONES = {Status.OK: "good", Status.INVALID: "warn", Status.INFRA_ERROR: "warn"}
_HIDDEN = {"Cc", "Cf", "Cs"}


@dataclass(frozen=True)
class Page:
    """All that the page tells. rows: by number, at least the `WORST` worst ones."""

    words: Mapping[str, str]
    rows: Mapping[int, Mapping[str, Any]]
    results: Sequence[Result]
    summary: Summary
    refusal: str = ""


def write_page(page: Page, folder: Path) -> Path:
    """Write the page into `folder` and return its path."""
    write_whole(folder / PAGE, render(page).encode("utf-8", "replace"))
    return folder / PAGE


def render(page: Page) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_visible)
    summary = page.summary
    tiers = sorted({result.tier for result in page.results})
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        csp=CSP,
        heading=" ".join(f"{key}={value}" for key, value in page.words.items()),
        score=summary.score and number(summary.score.mean),
        refusal=page.refusal,
        intervals=[_interval(name, one) for name, one in (("score", summary.score), *summary.metrics.items())],
        statuses=[(name, f"{n:,}", _TONES.get(Status(name), "bad")) for name, n in summary.histogram.items()],
        rows=f"{summary.rows:,}", masked=f"{summary.masked:,}",
        drawing=Markup(_drawing([one for one in values(page.results) if one is not None])),  # noqa: S704 (numbers alone)
        worst=[_shown(index, page) for index in worst(page.results, WORST)],
        tiers=", ".join(tiers), unfenced=Tier.NONE in tiers, version=__version__,
    )  # fmt: skip


def _interval(name: str, found: Interval | None) -> dict[str, str]:
    if found is None:
        return {"name": name, "mean": "none", "bounds": "", "rows": "0", "method": ""}
    bounds = f"{number(found.low)} to {number(found.high)}"
    return {
        "name": name,
        "mean": number(found.mean),
        "bounds": bounds,
        "rows": f"{found.count:,}",
        "method": found.method,
    }


def _shown(index: int, page: Page) -> dict[str, str]:
    row, result = page.rows[index], page.results[index]
    value = number(result.score.score) if counts(result) and result.score else result.status.value
    return {
        "row": str(index + 1), "score": value, "tone": "" if counts(result) else _TONES.get(result.status, "bad"),
        "why": (result.score.reason if result.score else "") or result.message, "asked": question(row)[:_TEXT],
        "given": answer(row)[:_TEXT] if has_answer(row) else "", "truth": str(row.get("ground_truth") or "")[:_TEXT],
        "printed": result.stdout[:_TEXT],
    }  # fmt: skip


def _drawing(scores: Sequence[float]) -> str:
    """A histogram of the scores, as SVG."""
    if not scores:
        return ""
    low, high = min(0.0, *scores), max(1.0, *scores)
    bins = [0] * _BINS
    for score in scores:
        bins[min(_BINS - 1, int((score - low) / (high - low) * _BINS))] += 1
    width, room = (_WIDTH - 2 * _EDGE) / _BINS, _HEIGHT - 2 * _EDGE
    label = escape(f"{len(scores)} scores from {number(min(scores))} to {number(max(scores))}")
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>']
    for place, count in enumerate(bins):
        tall = room * count / max(bins)
        parts.append(f'<rect class="bar" x="{_EDGE + place * width:.1f}" y="{_HEIGHT - _EDGE - tall:.1f}" '
                     f'width="{width - 1:.1f}" height="{tall:.1f}"/>')  # fmt: skip
    floor = _HEIGHT - _EDGE
    parts.append(f'<line class="axis" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{floor}" y2="{floor}"/>')
    for x, value in ((_EDGE, low), (_WIDTH - _EDGE, high)):
        parts.append(f'<text class="label" x="{x}" y="{_HEIGHT - 6}" text-anchor="middle">{number(value)}</text>')
    return "".join([*parts, "</svg>"])


def _visible(value: Any) -> Any:
    """Control and direction characters as escapes, so that no row hides or turns what it says."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _HIDDEN else f"\\u{ord(char):04x}" for char in value
    )
