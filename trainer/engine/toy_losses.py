"""The losses that the toy engine knows, in numpy: cross-entropy and the preference losses of `trainer.losses`.

A second, plain writing of the same definitions (datum by datum, fp64), so that loops are tested without torch; the
conformance suite holds it against the first. Each gives the loss sum, dL/dp for every position of every datum, and the
metrics under their names. T positions of a datum; untrained positions have weight 0 and so slope 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.data.datum import Datum
from trainer.loss_specs import filled

Values = Mapping[str, float]
_Shape = Callable[[float, Values], tuple[float, float]]  # of a margin: the loss, and its derivative
_LARGEST_MEAN = -1e-6  # as trainer.losses.orpo


def toy_loss(
    name: str, data: Sequence[Datum], logprobs: Sequence[np.ndarray], config: Values
) -> tuple[float, list[np.ndarray], dict[str, float]]:
    """(sum, slopes [T] of each datum, metrics). Raises `ValueError` for a loss that is not here."""
    values = filled(name, config)
    if name == "cross_entropy":
        total = -sum(float(np.dot(one.weights, row_T)) for one, row_T in zip(data, logprobs, strict=True))
        weights = float(sum(datum.weights.sum() for datum in data))
        return total, [-datum.weights.astype(float) for datum in data], {"weight:sum": weights}
    if name not in ("orpo", *_SHAPES):
        known = ", ".join(["cross_entropy", "orpo", *_SHAPES])
        raise ValueError(f"loss: the toy engine does not know {name!r}; it knows {known}")
    total, slopes, metrics = 0.0, [], Counter[str]()
    for at in range(0, len(data), 2):
        pair = _orpo if name == "orpo" else _preference
        value, found, told = pair(name, data[at : at + 2], logprobs[at : at + 2], values)
        total += value
        slopes += found
        for key, number in told.items():
            metrics[key] += number  # pyright: ignore[reportArgumentType]
    return total, slopes, {key: float(number) for key, number in metrics.items()}


def _preference(
    name: str, pair: Sequence[Datum], logprobs: Sequence[np.ndarray], values: Values
) -> tuple[float, list[np.ndarray], dict[str, float]]:
    shape, mean = _SHAPES[name]
    counts = [datum.trained for datum in pair]
    references: list[np.ndarray] = [datum.reference for datum in pair if datum.reference is not None]
    ratios = [
        float(np.dot(datum.weights, row_T - reference_T))
        for datum, row_T, reference_T in zip(pair, logprobs, references, strict=True)
    ]
    chosen, rejected = (ratio / count if mean else ratio for ratio, count in zip(ratios, counts, strict=True))
    value, slope = shape(chosen - rejected, values)
    sums = [float(np.dot(datum.weights, row_T)) for datum, row_T in zip(pair, logprobs, strict=True)]
    value -= values["nll_weight"] * sums[0] / counts[0]
    slopes = [
        sign * slope * datum.weights / (count if mean else 1)
        for sign, datum, count in zip((1, -1), pair, counts, strict=True)
    ]
    slopes[0] = slopes[0] - values["nll_weight"] * pair[0].weights / counts[0]
    beta, margin = values["beta"], chosen - rejected
    return value, slopes, {
        "pairs:sum": 1.0, "margin:sum": beta * margin, "correct:sum": float(beta * margin > 0),
        "chosen_reward:sum": beta * chosen, "rejected_reward:sum": beta * rejected,
        "chosen_logprob:sum": sums[0], "rejected_logprob:sum": sums[1],
    }  # fmt: skip


def _orpo(
    name: str, pair: Sequence[Datum], logprobs: Sequence[np.ndarray], values: Values
) -> tuple[float, list[np.ndarray], dict[str, float]]:
    counts = [datum.trained for datum in pair]
    c, r = (
        float(np.dot(datum.weights, row_T)) / count for datum, row_T, count in zip(pair, logprobs, counts, strict=True)
    )
    odds = _log_odds(c) - _log_odds(r)
    weight = values["orpo_lambda"]
    pull = -weight * _sigmoid(-odds)
    of_c = -1 + pull * (c < _LARGEST_MEAN) / -np.expm1(min(c, _LARGEST_MEAN))
    of_r = -pull * (r < _LARGEST_MEAN) / -np.expm1(min(r, _LARGEST_MEAN))
    slopes = [slope * datum.weights / count for slope, datum, count in zip((of_c, of_r), pair, counts, strict=True)]
    told = {"pairs:sum": 1.0, "log_odds:sum": odds, "correct:sum": float(c > r), "nll:sum": -c}
    return -c - weight * _log_sigmoid(odds), slopes, told


def _log_odds(mean: float) -> float:
    bounded = min(mean, _LARGEST_MEAN)
    return bounded - float(np.log(-np.expm1(bounded)))


def _smoothed(margin: float, values: Values) -> tuple[float, float]:
    beta, flipped = values["beta"], values["label_smoothing"]
    loss = -(1 - flipped) * _log_sigmoid(beta * margin) - flipped * _log_sigmoid(-beta * margin)
    return loss, -beta * ((1 - flipped) * _sigmoid(-beta * margin) - flipped * _sigmoid(beta * margin))


def _squared(margin: float, values: Values) -> tuple[float, float]:
    gap = margin - 1 / (2 * values["beta"])
    return gap * gap, 2 * gap


def _hinge(margin: float, values: Values) -> tuple[float, float]:
    loss = max(0.0, 1 - values["beta"] * margin)
    return loss, -values["beta"] * (loss > 0)


def _robust(margin: float, values: Values) -> tuple[float, float]:
    beta, flipped = values["beta"], values["label_smoothing"]
    scale = 1 - 2 * flipped
    loss = (-(1 - flipped) * _log_sigmoid(beta * margin) + flipped * _log_sigmoid(-beta * margin)) / scale
    return loss, -beta * ((1 - flipped) * _sigmoid(-beta * margin) + flipped * _sigmoid(beta * margin)) / scale


def _sigmoid(x: float) -> float:
    return float(np.exp(_log_sigmoid(x)))


def _log_sigmoid(x: float) -> float:
    return float(-np.logaddexp(0.0, -x))


_SHAPES: dict[str, tuple[_Shape, bool]] = {  # and whether the margin is one of means
    "dpo": (_smoothed, False),
    "dpo_ipo": (_squared, True),
    "dpo_hinge": (_hinge, False),
    "dpo_robust": (_robust, False),
    "dpo_sigmoid_norm": (_smoothed, True),
}
