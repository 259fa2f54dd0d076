"""From an evaluator's bytes to a `Score`, strictly, by the host's own code; and metrics combined into a reward.

The one decision: what comes out of a jail is hostile until every value has been looked at. A text that is not exactly
one JSON object of the expected shape is a `BadResult`, never a guess and never 0.0. Only the standard library.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.protocol import Metric, Result, Score, Status, StepOutput
from evaluators.returned import BadReturn, plain

MAX_BYTES = 64 << 10
MAX_DEPTH = 16
MAX_VALUES = 100_000
MAX_METRICS = 10_000  # what is returned is bounded in bytes first; a whole data set may come back as one
MAX_STEPS = 1_000
MAX_NAME = 200
MAX_REASON = 2_000  # characters; longer reasons are cut
REWARD = "score"  # the evaluator's own score, among the names that weights may use

_CONTROLS = dict.fromkeys({*range(32), *range(0x7F, 0xA0)} - set(map(ord, "\t\n\r")), "\N{REPLACEMENT CHARACTER}")
_OPENING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{])|([\]}])|(,)', re.DOTALL)
_WEIGHT = re.compile(r"\s*([^=\s][^=]*?)\s*=\s*([^=\s]+)\s*")


class BadResult(ValueError):
    """What was returned is no result; the message says why, in at most 300 characters."""

    def __init__(self, message: str) -> None:
        super().__init__(message[:300])


def decode(text: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """The JSON value that `text` is. Raises `BadResult`: too long, too deep, too many values, NaN, a key twice."""
    if len(text) > max_bytes:
        raise BadResult(f"{len(text):,} bytes; {max_bytes:,} are allowed")
    _check_nesting(text)
    try:
        decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float,
                                   parse_int=_int)  # fmt: skip
        value = decoder.decode(text.decode("utf-8"))
    except BadResult:
        raise
    except (ValueError, RecursionError) as error:
        raise BadResult(f"not JSON: {error}") from None
    if _has_surrogate(value):
        raise BadResult("holds half of a surrogate pair")
    return value


def parse(text: bytes, *, max_bytes: int = MAX_BYTES) -> Score:
    """The score that the JSON text is. Raises `BadResult`."""
    return score_of(decode(text, max_bytes=max_bytes))


def read(returned: Any) -> Score:
    """The score that an evaluator's return is, where it runs in this process. Raises `BadResult`."""
    try:
        return score_of(plain(returned))
    except BadReturn as error:
        raise BadResult(str(error)) from None


def score_of(value: Any) -> Score:
    """The score in a decoded JSON object. Unknown keys are ignored: packages add fields of their own.

    A non-empty `error` makes the score invalid: a score that its evaluator calls a mistake must not count.
    """
    if not isinstance(value, dict):
        raise BadResult(f"{_json_type(value)}, not an object with 'score'")
    error = value.get("error") or ""
    valid = _flag(value, "is_score_valid", default=True)
    return Score(
        score=_finite(value.get("score"), "score"),
        is_score_valid=valid and not error,
        reason=_reason(value) or legible(str(error)[:MAX_REASON]),
        metrics=_metrics(value.get("metrics")),
        step_outputs=_steps(value.get("step_outputs")),
    )


def legible(text: str) -> str:
    """Without control characters but for white space: a terminal would obey them, and data bases refuse NUL."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def to_json(score: Score) -> dict[str, Any]:
    """The score as a JSON object that `score_of` reads back."""
    return {
        "score": score.score,
        "is_score_valid": score.is_score_valid,
        "reason": score.reason,
        "metrics": {
            name: {"score": one.score, "is_score_valid": one.is_score_valid, "reason": one.reason}
            for name, one in score.metrics.items()
        },
        "step_outputs": [
            {"step_index": one.step_index, "base_reward": one.base_reward, "terminated": one.terminated}
            for one in score.step_outputs
        ],
    }


def reward_weights(words: Iterable[str]) -> dict[str, float]:
    """`["accuracy=1", "format=0.2"]` as a mapping. Raises `ValueError` naming the word that is not `name=weight`."""
    weights: dict[str, float] = {}
    for word in words:
        match = _WEIGHT.fullmatch(word)
        try:
            weight = float(match[2]) if match else math.nan
        except ValueError:
            weight = math.nan
        if match is None or not math.isfinite(weight):
            raise ValueError(f"reward weight {word!r} is not name=weight with a finite number, such as accuracy=0.5")
        if match[1] in weights:
            raise ValueError(f"reward weight {match[1]!r} is given twice")
        weights[match[1]] = weight
    return weights


def weigh(results: Sequence[Result], weights: Mapping[str, float]) -> list[Result]:
    """The results with the weighted sum of their metrics as score; `score` itself is among the names.

    A row in which a named metric is missing or not valid becomes `invalid`: it is masked, not scored from the rest.
    Raises `ValueError` for a name that no scored row has.
    """
    if not weights:
        return list(results)
    check_weights(results, weights)
    return [weighed(result, weights) for result in results]


def check_weights(results: Iterable[Result], weights: Mapping[str, float]) -> None:
    """Raise `ValueError` for a name that none of the scored rows has; where no row was scored, none is known."""
    scored = [result.score for result in results if result.ok and result.score is not None]
    allowed = sorted({REWARD}.union(*(score.metrics for score in scored)))
    for name in weights:
        if scored and name not in allowed:
            raise ValueError(f"reward weight {name!r}: no such metric; this evaluator gives {', '.join(allowed)}")


def weighed(result: Result, weights: Mapping[str, float]) -> Result:
    """One row's result with the weighted sum as its score."""
    if not result.ok or result.score is None or not weights:
        return result
    total = 0.0
    for name, weight in weights.items():
        own = Metric(result.score.score) if name == REWARD else None
        metric = result.score.metrics.get(name, own)
        if metric is None or not metric.is_score_valid:
            why = "is missing" if metric is None else f"is not valid: {metric.reason or 'no reason given'}"
            disowned = replace(result.score, is_score_valid=False)
            return replace(result, status=Status.INVALID, score=disowned, message=f"metric {name!r} {why}"[:300])
        total += weight * metric.score
    if not math.isfinite(total):
        return replace(result, status=Status.BAD_RESULT, score=None, message="the weighted sum is not finite")
    return replace(result, score=replace(result.score, score=total))


