"""Fused layers against transformers' own: gradcheck in fp64, equal gradients over several chunks, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.conformance.tiny_models import make_model, make_rows
from trainer.engine import fused
from trainer.engine.base import LoraSpec
from trainer.engine.causal import Run
from trainer.engine.local import LocalEngine
from trainer.runs import EngineSettings

T, H, F, D = 5, 6, 7, 4


def linear(out: int, into: int, *, lora: bool, bias: bool) -> list[Tensor | None]:
    """Weight, bias, A, B, in fp64 and asking for gradients."""

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    return [made(out, into), made(out) if bias else None, *((made(2, into), made(out, 2)) if lora else (None, None))]


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_norms", [False, True])
def test_gradcheck(lora: bool, bias: bool, head_norms: bool) -> None:
    torch.manual_seed(0)
    scales = [0.5, 2.0, 1.5]
    sizes = {"lora": lora, "bias": bias}
    inputs = [tensor for out in (2 * D, D, D) for tensor in linear(out, H, **sizes)]
    cos, sin = torch.randn(T, D, dtype=torch.float64), torch.randn(T, D, dtype=torch.float64)
    norms = (x(D), x(D)) if head_norms else (None, None)
    torch.autograd.gradcheck(fused._Inputs.apply, (x(T, H), x(H), cos, sin, *norms, 1e-3, scales, *inputs))
    projection = linear(H, 4 * D, **sizes)
    for keep, *runs in ((None, Run(2, 2), Run(1, 1)), (torch.tensor([0, 3, 4]), Run(1, 3), Run(1, 2, (range(1),)))):

        def attention(*given: Any, keep: Any = keep, runs: Any = runs) -> Any:
            return fused._Attention.apply(*given[:3], runs, {"scale": 0.5, "window": None}, keep, 0.5, *given[3:])

        torch.autograd.gradcheck(attention, (x(T, H), x(T, 6, D), x(T, 2, D), *projection))
    mlp = [*linear(F, H, **sizes), *linear(F, H, **sizes), *linear(H, F, **sizes)]
    torch.autograd.gradcheck(fused._Mlp.apply, (x(T, H), x(H), 1e-3, scales, *mlp))


def qwen2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def gradients(engine: LocalEngine, lora: LoraSpec | None) -> tuple[float, dict[str, Tensor]]:
    engine.create_model("m", lora=lora, seed=3)
    if lora is not None:  # B starts at zero, and then A has no gradient
        for name, parameter in engine._adapters.parameters("m0").items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    loss = engine.forward_backward("m", make_rows(200)).metrics["loss:sum"]
    found = {name: p.grad / 1000 for name, p in engine._lm.named_parameters() if p.grad is not None}
    return loss, found


@pytest.mark.parametrize("lora", [LoraSpec(4, 8.0), LoraSpec(2, 2.0, targets=("q_proj", "down_proj")), None])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_equals_transformers_layers(architecture: str, lora: LoraSpec | None, tmp_path: Path) -> None:
    folder = qwen2(tmp_path) if architecture == "qwen2" else make_model(tmp_path, architecture)
    engine, plain = (LocalEngine(folder, EngineSettings(device="cpu"), micro_batch_tokens=4096) for _ in range(2))
    assert engine._fused
    unfuse(plain)
    loss, found = gradients(engine, lora)
    expected_loss, expected = gradients(plain, lora)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def unfuse(engine: LocalEngine) -> None:
    for layer in engine._decoder.layers:
        del layer.forward
    engine._fused = False


def test_adapter_dropout_and_other_families_go_the_usual_way(tmp_path: Path) -> None:
    engine = LocalEngine(make_model(tmp_path / "qwen3"), EngineSettings(device="cpu"))
    engine.create_model("m", lora=LoraSpec(4, 8.0, dropout=0.5))
    layer: Any = engine._decoder.layers[0]
    assert layer.forward._weights() is not None
    with engine._training(engine._find("m")):
        assert layer.forward._weights() is None
    assert not LocalEngine(make_model(tmp_path / "gemma3", "gemma3"), EngineSettings(device="cpu"))._fused


@pytest.mark.parametrize(("tokens", "width"), [(0, 8), (1, 8), (255, 2**20), (513, 2**20), (5000, 384)])
def test_chunks_cover_all_tokens_once(tokens: int, width: int) -> None:
    chunks = list(fused._chunks(tokens, width))
    assert [i for chunk in chunks for i in range(chunk.start, chunk.stop)] == list(range(tokens))
    assert all(chunk.stop - chunk.start <= max(256, 2**17 // width) for chunk in chunks)


@pytest.mark.parametrize("lora", [None, LoraSpec(4, 8.0)])
def test_checkpointing_drops_what_fused_layers_keep_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraSpec | None
) -> None:
    folder, forwards = make_model(tmp_path / "qwen3"), list[int]()
    original = fused._Layer._fused

    def counted(self: Any, *args: Any, **more: Any) -> Tensor:
        forwards.append(1)
        return original(self, *args, **more)

    monkeypatch.setattr(fused._Layer, "_fused", counted)
    found = {}
    for on in (False, True):
        engine = LocalEngine(folder, EngineSettings(device="cpu", gradient_checkpointing=on))
        forwards.clear()
        found[on] = (gradients(engine, lora), len(forwards))
    (loss, expected), once = found[False]
    (same, computed), twice = found[True]
    assert twice == 2 * once  # every layer is computed again on the way back
    assert same == loss
    for name, grad in expected.items():
        torch.testing.assert_close(computed[name], grad, rtol=0, atol=0, msg=name)
