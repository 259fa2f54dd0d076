"""Causal attention over packed rows on a CPU; for rows as long as chats are, as plain matrix products.

For those, torch's kernel multiplies every query with every key and computes the probabilities again on the way back.
Here a block of queries meets only the keys it may see, the query heads of a group are rows of one matrix (so that keys
are not repeated), and the probabilities are kept. Very short and long rows take the kernel, which is faster there.
`attend` and `attend_backward` know nothing of autograd, so that fused layers can call them; `Causal` makes them a step.
T tokens, N query heads, K key-value heads, D head size, R = T N / K queries of a group, B matrices of one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

_BLOCK = 80  # queries, about; smaller blocks see fewer masked keys, larger ones take fewer calls
_SHORT, _LONG = 32, 512  # keys that a query sees at most; products from the one to the other, else torch's kernel

Runs = Sequence[tuple[int, int]]  # (rows, length) of adjacent rows of one length


class _Run(NamedTuple):
    """`rows` rows of `length` tokens each, from token `start` on."""

    start: int
    rows: int
    length: int


class _Block(NamedTuple):
    """Queries `start` to `stop` of a row, and the first key that any of them sees."""

    start: int
    stop: int
    first: int


def attend(
    q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, runs: Runs, *, scale: float, window: int | None
) -> tuple[Tensor, list[Tensor]]:
    """softmax(scale q k' + mask) v row by row, [T, N, D]; and what `attend_backward` takes as `kept`.

    Token i of a row sees its tokens i - window + 1 .. i; without a window, 0 .. i.
    """
    out_TND, kept = torch.empty_like(q_TND), list[Tensor]()
    products, others = _split(runs, window)
    if products:
        groups = q_TND.shape[1] // k_TKD.shape[1]
        q_KRD = _grouped(q_TND, k_TKD.shape[1], scale)
        out_KRD = torch.empty_like(q_KRD)
        for length, (q, out, k, v) in _matrices(products, groups, (q_KRD, out_KRD), (k_TKD, v_TKD)):
            for block in _blocks(length, window):
                p = _probabilities(q, k, block, groups, window)
                torch.bmm(p, _keys(v, block), out=_queries(out, block, groups))
                kept.append(p)
        _ungroup(out_KRD, out_TND)
    for run in others:
        how = {"attn_mask": _window_mask(run.length, window), "scale": scale}
        found, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_batches(run, q_TND, k_TKD, v_TKD), 0.0, how["attn_mask"] is None, **how
        )
        _batches(run, out_TND)[0].copy_(found)
        kept += (found, logsumexp)
    return out_TND, kept


def attend_backward(
    slope_TND: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    kept: Sequence[Tensor],
    runs: Runs,
    *,
    scale: float,
    window: int | None,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients of `inputs` (q, k and v of `attend`) to `into`, given that of the result."""
    (q_TND, k_TKD, v_TKD), (dq_TND, dk_TKD, dv_TKD) = inputs, into
    products, others = _split(runs, window)
    left = iter(kept)
    if products:
        groups = q_TND.shape[1] // k_TKD.shape[1]
        q_KRD, slope_KRD = (_grouped(x, k_TKD.shape[1], by) for x, by in ((q_TND, scale), (slope_TND, 1.0)))
        dq_KRD = torch.empty_like(q_KRD)
        dk_TKD.zero_()
        dv_TKD.zero_()
        of_groups, of_heads = (q_KRD, slope_KRD, dq_KRD), (k_TKD, v_TKD, dk_TKD, dv_TKD)
        for length, (q, slope, dq, k, v, dk, dv) in _matrices(products, groups, of_groups, of_heads):
            for block in _blocks(length, window):
                p, slope_b = next(left), _queries(slope, block, groups)
                _keys(dv, block).baddbmm_(p.transpose(1, 2), slope_b)
                dp = torch.bmm(slope_b, _keys(v, block).transpose(1, 2))
                torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=dp)  # pyright: ignore
                torch.bmm(dp, _keys(k, block), out=_queries(dq, block, groups))
                _keys(dk, block).baddbmm_(dp.transpose(1, 2), _queries(q, block, groups))
        _ungroup(dq_KRD.mul_(scale), dq_TND)
    for run in others:
        how = {"attn_mask": _window_mask(run.length, window), "scale": scale}
        qkv, (slope,) = _batches(run, q_TND, k_TKD, v_TKD), _batches(run, slope_TND)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            slope, *qkv, next(left), next(left), 0.0, how["attn_mask"] is None, **how
        )
        for target, gradient in zip(_batches(run, *into), found, strict=True):
            target.copy_(gradient)


