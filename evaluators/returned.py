"""What an evaluator handed back, as plain JSON values: the one place that knows every shape a return may have.

Only the standard library, and nothing else of this package, so that the file can be put into a jail as it is. Accepted:
a number, a dict with `score`, a `(score, metrics)` tuple, an EvaluateResult-like object (`score` is an attribute), and
an EvaluationRow-like one (`evaluation_result` is an attribute). A bool is no number here, and neither is a text: what
looks like a score by accident must not train a model.
"""

from __future__ import annotations

import math
from typing import Any

_SCORE_FIELDS = ("score", "is_score_valid", "reason", "error")
_METRIC_FIELDS = ("score", "is_score_valid", "reason")
_STEP_FIELDS = ("step_index", "base_reward", "terminated")
_OLD_VALID = "success"  # reward-kit's older name of is_score_valid


class BadReturn(ValueError):
    """A return that is no score; the message says what it was and what is accepted."""


def plain(returned: Any) -> dict[str, Any]:
    """`returned` as `{"score", "is_score_valid", "reason", "metrics", "step_outputs"}`, in JSON values.

    Raises `BadReturn`. Numbers may still be NaN or infinite: who parses the JSON refuses them.
    """
    if isinstance(returned, tuple):
        return _pair(returned)
    if not isinstance(returned, dict) and hasattr(returned, "evaluation_result"):
        inner = returned.evaluation_result
        if inner is None:
            raise BadReturn("the returned row has no evaluation_result; set row.evaluation_result")
        return plain(inner)
    if isinstance(returned, dict) or hasattr(returned, "score"):
        return _result(returned)
    return {"score": _number(returned, "the return")}


def _pair(returned: tuple[Any, ...]) -> dict[str, Any]:
    if len(returned) != 2:
        raise BadReturn(f"a tuple of {len(returned)}; accepted: (score, metrics)")
    score, metrics = returned
    found: dict[str, Any] = {"score": _number(score, "score")}
    if isinstance(metrics, str):
        return {**found, "reason": metrics}
    return {**found, "metrics": _metrics(metrics)}


def _result(returned: Any) -> dict[str, Any]:
    found = _fields(returned, _SCORE_FIELDS)
    if "score" not in found:
        raise BadReturn(f"a dict without 'score' (keys: {', '.join(map(str, list(returned)[:8])) or 'none'})")
    found["score"] = _number(found["score"], "score")
    _take_validity(found, returned)
    metrics, steps = _get(returned, "metrics"), _get(returned, "step_outputs")
    if metrics is not None:
        found["metrics"] = _metrics(metrics)
    if steps is not None:
        found["step_outputs"] = [_step(step) for step in steps]
    return found


def _metrics(metrics: Any) -> dict[str, Any]:
    if not hasattr(metrics, "items"):
        raise BadReturn(f"metrics is {type(metrics).__name__}; accepted: a dict name -> number, dict or MetricResult")
    return {_name(name): _metric(metric, name) for name, metric in metrics.items()}


def _metric(metric: Any, name: str) -> dict[str, Any]:
    if not isinstance(metric, dict) and not hasattr(metric, "score"):
        return {"score": _number(metric, f"metric {name!r}")}
    found = _fields(metric, _METRIC_FIELDS)
    if "score" not in found:
        raise BadReturn(f"metric {name!r} has no 'score'")
    found["score"] = _number(found["score"], f"metric {name!r}")
    _take_validity(found, metric)
    return found


def _step(step: Any) -> dict[str, Any]:
    found = _fields(step, _STEP_FIELDS)
    for name in ("step_index", "base_reward"):
        if name not in found:
            raise BadReturn(f"a step output has no {name!r}")
    found["base_reward"] = _number(found["base_reward"], "base_reward")
    return found


def _fields(holder: Any, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: _get(holder, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _take_validity(found: dict[str, Any], holder: Any) -> None:
    old = _get(holder, _OLD_VALID)
    if "is_score_valid" not in found and isinstance(old, bool):
        found["is_score_valid"] = old


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise BadReturn(f"a metric's name is {type(name).__name__}, not a text")
    return name


def _number(value: Any, what: str) -> float | int:
    if not isinstance(value, bool | int | float | str | bytes | list | dict) and callable(getattr(value, "item", None)):
        value = value.item()  # a numpy scalar or a tensor of one element
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadReturn(f"{what} is {type(value).__name__}, not a number")
    if isinstance(value, int) and abs(value) >= 1 << 53:
        raise BadReturn(f"{what} is an integer beyond what a float holds")
    return value if isinstance(value, int) or not math.isfinite(value) else float(value)
