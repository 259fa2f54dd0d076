"""The preference loop on the toy engine: numbers by hand, the reference on disk, and resume equal to no stop."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.loop_kit import VOCABULARY, assert_equal, lines, log, make_spec, request, rows, run
from trainer.compose import ConfigError, compose
from trainer.data.datum import Pair
from trainer.engine.toy import ToyEngine
from trainer.jobs import DpoJob
from trainer.loops.best import Best
from trainer.loops.evaluation import Question
from trainer.loops.preference import PreferenceLoop, logged_by
from trainer.loops.reference import ReferenceCache, identity
from trainer.loops.stop import Stop
from trainer.loops.training import Material
from trainer.objectives import objective_of
from trainer.runs import Hyperparameters, LoraSettings, RunSpec, TrainSettings

MADE_WITH = {"tokenizer": "t", "template": "j", "base": "b", "adapter": "", "dtype": "float32"}


def spec_of(
    *, loss: dict[str, Any] | None = None, train: dict[str, Any] | None = None, rank: int | None = None, **training: Any
) -> RunSpec:
    """18 pairs in batches of 4: 5 steps an epoch, 3 epochs."""
    job = DpoJob.model_validate(
        {
            "dataset": "rows",
            "training_config": {"base_model": "toy", "epochs": 3, "learning_rate": 0.1, "batch_size_samples": 4,
                                "lora_rank": rank, **training},
            "loss_config": loss,
        }
    )  # fmt: skip
    plain = make_spec(train=train)
    return plain.model_copy(
        update={
            "kind": "dpo", "job": job, "hyper": Hyperparameters.of(job, LoraSettings()),
            "objective": objective_of(job, **plain.train.dpo.model_dump()),
        }
    )  # fmt: skip


def pairs(count: int, seed: int) -> list[Pair]:
    """Chosen: each token's double; rejected: its triple, one token longer or shorter now and then."""
    made = []
    random = np.random.default_rng(seed + 100)
    for good in rows(count, seed):
        ids = [int(good.tokens[0]), int(good.targets[0])]
        for _ in range(good.length - 1 + int(random.integers(0, 2))):
            ids.append(ids[-1] * 3 % VOCABULARY or 2)
        weights = np.ones(len(ids) - 1, np.float32)
        weights[0] = 0
        made.append(Pair(good, replace(good, tokens=np.array(ids[:-1]), targets=np.array(ids[1:]), weights=weights)))
    return made


def material() -> Material:
    return Material(pairs(18, 0), pairs(5, 1), [Question(np.array([3]), "3", "6")])


def learn(folder: Path, spec: RunSpec, **more: Any):
    made_with = more.pop("made_with", MADE_WITH)
    return run(
        folder, spec, given=more.pop("given", None) or material(), loop=PreferenceLoop, made_with=made_with, **more
    )


class Counted(ToyEngine):
    """Notes the datums of each forward pass, and asks to stop after the first `stop_after` of them."""

    def __init__(self, stop: Stop | None = None, *, stop_after: int = -1) -> None:
        super().__init__(VOCABULARY)
        self.passes: list[tuple[str, int]] = []
        self.stop, self.stop_after = stop, stop_after

    def forward(self, model: str, data: Any, **more: Any):
        self.passes.append((model, len(data)))
        if self.stop is not None and len(self.passes) == self.stop_after:
            request(self.stop)
        return super().forward(model, data, **more)


