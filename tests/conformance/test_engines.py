"""What every engine must do, run against each: the local one (an adapter, all parameters, rows padded) and the toy.

Below the common suite, what only holds for files and weights of the local engine.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conformance.tiny_models import STOP, VOCABULARY, make_model, make_rows
from trainer.data.datum import Datum
from trainer.engine.base import AdamParams, Completion, Engine, LoraSpec, SamplingParams
from trainer.engine.local import LocalEngine
from trainer.engine.merge import merge_adapter
from trainer.engine.toy import ToyEngine
from trainer.runs import EngineSettings

ADAM = AdamParams(1e-2, weight_decay=0.01, max_grad_norm=1.0)
LORA = LoraSpec(rank=4, alpha=8.0)
plain_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def decode(ids: list[int]) -> str:
    """One letter a token: a, b, c ... for 2, 3, 4 ..."""
    return "".join(chr(ord("a") + i - 2) for i in ids)


@dataclass(frozen=True)
class Case:
    """An engine kind: how to make a fresh one, and the adapter its models have (None = all parameters)."""

    make: Callable[[int], Engine]
    lora: LoraSpec | None

    def fresh(self, micro_batch_tokens: int = 4096, *, model: str = "m") -> Engine:
        engine = self.make(micro_batch_tokens)
        engine.create_model(model, lora=self.lora, seed=7)
        return engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen3"))


def local(base: Path, micro_batch_tokens: int = 4096, *, dtype: str = "float32", layout: str = "packed") -> LocalEngine:
    settings = EngineSettings(device="cpu", dtype=dtype, layout=layout)  # pyright: ignore[reportArgumentType]
    return LocalEngine(base, settings, decode=decode, micro_batch_tokens=micro_batch_tokens)


@pytest.fixture(params=["local-lora", "local-full", "padded-lora", "padded-full", "toy"])
def case(request: pytest.FixtureRequest, base: Path) -> Case:
    if request.param == "toy":
        return Case(lambda _: ToyEngine(VOCABULARY, stop_ids=(STOP,), decode=decode), LORA)
    layout = "padded" if "padded" in request.param else "packed"
    return Case(lambda tokens: local(base, tokens, layout=layout), LORA if "lora" in request.param else None)


def denominator(rows: list[Datum]) -> float:
    return float(sum(row.trained for row in rows))


def train(engine: Engine, steps: range, *, model: str = "m", params: AdamParams = ADAM) -> list[float]:
    """A few steps on rows that depend on the step's number only; returns the losses."""
    losses = []
    for step in steps:
        rows = make_rows(4, seed=100 + step)
        losses.append(engine.forward_backward(model, rows).metrics["loss:sum"])
        engine.optim_step(model, params, denominator=denominator(rows))
    return losses


def flat(engine: Engine, model: str = "m") -> np.ndarray:
    """Log-probs on fixed rows: a fingerprint of a model's weights."""
    return np.concatenate(engine.forward(model, make_rows(6, seed=55)).logprobs)


# Log-probs


def test_forward_fills_every_position(case: Case) -> None:
    engine, rows = case.fresh(), make_rows(5)
    result = engine.forward("m", rows)
    for row, logprobs in zip(rows, result.logprobs, strict=True):
        assert logprobs.shape == (row.length,) and logprobs.dtype == np.float32 and (logprobs < 0).all()
    expected = -sum(float(np.dot(r.weights, p)) for r, p in zip(rows, result.logprobs, strict=True))
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)


def test_forward_backward_fills_the_trained_positions(case: Case) -> None:
    engine, rows = case.fresh(40), make_rows(5)
    every = engine.forward("m", rows)
    result = engine.forward_backward("m", rows)
    for row, all_T, some_T in zip(rows, every.logprobs, result.logprobs, strict=True):
        np.testing.assert_allclose(some_T, np.where(row.weights != 0, all_T, 0), atol=1e-5)
    assert result.metrics["loss:sum"] == pytest.approx(every.metrics["loss:sum"], abs=1e-4)


