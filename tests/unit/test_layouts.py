"""Padded rows have the numbers of packed ones, padding has no influence, and the layout follows from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tests.conformance.pairs_kit import make_pairs
from tests.conformance.tiny_models import ARCHITECTURES, VOCABULARY, make_model, make_rows
from trainer.compose import ConfigError, compose
from trainer.data.buckets import Bounds
from trainer.data.datum import Datum
from trainer.engine.base import LoraSpec
from trainer.engine.batching import MicroBatch, padded_batches
from trainer.engine.local import LocalEngine
from trainer.losses.table import find_loss
from trainer.runs import EngineSettings

CPU = torch.device("cpu")
WIDE = Bounds(tokens=4096, rows=64, start=1000)  # everything in one bucket
DPO = {"loss": "dpo", "loss_config": {"beta": 0.3, "nll_weight": 0.5}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_model(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def engine_of(folder: Path, layout: str, *, lora: bool = True, tokens: int | None = None, **more: Any) -> LocalEngine:
    settings = EngineSettings.model_validate({"device": "cpu", "layout": layout, **more})
    engine = LocalEngine(folder, settings, micro_batch_tokens=tokens)
    engine.create_model("m", lora=LoraSpec(4, 8.0) if lora else None, seed=7)
    for name, parameter in engine._lm.named_parameters():
        if "lora_B" in name:  # it starts at zero, and then A has no gradient
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return engine


def gradients(engine: LocalEngine) -> dict[str, Tensor]:
    return {name: p.grad for name, p in engine._lm.named_parameters() if p.grad is not None}


def numbers(engine: LocalEngine, data: Sequence[Datum], **loss: Any) -> list[np.ndarray]:
    """Log-probs and metrics of both passes; the gradient stays where it is."""
    results = [call("m", data, **loss) for call in (engine.forward, engine.forward_backward)]
    return [np.array([*result.metrics.values(), *np.concatenate(result.logprobs)]) for result in results]


# The same numbers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("loss", [{}, DPO], ids=["cross_entropy", "dpo"])
def test_padded_rows_have_the_numbers_of_packed_ones(
    folders: dict[str, Path], architecture: str, lora: bool, loss: dict[str, Any]
) -> None:
    data = make_pairs(6) if loss else make_rows(9)
    packed, padded = (engine_of(folders[architecture], layout, lora=lora) for layout in ("packed", "padded"))
    for one, other in zip(numbers(padded, data, **loss), numbers(packed, data, **loss), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    expected, scale = gradients(packed), sum(datum.trained for datum in data)
    assert gradients(padded).keys() == expected.keys() and expected
    for name, grad in gradients(padded).items():
        torch.testing.assert_close(grad / scale, expected[name] / scale, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_recomputing_and_half_precision_change_nothing_else(folders: dict[str, Path], architecture: str) -> None:
    data = make_rows(9)
    plain, again = (engine_of(folders[architecture], "padded", gradient_checkpointing=on) for on in (False, True))
    for one, other in zip(numbers(plain, data), numbers(again, data), strict=True):
        np.testing.assert_array_equal(one, other)
    torch.testing.assert_close(gradients(plain), gradients(again))
    halves = [engine_of(folders[architecture], layout, dtype="bfloat16") for layout in ("packed", "padded")]
    one, other = (np.concatenate(engine.forward("m", data).logprobs) for engine in halves)
    assert float(np.abs(one - other).max()) < 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_padding_holds_has_no_influence_at_all(folders: dict[str, Path], architecture: str) -> None:
    """Other ids in padded places: the same log-probs and the same gradient, bit by bit, with no mask for them."""
    engine, data = engine_of(folders[architecture], "padded", lora=False), make_rows(7)
    (batch,) = padded_batches(data, WIDE, every_position=False, device=CPU)
    real_BT = torch.arange(batch.tokens_BT.shape[1]) < torch.tensor(batch.lengths)[:, None]
    assert batch.padding == int((~real_BT).sum()) > 20
    noise_BT = torch.randint(2, VOCABULARY, real_BT.shape, generator=torch.Generator().manual_seed(3))
    found = []
    for one in (batch, replace(batch, tokens_BT=torch.where(real_BT, batch.tokens_BT, noise_BT))):
        logprobs_N, _ = engine._backward(one, find_loss("cross_entropy", {}), {})
        found.append((logprobs_N, {name: grad.clone() for name, grad in gradients(engine).items()}))
        engine._find("m").optimizer.clear()  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].keys() == found[1][1].keys()
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


class Attended(TorchFunctionMode):
    """Notes (rows, tokens, whether there was a mask) of every call of SDPA."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            masked = kwargs["attn_mask"] is not None
            assert masked != kwargs["is_causal"]
            self.calls.append((args[0].shape[0], args[0].shape[2], masked))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_only_sliding_windows_have_a_mask(folders: dict[str, Path], architecture: str) -> None:
    engine = engine_of(folders[architecture], "padded")
    with Attended() as seen:
        engine.forward("m", rows_of(4, 20, 21))
    windowed = architecture == "gemma3"  # its first layer sees 5 tokens, its second all
    assert seen.calls == [(3, 21, windowed), (3, 21, False)]


