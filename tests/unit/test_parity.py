"""The parity gate: other ids, other stops or other log-probs are found, before the first step and at checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.loop_kit import VOCABULARY, lines, log, make_spec, run
from trainer import checkpoints
from trainer.data.datum import Datum
from trainer.data.render import Renderer, load_tokenizer
from trainer.data.rows import Row
from trainer.engine.base import AdamParams, LoraSpec
from trainer.engine.local import LocalEngine
from trainer.engine.toy import ToyEngine
from trainer.loops.parity import GAP, ParityBroken, ParityGate, SavedTokens, gate
from trainer.runs import EngineSettings

TINY = Path(__file__).parents[2] / "trainer" / "models" / "tiny"
EVERY = {"checkpoint_every_steps": 5, "evaluate_every_steps": 5}


class Drifting(ToyEngine):
    """A sampler whose log-probs are `off` nats too high from step `since` on: it serves other weights."""

    def __init__(self, off: float, since: int = 0) -> None:
        super().__init__(VOCABULARY)
        self.off, self.since = off, since

    def sample(self, model, prompts, params):
        found = super().sample(model, prompts, params)
        if self._models[model].steps < self.since:
            return found
        return [[replace(one, logprobs=one.logprobs + np.float32(self.off)) for one in group] for group in found]


def test_the_gap_is_measured_before_the_first_step_and_at_checkpoints(tmp_path):
    run(tmp_path / "run", make_spec(train=EVERY))
    found = {line["step"]: line[GAP] for line in lines(tmp_path / "run", GAP)}
    assert list(found) == [0, 5, 10, 15] and max(found.values()) < 1e-6


def test_a_breach_before_the_first_step_refuses_the_run(tmp_path):
    with pytest.raises(
        ParityBroken, match=r"up to 0\.5 nats from the trainer's, the bound is 0\.001 .*Nothing was trained"
    ):
        run(tmp_path / "run", make_spec(train=EVERY), engine=Drifting(0.5))
    assert not lines(tmp_path / "run", "loss") and not (tmp_path / "run" / "checkpoints").exists()


def test_a_gap_within_the_bound_is_let_through(tmp_path):
    run(tmp_path / "run", make_spec(train=EVERY), engine=Drifting(0.0009))
    assert {round(line[GAP], 4) for line in lines(tmp_path / "run", GAP)} == {0.0009}


def test_a_later_breach_is_reported_and_that_checkpoint_cannot_be_promoted(tmp_path):
    outcome = run(tmp_path / "run", make_spec(train=EVERY), engine=Drifting(0.5, since=10))
    found = {
        path.name: checkpoints.read(path).promotable for path in checkpoints.every(tmp_path / "run" / "checkpoints")
    }
    assert found == {"step-5": True, "step-10": False, "step-15": False}
    assert outcome.checkpoint.resumable and not outcome.checkpoint.promotable
    assert "the checkpoint of step 10 cannot be promoted: the sampler's log-probs are up to 0.5" in log(
        tmp_path / "run"
    )
    told = [json.loads(line)["body"] for line in log(tmp_path / "run").splitlines() if '"checkpoint"' in line]
    assert [body["promotable"] for body in told] == [True, False, False]


def test_a_gap_that_is_not_a_number_is_a_breach():
    assert ParityGate(ToyEngine(VOCABULARY), "m", (), 1e-3).breaches(float("nan"))
    assert not ParityGate(ToyEngine(VOCABULARY), "m", (), 1e-3).breaches(None)


def tokens(tmp_path: Path, *, stop_ids=None) -> SavedTokens:
    tokenizer = load_tokenizer(str(TINY), None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chat = ({"role": "user", "content": "sort 312"}, {"role": "assistant", "content": "123"})
    rows = [
        Row("rows.jsonl", 7, "chat", "", messages=chat, trained=(1,)),
        Row("rows.jsonl", 8, "text", "", text="hello"),
    ]
    return SavedTokens(Renderer(tokenizer, stop_ids=stop_ids), tmp_path / "tokenizer", rows)


def test_the_tokenizer_as_saved_gives_the_same_ids(tmp_path):
    assert tokens(tmp_path).breaches() == []


def test_another_template_in_the_saved_folder_is_found(tmp_path):
    saved = tokens(tmp_path)
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.write_text("Be brief. " + template.read_text())
    (words,) = saved.breaches()
    assert words.startswith("rows.jsonl:7: the tokenizer as saved in ") and "from token 0 on" in words


def test_other_stop_ids_are_found(tmp_path):
    engine = LocalEngine(TINY)
    engine.create_model("m", lora=None)
    fine = ParityGate(engine, "m", tokens=tokens(tmp_path, stop_ids=engine.stop_ids))
    assert fine.breaches(None) == []
    other = ParityGate(engine, "m", tokens=tokens(tmp_path, stop_ids=(3,)))
    assert (
        f"training teaches [3] as the ends of an answer, the engine stops at {list(engine.stop_ids)}"
        in other.breaches(None)[0]
    )
    engine.save_weights("m", tmp_path / "weights")
    assert fine.breaches_of(tmp_path / "weights") == []
    path = tmp_path / "weights" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [5, 6]}))
    (words,) = fine.breaches_of(tmp_path / "weights")
    assert "the model saved in" in words and "generation_config.json" in words


def data(vocabulary: int) -> list[Datum]:
    random = np.random.default_rng(0)
    found = []
    for length in (9, 5, 12):
        ids = random.integers(1, vocabulary, length + 1)
        found.append(Datum(ids[:-1], ids[1:], (np.arange(length) > 2).astype(np.float32)))
    return found


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_on_the_real_engine_the_gap_is_small_and_no_dropout_mask_is_disturbed(dtype):
    seen = []
    for gated in (False, True):
        engine = LocalEngine(TINY, EngineSettings(dtype=dtype, device="cpu"))
        engine.create_model("m", lora=LoraSpec(4, 8.0, dropout=0.5), seed=1)
        rows = data(engine.vocabulary)
        judge = gate(engine, "m", train=rows, prompts=2, max_gap=None, dtype=dtype, seed=0, tokens=None)
        assert [len(prompt) for prompt in judge.prompts] == [4, 4]  # up to the first trained token
        losses = []
        for _ in range(2):
            if gated:
                gap = judge.gap()
                assert gap is not None and judge.breaches(gap) == [], gap
            losses.append(engine.forward_backward("m", rows).metrics["loss:sum"])
            engine.optim_step("m", AdamParams(1e-2), denominator=1.0)
        seen.append(losses)
    assert seen[0] == seen[1]
