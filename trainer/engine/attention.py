"""Attention over packed rows: several rows laid end to end in one [1, T] sequence, each attending to itself only.

Registered with transformers as one attention and one mask function (`ATTENTION`). Inside `packed(rows, mode)` the mask
function gives no mask (`varlen`: the attention function works row by row) or an explicit block-diagonal one (`sdpa`);
outside it both are transformers' own SDPA, which is what padded rows and sampling with a key-value cache use. The rows
reach the attention function as the keyword `trainer_rows`, so that recomputing a checkpointed layer in another thread
sees them. A row that begins like an earlier one may leave these tokens out and see theirs: varlen, but not in the CUDA
kernels.
T tokens, H query heads, K key-value heads, D head size, n rows of one length L.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, sdpa_mask

from trainer.engine.causal import Causal, Run, spread

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn  # torch >= 2.10
except ImportError:
    _varlen_attn = None
try:
    from flash_attn import flash_attn_varlen_func as _flash_attn  # pyright: ignore[reportMissingImports]
except ImportError:
    _flash_attn = None

ATTENTION = "trainer_packed"
Mode = Literal["varlen", "sdpa"]
_NOT_SUPPORTED = ("softcap", "s_aux", "position_bias")  # Gemma 2's cap, attention sinks, T5's bias


@dataclass(frozen=True, eq=False)
class Rows:
    """Lengths of the rows in a packed sequence, in order; adjacent rows of one length are attended to in one call.

    shared: for each row the tokens of an earlier row that it begins with, an empty range if none (None = no row does).
    They are laid once, as that row's, and `lengths` counts them there.
    """

    lengths: tuple[int, ...]
    device: torch.device
    shared: tuple[range, ...] | None = None
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _boundaries: list[Tensor] = field(default_factory=list)

    def runs(self) -> list[Run]:
        """Runs of rows with equal lengths and as many shared tokens; rows without tokens of their own are left out."""
        runs: list[Run] = []
        before: tuple[int, int] | None = None
        for length, shared in zip(self.lengths, self.shared or [range(0)] * len(self.lengths), strict=True):
            beginning = (shared,) if shared else ()
            if length and before == (length, len(shared)):
                rows, _, beginnings = runs.pop()
                runs.append(Run(rows + 1, length, beginnings + beginning))
            elif length:
                runs.append(Run(1, length, beginning))
                before = (length, len(shared))
        return runs

    def boundaries(self) -> Tensor:
        """Cumulative lengths, int32 [rows + 1], as the CUDA kernels want them."""
        if not self._boundaries:
            lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
            self._boundaries.append(lengths.cumsum(0, dtype=torch.int32).to(self.device))
        return self._boundaries[0]

    def row_of_token(self) -> Tensor:
        """Which row a token belongs to, int64 [T]."""
        counts = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), counts)

    def window_mask(self, length: int, window: int) -> Tensor:
        """Causal and within `window`: token i sees i - window + 1 .. i. Bool [L, L]."""
        if (length, window) not in self.masks:
            ones_LL = torch.ones(length, length, dtype=torch.bool, device=self.device)
            self.masks[length, window] = ones_LL.tril().triu(1 - window)
        return self.masks[length, window]


_packed: ContextVar[tuple[Rows, Mode] | None] = ContextVar("trainer_packed", default=None)


@contextmanager
def packed(rows: Rows, mode: Mode) -> Iterator[None]:
    """Masks made inside are those of packed `rows`."""
    token = _packed.set((rows, mode))
    try:
        yield
    finally:
        _packed.reset(token)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    trainer_rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    fp32 on a CPU goes through `causal.py`; half precision there, MPS, and fp32 elsewhere go row by row through SDPA
    (tested on a CPU). CUDA in half precision goes through torch.nn.attention.varlen, or flash-attn where torch lacks
    that: verified by tests/gpu only.
    Raises `ValueError` for attention variants that it would silently compute wrongly.
    """
    for name in _NOT_SUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} wants {name}={kwargs[name]}, which this engine does not support")
    if trainer_rows is None and attention_mask is None and query.shape[2] == 1 and query.device.type == "cpu":
        return _decode(query, key, value, scaling=scaling), None
    if trainer_rows is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    kernel = _kernel() if query.is_cuda and half else None
    if query.device.type == "cpu" and query.dtype == torch.float32:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out_THD = Causal.apply(q_THD, k_TKD, v_TKD, trainer_rows.runs(), scale, sliding_window)
        assert isinstance(out_THD, Tensor)
    elif kernel is not None:
        _refuse_shared(trainer_rows, "attention in CUDA kernels")
        out_THD = kernel(q_THD, k_TKD, v_TKD, trainer_rows, scaling=scaling, window=sliding_window)
    else:
        out_THD = _row_by_row(q_THD, k_TKD, v_TKD, trainer_rows, scaling=scaling, window=sliding_window)
    return out_THD.unsqueeze(0), None