def test_probabilities_sum_to_one(case: Case) -> None:
    tokens = np.array([5, 6], dtype=np.int64)
    rows = [Datum(tokens, np.array([6, t]), np.ones(2, dtype=np.float32)) for t in range(VOCABULARY)]
    last = [logprobs[-1] for logprobs in case.fresh().forward("m", rows).logprobs]
    assert float(np.exp(last).sum()) == pytest.approx(1, abs=1e-5)


# Gradients: what must not matter


@pytest.mark.parametrize("split", ["micro-batches", "calls", "packing", "permutation"])
def test_no_split_changes_the_step(case: Case, split: str) -> None:
    rows = make_rows(7)
    whole = case.fresh()
    whole.forward_backward("m", rows)
    other = case.fresh({"micro-batches": 30, "packing": 1}.get(split, 4096))
    parts = {"calls": [rows[:2], rows[2:3], rows[3:]], "permutation": [rows[::-1]]}.get(split, [rows])
    for part in parts:
        other.forward_backward("m", part)
    norms = [e.optim_step("m", AdamParams(1e-2), denominator=denominator(rows))["grad_norm"] for e in (whole, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    np.testing.assert_allclose(flat(whole), flat(other), atol=1e-4)


@pytest.mark.parametrize("budget", [1, 30, 70])
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_are_equal_to_1e_6_under_every_split(
    base: Path, budget: int, lora: LoraSpec | None, layout: str
) -> None:
    found = []
    for tokens in (4096, budget):
        engine = local(base, tokens, layout=layout)
        engine.create_model("m", lora=lora, seed=7)
        train(engine, range(1))
        engine.forward_backward("m", make_rows(7))
        scale = denominator(make_rows(7))
        named = engine._lm.named_parameters()
        found.append({name: p.grad / scale for name, p in named if p.grad is not None})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_denominator_divides_once(case: Case) -> None:
    """2 tokens at one NLL and 8 at another: the step is that of the sum over 10, not of a mean of means."""
    engine, rows = case.fresh(), make_rows(3)
    engine.forward_backward("m", rows)
    single = engine.optim_step("m", AdamParams(0.0), denominator=1.0)["grad_norm"]
    engine.forward_backward("m", rows[:1])
    engine.forward_backward("m", rows[1:])
    assert engine.optim_step("m", AdamParams(0.0), denominator=4.0)["grad_norm"] == pytest.approx(single / 4, rel=1e-4)


def test_noise_after_the_last_trained_token_changes_nothing(case: Case) -> None:
    generator, rows = np.random.default_rng(1), make_rows(5)
    noisy, cut = [], []
    for row in rows:
        weights = row.weights.copy()
        weights[-2:] = 0
        tokens, targets = row.tokens.copy(), row.targets.copy()
        last = int(np.flatnonzero(weights)[-1]) if weights.any() else 0
        tokens[last + 1 :] = generator.integers(2, VOCABULARY, len(tokens) - last - 1)
        targets[last + 1 :] = generator.integers(2, VOCABULARY, len(tokens) - last - 1)
        cut.append(Datum(row.tokens, row.targets, weights))
        noisy.append(Datum(tokens, targets, weights))
    found = []
    for data in (cut, noisy):
        engine = case.fresh()
        loss = engine.forward_backward("m", data).metrics["loss:sum"]
        norm = engine.optim_step("m", AdamParams(1e-2), denominator=denominator(cut))["grad_norm"]
        found.append((loss, norm, flat(engine)))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-5)


def test_training_lowers_the_loss(case: Case) -> None:
    engine, rows = case.fresh(), [Datum(r.tokens, r.targets, np.ones_like(r.weights)) for r in make_rows(4)]
    losses = []
    for _ in range(12):
        losses.append(engine.forward_backward("m", rows).metrics["loss:sum"])
        engine.optim_step("m", AdamParams(2e-2), denominator=denominator(rows))
    assert losses[-1] < 0.95 * losses[0]


def test_rate_zero_changes_no_weight(case: Case) -> None:
    engine = case.fresh()
    before = flat(engine)
    train(engine, range(2), params=AdamParams(0.0, weight_decay=0.1))
    assert np.array_equal(before, flat(engine))


def test_data_without_a_trained_token_gives_a_zero_gradient(case: Case) -> None:
    engine = case.fresh()
    silent = [Datum(row.tokens, row.targets, np.zeros_like(row.weights)) for row in make_rows(2)]
    result = engine.forward_backward("m", silent)
    assert result.metrics["loss:sum"] == 0 and not np.concatenate(result.logprobs).any()
    assert engine.optim_step("m", ADAM, denominator=1.0) == {"grad_norm": 0.0}


# Refusals


def test_sequence_numbers(case: Case) -> None:
    engine, rows = case.fresh(), make_rows(2)
    with pytest.raises(ValueError, match="must be 1, got 2"):
        engine.forward_backward("m", rows, seq=2)
    engine.forward_backward("m", rows, seq=1)
    engine.forward("m", rows)  # without a number, none is used up
    with pytest.raises(ValueError, match="must be 2, got 1"):
        engine.optim_step("m", ADAM, denominator=1.0, seq=1)
    engine.optim_step("m", ADAM, denominator=1.0, seq=2)
    engine.forward("m", rows, seq=3)


def test_bad_calls_are_refused(case: Case) -> None:
    engine, rows = case.fresh(), make_rows(1)
    beyond = Datum(np.array([2]), np.array([VOCABULARY]), np.ones(1, dtype=np.float32))
    long = np.full(65, 2, dtype=np.int64)
    with pytest.raises(KeyError, match="'other' does not exist"):
        engine.forward("other", rows)
    with pytest.raises(ValueError, match="got no datum"):
        engine.forward("m", [])
    with pytest.raises(ValueError, match=f"targets hold ids {VOCABULARY}"):
        engine.forward("m", [beyond])
    with pytest.raises(ValueError, match="over the model's context of 64"):
        engine.forward_backward("m", [Datum(long, long, np.ones(65, dtype=np.float32))])
    with pytest.raises(ValueError, match="loss"):
        engine.forward_backward("m", rows, loss="no_such_loss")
    with pytest.raises(ValueError, match="no gradient since the last step"):
        engine.optim_step("m", ADAM, denominator=1.0)
    engine.forward_backward("m", rows)
    with pytest.raises(ValueError, match="denominator"):
        engine.optim_step("m", ADAM, denominator=0.0)
    with pytest.raises(ValueError, match="exists already"):
        engine.create_model("m", lora=LORA)


def test_gradient_that_is_not_finite(case: Case) -> None:
    engine = case.fresh()
    before = flat(engine)
    row = make_rows(1)[0]
    huge = Datum(row.tokens, row.targets, np.full(row.length, 3e38, dtype=np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        engine.forward_backward("m", [huge] * 3)
        if isinstance(engine, ToyEngine):  # fp64 holds it; make it overflow
            engine._models["m"].gradient_VV = engine._models["m"].gradient_VV * np.inf  # pyright: ignore
        with pytest.raises(FloatingPointError, match="no weight has changed"):
            engine.optim_step("m", ADAM, denominator=1.0)
    assert np.array_equal(before, flat(engine))
    with pytest.raises(ValueError, match="no gradient since"):
        engine.optim_step("m", ADAM, denominator=1.0)


# Models


def test_models_of_one_base_do_not_disturb_each_other(case: Case) -> None:
    if case.lora is None:
        pytest.skip("a full model stands alone")
    alone = case.fresh(model="a")
    train(alone, range(3), model="a")
    engine = case.fresh(model="a")
    engine.create_model("accounts/x/models/b.1", lora=LoraSpec(2, 2.0, targets=("q_proj",), rslora=True), seed=1)
    engine.create_model("reference", lora=None, base_only=True)
    reference = flat(engine, "reference")
    for step in range(3):
        rows = make_rows(4, seed=100 + step)
        engine.forward_backward("a", rows)
        train(engine, range(9, 10), model="accounts/x/models/b.1")
        flat(engine, "reference")
        engine.optim_step("a", ADAM, denominator=denominator(rows))
    np.testing.assert_allclose(flat(alone, "a"), flat(engine, "a"), atol=1e-6)
    assert np.array_equal(reference, flat(engine, "reference"))
    assert not np.allclose(flat(engine, "a"), flat(engine, "accounts/x/models/b.1"), atol=1e-3)


def test_base_only_refuses_training(case: Case) -> None:
    engine = case.make(4096)
    engine.create_model("reference", lora=None, base_only=True)
    with pytest.raises(ValueError, match="base_only"):
        engine.forward_backward("reference", make_rows(1))
    with pytest.raises(ValueError, match="base_only"):
        engine.optim_step("reference", ADAM, denominator=1.0)


def test_full_model_stands_alone(case: Case) -> None:
    engine = case.make(4096)
    engine.create_model("full", lora=None)
    with pytest.raises(ValueError, match="full"):
        engine.create_model("adapter", lora=LORA)
    with pytest.raises(ValueError, match="full"):
        engine.create_model("other", lora=None)


# Files


def test_resume_continues_exactly(case: Case, tmp_path: Path) -> None:
    engine = case.fresh()
    first = train(engine, range(3))
    engine.save_weights("m", tmp_path / "weights")
    engine.save_state("m", tmp_path / "state")
    expected = train(engine, range(3, 6))
    resumed = case.make(4096)
    resumed.create_model("m", lora=case.lora, seed=99)
    resumed.load_state("m", tmp_path / "weights", tmp_path / "state")
    assert train(resumed, range(3, 6)) == expected and first != expected
    assert np.array_equal(flat(engine), flat(resumed))


def test_resume_keeps_the_sequence_number_and_weights_only_starts_afresh(case: Case, tmp_path: Path) -> None:
    engine = case.fresh()
    engine.forward_backward("m", make_rows(2), seq=1)
    with pytest.raises(ValueError, match="under way"):
        engine.save_state("m", tmp_path)
    engine.optim_step("m", ADAM, denominator=1.0, seq=2)
    engine.save_weights("m", tmp_path)
    engine.save_state("m", tmp_path)
    resumed = case.make(4096)
    resumed.create_model("m", lora=case.lora)
    resumed.load_state("m", tmp_path, tmp_path)
    resumed.forward("m", make_rows(1), seq=3)
    warm = case.make(4096)
    warm.create_model("m", lora=None, warm_start=tmp_path)
    np.testing.assert_array_equal(flat(engine), flat(warm))
    warm.forward("m", make_rows(1), seq=1)


def test_saved_before_the_first_step(case: Case, tmp_path: Path) -> None:
    engine = case.fresh()
    engine.save_weights("m", tmp_path)
    engine.save_state("m", tmp_path)
    expected = train(engine, range(2))
    resumed = case.make(4096)
    resumed.create_model("m", lora=case.lora, seed=99)
    resumed.load_state("m", tmp_path, tmp_path)
    assert train(resumed, range(2)) == expected


# Sampling


def prompts() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(2, VOCABULARY, n) for n in (4, 9, 2)]


def same(left: Completion, right: Completion) -> bool:
    return left.tokens.tolist() == right.tokens.tolist() and np.allclose(left.logprobs, right.logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sample_logprobs_equal_forwards(case: Case, temperature: float) -> None:
    engine = case.fresh()
    train(engine, range(2))
    params = SamplingParams(max_new_tokens=16, temperature=temperature, num_samples=2)
    for prompt, completions in zip(prompts(), engine.sample("m", prompts(), params), strict=True):
        assert len(completions) == 2
        for completion in completions:
            ids = np.concatenate([prompt, completion.tokens])
            row = Datum(ids[:-1], ids[1:], np.ones(len(ids) - 1, dtype=np.float32))
            logprobs = engine.forward("m", [row]).logprobs[0][len(prompt) - 1 :]
            np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
            if temperature:
                np.testing.assert_allclose(completion.sampling_logprobs, completion.logprobs, atol=1e-5)
            else:
                assert not completion.sampling_logprobs.any()


def test_samples_are_repeatable_and_differ(case: Case) -> None:
    engine = case.fresh()
    params = SamplingParams(max_new_tokens=12, num_samples=3, seed=1, stop_ids=())
    first, again = (engine.sample("m", prompts(), params) for _ in range(2))
    assert all(same(a, b) for left, right in zip(first, again, strict=True) for a, b in zip(left, right, strict=True))
    other = engine.sample("m", prompts(), SamplingParams(max_new_tokens=12, num_samples=3, seed=2, stop_ids=()))
    texts = {tuple(c.tokens.tolist()) for group in (first, other) for row in group for c in row}
    assert len(texts) == 18


def test_a_completion_does_not_depend_on_its_batch(case: Case) -> None:
    engine = case.fresh()
    params = SamplingParams(max_new_tokens=12, seed=4)
    together = engine.sample("m", prompts(), params)
    for prompt, completions in zip(prompts(), together, strict=True):
        assert same(completions[0], engine.sample("m", [prompt], params)[0][0])
    more = engine.sample("m", prompts()[::-1], SamplingParams(max_new_tokens=12, seed=4, num_samples=2))
    assert all(same(left[0], right[0]) for left, right in zip(together, more[::-1], strict=True))


def test_stop_ids_end_a_completion_and_are_kept(case: Case) -> None:
    engine = case.fresh()
    free = engine.sample("m", prompts(), SamplingParams(max_new_tokens=12, stop_ids=()))
    assert all(c.finish == "length" and len(c.tokens) == 12 for (c,) in free)
    stop = int(free[0][0].tokens[5])
    stopped = engine.sample("m", prompts(), SamplingParams(max_new_tokens=12, stop_ids=(stop, VOCABULARY + 5)))
    for (before,), (after,) in zip(free, stopped, strict=True):
        places = np.flatnonzero(before.tokens == stop)
        n = int(places[0]) + 1 if places.size else 12
        assert after.tokens.tolist() == before.tokens[:n].tolist()
        assert after.finish == ("stop" if places.size else "length")


def test_the_models_own_stop_id_is_the_default(case: Case) -> None:
    engine = case.fresh()
    assert engine.stop_ids == (STOP,)  # pyright: ignore[reportAttributeAccessIssue]
    params = SamplingParams(max_new_tokens=40, num_samples=16, temperature=3.0)
    completions = [c for row in engine.sample("m", prompts(), params) for c in row]
    assert {c.finish for c in completions} == {"stop", "length"}
    assert all((c.tokens[-1] == STOP) == (c.finish == "stop") and STOP not in c.tokens[:-1] for c in completions)


def test_stop_strings_end_a_completion(case: Case) -> None:
    engine = case.fresh()
    (free,) = engine.sample("m", prompts()[:1], SamplingParams(max_new_tokens=12, stop_ids=()))[0]
    wanted = decode(free.tokens[3:5].tolist())
    params = SamplingParams(max_new_tokens=12, stop_ids=(), stop_strings=(wanted, "not to be seen"))
    (stopped,) = engine.sample("m", prompts()[:1], params)[0]
    n = decode(free.tokens.tolist()).index(wanted) + 2
    assert stopped.tokens.tolist() == free.tokens[:n].tolist() and stopped.finish == "stop"


def test_stream_gives_the_same_tokens_one_by_one(case: Case) -> None:
    engine = case.fresh()
    params = SamplingParams(max_new_tokens=9, seed=3)
    (whole,) = engine.sample("m", prompts()[:1], params)[0]
    parts = list(engine.stream("m", prompts()[0], params))
    assert [int(part.tokens[0]) for part in parts] == whole.tokens.tolist() and parts[-1].finish == whole.finish
    np.testing.assert_allclose(np.concatenate([part.logprobs for part in parts]), whole.logprobs, atol=1e-5)


def test_bad_sampling_is_refused(case: Case) -> None:
    engine = case.fresh()
    with pytest.raises(ValueError, match="room for one token"):
        engine.sample("m", [np.full(64, 2)], SamplingParams())
    with pytest.raises(ValueError, match="room for one token"):
        engine.sample("m", [np.zeros(0, dtype=np.int64)], SamplingParams())
    with pytest.raises(KeyError, match="'other' does not exist"):
        engine.stream("other", prompts()[0], SamplingParams())
    with pytest.raises(ValueError, match="top_p"):
        engine.sample("m", prompts(), SamplingParams(top_p=0.0))
    with pytest.raises(ValueError, match="holds ids"):
        engine.sample("m", [np.array([VOCABULARY])], SamplingParams())


# The local engine's files and weights


def own_logprobs(model: torch.nn.Module, row: Datum) -> np.ndarray:
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.from_numpy(row.tokens)[None]).logits[0].float()
    return torch.log_softmax(logits, -1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0].numpy()


def base_hash(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.safetensors")))).hexdigest()


@plain_peft
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapter_files_load_with_plain_peft_and_merge(tmp_path: Path, architecture: str, rslora: bool) -> None:
    base, row = make_model(tmp_path / "base", architecture), make_rows(1)[0]
    engine = local(base)
    engine.create_model("m", lora=LoraSpec(4, 8.0, rslora=rslora))
    untouched = {name: p.detach().clone() for name, p in engine._lm.named_parameters() if ".lora_" not in name}
    train(engine, range(3))
    engine.sample("m", prompts(), SamplingParams(max_new_tokens=2))
    engine.save_weights("m", tmp_path / "adapter")
    ours = engine.forward("m", [row]).logprobs[0]

    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not np.allclose(ours, own_logprobs(plain, row), atol=1e-2)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    np.testing.assert_allclose(ours, own_logprobs(adapted, row), atol=1e-5)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    np.testing.assert_allclose(
        ours, own_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), row), atol=1e-4
    )

    again = local(base)
    again.create_model("m", lora=None, warm_start=tmp_path / "adapter")
    np.testing.assert_array_equal(ours, again.forward("m", [row]).logprobs[0])
    for name, parameter in engine._lm.named_parameters():  # trap 11: the base is bit-equal after training
        if ".lora_" not in name:
            assert torch.equal(parameter, untouched[name]), name


def test_full_files_load_with_plain_transformers(base: Path, tmp_path: Path) -> None:
    before = base_hash(base)
    engine, row = local(base), make_rows(1)[0]
    engine.create_model("m", lora=None)
    train(engine, range(3))
    engine.save_weights("m", tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_allclose(engine.forward("m", [row]).logprobs[0], own_logprobs(plain, row), atol=1e-5)
    assert plain.generation_config.eos_token_id == STOP and base_hash(base) == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert LocalEngine(tmp_path, EngineSettings(device="cpu")).stop_ids == (STOP,)


def test_loss_and_gradient_equal_transformers_own(base: Path) -> None:
    engine = local(base)
    engine.create_model("m", lora=None)
    ids = np.random.default_rng(0).integers(2, VOCABULARY, 15)
    row = Datum(ids[:-1], ids[1:], np.ones(14, dtype=np.float32))
    loss = engine.forward_backward("m", [row]).metrics["loss:sum"] / 14
    oracle = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.from_numpy(ids)[None]
    expected = oracle(input_ids=tokens, labels=tokens).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    grads = dict(oracle.named_parameters())
    for name, parameter in engine._lm.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / 14, grads[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_dropout_acts_in_training_only_and_resumes_exactly(base: Path, tmp_path: Path) -> None:
    def fresh(seed: int) -> LocalEngine:
        engine = local(base)
        engine.create_model("m", lora=LoraSpec(4, 8.0, dropout=0.5), seed=seed)
        return engine

    engine = fresh(7)
    train(engine, range(3))
    row = [Datum(r.tokens, r.targets, np.ones_like(r.weights)) for r in make_rows(2)]
    quiet = engine.forward("m", row).metrics["loss:sum"]
    assert quiet == engine.forward("m", row).metrics["loss:sum"]
    noisy = {engine.forward_backward("m", row).metrics["loss:sum"] for _ in range(2)}
    assert len(noisy | {quiet}) == 3
    engine.optim_step("m", ADAM, denominator=1.0)
    engine.save_weights("m", tmp_path)
    engine.save_state("m", tmp_path)
    torch.manual_seed(1234)
    expected = train(engine, range(3, 6))
    resumed = fresh(99)
    resumed.load_state("m", tmp_path, tmp_path)
    torch.manual_seed(4321)
    assert train(resumed, range(3, 6)) == expected


def test_adapters_are_fp32_on_a_bf16_base_and_tiny_updates_do_not_vanish(tmp_path: Path) -> None:
    engine = local(make_model(tmp_path, dtype=torch.bfloat16), dtype="bfloat16")
    engine.create_model("m", lora=LORA)
    parameters = engine._adapters.parameters("m0")
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert {p.dtype for name, p in engine._lm.named_parameters() if ".lora_" not in name} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    row = make_rows(1)
    for _ in range(100):
        engine.forward_backward("m", row)
        engine.optim_step("m", AdamParams(1e-6, eps=1e-12), denominator=1.0)
    moved = torch.cat(
        [(p.detach() - before[name]).abs().flatten() for name, p in parameters.items() if "lora_B" in name]
    )
    assert float(moved.median()) == pytest.approx(1e-4, rel=0.02)


def test_the_toy_never_imports_torch() -> None:
    program = "import sys, trainer.engine.toy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_bf16_full_model_keeps_fp32_masters(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", dtype=torch.bfloat16)
    engine = local(base, dtype="bfloat16")
    engine.create_model("m", lora=None)
    train(engine, range(2), params=AdamParams(1e-5))
    engine.save_weights("m", tmp_path / "now")
    engine.save_state("m", tmp_path / "now")
    expected = train(engine, range(2, 4), params=AdamParams(1e-3))
    resumed = local(base, dtype="bfloat16")
    resumed.create_model("m", lora=None)
    resumed.load_state("m", tmp_path / "now", tmp_path / "now")
    assert train(resumed, range(2, 4), params=AdamParams(1e-3)) == expected
    assert {t.dtype for t in load_file(tmp_path / "now" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_adapters_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    engine = local(base)
    with pytest.raises(ValueError, match="lm_head is the LM head"):
        engine.create_model("m", lora=LoraSpec(2, 2.0, targets=("lm_head",)))
    with pytest.raises(ValueError, match="no_such_layer"):
        engine.create_model("m", lora=LoraSpec(2, 2.0, targets=("no_such_layer",)))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (tmp_path / "adapter_model.bin").write_bytes(b"not to be read")
    with pytest.raises(ValueError, match="only safetensors are read"):
        engine.create_model("m", lora=None, warm_start=tmp_path)
    engine.create_model("m", lora=LoraSpec(2, 2.0))
    engine.save_weights("m", tmp_path)
    engine.create_model("n", lora=LoraSpec(4, 2.0))
    with pytest.raises(ValueError, match="r=2, the model 4"):
        engine.load_state("n", tmp_path, None)


def test_a_head_that_does_something_else_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Linear, "forward", _doubled_logits)
    with pytest.raises(ValueError, match="its head or its attention does something"):
        local(base)


def _doubled_logits(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = torch.nn.functional.linear(x, self.weight, self.bias)
    return 2 * out if self.out_features == VOCABULARY else out
