"""The loop under faults, on the toy engine: NaN, a full or failing disk, a request to stop in the midst of things."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from tests.crashing_disk import FullDisk, QuickDisk
from tests.loop_kit import (
    VOCABULARY,
    Poisoned,
    assert_equal,
    lines,
    log,
    make_spec,
    material,
    request,
    rows,
    run,
)
from trainer import checkpoints
from trainer.disk import DiskFull, LocalDisk
from trainer.engine.base import AdamParams
from trainer.engine.local import LocalEngine
from trainer.engine.toy import ToyEngine
from trainer.finite import NotFinite
from trainer.loops.stop import Stop
from trainer.loops.training import NonFinite

EVERY = {"checkpoint_every_steps": 2, "evaluate_every_steps": 3}


# --- NaN and infinity ---


@pytest.mark.parametrize("where", ["loss_at", "gradient_at"])
def test_stop_names_the_step_and_the_rows_and_keeps_the_last_good_checkpoint(tmp_path, where):
    given = material(place=lambda row: f"rows.jsonl:{row + 1}")
    with pytest.raises(NonFinite) as caught:
        run(tmp_path / "run", make_spec(train=EVERY), engine=Poisoned(**{where: (6,)}), given=given)
    words = str(caught.value)
    assert words.startswith("step 6: ") and ("the loss is nan" if where == "loss_at" else "norm is inf") in words
    assert words.count("rows.jsonl:") == 4  # a batch of 4
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-4'}" in words
    assert "train.on_nonfinite=skip" in words
    kept = checkpoints.newest(tmp_path / "run" / "checkpoints", damaged=pytest.fail)
    assert kept is not None and kept.step == 4
    assert [line["step"] for line in lines(tmp_path / "run", "loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("where", ["loss_at", "gradient_at"])
def test_skip_leaves_the_step_out_and_counts_it(tmp_path, where):
    settings = make_spec(train={**EVERY, "on_nonfinite": "skip"})
    outcome = run(tmp_path / "run", settings, engine=Poisoned(**{where: (6, 8)}))
    assert (outcome.cursor.step, outcome.cursor.skipped_steps) == (15, 2)
    steps = lines(tmp_path / "run", "skipped_steps")
    assert [line["skipped_steps"] for line in steps] == [0] * 5 + [1, 1] + [2] * 8
    assert [line["step"] for line in steps if "loss" not in line] == [6, 8]
    assert np.isfinite([value for line in lines(tmp_path / "run") for value in line.values()]).all()


def test_a_skipped_step_changes_no_weight_and_no_moment(tmp_path):
    # One step in all, and it is skipped: the weights stay as they were made, zero.
    settings = make_spec(job={"epochs": 1, "batch_size_samples": 18}, train={"on_nonfinite": "skip"})
    outcome = run(tmp_path / "run", settings, engine=Poisoned(loss_at=(1,)))
    engine = ToyEngine(VOCABULARY)
    engine.create_model("m", lora=None)
    engine.load_state("m", outcome.checkpoint.weights, outcome.checkpoint.state)
    assert not engine._models["m"].delta_VV.any() and engine._models["m"].steps == 0


def test_skipping_is_limited(tmp_path):
    settings = make_spec(train={"on_nonfinite": "skip", "max_skipped_steps": 2})
    with pytest.raises(NonFinite, match=r"step 9: .*2 steps were left out before it \(train.max_skipped_steps\)"):
        run(tmp_path / "run", settings, engine=Poisoned(loss_at=(3, 5, 9)))


class Overflowing(ToyEngine):
    """Its weights are infinite after the fifth step, without a sign before."""

    def save_weights(self, model: str, folder: Path) -> None:
        table = self._models[model]
        kept = table.delta_VV
        if table.steps == 5:
            table.delta_VV = np.where(np.arange(kept.size).reshape(kept.shape) == 7, -np.inf, kept)
        super().save_weights(model, folder)
        table.delta_VV = kept


@pytest.mark.parametrize("background", [False, True])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, background):
    settings = make_spec(train={"checkpoint_every_steps": 1, "keep_checkpoints": 1, "async_checkpoints": background})
    with pytest.raises(NotFinite, match="1 of 64 numbers of delta are NaN or infinite"):
        run(tmp_path / "run", settings, engine=Overflowing(VOCABULARY))
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-4"]


def test_a_held_out_loss_that_is_not_finite_stops_or_counts_as_no_better(tmp_path):
    class Blind(ToyEngine):
        def forward(self, model, data, **more):
            result = super().forward(model, data, **more)
            result.metrics["loss:sum"] = float("inf")
            return result

    with pytest.raises(NonFinite, match="the held-out loss after step 0 is inf"):
        run(tmp_path / "stop", make_spec(), engine=Blind(VOCABULARY))
    outcome = run(tmp_path / "skip", make_spec(train={"on_nonfinite": "skip"}), engine=Blind(VOCABULARY))
    assert outcome.cursor.best_value is None and not lines(tmp_path / "skip", "eval/loss")


def test_clear_gradient_forgets_what_was_accumulated():
    tiny = Path(__file__).parents[2] / "trainer" / "models" / "tiny"
    for engine in (ToyEngine(VOCABULARY), LocalEngine(tiny)):
        engine.create_model("m", lora=None)
        first, second = rows(2, 3)
        norms = []
        for spoil in (False, True):
            if spoil:
                engine.forward_backward("m", [first])
                engine.clear_gradient("m")
            engine.forward_backward("m", [second])
            norms.append(engine.optim_step("m", AdamParams(0.0), denominator=1.0)["grad_norm"])
        assert norms[0] == norms[1]
        engine.forward_backward("m", [first])
        engine.clear_gradient("m")
        with pytest.raises(ValueError, match="no gradient since the last step"):
            engine.optim_step("m", AdamParams(0.0), denominator=1.0)


# --- Disks ---


def test_a_disk_that_fills_up_pauses_at_each_of_twenty_points_and_the_run_goes_on(tmp_path):
    settings = make_spec(train=EVERY)
    run(tmp_path / "whole", settings, disk=QuickDisk())
    said = set()
    for point in range(1, 21):
        folder = tmp_path / f"at-{point}"
        (folder / "checkpoints").mkdir(parents=True)
        disk = FullDisk(folder / "checkpoints", 3 * point)  # in the first save, the second, and so on
        with pytest.raises(DiskFull, match=r"no room for a checkpoint of .* free some space") as caught:
            run(folder, settings, disk=disk)
        newest = checkpoints.newest(folder / "checkpoints", damaged=pytest.fail)
        said.add(0 if newest is None else newest.step)
        assert str(folder / "checkpoints") in str(caught.value)
        run(folder, settings, disk=QuickDisk())
        assert_equal(tmp_path / "whole", folder)
    assert len(said) >= 4  # several saves were hit


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_fails_fails_the_checkpoint(tmp_path, background):
    class Failing(LocalDisk):
        def sync_file(self, path: Path) -> None:
            if "step-4-" in str(path):
                raise OSError(errno.EIO, "Input/output error")

    settings = make_spec(train={**EVERY, "async_checkpoints": background})
    if not background:
        with pytest.raises(OSError, match="Input/output error"):
            run(tmp_path / "run", settings, disk=Failing())
        return
    outcome = run(tmp_path / "run", settings, disk=Failing())
    assert outcome.cursor.step == 15 and "the checkpoint of step 4 failed, training goes on" in log(tmp_path / "run")
    assert "step-4" not in {line["path"].rsplit("/", 1)[-1] for line in _told(tmp_path / "run")}


def test_the_last_save_in_the_background_is_waited_for_and_must_succeed(tmp_path):
    class Failing(LocalDisk):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "step-15":
                raise OSError(errno.EIO, "Input/output error")
            super().rename(source, target)

    with pytest.raises(OSError, match="the last checkpoint, of step 15, was not written"):
        run(tmp_path / "run", make_spec(train={"async_checkpoints": True}), disk=Failing())


def _told(folder: Path) -> list[dict]:
    events = [json.loads(line) for line in log(folder).splitlines()]
    return [event["body"] for event in events if event["kind"] == "checkpoint"]


def test_saving_in_the_background_changes_no_number(tmp_path):
    for name, background in (("now", False), ("meanwhile", True)):
        run(tmp_path / name, make_spec(train={**EVERY, "async_checkpoints": background}))
    assert_equal(tmp_path / "now", tmp_path / "meanwhile")
    assert [body["id"] for body in _told(tmp_path / "now")] == [body["id"] for body in _told(tmp_path / "meanwhile")]


# --- Requests to stop ---


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("stop_at", [2, 3, 6, 14])
def test_stopped_during_an_evaluation_it_evaluates_after_the_resume(tmp_path, stop_at, background):
    """The request comes with the step's own numbers, before what is due after it: that is then done by the next one."""
    settings = make_spec(
        job={"early_stop": True, "evaluation_dataset": "rows"},
        train={**EVERY, "score_rows": 1, "score_every_evaluation": True, "async_checkpoints": background,
               "early_stop_patience": 9},
    )  # fmt: skip
    whole = run(tmp_path / "whole", settings)
    paused = run(tmp_path / "parts", settings, stop_at=stop_at)
    assert paused.paused and paused.cursor.step == stop_at
    assert paused.cursor.settled == (stop_at if stop_at % 3 else stop_at - 1)  # 3 and 6 had an evaluation due
    resumed = run(tmp_path / "parts", settings)
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    assert resumed.cursor == whole.cursor and resumed.after == whole.after


