"""Causal attention over packed rows on a CPU; for rows as long as chats are, as plain matrix products.

For those, torch's kernel multiplies every query with every key and computes the probabilities again on the way back.
Here a block of queries meets only the keys it may see, the query heads of a group are rows of one matrix (so that keys
are not repeated), and the probabilities are kept. Very short and long rows take the kernel, which is faster there.
A row may begin with tokens of another: then its keys are a copy of theirs, followed by its own.
`attend` and `attend_backward` know nothing of autograd, so that fused layers can call them; `Causal` makes them a step.
T tokens, X keys (T, and those that rows share once more), N query heads, K key-value heads, D head size, R = T N / K
queries of a group, B matrices of one product.
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


class Run(NamedTuple):
    """`rows` adjacent rows of `length` tokens each. shared: for each row the tokens of an earlier one that it begins
    with, equally many, none of them among its own; empty where rows share nothing."""

    rows: int
    length: int
    shared: tuple[range, ...] = ()


Runs = Sequence[Run]


class _Run(NamedTuple):
    """`rows` rows of `length` keys each from key `key` on; queries from token `start` on, of all but the first `shared`
    tokens of a row."""

    start: int
    key: int
    rows: int
    length: int
    shared: int


class _Block(NamedTuple):
    """Tokens `start` to `stop` of a row whose first query is that of token `shared`; the first key any of them sees."""

    start: int
    stop: int
    first: int
    shared: int


def attend(
    q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, runs: Runs, *, scale: float, window: int | None
) -> tuple[Tensor, list[Tensor]]:
    """softmax(scale q k' + mask) v row by row, [T, N, D]; and what `attend_backward` takes as `kept`.

    Token i of a row sees its tokens i - window + 1 .. i; without a window, 0 .. i.
    """
    out_TND, kept = torch.empty_like(q_TND), list[Tensor]()
    products, others = _split(runs, window)
    k_XKD, v_XKD = (spread(x, runs) for x in (k_TKD, v_TKD))
    if products:
        groups = q_TND.shape[1] // k_TKD.shape[1]
        q_KRD = _grouped(q_TND, k_TKD.shape[1], scale)
        out_KRD = torch.empty_like(q_KRD)
        for run, (q, out, k, v) in _matrices(products, groups, (q_KRD, out_KRD), (k_XKD, v_XKD)):
            for block in _blocks(run.length, window, run.shared):
                p = _probabilities(q, k, block, groups, window)
                torch.bmm(p, _keys(v, block), out=_queries(out, block, groups))
                kept.append(p)
        _ungroup(out_KRD, out_TND)
    for run in others:
        how = {"attn_mask": _mask(run, window), "scale": scale}
        found, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_of_queries(run, q_TND), *_of_keys(run, k_XKD, v_XKD), 0.0, how["attn_mask"] is None, **how
        )
        _of_queries(run, out_TND)[0].copy_(found)
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
    (q_TND, *kv_TKD), (dq_TND, *dkv_TKD) = inputs, into
    products, others = _split(runs, window)
    left = iter(kept)
    k_XKD, v_XKD = (spread(x, runs) for x in kv_TKD)
    apart = any(run.shared for run in runs)
    dk_XKD, dv_XKD = (torch.empty_like(x) for x in (k_XKD, v_XKD)) if apart else dkv_TKD
    if products:
        groups = q_TND.shape[1] // k_XKD.shape[1]
        q_KRD, slope_KRD = (_grouped(x, k_XKD.shape[1], by) for x, by in ((q_TND, scale), (slope_TND, 1.0)))
        dq_KRD = torch.empty_like(q_KRD)
        dk_XKD.zero_()
        dv_XKD.zero_()
        of_groups, of_heads = (q_KRD, slope_KRD, dq_KRD), (k_XKD, v_XKD, dk_XKD, dv_XKD)
        for run, (q, slope, dq, k, v, dk, dv) in _matrices(products, groups, of_groups, of_heads):
            for block in _blocks(run.length, window, run.shared):
                p, slope_b = next(left), _queries(slope, block, groups)
                _keys(dv, block).baddbmm_(p.transpose(1, 2), slope_b)
                dp = torch.bmm(slope_b, _keys(v, block).transpose(1, 2))
                torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=dp)  # pyright: ignore
                torch.bmm(dp, _keys(k, block), out=_queries(dq, block, groups))
                _keys(dk, block).baddbmm_(dp.transpose(1, 2), _queries(q, block, groups))
        _ungroup(dq_KRD.mul_(scale), dq_TND)
    for run in others:
        how = {"attn_mask": _mask(run, window), "scale": scale}
        (slope, q, dq), (k, v, dk, dv) = (
            _of_queries(run, slope_TND, q_TND, dq_TND),
            _of_keys(run, k_XKD, v_XKD, dk_XKD, dv_XKD),
        )
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            slope, q, k, v, next(left), next(left), 0.0, how["attn_mask"] is None, **how
        )
        for target, gradient in zip((dq, dk, dv), found, strict=True):
            target.copy_(gradient)
    if apart:
        for gradient, target in zip((dk_XKD, dv_XKD), dkv_TKD, strict=True):
            _fold(gradient, runs, target)


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


def spread(x_TKD: Tensor, runs: Runs) -> Tensor:
    """Keys as rows see them, [X, K, D]: tokens that a row shares are there again, before its own."""
    if not any(run.shared for run in runs):
        return x_TKD
    return torch.cat([x_TKD[part.start : part.stop] for part in _parts(runs)])


def _fold(x_XKD: Tensor, runs: Runs, into_TKD: Tensor) -> None:
    """The way back, for gradients: what belongs to one token is added up."""
    key, laid = 0, 0
    for part in _parts(runs):
        found, target = x_XKD[key : key + len(part)], into_TKD[part.start : part.stop]
        if part.start < laid:
            target.add_(found)
        else:
            target.copy_(found)
        key, laid = key + len(part), max(laid, part.stop)


def _parts(runs: Runs) -> Iterator[range]:
    """The tokens whose keys are laid one after the other: of rows that share nothing, a whole run at a time."""
    start = 0
    for rows, length, shared in runs:
        for beginning in shared:
            yield beginning
            yield range(start, start + length)
            start += length
        if not shared:
            yield range(start, start + rows * length)
            start += rows * length


def _split(runs: Runs, window: int | None) -> tuple[list[_Run], list[_Run]]:
    """Runs for matrix products, and those for torch's kernel."""
    products, others = list[_Run](), list[_Run]()
    start, key = 0, 0
    for rows, tokens, shared in runs:
        common = len(shared[0]) if shared else 0
        length = common + tokens
        fits = length > _SHORT and min(length, window or length) <= _LONG
        (products if fits else others).append(_Run(start, key, rows, length, common))
        start, key = start + rows * tokens, key + rows * length
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
) -> Iterator[tuple[_Run, list[Tensor]]]:
    """(run, [B, queries or keys of a row, D] of each tensor): all heads of one row, or one head of all rows."""
    for run in runs:
        start, key, count, length, shared = run
        views = [x.narrow(1, start * groups, count * (length - shared) * groups) for x in of_groups]
        views += [x.transpose(0, 1).narrow(1, key, count * length) for x in of_heads]
        if count == 1:
            yield run, views
        else:
            for head in range(views[0].shape[0]):
                yield run, [x[head].unflatten(0, (count, -1)) for x in views]


