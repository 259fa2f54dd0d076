"""Preference losses on every engine: the numbers of their definition, whatever the packing, the split and the order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.pairs_kit import make_pairs, swapped
from tests.conformance.test_engines import LORA, Case, base, case, flat
from tests.conformance.tiny_models import STOP, VOCABULARY, make_model
from trainer.data.datum import Datum, from_row
from trainer.engine import batching
from trainer.engine.base import AdamParams, Engine
from trainer.engine.local import LocalEngine
from trainer.engine.toy_losses import toy_loss
from trainer.loss_specs import LOSS_SPECS
from trainer.runs import EngineSettings

__all__ = ["base", "case"]  # fixtures

PREFERENCE = [name for name, spec in LOSS_SPECS.items() if spec.pairs]
CONSTANTS: dict[str, dict[str, float]] = {
    name: {"orpo_lambda": 0.7} if name == "orpo" else {"beta": 0.3, "nll_weight": 0.5} for name in PREFERENCE
}
every_loss = pytest.mark.parametrize("loss", PREFERENCE)


def step(engine: Engine, parts: list[list[Datum]], loss: str) -> tuple[float, float, np.ndarray]:
    """Loss sum, gradient norm, and the model's log-probs after one step on all parts."""
    total = 0.0
    for part in parts:
        result = engine.forward_backward("m", part, loss=loss, loss_config=CONSTANTS[loss])
        total += result.metrics["loss:sum"]
    pairs = sum(map(len, parts)) / 2
    norm = engine.optim_step("m", AdamParams(1e-2), denominator=pairs)["grad_norm"]
    return total, norm, flat(engine)


@every_loss
def test_the_loss_is_that_of_the_definition(case: Case, loss: str) -> None:
    """Rows are packed shortest first, and each pair's shorter side may be either: sides must not be swapped."""
    engine, data = case.fresh(60), make_pairs(5)
    result = engine.forward("m", data, loss=loss, loss_config=CONSTANTS[loss])
    expected, _, metrics = toy_loss(loss, data, [row.astype(np.float64) for row in result.logprobs], CONSTANTS[loss])
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    for name, value in metrics.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    turned = engine.forward("m", swapped(data), loss=loss, loss_config=CONSTANTS[loss]).metrics
    assert turned["correct:sum"] == 5 - metrics["correct:sum"]
    assert abs(turned["loss:sum"] - expected) > 1e-3


