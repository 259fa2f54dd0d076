"""The SFT loop on the toy engine: numbers by hand, and resume equal to never having stopped."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.loop_kit import VOCABULARY, lines, make_spec, rows, run
from trainer import checkpoints
from trainer.data.datum import Datum
from trainer.engine.base import ForwardResult
from trainer.engine.toy import ToyEngine
from trainer.jobs import JobState
from trainer.loops.training import Material, terminal_state


def test_steps_are_counted_and_the_loss_falls(tmp_path):
    outcome = run(tmp_path / "run", make_spec())
    # 18 rows in batches of 4 are 5 steps an epoch, the last of 2 rows; 3 epochs are 15.
    assert (outcome.cursor.step, outcome.paused) == (15, False)
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 16))
    assert [line["rows"] for line in steps] == [4, 4, 4, 4, 2] * 3
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert outcome.cursor.tokens == 3 * sum(datum.length for datum in rows(18, 0))
    assert terminal_state(outcome) is JobState.COMPLETED


def test_the_first_loss_is_the_mean_over_trained_tokens_of_the_step(tmp_path):
    run(tmp_path / "run", make_spec(job={"batch_size_samples": 18, "epochs": 1}))
    engine = ToyEngine(VOCABULARY)
    engine.create_model("m", lora=None, base_only=True)
    nll = trained = 0.0
    for datum in rows(18, 0):
        logprobs = engine.forward("m", [datum]).logprobs[0]
        nll -= float((logprobs * datum.weights).sum())
        trained += float(datum.weights.sum())
    first = next(line for line in lines(tmp_path / "run") if "loss" in line)
    assert first["loss"] == pytest.approx(nll / trained, rel=1e-6)
    assert first["trained_tokens"] == trained


def test_accumulation_is_one_step_with_one_denominator(tmp_path):
    run(tmp_path / "a", make_spec(job={"batch_size_samples": 8, "epochs": 1}, train={"scheduler": "constant"}))
    run(
        tmp_path / "b",
        make_spec(
            job={"batch_size_samples": 4, "gradient_accumulation_steps": 2, "epochs": 1},
            train={"scheduler": "constant"},
        ),
    )
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


class Padding(ToyEngine):
    """Pads by as many tokens as it is given rows."""

    def forward_backward(self, model: str, data: Sequence[Datum], **more: Any) -> ForwardResult:
        return replace(super().forward_backward(model, data, **more), padding=len(data))


def test_padding_is_reported_with_every_step(tmp_path):
    settings = make_spec(job={"epochs": 1, "gradient_accumulation_steps": 2})
    for engine, expected in ((Padding(VOCABULARY), [8, 8, 2]), (ToyEngine(VOCABULARY), [0, 0, 0])):
        folder = tmp_path / type(engine).__name__
        run(folder, settings, engine=engine)
        told = [json.loads(line) for line in (folder / "perf.jsonl").read_text().splitlines()]
        assert [one["perf/padded_tokens"] for one in told] == expected


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7, 14])
@pytest.mark.parametrize("every", [0, 2])
def test_resume_equals_never_having_stopped(tmp_path, stop_at, every):
    settings = make_spec(train={"checkpoint_every_steps": every, "evaluate_every_steps": 3})
    whole = run(tmp_path / "whole", settings)
    paused = run(tmp_path / "parts", settings, stop_at=stop_at)
    assert paused.paused and paused.cursor.step == stop_at
    assert terminal_state(paused) is JobState.PAUSED
    resumed = run(tmp_path / "parts", settings)
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for name in whole.checkpoint.files:
        assert (resumed.checkpoint.path / name).read_bytes() == (whole.checkpoint.path / name).read_bytes(), name
    assert resumed.before == whole.before and resumed.after == whole.after


def test_a_crash_between_checkpoints_is_gone_over_again(tmp_path):
    settings = make_spec(train={"checkpoint_every_steps": 4})
    whole = run(tmp_path / "whole", settings)
    run(tmp_path / "parts", settings, stop_at=6)
    # As if the process had been killed after step 6 without saving: the newest checkpoint is that of step 4.
    checkpoints.prune(tmp_path / "parts" / "checkpoints", keep=1, protect=set())
    root = tmp_path / "parts" / "checkpoints"
    run(tmp_path / "again", settings, stop_at=4)
    (root / "step-6").rename(tmp_path / "lost")
    (tmp_path / "again" / "checkpoints" / "step-4").rename(root / "step-4")
    resumed = run(tmp_path / "parts", settings)
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert resumed.cursor == whole.cursor


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path):
    settings = make_spec(train={"checkpoint_every_steps": 2})
    whole = run(tmp_path / "whole", settings)
    run(tmp_path / "parts", settings, stop_at=6)
    (tmp_path / "parts" / "checkpoints" / "step-6" / "manifest.json").write_text("{")
    resumed = run(tmp_path / "parts", settings)
    assert "passed over" in (tmp_path / "parts" / "sync.jsonl").read_text()
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert resumed.cursor == whole.cursor


def test_early_stop_takes_the_best_weights(tmp_path):
    # Held-out rows that contradict the training rows: their loss soon rises.
    contrary = [Datum(d.tokens, (d.targets + 3) % VOCABULARY, d.weights) for d in rows(5, 0)]
    settings = make_spec(
        job={"early_stop": True, "evaluation_dataset": "other", "epochs": 20},
        train={"evaluate_every_steps": 1, "early_stop_patience": 2},
    )
    outcome = run(tmp_path / "run", settings, given=Material(rows(18, 0), contrary, []))
    losses = {line["step"]: line["eval/loss"] for line in lines(tmp_path / "run") if "eval/loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert outcome.cursor.best_step == best == outcome.checkpoint.step
    assert outcome.cursor.step == best + 2
    assert terminal_state(outcome) is JobState.EARLY_STOPPED


def test_old_checkpoints_are_let_go_of(tmp_path):
    run(tmp_path / "run", make_spec(train={"checkpoint_every_steps": 1, "keep_checkpoints": 2}))
    names = [path.name for path in checkpoints.every(tmp_path / "run" / "checkpoints")]
    assert names == ["step-14", "step-15"]


def test_a_rate_of_0_changes_no_weight(tmp_path):
    outcome = run(tmp_path / "run", make_spec(job={"learning_rate": 0.0}))
    losses = [line["eval/loss"] for line in lines(tmp_path / "run") if "eval/loss" in line]
    assert len(set(losses)) == 1
    assert outcome.before == outcome.after