# One micro-batch


def rows_of(*lengths: int) -> list[Datum]:
    """Row r is r + 2, r + 2, ...; its targets count up; its last position is trained."""
    return [
        Datum(
            np.full(length, row + 2), np.arange(length) + 10 * row, (np.arange(length) == length - 1).astype(np.float32)
        )
        for row, length in enumerate(lengths)
    ]


def one_batch(data: list[Datum], *, every_position: bool, together: int = 1) -> MicroBatch:
    (batch,) = padded_batches(data, WIDE, every_position=every_position, device=CPU, together=together)
    return batch


def test_rows_are_padded_on_the_right_and_only_trained_positions_go_through_the_head() -> None:
    batch = one_batch(rows_of(2, 4, 3), every_position=False)
    assert batch.tokens_BT.tolist() == [[2, 2, 0, 0], [3, 3, 3, 3], [4, 4, 4, 0]]
    assert batch.positions_1T.tolist() == [[0, 1, 2, 3]]
    assert batch.head_K is not None and batch.head_K.tolist() == [1, 7, 10]
    assert batch.targets_U.tolist() == [1, 13, 22] and batch.trained_N is None
    assert (batch.rows, batch.reads, batch.order, batch.padding) == (None, None, [0, 1, 2], 3)
    assert batch.fields.datum_N.tolist() == [0, 1, 2] and batch.fields.datums == 3


def test_every_real_position_is_asked_for_and_goes_back_to_its_row() -> None:
    data = rows_of(2, 4, 3)
    batch = one_batch(data, every_position=True)
    assert batch.head_K is not None and batch.head_K.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10]
    assert batch.trained_N is not None and batch.trained_N.tolist() == [1, 5, 8]
    into = [np.zeros(0)] * 3
    batch.scatter(batch.targets_U.float(), into)
    for datum, found in zip(data, into, strict=True):
        np.testing.assert_array_equal(found, datum.targets)
    assert one_batch(rows_of(3, 3), every_position=True).head_K is None  # nothing is left out


def test_a_bucket_of_pairs_counts_them_as_the_caller_does() -> None:
    data = rows_of(3, 5, 20, 20, 5, 4)
    bounds = Bounds(tokens=4096, rows=64, start=1)
    longer, shorter = padded_batches(data, bounds, every_position=False, device=CPU, together=2)
    assert (longer.order, shorter.order) == ([2, 3], [0, 1, 4, 5])
    assert shorter.fields.datum_N.tolist() == [0, 1, 2, 3] and longer.fields.datum_N.tolist() == [0, 1]


def test_padding_is_counted_where_it_is_computed(folders: dict[str, Path]) -> None:
    padded, packed = (engine_of(folders["qwen3"], layout) for layout in ("padded", "packed"))
    data = rows_of(5, 9, 7)
    for engine, expected in ((padded, 6), (packed, 0)):
        assert engine.forward("m", data).padding == engine.forward_backward("m", data).padding == expected
    silent = [replace(datum, weights=np.zeros_like(datum.weights)) for datum in data]
    assert padded.forward_backward("m", silent).padding == 0  # nothing is learnt, so nothing is computed


# Which layout


@pytest.mark.parametrize(
    ("attention", "layout", "expected"),
    [
        ("auto", "auto", "packed"),
        ("varlen", "auto", "packed"),
        ("sdpa", "auto", "padded"),
        ("sdpa", "packed", "packed"),
        ("auto", "padded", "padded"),
        ("auto", "packed", "packed"),
    ],
)
def test_auto_pads_where_packed_rows_would_need_a_mask(attention: str, layout: str, expected: str) -> None:
    settings = EngineSettings.model_validate({"attention": attention, "layout": layout})
    assert settings.laid_out == expected


def test_rows_are_laid_whole_where_they_are_padded(folders: dict[str, Path]) -> None:
    assert engine_of(folders["qwen3"], "auto")._share > 0
    padded = engine_of(folders["qwen3"], "auto", attention="sdpa")
    assert padded._padded and padded._share == 0 and not padded._fused


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^engine\.layout: 'padded' rows have plain SDPA only, and attention is"):
        compose(["data=quickstart", "engine.layout=padded", "engine.attention=varlen"])
    with pytest.raises(ConfigError, match=r"^engine\.layout: Input should be 'auto', 'packed' or 'padded', got 'wide'"):
        compose(["data=quickstart", "engine.layout=wide"])
    assert compose(["data=quickstart", "engine.layout=padded"]).engine.laid_out == "padded"