class Causal(Function):
    """`attend` as one step of autograd."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:  # pyright: ignore
        q_TND, k_TKD, v_TKD, ctx.runs, scale, window = args
        ctx.how = {"scale": scale, "window": window}
        out_TND, kept = attend(q_TND, k_TKD, v_TKD, ctx.runs, **ctx.how)
        ctx.save_for_backward(q_TND, k_TKD, v_TKD, *kept)
        return out_TND

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q_TND, k_TKD, v_TKD, *kept = ctx.saved_tensors
        into = (q_TND.new_empty(q_TND.shape), k_TKD.new_empty(k_TKD.shape), v_TKD.new_empty(v_TKD.shape))
        attend_backward(slopes[0], (q_TND, k_TKD, v_TKD), kept, ctx.runs, into=into, **ctx.how)
        return (*into, None, None, None)


# How rows are laid out


def _split(runs: Runs, window: int | None) -> tuple[list[_Run], list[_Run]]:
    """Runs for matrix products, and those for torch's kernel."""
    products, others = list[_Run](), list[_Run]()
    start = 0
    for count, length in runs:
        fits = length > _SHORT and min(length, window or length) <= _LONG
        (products if fits else others).append(_Run(start, count, length))
        start += count * length
    return products, others


def _grouped(x_TND: Tensor, kv_heads: int, scale: float) -> Tensor:
    """A copy of scale x as [K, R, D]: for each key-value head the queries of its group, token by token."""
    x_KTGD = x_TND.unflatten(1, (kv_heads, -1)).transpose(0, 1)
    return torch.mul(x_KTGD, scale, out=x_TND.new_empty(x_KTGD.shape)).flatten(1, 2)


def _ungroup(x_KRD: Tensor, into_TND: Tensor) -> None:
    """The way back."""
    x_TKGD = x_KRD.unflatten(1, (into_TND.shape[0], -1)).transpose(0, 1)
    into_TND.unflatten(1, x_TKGD.shape[1:3]).copy_(x_TKGD)


def _matrices(
    runs: Sequence[_Run], groups: int, of_groups: Sequence[Tensor], of_heads: Sequence[Tensor]
) -> Iterator[tuple[int, list[Tensor]]]:
    """(length, [B, queries or tokens of a row, D] of each tensor): all heads of one row, or one head of all rows."""
    by_head = [(x, groups) for x in of_groups] + [(x.transpose(0, 1), 1) for x in of_heads]
    for start, count, length in runs:
        views = [x.narrow(1, start * per, count * length * per) for x, per in by_head]
        if count == 1:
            yield length, views
        else:
            for head in range(views[0].shape[0]):
                yield length, [x[head].unflatten(0, (count, -1)) for x in views]


def _batches(run: _Run, *tensors_THD: Tensor) -> list[Tensor]:
    """The run's rows as [rows, heads, length, D], views."""
    stop = run.start + run.rows * run.length
    return [x[run.start : stop].unflatten(0, (run.rows, run.length)).transpose(1, 2) for x in tensors_THD]


def _blocks(length: int, window: int | None) -> Iterator[_Block]:
    step = -(-length // max(1, round(length / _BLOCK)))
    for start in range(0, length, step):
        yield _Block(start, min(start + step, length), max(0, start - window + 1) if window else 0)


def _queries(x_BRD: Tensor, block: _Block, groups: int) -> Tensor:
    return x_BRD.narrow(1, block.start * groups, (block.stop - block.start) * groups)


def _keys(x_BLD: Tensor, block: _Block) -> Tensor:
    return x_BLD.narrow(1, block.first, block.stop - block.first)


def _probabilities(q_BRD: Tensor, k_BLD: Tensor, block: _Block, groups: int, window: int | None) -> Tensor:
    """softmax(q k' + mask) of a block's queries and keys."""
    start, stop, first = block
    p = torch.bmm(_queries(q_BRD, block, groups), _keys(k_BLD, block).transpose(1, 2))
    count = stop - start
    later, earlier = _corners(groups)
    p.narrow(2, start - first, count).add_(later[: count * groups, :count])
    if window and stop > window:
        outside = max(0, window - 1 - start)  # columns by which the first query's window begins before the row
        p.narrow(2, 0, max(0, count - outside)).add_(earlier[: count * groups, outside:count])
    return torch._softmax(p, -1, False, out=p)  # pyright: ignore


@cache
def _corners(groups: int) -> tuple[Tensor, Tensor]:
    """Minus infinity where key j comes after query i, and where it comes before; a block's masks are their corners."""
    banned = torch.full((2 * _BLOCK, 2 * _BLOCK), float("-inf"))
    later, earlier = (mask.repeat_interleave(groups, 0) for mask in (banned.triu(1), banned.tril(-1)))
    return later, earlier


def _window_mask(length: int, window: int | None) -> Tensor | None:
    """The whole mask [L, L] of a row longer than its window, for torch's kernel; None where `is_causal` says it all."""
    if window is None or length <= window:
        return None
    return torch.full((length, length), float("-inf")).triu(1) + torch.full((length, length), float("-inf")).tril(
        -window
    )
