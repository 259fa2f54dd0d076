"""The best checkpoint by any logged metric, in both directions, with a margin and a confidence; by hand."""

import numpy as np
import pytest

from tests.loop_kit import lines, make_spec, rows, run
from trainer.engine.base import ForwardResult
from trainer.engine.toy import ToyEngine
from trainer.jobs import JobState
from trainer.loops.best import Best
from trainer.loops.evaluation import Question
from trainer.loops.training import Material, terminal_state
from trainer.runs import TrainSettings

EARLY = {"early_stop": True, "evaluation_dataset": "rows"}


def walk(rule: Best, curve: list[float]) -> int:
    """Index of the value that is kept, by the rule alone."""
    kept, best = 0, None
    for index, value in enumerate(curve):
        if rule.improves(value, best):
            kept, best = index, value
    return kept


@pytest.mark.parametrize(
    ("curve", "lowest", "highest"),
    [
        ([3.0, 2.0, 2.5, 1.0, 1.5], 3, 0),
        ([1.0, 2.0, 3.0], 0, 2),
        ([1.0, 1.0, 1.0], 0, 0),  # the first of equals
        ([float("nan"), 2.0, float("inf"), 1.0, float("-inf")], 3, 1),  # what is not finite is never the best
    ],
)
def test_a_fake_curve_picks_the_right_step_in_both_directions(curve, lowest, highest):
    assert walk(Best("eval/loss", "min"), curve) == lowest
    assert walk(Best("eval/exact_match", "max"), curve) == highest


def test_a_gain_within_the_margin_does_not_count():
    # From 1.00: 0.95 gains 0.05, not more than 0.1; 0.85 gains 0.15 and counts; 0.76 gains 0.09 on that.
    assert walk(Best("eval/loss", "min", min_delta=0.1), [1.00, 0.95, 0.85, 0.76]) == 2


def test_a_share_must_be_better_by_so_many_standard_errors():
    # 50 of 100 against 60 of 100: p = 0.55, se = sqrt(2 * 0.55 * 0.45 / 100) = 0.07036; 1.96 se = 0.1379 > 0.10.
    rule = Best("eval/exact_match", "max", confidence=1.96, rows=100)
    assert not rule.improves(0.60, 0.50)
    # 64 of 100: p = 0.57, se = sqrt(2 * 0.57 * 0.43 / 100) = 0.07001; 1.96 se = 0.1372 < 0.14.
    assert rule.improves(0.64, 0.50)
    # Of 1,000 rows 60 % is enough: 1.96 se = 0.0436.
    assert Best("eval/exact_match", "max", confidence=1.96, rows=1000).improves(0.60, 0.50)
    # All wrong against one right of 3: p = 1/6, se = sqrt(2 * 5/36 / 3) = 0.304; 1 se < 1/3 < 1.96 se = 0.596.
    assert Best("eval/exact_match", "max", confidence=1.0, rows=3).improves(1 / 3, 0.0)
    assert not Best("eval/exact_match", "max", confidence=1.96, rows=3).improves(1 / 3, 0.0)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (
            {"best_metric": "eval/los"},
            r"'eval/los' is not logged .* which logs eval/loss, loss, grad_norm, learning_rate",
        ),
        ({"best_metric": "eval/exact_match", "best_mode": "max"}, "needs train.score_every_evaluation=true"),
        (
            {"best_metric": "eval/exact_match", "score_every_evaluation": True, "score_rows": 1},
            "more of eval/exact_match is better; set it to max",
        ),
        ({"best_confidence": 1.96}, "is for shares of rows"),
        ({"score_every_evaluation": True}, "set train.score_rows"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(train, says):
    with pytest.raises(ValueError, match=says):
        Best.of(TrainSettings(**train), held_out=True, questions=1)


def test_without_held_out_rows_only_the_default_is_let_be():
    assert Best.of(TrainSettings(), held_out=False, questions=0).metric == "eval/loss"
    with pytest.raises(ValueError, match="eval/exact_match"):
        Best.of(TrainSettings(best_metric="eval/exact_match", best_mode="max"), held_out=False, questions=0)


class Scripted(ToyEngine):
    """Held-out losses by a script, one for each evaluation."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__(8)
        self.losses = iter(losses)

    def forward(self, model, data, **more) -> ForwardResult:
        result = super().forward(model, data, **more)
        if len(data) == 5:  # the held-out rows
            result.metrics["loss:sum"] = next(self.losses) * sum(float(datum.weights.sum()) for datum in data)
        return result


def test_early_stop_takes_the_scripted_best(tmp_path):
    settings = make_spec(job=EARLY, train={"evaluate_every_steps": 2, "early_stop_patience": 2})
    # After steps 0, 2, 4, 6, 8: the best is that of step 4; two worse ones stop the run after step 8.
    outcome = run(tmp_path / "run", settings, engine=Scripted([3.0, 2.5, 2.0, 2.1, 2.2]))
    assert (outcome.cursor.best_step, outcome.cursor.step, outcome.checkpoint.step) == (4, 8, 4)
    assert outcome.cursor.best_value == pytest.approx(2.0)
    assert terminal_state(outcome) is JobState.EARLY_STOPPED


def test_a_margin_lets_it_stop_sooner(tmp_path):
    train = {"evaluate_every_steps": 2, "early_stop_patience": 2, "best_min_delta": 0.5}
    outcome = run(tmp_path / "run", make_spec(job=EARLY, train=train), engine=Scripted([3.0, 2.4, 2.2, 2.0]))
    # 2.4 gains 0.6; 2.2 and 2.0 gain no more than 0.4 on it.
    assert (outcome.cursor.best_step, outcome.cursor.step) == (2, 6)


def test_the_most_exact_answers_win_where_the_metric_says_so(tmp_path):
    # The held-out loss, by the script, is best at the start: it must not matter.
    asked = [Question(np.array([n]), str(n), str(n * 2 % 8 or 1)) for n in (1, 2, 4, 6)]
    train = {
        "best_metric": "eval/exact_match", "best_mode": "max", "score_every_evaluation": True, "score_rows": 1,
        "evaluate_every_steps": 1, "early_stop_patience": 99, "sample_max_tokens": 1,
    }  # fmt: skip
    script = Scripted([float(n) for n in range(1, 17)])
    given = Material(rows(18, 0), rows(5, 1), asked)
    outcome = run(tmp_path / "run", make_spec(job=EARLY, train=train), engine=script, given=given)
    shares = {line["step"]: line["eval/exact_match"] for line in lines(tmp_path / "run", "eval/exact_match")}
    best = max(shares, key=shares.__getitem__)  # the first of equals
    assert list(shares) == list(range(16)) and shares[best] > shares[0]
    assert outcome.cursor.best_step == outcome.checkpoint.step == best


def test_a_metric_of_the_steps_can_be_the_one(tmp_path):
    train = {"best_metric": "loss", "evaluate_every_steps": 5, "early_stop_patience": 99}
    outcome = run(tmp_path / "run", make_spec(job=EARLY, train=train))
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "run", "loss")}
    best = min((5, 10, 15), key=losses.__getitem__)
    assert (outcome.cursor.best_step, outcome.cursor.best_value) == (best, losses[best])


def test_an_unknown_metric_refuses_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"train\.best_metric: 'reward' is not logged by this run"):
        run(tmp_path / "run", make_spec(job=EARLY, train={"best_metric": "reward"}))