def test_the_first_step_is_ln_2_and_the_margin_grows(tmp_path):
    outcome = learn(tmp_path / "run", spec_of())
    assert outcome.cursor.step == 15
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["rows"] for line in steps] == [4, 4, 4, 4, 2] * 3
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-6) and steps[0]["kl_k3"] == pytest.approx(0, abs=1e-9)
    assert steps[-1]["loss"] < 0.65 and steps[-1]["margin"] > 0.1 and steps[-1]["accuracy"] == 1
    held_out = lines(tmp_path / "run", "eval/loss")
    assert held_out[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert held_out[-1]["eval/preference"] > held_out[0]["eval/preference"]
    last = held_out[-1]
    assert last["eval/margin"] == pytest.approx(last["eval/chosen_reward"] - last["eval/rejected_reward"], abs=1e-6)
    assert last["eval/chosen_tokens"] == np.mean([pair.chosen.trained for pair in pairs(5, 1)])


def test_the_denominator_is_the_pairs_of_the_step(tmp_path):
    constant = {"scheduler": "constant"}
    learn(tmp_path / "a", spec_of(batch_size_samples=8, epochs=1, train=constant))
    learn(tmp_path / "b", spec_of(batch_size_samples=4, gradient_accumulation_steps=2, epochs=1, train=constant))
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-7)


def test_orpo_has_no_reference(tmp_path):
    engine = Counted()
    learn(tmp_path / "run", spec_of(loss={"method": "ORPO", "orpo": {"lambda": 0.5}}), engine=engine)
    assert not (tmp_path / "run" / "reference").exists() and {model for model, _ in engine.passes} == {"policy"}
    first, *_, last = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert last["nll"] < first["nll"] and last["log_odds"] > first["log_odds"] and "margin" not in first
    # L = nll - lambda log s(log_odds) for a single pair; of means, by Jensen, at least that.
    assert first["loss"] >= first["nll"] + 0.5 * math.log1p(math.exp(-first["log_odds"])) - 1e-6


@pytest.mark.parametrize("rank", [8, 0])
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_resume_equals_never_having_stopped(tmp_path, stop_at, rank):
    settings = spec_of(rank=rank, train={"checkpoint_every_steps": 2, "evaluate_every_steps": 3, "keep_checkpoints": 1})
    learn(tmp_path / "whole", settings)
    assert learn(tmp_path / "parts", settings, stop_at=stop_at).paused
    engine = Counted()
    assert not learn(tmp_path / "parts", settings, engine=engine).paused
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    assert "0 answers computed, " in log(tmp_path / "parts")  # the second attempt found all of them


@pytest.mark.parametrize("rank", [8, 0])
def test_a_stop_in_the_reference_pass_is_a_pause_that_goes_on_there(tmp_path, rank):
    settings = spec_of(rank=rank, loss={"dpo": {"refCacheBatchSize": 2}})
    whole, stop = Counted(), Stop()
    learn(tmp_path / "whole", settings, engine=whole)
    stopped, engine = Counted(stop, stop_after=4), Counted()
    assert learn(tmp_path / "parts", settings, engine=stopped, stop=stop).paused
    assert len(stopped.passes) == 4 and stopped.passes[0] == ("reference" if rank else "policy", 4)
    assert not learn(tmp_path / "parts", settings, engine=engine).paused
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    assert stopped.passes + engine.passes == whole.passes  # nothing was computed twice


def test_the_batch_of_the_reference_pass_is_the_jobs(tmp_path):
    engine = Counted()
    learn(tmp_path / "run", spec_of(loss={"dpo": {"refCacheBatchSize": 3, "refCacheConcurrency": 2}}), engine=engine)
    assert engine.passes[0] == ("reference", 12)
    assert [model for model, _ in engine.passes[:4]] == ["reference"] * 4  # 3 of 18 pairs by 6, 1 of 5 pairs
    assert engine.passes[4][0] == "policy" and max(count for _, count in engine.passes[:4]) == 12


def test_what_was_cached_is_what_the_reference_says(tmp_path):
    learn(tmp_path / "run", spec_of())
    cache = ReferenceCache(tmp_path / "run" / "reference", MADE_WITH, damaged=pytest.fail)
    engine = ToyEngine(VOCABULARY)
    engine.create_model("base", lora=None, base_only=True)
    for pair in pairs(18, 0):
        for datum in pair.datums:
            (live,) = engine.forward("base", [datum]).logprobs
            np.testing.assert_allclose(cache.filled(datum).reference, live * (datum.weights != 0), atol=1e-6)


