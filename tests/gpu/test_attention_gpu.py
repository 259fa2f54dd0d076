"""The CUDA kernels of packed attention against the row-by-row path, in bf16. Skipped without a GPU."""

from __future__ import annotations

import pytest
import torch

from trainer.engine import attention
from trainer.engine.attention import Rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("window", [None, 16])
def test_kernel_equals_row_by_row(window: int | None) -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    rows = Rows((5, 40, 40, 129), device)
    total = sum(rows.lengths)
    shapes = ((total, 8, 64), (total, 2, 64), (total, 2, 64))
    inputs = [torch.randn(*shape, device=device, dtype=torch.bfloat16).requires_grad_() for shape in shapes]
    out_gradient = torch.randn(total, 8, 64, device=device, dtype=torch.bfloat16)
    kernel = attention._kernel()
    assert kernel is not None, "this torch has no varlen attention and flash-attn is not installed"
    found = []
    for function in (attention._row_by_row, kernel):
        q, k, v = inputs
        out = function(q, k, v, rows, scaling=0.125, window=window)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, out_gradient)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=3e-2)