def _of_queries(run: _Run, *tensors_THD: Tensor) -> list[Tensor]:
    """The run's tokens as [rows, heads, queries of a row, D], views."""
    return _batches(tensors_THD, run.start, run.rows, run.length - run.shared)


def _of_keys(run: _Run, *tensors_XHD: Tensor) -> list[Tensor]:
    """The run's keys as [rows, heads, keys of a row, D], views."""
    return _batches(tensors_XHD, run.key, run.rows, run.length)


def _batches(tensors_THD: Sequence[Tensor], start: int, rows: int, length: int) -> list[Tensor]:
    return [x[start : start + rows * length].unflatten(0, (rows, length)).transpose(1, 2) for x in tensors_THD]


def _blocks(length: int, window: int | None, shared: int = 0) -> Iterator[_Block]:
    step = -(-(length - shared) // max(1, round((length - shared) / _BLOCK)))
    for start in range(shared, length, step):
        yield _Block(start, min(start + step, length), max(0, start - window + 1) if window else 0, shared)


def _queries(x_BRD: Tensor, block: _Block, groups: int) -> Tensor:
    return x_BRD.narrow(1, (block.start - block.shared) * groups, (block.stop - block.start) * groups)


def _keys(x_BLD: Tensor, block: _Block) -> Tensor:
    return x_BLD.narrow(1, block.first, block.stop - block.first)


def _probabilities(q_BRD: Tensor, k_BLD: Tensor, block: _Block, groups: int, window: int | None) -> Tensor:
    """softmax(q k' + mask) of a block's queries and keys."""
    start, stop, first, _ = block
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


def _mask(run: _Run, window: int | None) -> Tensor | None:
    """The whole mask of a run that shares, or is longer than its window, [queries, keys] for torch's kernel; None where
    `is_causal` says it all."""
    length, shared = run.length, run.shared
    if not shared and (window is None or length <= window):
        return None
    banned = torch.full((length - shared, length), float("-inf"))
    mask = banned.triu(1 + shared)
    return mask if window is None else mask + banned.tril(shared - window)