def _metrics(value: Any) -> dict[str, Metric]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadResult(f"metrics is {_json_type(value)}, not an object")
    if len(value) > MAX_METRICS:
        raise BadResult(f"{len(value)} metrics; {MAX_METRICS} are allowed")
    return {_name(name): _metric(name, one) for name, one in value.items()}


def _metric(name: str, value: Any) -> Metric:
    if not isinstance(value, dict):
        return Metric(_finite(value, f"metric {name[:60]!r}"))
    valid = _flag(value, "is_score_valid", default=True)
    return Metric(_finite(value.get("score"), f"metric {name[:60]!r}"), valid, _reason(value))


def _steps(value: Any) -> tuple[StepOutput, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadResult(f"step_outputs is {_json_type(value)}, not an array")
    if len(value) > MAX_STEPS:
        raise BadResult(f"{len(value)} step outputs; {MAX_STEPS} are allowed")
    return tuple(_step(one) for one in value)


def _step(value: Any) -> StepOutput:
    if not isinstance(value, dict):
        raise BadResult(f"a step output is {_json_type(value)}, not an object")
    index = value.get("step_index")
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10:
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int) or abs(index) >= 1 << 53:
        raise BadResult("a step output's step_index is not a whole number below 2**53")
    return StepOutput(index, _finite(value.get("base_reward"), "base_reward"), _flag(value, "terminated"))


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadResult(f"{what} is {_json_type(value)}, not a number")
    number = float(value) if abs(value) < 1e300 else math.inf
    if not math.isfinite(number):
        raise BadResult(f"{what} is not a finite number")
    return number


def _flag(value: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    found = value.get(name)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise BadResult(f"{name} is {_json_type(found)}, not true or false")
    return found


def _reason(value: Mapping[str, Any]) -> str:
    found = value.get("reason")
    if found is None:
        return ""
    if not isinstance(found, str):
        raise BadResult(f"reason is {_json_type(found)}, not a text")
    return legible(found[:MAX_REASON])


def _name(name: str) -> str:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise BadResult(f"a metric's name is empty, longer than {MAX_NAME} or not printable: {name[:40]!r}")
    return name


def _check_nesting(text: bytes) -> None:
    """Bound depth and number of values before anything is parsed."""
    depth = values = 0
    for match in _OPENING.finditer(text):
        opening, closing, comma = match.groups()
        if opening:
            depth, values = depth + 1, values + 1
        elif closing:
            depth -= 1
        elif comma:
            values += 1
        if depth > MAX_DEPTH:
            raise BadResult(f"nested deeper than {MAX_DEPTH}")
        if values > MAX_VALUES:
            raise BadResult(f"more than {MAX_VALUES:,} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise BadResult(f"the key {twice[:60]!r} stands twice in one object")
    return found


def _constant(name: str) -> float:
    raise BadResult(f"{name} is not a finite number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadResult(f"the number {text[:40]} is beyond what a float holds")
    return value


def _int(text: str) -> int:
    if len(text) > 300:
        raise BadResult(f"an integer of {len(text)} digits")
    return int(text)


def _has_surrogate(value: Any) -> bool:
    level: list[Any] = [value]
    while level:
        one = level.pop()
        if isinstance(one, str) and not one.isascii() and any("\ud800" <= char <= "\udfff" for char in one):
            return True
        if isinstance(one, dict):
            level += [*one, *one.values()]
        elif isinstance(one, list):
            level += one
    return False


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text",
             list: "an array", dict: "an object"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