@pytest.mark.parametrize("key", MADE_WITH)
def test_every_key_invalidates(tmp_path, key):
    pair = pairs(1, 0)[0]
    cache = ReferenceCache(tmp_path, MADE_WITH, damaged=pytest.fail)
    cache.add("a", pair.datums, [np.zeros(datum.length, np.float32) for datum in pair.datums])
    assert len(ReferenceCache(tmp_path, MADE_WITH, damaged=pytest.fail)) == 2
    assert len(ReferenceCache(tmp_path, {**MADE_WITH, key: "other"}, damaged=pytest.fail)) == 0


def test_another_row_is_another_entry(tmp_path):
    datum = pairs(1, 0)[0].chosen
    others = [
        replace(datum, tokens=datum.tokens[::-1].copy()),
        replace(datum, targets=(datum.targets + 1) % VOCABULARY),
        replace(datum, weights=np.ones_like(datum.weights)),
    ]
    assert len({identity(one) for one in [datum, *others]}) == 4
    assert identity(replace(datum, weights=datum.weights * 2)) == identity(datum)  # what is trained, not how much


def test_a_damaged_piece_is_said_and_computed_again(tmp_path):
    settings = spec_of(loss={"dpo": {"refCacheBatchSize": 5}})
    whole = learn(tmp_path / "run", settings)
    piece = next((tmp_path / "run" / "reference").glob("*/train-000001.safetensors"))
    content = bytearray(piece.read_bytes())
    content[-3] ^= 1
    piece.write_bytes(content)
    engine = Counted()
    assert learn(tmp_path / "run", settings, engine=engine).cursor == whole.cursor
    assert "is damaged" in log(tmp_path / "run") and engine.passes[0][0] == "reference"
    assert [model for model, _ in engine.passes].count("reference") == 1


def test_a_full_model_asks_the_untrained_weights_even_when_resumed(tmp_path):
    settings = spec_of(rank=0, train={"checkpoint_every_steps": 2})
    learn(tmp_path / "whole", settings)
    learn(tmp_path / "parts", settings, stop_at=7)
    for path in (tmp_path / "parts" / "reference").glob("*/*.safetensors"):
        path.unlink()
    learn(tmp_path / "parts", settings)
    final = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert final[0] == final[1]


def test_early_stop_goes_by_any_metric_of_pairs(tmp_path):
    settings = spec_of(
        train={"early_stop": True, "best_metric": "eval/accuracy", "best_mode": "max", "evaluate_every_steps": 1,
               "early_stop_patience": 2},
        epochs=20,
    )  # fmt: skip
    outcome = learn(tmp_path / "run", settings)
    found = {line["step"]: line["eval/accuracy"] for line in lines(tmp_path / "run", "eval/accuracy")}
    best = max(found, key=lambda step: (found[step], -step))
    assert outcome.cursor.stopped_early and outcome.cursor.best_step == best == outcome.checkpoint.step
    assert outcome.cursor.step == best + 2


@pytest.mark.parametrize(
    ("loss", "settings", "says"),
    [
        ("dpo", {"best_metric": "eval/accuracy"}, "more of eval/accuracy is better; set it to max"),
        ("dpo", {"best_metric": "eval/kl_k3", "best_mode": "max"}, "less of eval/kl_k3 is better; set it to min"),
        ("orpo", {"best_metric": "eval/margin", "best_mode": "max"}, "is not logged by this run, which logs eval/loss"),
        ("dpo", {"best_metric": "eval/margin", "best_mode": "max", "best_confidence": 1.0}, "is for shares of rows"),
    ],
)
def test_what_pairs_cannot_be_judged_by_is_refused(loss, settings, says):
    with pytest.raises(ValueError, match=says):
        Best.of(TrainSettings(**settings), held_out=5, questions=1, logged=logged_by(loss))


