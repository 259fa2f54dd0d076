"""NaN and infinity are found in safetensors of every format, and nothing that holds them becomes a model."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer import checkpoints, finite
from trainer.finite import NotFinite, check_file, check_folder
from trainer.promotion import lay_out

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -float("nan")])
def test_one_bad_number_is_found(tmp_path, dtype, bad):
    good = torch.linspace(-3, 3, 300).to(dtype)
    save_file({"a": good, "step": torch.tensor([2**31 - 1], dtype=torch.int32)}, tmp_path / "m.safetensors")
    check_folder(tmp_path)
    harmed = good.float().clone()
    harmed[123] = bad
    harmed = harmed.to(dtype)
    if torch.isfinite(harmed.float()).all():
        pytest.skip("this format has no infinity")
    save_file({"a": good.clone(), "b": harmed.reshape(3, 100)}, tmp_path / "m.safetensors")
    with pytest.raises(NotFinite, match=r"m\.safetensors: 1 of 300 numbers of b are NaN or infinite"):
        check_folder(tmp_path)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_finite_bit_pattern_of_small_formats_is_let_through(tmp_path, dtype):
    width = torch.tensor([], dtype=dtype).element_size()
    if width > 2:
        patterns = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, 0.0, -0.0])
        values = patterns.to(torch.float64).to(dtype) if dtype is torch.float64 else patterns.to(dtype)
    else:
        every = np.arange(256**width, dtype=np.uint8 if width == 1 else np.uint16)
        values = torch.frombuffer(bytearray(every.tobytes()), dtype=dtype)
    finite_ones = values[torch.isfinite(values.float())]
    save_file({"a": finite_ones.clone()}, tmp_path / "m.safetensors")
    check_file(tmp_path / "m.safetensors")
    bad = int((~torch.isfinite(values.float())).sum())
    if bad:
        save_file({"a": values.clone()}, tmp_path / "m.safetensors")
        with pytest.raises(NotFinite, match=f"{bad:,} of {len(values):,}"):
            check_file(tmp_path / "m.safetensors")


def test_it_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "_PIECE", 64)
    values = torch.zeros(1000)
    values[[0, 15, 16, 999]] = float("inf")
    save_file({"z": torch.ones(3), "a": values}, tmp_path / "m.safetensors")
    with pytest.raises(NotFinite, match="4 of 1,000 numbers of a"):
        check_file(tmp_path / "m.safetensors")


def test_the_hand_over_refuses_and_leaves_the_model_there_was(tmp_path):
    def save(step, value):
        def fill(weights, state):
            save_file({"w": torch.tensor([1.0, value])}, weights / "adapter_model.safetensors")

        return checkpoints.write(tmp_path / "checkpoints", step, lora=True, cursor={}, fill=fill)

    lay_out(save(1, 2.0), tmp_path / "model", tokenizer_from=None)
    before = (tmp_path / "model" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(NotFinite, match="never kept or promoted"):
        lay_out(save(2, float("nan")), tmp_path / "model", tokenizer_from=None)
    assert (tmp_path / "model" / "adapter_model.safetensors").read_bytes() == before
