"""Length and format: rewards that shape how an answer is written, not what it says. Each part is a metric of its own.

The score is the mean of the parts that are asked for, so that `rewardWeights` can weigh them otherwise.
"""

from __future__ import annotations

import json
from typing import Literal, Self

from pydantic import Field, model_validator

from evaluators.kinds.base import OfRows, Settings, Tools
from evaluators.protocol import Metric, Score
from evaluators.rows import Row, answer


class Shape(Settings):
    """What is asked for; at least one part."""

    unit: Literal["characters", "words", "lines"] = Field("words", description="what lengths are counted in")
    shortest: int = Field(0, ge=0, description="full marks from this length on; 0 = no lower bound")
    longest: int = Field(0, ge=0, description="full marks up to this length; 0 = no upper bound")
    slack: int = Field(
        0, ge=0, description="beyond a bound the metric `length` falls to 0 over so many units; 0 = at once"
    )
    tags: tuple[str, ...] = Field((), description="tags that must follow one another, once each, and hold something")
    only_tags: bool = Field(False, description="nothing but white space may stand outside of the tags")
    must_have: tuple[str, ...] = Field((), description="texts that must occur")
    must_not_have: tuple[str, ...] = Field((), description="texts that must not occur")
    is_json: bool = Field(False, description="the answer is one JSON value")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.longest and self.shortest > self.longest:
            raise ValueError(f"shortest={self.shortest} is above longest={self.longest}")
        if self.only_tags and not self.tags:
            raise ValueError("only_tags needs tags")
        if not (self.shortest or self.longest or self.tags or self.must_have or self.must_not_have or self.is_json):
            raise ValueError("asks for nothing; set shortest, longest, tags, must_have, must_not_have or is_json")
        return self


def build(settings: Shape, _: Tools) -> OfRows:
    """The evaluator."""

    def score(row: Row) -> Score:
        text = answer(row)
        metrics: dict[str, Metric] = {}
        if settings.shortest or settings.longest:
            metrics["length"] = length(text, settings)
        if settings.tags:
            metrics["tags"] = tags(text, settings.tags, only=settings.only_tags)
        if settings.must_have or settings.must_not_have:
            metrics["words"] = _words(text, settings)
        if settings.is_json:
            metrics["json"] = _json(text)
        mean = sum(metric.score for metric in metrics.values()) / len(metrics)
        return Score(mean, reason="; ".join(f"{name}: {one.reason}" for name, one in metrics.items()), metrics=metrics)

    return OfRows(score)


def length(text: str, settings: Shape) -> Metric:
    """1 between the bounds, falling to 0 in a straight line over `slack` units beyond them."""
    counts = {"characters": len(text), "words": len(text.split()), "lines": len(text.splitlines())}
    count = counts[settings.unit]
    over = max(settings.shortest - count, count - settings.longest if settings.longest else 0, 0)
    value = max(0.0, 1 - over / settings.slack) if settings.slack else float(over == 0)
    return Metric(value, reason=f"{count} {settings.unit}")


def tags(text: str, names: tuple[str, ...], *, only: bool) -> Metric:
    """1 where <a>..</a><b>..</b> follow in this order, each once and not empty."""
    at, outside = 0, ""
    for name in names:
        if text.count(f"<{name}>") != 1 or text.count(f"</{name}>") != 1:
            return Metric(0.0, reason=f"<{name}> does not stand exactly once")
        start, end = text.find(f"<{name}>", at), text.find(f"</{name}>", at)
        if start < 0 or end < start:
            return Metric(0.0, reason=f"<{name}> is out of order")
        if not text[start + len(name) + 2 : end].strip():
            return Metric(0.0, reason=f"<{name}> is empty")
        outside += text[at:start]
        at = end + len(name) + 3
    if only and (outside + text[at:]).strip():
        return Metric(0.0, reason="text outside of the tags")
    return Metric(1.0, reason="as asked")


def _words(text: str, settings: Shape) -> Metric:
    missing = [word for word in settings.must_have if word not in text]
    found = [word for word in settings.must_not_have if word in text]
    asked = len(settings.must_have) + len(settings.must_not_have)
    wrong = [f"lacks {word!r}" for word in missing] + [f"has {word!r}" for word in found]
    return Metric(1 - len(wrong) / asked, reason=", ".join(wrong) or "as asked")


def _json(text: str) -> Metric:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return Metric(0.0, reason=f"not JSON: {str(error)[:80]}")
    return Metric(1.0, reason="JSON")