def test_a_share_of_pairs_may_ask_for_confidence():
    settings = TrainSettings(best_metric="eval/preference", best_mode="max", best_confidence=1.96)
    rule = Best.of(settings, held_out=200, questions=0, logged=logged_by("dpo"))
    assert rule.rows == 200 and not rule.improves(0.55, 0.50) and rule.improves(0.65, 0.50)


def test_a_pair_that_is_not_finite_is_named(tmp_path):
    class Poisoned(ToyEngine):
        def forward_backward(self, model: str, data: Any, **more: Any):
            result = super().forward_backward(model, data, **more)
            result.metrics["loss:sum"] = float("nan")
            return result

    given = replace(material(), place=lambda row: f"pairs.jsonl:{row + 1}")
    with pytest.raises(ArithmeticError, match=r"step 1: the loss is nan; its rows are pairs\.jsonl:\d+"):
        learn(tmp_path / "run", spec_of(), engine=Poisoned(VOCABULARY), given=given)


@pytest.mark.parametrize(
    ("words", "constants", "name"),
    [
        ([], {"beta": 0.1, "label_smoothing": 0.0, "nll_weight": 0.0}, "dpo"),
        (["train.dpo.loss=dpo_ipo", "job.loss_config.dpo.beta=0.2"], {"beta": 0.2, "nll_weight": 0.0}, "dpo_ipo"),
        (["job=orpo"], {"orpo_lambda": 1.0}, "orpo"),
        (["train.dpo.nll_weight=1", "train.dpo.label_smoothing=0.1"],
         {"beta": 0.1, "label_smoothing": 0.1, "nll_weight": 1.0}, "dpo"),
    ],
)  # fmt: skip
def test_the_expanded_objective_is_the_papers_unless_asked(words, constants, name):
    job = [] if "job=orpo" in words else ["job=dpo"]
    objective = compose([*job, "data.train=x.jsonl", *words]).objective
    assert (objective["name"], objective["constants"]) == (name, constants)
    assert json.dumps(objective) and objective["denominator"].startswith("pairs of the whole optimizer step")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["job=orpo", "train.dpo.nll_weight=1"], "train.dpo: its settings are for method DPO, and ORPO has"),
        (["train.dpo.nll_weight=1"], "this job is no preference job"),
        (["job=dpo", "train.dpo.loss=dpo_ipo", "train.dpo.label_smoothing=0.1"], "dpo_ipo does not take"),
        (["data.carveout=true"], "data.carveout: an sft job has a field for that; set job.eval_auto_carveout"),
        (["train.early_stop=true"], "train.early_stop: an sft job has a field for that; set job.early_stop"),
        (["job=dpo", "train.early_stop=true"], "needs held-out pairs to judge by"),
        (["job=dpo", "+job.training_config.epoch=2"], "job.training_config.epoch: unknown key; did you mean epochs"),
        (["job=dpo", "job.loss_config.method=GRPO"], "job.loss_config.method: GRPO learns from rewards"),
        (["job=dpo", "job.training_config.base_model=b", "job.training_config.warm_start_from=a"],
         "job.training_config: base_model and warm_start_from exclude each other"),
    ],
)  # fmt: skip
def test_mistakes_in_a_preference_job_are_named(words, says):
    with pytest.raises(ConfigError) as caught:
        compose(["data.train=x.jsonl", *words])
    assert says in str(caught.value)


@pytest.mark.parametrize("job", ["dpo", "orpo"])
def test_the_job_alone_is_the_shipped_experiment(job):
    composed = compose([f"job={job}", "train.seed=3"])
    assert composed.job.dataset.endswith("datasets/pairs/train.jsonl")
    assert composed.data.evaluation is not None and composed.data.evaluation.endswith("datasets/pairs/eval.jsonl")
    assert composed.train.seed == 3 and composed.train.dpo.nll_weight == (1.0 if job == "dpo" else 0.0)
    assert compose([f"job={job}", "data.train=x.jsonl"]).train.score_rows == 0
