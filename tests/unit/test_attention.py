"""Packed rows: each row's numbers are those of the row alone (traps 2, 3), in every architecture and mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conformance.tiny_models import ARCHITECTURES, VOCABULARY, make_model
from trainer.data.datum import Datum
from trainer.engine.attention import Rows, _row_by_row, packed, packed_attention, packed_mask
from trainer.engine.base import LoraSpec
from trainer.engine.causal import Causal, Run
from trainer.engine.local import LocalEngine
from trainer.runs import EngineSettings

LENGTHS = (7, 12, 7, 1, 20)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


def rows(seed: int = 0) -> list[Datum]:
    generator = np.random.default_rng(seed)
    return [
        Datum(
            generator.integers(2, VOCABULARY, length),
            generator.integers(2, VOCABULARY, length),
            np.ones(length, dtype=np.float32),
        )
        for length in LENGTHS
    ]


def engine_of(folder: Path, mode: str) -> LocalEngine:
    engine = LocalEngine(folder, EngineSettings(device="cpu", attention=mode, layout="packed"))  # pyright: ignore
    engine.create_model("m", lora=None)
    return engine


@pytest.mark.parametrize("mode", ["varlen", "sdpa"])
def test_packed_equals_alone_and_equals_the_models_own_logits(folder: Path, mode: str) -> None:
    engine, data = engine_of(folder, mode), rows()
    packed = engine.forward("m", data).logprobs
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for datum, together in zip(data, packed, strict=True):
        alone = engine.forward("m", [datum]).logprobs[0]
        np.testing.assert_allclose(together, alone, atol=1e-5)
        with torch.no_grad():
            logits = theirs(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
        expected = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0]
        np.testing.assert_allclose(together, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("mode", ["varlen", "sdpa"])
def test_changing_row_b_leaves_the_gradient_of_row_a_unchanged(folder: Path, mode: str) -> None:
    engine, data, others = engine_of(folder, mode), rows(), rows(1)
    found = []
    for neighbours in (data[1:], others[1:]):
        silent = [Datum(d.tokens, d.targets, np.zeros_like(d.weights)) for d in neighbours]
        engine.forward_backward("m", [silent[0], data[0], *silent[1:]])
        grads = {name: p.grad.clone() for name, p in engine._lm.named_parameters() if p.grad is not None}
        found.append(grads)
        engine._models["m"].optimizer.clear()  # pyright: ignore
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=0, atol=1e-7, msg=name)


def test_varlen_and_block_diagonal_have_the_same_gradients(folder: Path) -> None:
    found = []
    for mode in ("varlen", "sdpa"):
        engine = engine_of(folder, mode)
        engine.forward_backward("m", rows())
        found.append({name: p.grad for name, p in engine._lm.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def count_checkpoints(engine: LocalEngine) -> list[int]:
    """A list that grows by one whenever a layer is checkpointed."""
    calls: list[int] = []
    for layer in engine._checkpointed:
        original: Any = layer._gradient_checkpointing_func

        def counted(*args: object, original: Callable[..., object] = original) -> object:
            calls.append(1)
            return original(*args)

        layer._gradient_checkpointing_func = counted  # pyright: ignore
    return calls


def test_gradient_checkpointing_changes_nothing(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        engine = LocalEngine(folder, EngineSettings(device="cpu", gradient_checkpointing=checkpointing))
        engine.create_model("m", lora=LoraSpec(2, 4.0, dropout=0.3), seed=3)
        calls = count_checkpoints(engine)
        engine.forward("m", rows())
        assert not calls
        engine.forward_backward("m", rows())
        assert len(calls) == (2 if checkpointing else 0)
        parameters = engine._adapters.parameters("m0")
        found.append([p.grad for p in parameters.values()])
    torch.testing.assert_close(found[0], found[1])


def test_adjacent_rows_of_one_length_are_one_run() -> None:
    assert Rows((3, 3, 5, 3), torch.device("cpu")).runs() == [Run(2, 3), Run(1, 5), Run(1, 3)]


def test_rows_that_share_are_runs_where_as_much_is_shared() -> None:
    nothing, first, other, third = range(0), range(2), range(5, 7), range(3)
    shared = Rows((3, 3, 3, 2, 2, 2, 0), torch.device("cpu"), (nothing, nothing, first, first, other, third, third))
    assert shared.runs() == [Run(2, 3), Run(1, 3, (first,)), Run(2, 2, (first, other)), Run(1, 2, (third,))]


def test_shared_rows_are_refused_where_nothing_knows_them() -> None:
    rows = Rows((3, 1), torch.device("cpu"), (range(0), range(2)))
    with packed(rows, "sdpa"), pytest.raises(ValueError, match="a block-diagonal mask does not know them"):
        packed_mask(lambda *_: True)


@pytest.mark.parametrize("window", [None, 3, 9])
def test_row_by_row_equals_blocks_where_rows_share(window: int | None) -> None:
    torch.manual_seed(0)
    nothing = range(0)
    shared = (nothing, nothing, range(4, 9), range(4), range(5, 9), nothing)
    rows = Rows((4, 7, 3, 3, 3, 6), torch.device("cpu"), shared)
    inputs = [torch.randn(26, heads, 8).requires_grad_() for heads in (4, 2, 2)]
    expected = Causal.apply(*inputs, rows.runs(), 0.3, window)
    found = _row_by_row(*inputs, rows, scaling=0.3, window=window)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad(y, inputs, slope) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_boundaries_and_rows_of_tokens() -> None:
    packed = Rows((2, 3), torch.device("cpu"))
    assert packed.boundaries().tolist() == [0, 2, 5] and packed.boundaries().dtype == torch.int32
    assert packed.row_of_token().tolist() == [0, 0, 1, 1, 1]


def test_window_mask_sees_the_token_and_those_just_before_it() -> None:
    mask = Rows((4,), torch.device("cpu")).window_mask(4, 2)
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_what_would_be_computed_wrongly_is_refused() -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=r"softcap=50.0"):
        packed_attention(torch.nn.Identity(), x, x, x, None, softcap=50.0)
