"""Which of two evaluations is better: the rule behind early stopping and the checkpoint that is kept.

Any logged metric, in either direction. A value counts as better only if it beats the best so far by more than
`min_delta`, and, where the metric is a share of rows, by more than `confidence` standard errors of the difference of
two shares (pooled, of independent samples: on the same rows it errs on the side of not believing). The first value
is always the best so far; one that is not finite never is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.runs import TrainSettings

LOSS, EXACT_MATCH, PREFERRED = "eval/loss", "eval/exact_match", "eval/preference"
_OF_STEPS = {"loss": "", "grad_norm": "", "learning_rate": ""}


@dataclass(frozen=True)
class Logged:
    """What runs of one kind log: names, each with the only direction in which it can be better ("" = either).

    evaluated: what each evaluation logs (without exact match). steps: what each step does. shares: those of
    `evaluated` that are shares of the held-out rows.
    """

    evaluated: Mapping[str, str]
    steps: Mapping[str, str] = field(default_factory=lambda: _OF_STEPS)
    shares: frozenset[str] = frozenset()


SFT_LOGGED = Logged({LOSS: ""})


@dataclass(frozen=True)
class Best:
    """The rule of one run. `rows`: how many rows a share is of, 0 where the metric is no share."""

    metric: str
    mode: str
    min_delta: float = 0.0
    confidence: float = 0.0
    rows: int = 0

    @classmethod
    def of(cls, train: TrainSettings, *, held_out: int, questions: int, logged: Logged = SFT_LOGGED) -> Best:
        """The rule that the settings ask for, with so many held-out rows and questions. Raises `ValueError` for a
        metric that this run does not log."""
        names = logged_metrics(train, held_out=held_out, questions=questions, logged=logged)
        if train.score_every_evaluation and not (questions and train.score_rows):
            raise ValueError(
                "train.score_every_evaluation: there is no held-out row to answer; set train.score_rows, and "
                "evaluation_dataset or eval_auto_carveout"
            )
        if train.best_metric not in names and (held_out or train.best_metric != LOSS):
            raise ValueError(
                f"train.best_metric: {train.best_metric!r} is not logged by this run, which logs {', '.join(names)}"
                f"{_way_to(train.best_metric)}"
            )
        direction = {**logged.steps, **logged.evaluated, EXACT_MATCH: "max"}.get(train.best_metric, "")
        if direction not in ("", train.best_mode):
            better = "more" if direction == "max" else "less"
            raise ValueError(
                f"train.best_mode: {train.best_mode}, but {better} of {train.best_metric} is better; set it to "
                f"{direction}"
            )
        rows = questions if train.best_metric == EXACT_MATCH else held_out * (train.best_metric in logged.shares)
        if train.best_confidence and not rows:
            shares = ", ".join([EXACT_MATCH, *sorted(logged.shares)])
            raise ValueError(
                f"train.best_confidence: {train.best_confidence:g} is for shares of rows ({shares}); "
                f"use train.best_min_delta with {train.best_metric}, and leave it 0"
            )
        return cls(train.best_metric, train.best_mode, train.best_min_delta, train.best_confidence, rows)

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` counts as better than the `best` so far (None = there is none yet)."""
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        gain = value - best if self.mode == "max" else best - value
        return gain > max(self.min_delta, self.confidence * self._standard_error(value, best))

    def _standard_error(self, one: float, other: float) -> float:
        """Of the difference of two shares of `rows` rows: sqrt(2 p (1 - p) / rows), p their mean; 0 for no share."""
        if not self.rows:
            return 0.0
        pooled = (one + other) / 2
        return math.sqrt(2 * pooled * (1 - pooled) / self.rows)


def logged_metrics(
    train: TrainSettings, *, held_out: int, questions: int, logged: Logged = SFT_LOGGED
) -> Sequence[str]:
    """Names that `train.best_metric` may have in this run: what each evaluation logs, and each step."""
    found = list(logged.evaluated) if held_out else []
    if train.score_every_evaluation and train.score_rows and questions:
        found.append(EXACT_MATCH)
    return [*found, *logged.steps]


def _way_to(metric: str) -> str:
    if metric == EXACT_MATCH:
        return f"; {EXACT_MATCH} needs train.score_every_evaluation=true and train.score_rows"
    return f"; {LOSS} needs evaluation_dataset or eval_auto_carveout" if metric == LOSS else ""