@every_loss
def test_it_equals_cross_entropy_with_the_slopes_as_weights(case: Case, loss: str) -> None:
    data = make_pairs(4)
    engine, other = case.fresh(), case.fresh()
    logprobs = [row.astype(np.float64) for row in engine.forward("m", data).logprobs]
    _, slopes, _ = toy_loss(loss, data, logprobs, CONSTANTS[loss])
    engine.forward_backward("m", data, loss=loss, loss_config=CONSTANTS[loss])
    other.forward_backward(
        "m", [replace(d, weights=-s.astype(np.float32), reference=None) for d, s in zip(data, slopes, strict=True)]
    )
    norms = [one.optim_step("m", AdamParams(1e-2), denominator=4)["grad_norm"] for one in (engine, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    np.testing.assert_allclose(flat(engine), flat(other), atol=2e-4)


@pytest.mark.parametrize("loss", ["dpo", "dpo_ipo", "orpo"])
@pytest.mark.parametrize("split", ["micro-batches", "one pair each", "calls", "order"])
def test_no_split_changes_the_step(case: Case, loss: str, split: str) -> None:
    data = make_pairs(6)
    whole = step(case.fresh(), [data], loss)
    order = [index for pair in (3, 0, 5, 1, 4, 2) for index in (2 * pair, 2 * pair + 1)]
    parts = {"calls": [data[:2], data[2:8], data[8:]], "order": [[data[index] for index in order]]}.get(split, [data])
    other = step(case.fresh({"micro-batches": 50, "one pair each": 1}.get(split, 4096)), parts, loss)
    assert whole[:2] == pytest.approx(other[:2], rel=1e-5)
    np.testing.assert_allclose(whole[2], other[2], atol=1e-4)


def test_at_the_start_the_loss_is_ln_2(case: Case) -> None:
    engine, data = case.fresh(), make_pairs(3, reference=False)
    reference = engine.forward("m", data).logprobs
    known = [replace(datum, reference=row) for datum, row in zip(data, reference, strict=True)]
    result = engine.forward_backward("m", known, loss="dpo").metrics
    assert result["loss:sum"] == pytest.approx(3 * np.log(2), abs=1e-5)
    assert result["margin:sum"] == pytest.approx(0, abs=1e-5)


def test_bad_pairs_are_refused_before_anything_is_computed(case: Case) -> None:
    engine, data = case.fresh(), make_pairs(3)
    silent = replace(data[3], weights=np.zeros_like(data[3].weights))
    some = [data[0], replace(data[1], reference=None)]
    for call in (engine.forward, engine.forward_backward):
        with pytest.raises(ValueError, match="got 5 datums, wanted pairs in the order chosen, rejected"):
            call("m", data[:5], loss="dpo")
        with pytest.raises(ValueError, match="the datums have no reference; it needs"):
            call("m", make_pairs(2, reference=False), loss="dpo")
        with pytest.raises(ValueError, match="1 of 2 datums have no reference"):
            call("m", some, loss="dpo")
        with pytest.raises(ValueError, match=r"datums \[3\] have no trained position"):
            call("m", [*data[:3], silent], loss="orpo")
        with pytest.raises(ValueError, match="dpo does not take"):
            call("m", data, loss="dpo", loss_config={"gamma": 1.0})
    with pytest.raises(ValueError, match="no gradient since"):
        engine.optim_step("m", AdamParams(1e-2), denominator=1.0)


def test_pairs_stay_together_in_every_micro_batch(base: Path) -> None:
    from trainer.engine.batching import micro_batches
    from trainer.engine.local import _device

    data = make_pairs(6)
    for budget in (1, 40, 1000):
        batches = list(micro_batches(data, budget, every_position=False, device=_device("cpu"), together=2))
        firsts = [min(batch.order) for batch in batches]
        assert all(first % 2 == 0 for first in firsts) and firsts == sorted(firsts)
        assert [index for batch in batches for index in sorted(batch.order)] == list(range(12))
        assert len(batches) == (6 if budget == 1 else len(batches)) and (budget < 1000 or len(batches) == 1)


# One forward over what two neighbours have in common

SHAPES = {  # tokens of the common prompt, of the chosen answer, of the rejected one
    "usual": ((20, 7, 9), (17, 12, 3), (30, 5, 5), (18, 2, 20)),
    "one token": ((20, 1, 1), (20, 1, 6), (20, 6, 1)),
    "one": ((1, 5, 9), (1, 1, 1), (1, 20, 3)),
    "nothing": ((0, 9, 4), (0, 3, 12)),
    "rows of one length": ((20, 4, 4),) * 3,
}
SETTINGS = {
    "lora": ("qwen3", LORA, {}),
    "full": ("qwen3", None, {}),
    "checkpointing": ("qwen3", LORA, {"gradient_checkpointing": True}),
    "unfused, window": ("gemma3", None, {}),
    "unfused, checkpointing": ("gemma3", LORA, {"gradient_checkpointing": True}),
    "unfused, learnt positions": ("gpt2", None, {}),
}


def pairs_of(shapes: Iterable[tuple[int, int, int]], *, alike: int = 0) -> list[Datum]:
    """Pairs of these shapes; the answers' first `alike` tokens are the same."""
    generator = np.random.default_rng(4)
    data: list[Datum] = []
    for prompt, *answers in shapes:
        common = generator.integers(2, VOCABULARY, prompt + alike)
        for length in answers:
            ids = np.concatenate([common, generator.integers(2, VOCABULARY, length), [STOP]]).astype(np.int64)
            datum = from_row(ids, np.arange(len(ids)) >= max(1, prompt))
            data.append(replace(datum, reference=generator.normal(-3, 1, datum.length).astype(np.float32)))
    return data


def gradients(folder: Path, settings: str, data: list[Datum], *, share: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """Metrics and log-probs of both passes, and the gradient."""
    _, lora, more = SETTINGS[settings]
    engine = LocalEngine(folder, EngineSettings(device="cpu", **more))
    engine._share = int(share)
    engine.create_model("m", lora=lora, seed=7)
    for name, parameter in engine._lm.named_parameters():
        if "lora_B" in name:  # it starts at zero, and then A has no gradient
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    results = [engine.forward("m", data)]
    results += [
        call("m", data, loss="dpo", loss_config=CONSTANTS["dpo"]) for call in (engine.forward, engine.forward_backward)
    ]
    found = [[*result.metrics.values(), *np.concatenate(result.logprobs)] for result in results]
    return found, {n: p.grad for n, p in engine._lm.named_parameters() if p.grad is not None}


def same(folder: Path, settings: str, data: list[Datum]) -> None:
    (numbers, shared), (expected, apart) = (gradients(folder, settings, data, share=on) for on in (True, False))
    for one, other in zip(numbers, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert shared.keys() == apart.keys() and shared
    for name, grad in apart.items():
        torch.testing.assert_close(shared[name], grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("qwen3", "gemma3", "gpt2")
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_shared_prompt_changes_no_number(folders: dict[str, Path], settings: str) -> None:
    same(folders[SETTINGS[settings][0]], settings, pairs_of([one for some in SHAPES.values() for one in some]))


@pytest.mark.parametrize("shapes", SHAPES)
def test_no_shape_of_a_pair_changes_a_number(folders: dict[str, Path], shapes: str) -> None:
    same(folders["qwen3"], "full", pairs_of(SHAPES[shapes]))


def test_answers_that_begin_alike_share_what_is_trained_too(folders: dict[str, Path]) -> None:
    same(folders["qwen3"], "lora", pairs_of(SHAPES["usual"], alike=3))
    twice = [one for one in pairs_of(SHAPES["one"])[::2] for _ in range(2)]
    same(folders["qwen3"], "lora", twice)  # the rejected answer is the chosen one: none of its tokens is laid


def test_neighbours_are_laid_as_a_row_and_what_is_left_of_the_other() -> None:
    first, second = pairs_of([(16, 2, 3)]), pairs_of([(20, 4, 1)])
    short = pairs_of([(15, 2, 1)])
    (batch,) = batching.micro_batches(
        [*first, *short, *second], 1, every_position=True, device=torch.device("cpu"), together=6, share=16
    )
    assert batch.order == [3, 2, 0, 4, 5, 1]  # whole rows shortest first, then what is left
    assert batch.rows is not None
    assert batch.lengths == (16, 17, 18, 24, 21, 19) and batch.rows.lengths == (16, 17, 18, 24, 1, 3)
    assert batch.rows.shared is not None and batch.rows.shared[4:] == (range(51, 71), range(33, 49))
    assert batch.positions_1T[0, -4:].tolist() == [20, 16, 17, 18]
    assert batch.tokens_BT[0, -4:].tolist() == [second[1].tokens[20], *first[1].tokens[16:]]
    assert batch.head_K is None and batch.reads is not None
    asked = batch.targets_U.shape[0]
    assert asked == 79 + 2 and batch.reads.again.tolist() == [48, 70]  # the prompts' last tokens have two targets
    into = [np.zeros(0)] * 6
    batch.scatter(batch.targets_U.index_select(0, batch.reads.read_N).float(), into)
    for datum, found in zip([*first, *short, *second], into, strict=True):
        np.testing.assert_array_equal(found, datum.targets)


def test_only_enough_tokens_are_shared_and_never_by_three_rows() -> None:
    row = pairs_of([(30, 2, 2)])[0]
    assert batching.shared_lengths([row] * 4, 1) == [0, 32, 0, 32]
    assert batching.shared_lengths(pairs_of([(16, 2, 2)]), 16) == [0, 16]
    assert batching.shared_lengths(pairs_of([(15, 2, 2), (30, 1, 1)]), 16) == [0, 0, 0, 30]


def test_the_reference_pass_shares_too(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    original = LocalEngine._hidden

    def counted(self: LocalEngine, batch: batching.MicroBatch) -> torch.Tensor:
        laid.append(batch.tokens_BT.shape[1])
        return original(self, batch)

    engine, data = LocalEngine(folders["qwen3"], EngineSettings(device="cpu")), pairs_of([(20, 4, 6), (30, 2, 2)])
    engine.create_model("m", lora=LORA)
    monkeypatch.setattr(LocalEngine, "_hidden", counted)
    tokens = sum(datum.length for datum in data)
    engine.forward("m", data)
    engine.forward_backward("m", data, loss="dpo")
    engine.forward_backward("m", data)
    assert laid == [tokens - 50, tokens - 50, tokens]  # cross-entropy trains rows apart


@pytest.mark.parametrize(
    "settings", [{"attention": "sdpa"}, {"attention": "sdpa", "layout": "packed"}, {"dtype": "bfloat16"}]
)
def test_with_a_mask_and_in_half_precision_numbers_are_the_same(
    folders: dict[str, Path], settings: dict[str, Any]
) -> None:
    data, engine = pairs_of(SHAPES["usual"]), LocalEngine(folders["qwen3"], EngineSettings(device="cpu", **settings))
    engine.create_model("m", lora=LORA)
    assert bool(engine._share) == ("attention" not in settings)
    together = engine.forward("m", data).logprobs
    tolerance = 1e-5 if "attention" in settings else 0.1
    for datum, found in zip(data, together, strict=True):
        np.testing.assert_allclose(found, engine.forward("m", [datum]).logprobs[0], atol=tolerance)