def packed_mask(mask_function: Callable[..., Any], **kwargs: Any) -> Tensor | None:
    """transformers' mask interface: no mask for varlen rows, block-diagonal for SDPA rows, else SDPA's own."""
    current = _packed.get()
    if current is None:
        return sdpa_mask(mask_function=mask_function, **kwargs)
    rows, mode = current
    if mode == "varlen":
        return None
    _refuse_shared(rows, "a block-diagonal mask")
    row_T = rows.row_of_token()

    def same_row(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        del batch_idx, head_idx
        return row_T[q_idx] == row_T[kv_idx]

    kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(mask_function=and_masks(mask_function, same_row), **kwargs)


def _refuse_shared(rows: Rows, what: str) -> None:
    if rows.shared is not None:
        raise ValueError(f"rows that begin with tokens of others: {what} does not know them; pack them apart")


def _decode(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """One new token a row, nothing masked: the heads of a group are laid out as queries, which is faster on a CPU."""
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    q_BKGD = query.reshape(rows, kv_heads, heads // kv_heads, size)
    out_BKGD = functional.scaled_dot_product_attention(q_BKGD, key, value, scale=scaling)
    return out_BKGD.reshape(rows, 1, heads, size)


def _row_by_row(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, rows: Rows, *, scaling: float | None, window: int | None
) -> Tensor:
    runs = rows.runs()
    heads, kv_heads = q_THD.shape[1], k_TKD.shape[1]
    native_gqa = q_THD.device.type == "cpu"  # elsewhere grouped heads may fall back to a slow kernel
    if heads != kv_heads and not native_gqa:
        k_TKD, v_TKD = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_TKD, v_TKD))
    grouped = heads != k_TKD.shape[1]
    sizes = [count * length for count, length, _ in runs]
    commons = [len(run.shared[0]) if run.shared else 0 for run in runs]
    key_sizes = [run.rows * (run.length + common) for run, common in zip(runs, commons, strict=True)]
    k_XKD, v_XKD = (spread(x, runs) for x in (k_TKD, v_TKD))
    parts = []
    for (count, length, _), common, q, *kv in zip(
        runs, commons, q_THD.split(sizes), k_XKD.split(key_sizes), v_XKD.split(key_sizes), strict=True
    ):
        keys = length + common
        q_nHLD, k_nKLD, v_nKLD = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, *kv))
        masked = common or (window and keys > window)
        mask = rows.window_mask(keys, window or keys)[common:] if masked else None
        out_nHLD = functional.scaled_dot_product_attention(
            q_nHLD, k_nKLD, v_nKLD, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        parts.append(out_nHLD.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _kernel() -> Callable[..., Tensor] | None:
    if _varlen_attn is not None and "enable_gqa" in inspect.signature(_varlen_attn).parameters:
        return _torch_kernel
    return _flash_attn_kernel if _flash_attn is not None else None


def _torch_kernel(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, rows: Rows, *, scaling: float | None, window: int | None
) -> Tensor:
    """Not run without a GPU: see tests/gpu/test_attention_gpu.py."""
    assert _varlen_attn is not None
    cu, longest = rows.boundaries(), max(rows.lengths)
    left = window - 1 if window else -1
    out = _varlen_attn(
        q_THD, k_TKD, v_TKD, cu, cu, longest, longest, scale=scaling, window_size=(left, 0), enable_gqa=True
    )
    assert isinstance(out, Tensor)
    return out


def _flash_attn_kernel(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, rows: Rows, *, scaling: float | None, window: int | None
) -> Tensor:
    """Not run without a GPU: see tests/gpu/test_attention_gpu.py."""
    cu, longest = rows.boundaries(), max(rows.lengths)
    left = window - 1 if window else -1
    return _flash_attn(  # pyright: ignore[reportOptionalCall]
        q_THD, k_TKD, v_TKD, cu, cu, longest, longest, softmax_scale=scaling, causal=True, window_size=(left, 0)
    )


def register() -> str:
    """Make `ATTENTION` known to transformers and return it; safe to repeat."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, packed_mask)
    return ATTENTION