def test_stopped_before_the_first_step_and_during_the_last_answers(tmp_path):
    settings = make_spec(job={"early_stop": True, "evaluation_dataset": "rows"}, train={"early_stop_patience": 9})
    run(tmp_path / "whole", settings)

    class StoppedAtOnce(ToyEngine):
        def create_model(self, model: str, **more) -> None:
            super().create_model(model, **more)
            request(stop)

    class StoppedAtTheEnd(ToyEngine):
        def save_state(self, model: str, folder: Path) -> None:
            super().save_state(model, folder)
            if self._models[model].steps == 15:
                request(stop)

    for engine, step in ((StoppedAtOnce, 0), (StoppedAtTheEnd, 15), (ToyEngine, 15)):
        stop = Stop()
        outcome = run(tmp_path / "parts", settings, engine=engine(VOCABULARY), stop=stop)
        assert outcome.paused == (engine is not ToyEngine) and outcome.cursor.step == step
    assert_equal(tmp_path / "whole", tmp_path / "parts")


def test_all_checkpoints_damaged_are_set_aside_and_the_run_begins_again(tmp_path):
    settings = make_spec(train={**EVERY, "keep_checkpoints": 1})
    run(tmp_path / "whole", settings)
    run(tmp_path / "parts", settings, stop_at=7)
    (tmp_path / "parts" / "checkpoints" / "step-7" / "manifest.json").write_text("{")
    run(tmp_path / "parts", settings)
    assert (tmp_path / "parts" / "checkpoints" / "damaged-step-7").is_dir()
    assert "set aside as" in log(tmp_path / "parts")
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
