"""Line charts as inline SVG, drawn with nothing but strings: for pages that load nothing and run no script.

A series with more points than can be told apart is drawn as the lowest and the highest point of each bucket of
steps, so that no spike is lost, and the caption says so. Points that are not finite are left out and counted.
Colours and fonts are the page's (classes: axis, grid, line, dot, best, label); all text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 360, 240  # units of the viewBox: on a phone 1 unit is about 0.85 px, so 14 units are readable
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 28, 46
_BUCKETS = 300  # more cannot be told apart at this width
_DOTS = 40  # with no more points than this, each is marked
_TICKS = 5


@dataclass(frozen=True)
class Chart:
    """One drawn chart and what is to be said beside it. `svg` is markup; the other fields are plain text."""

    title: str
    svg: str
    caption: str


def line_chart(title: str, points: Sequence[Point], *, unit: str, best: Point | None = None) -> Chart | None:
    """Draw `points` (step, value) in order of step; `best` is marked. None when there is no finite point."""
    finite = sorted(point for point in points if math.isfinite(point[1]))
    if not finite:
        return None
    shown = thinned(finite, _BUCKETS)
    words = _words(finite, unit=unit, best=best)
    caption = [words]
    if len(shown) < len(finite):
        caption.append(f"Drawn: the lowest and the highest point of each of {_BUCKETS} buckets of steps.")
    if lost := len(points) - len(finite):
        caption.append(f"{lost:,} points are not finite numbers and are not drawn.")
    frame = _Frame.around(shown)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}. {words}")}">',
        f"<title>{escape(title)}</title>",
        *_axes(frame, unit=unit),
        _line(frame, shown),
        *_dots(frame, shown),
        *(_best(frame, best) if best else ()),
        "</svg>",
    ]
    return Chart(title, "".join(parts), " ".join(caption))


def thinned(points: Sequence[Point], buckets: int) -> list[Point]:
    """At most two points of each of `buckets` equal stretches of x: the lowest and the highest, in order of x.

    `points` are in order of x; fewer than twice `buckets` are returned as they are.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / buckets or 1.0
    kept: list[Point] = []
    bucket: list[Point] = []
    index = 0
    for point in points:
        here = min(buckets - 1, int((point[0] - first) / width))
        if here != index:
            kept += _extremes(bucket)
            bucket, index = [], here
        bucket.append(point)
    return kept + _extremes(bucket)


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    end = math.floor(high / step + 1e-9)
    return [n * step for n in range(start, end + 1)]


def number(value: float) -> str:
    """A number for people: short, no needless zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2g}".replace("e-0", "e-")


@dataclass(frozen=True)
class _Frame:
    """The ranges that are drawn, and where they fall on the drawing."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Frame:
        """The range of `points`, with zero where it is near, and some room."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        if 0 < low < high / 2:
            low = 0.0
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        left, right = min(xs), max(xs)
        if left == right:
            left, right = left - 1, right + 1
        return cls(left, right, low if low == 0 else low - room, high + room)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.left) / (self.right - self.left) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _extremes(bucket: Sequence[Point]) -> list[Point]:
    if not bucket:
        return []
    low, high = min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])
    return sorted({low, high})


def _words(points: Sequence[Point], *, unit: str, best: Point | None) -> str:
    (first_x, first), (last_x, last) = points[0], points[-1]
    low_x, low = min(points, key=lambda point: point[1])
    high_x, high = max(points, key=lambda point: point[1])
    if len(points) == 1:
        return f"{number(first)} {unit} at step {first_x:.0f}, the only point."
    words = (
        f"{len(points):,} points, steps {first_x:.0f} to {last_x:.0f}: {number(first)} at first, {number(last)} at "
        f"last ({unit}); lowest {number(low)} at step {low_x:.0f}, highest {number(high)} at step {high_x:.0f}."
    )
    return f"{words} Best: {number(best[1])} at step {best[0]:.0f}." if best else words


def _axes(frame: _Frame, *, unit: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="label" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in (one for one in ticks(frame.left, frame.right) if one == int(one)):
        x = frame.x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="label" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(value)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">optimizer step</text>')
    parts.append(f'<text class="label" x="4" y="14">{escape(unit)}</text>')
    return parts


def _line(frame: _Frame, points: Sequence[Point]) -> str:
    where = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="line" points="{where}"/>'


def _dots(frame: _Frame, points: Sequence[Point]) -> list[str]:
    if len(points) > _DOTS:
        return []
    return [f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>' for x, y in points]


def _best(frame: _Frame, best: Point) -> list[str]:
    x, y = frame.x(best[0]), frame.y(best[1])
    anchor = "end" if x > _WIDTH / 2 else "start"
    above = y - 12 if y - 12 > _TOP else y + 22
    words = f"best {number(best[1])} at step {best[0]:.0f}"
    return [
        f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        f'<text class="label best-label" x="{x:.1f}" y="{above:.1f}" text-anchor="{anchor}">{words}</text>',
    ]
