"""Log-probs of targets through the LM head, in tiles of positions: full logits never exist.

Two autograd functions over one tile. Where dL/dlogp is known beforehand the gradient is made in the forward pass and
nothing is recomputed; otherwise the backward pass recomputes each tile. Log-softmax is fp32 whatever the dtype.
N positions, H hidden size, V vocabulary, n positions of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MAX_TILE_ELEMENTS = 2**25  # a tile's logits take at most 128 MiB in fp32, whatever the vocabulary
_CACHED_ELEMENTS = 2**22  # 16 MiB: a CPU's cache holds them, and malloc gives them out again without new pages
_LEAST_CACHED = 128  # positions; each tile walks through the whole gradient of the head, too
_UNKNOWN_SCALINGS = ("logit_scale", "logits_scaling", "logits_scale", "output_multiplier_scale")


@dataclass(frozen=True)
class Head:
    """The output projection of a model and what follows it: logits = softcap(hidden @ weight.T + bias)."""

    module: nn.Module
    softcap: float | None
    tile: int

    @classmethod
    def of(cls, model: Any, tile: int) -> Head:
        """The head of a transformers model. Raises `ValueError` where its logits are scaled in a way not known here."""
        config = model.config.get_text_config()
        module = model.get_output_embeddings()
        if not isinstance(module, nn.Linear):
            raise ValueError(f"the LM head is {type(module).__name__}; only a linear head can be trained here")
        for name in _UNKNOWN_SCALINGS:
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"config.{name}={getattr(config, name)}: this scaling of the logits is not supported")
        vocabulary = module.weight.shape[0]
        tile = max(1, min(tile, _MAX_TILE_ELEMENTS // vocabulary))
        if module.weight.device.type == "cpu":
            tile = min(tile, max(_LEAST_CACHED, _CACHED_ELEMENTS // vocabulary))
        return cls(module, getattr(config, "final_logit_softcapping", None), tile)

    @property
    def weight_VH(self) -> Tensor:
        """The projection, tied to the embedding or not."""
        return self.module.weight  # pyright: ignore[reportReturnType]

    @property
    def bias_V(self) -> Tensor | None:
        """The bias, where the model has one."""
        return self.module.bias  # pyright: ignore[reportReturnType]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """fp32 logits [N, V] of a few positions, as sampling needs them."""
        return _capped(functional.linear(hidden_NH, self.weight_VH, self.bias_V).float(), self.softcap)

    def logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """log p(target), fp32 [N], differentiable: each tile's logits are recomputed in the backward pass."""
        return _Recomputed.apply(hidden_NH, self.weight_VH, self.bias_V, targets_N, self)  # pyright: ignore

    def sloped(self, hidden_NH: Tensor, targets_N: Tensor, slopes_N: Tensor) -> tuple[Tensor, Tensor]:
        """(sum_t slope_t log p_t, log p [N]): the first is differentiable, its gradient already made; the second not.

        With slopes dL/dlogp the first has the gradient of L, for hidden states and head alike.
        """
        return _Sloped.apply(hidden_NH, self.weight_VH, self.bias_V, targets_N, slopes_N, self)  # pyright: ignore


def _capped(logits_nV: Tensor, softcap: float | None) -> Tensor:
    return logits_nV if softcap is None else torch.tanh(logits_nV / softcap) * softcap


def _exponentials(logits_nV: Tensor, targets_n1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - max), in place of the logits; their sums [n, 1]; log p(target) [n]."""
    most_n1 = logits_nV.amax(-1, keepdim=True)
    target_n1 = logits_nV.gather(1, targets_n1) - most_n1
    work_nV = logits_nV.sub_(most_n1).exp_()
    sum_n1 = work_nV.sum(-1, keepdim=True)
    return work_nV, sum_n1, (target_n1 - sum_n1.log())[:, 0]


def _tiles(count: int, tile: int) -> Iterator[slice]:
    for start in range(0, count, tile):
        yield slice(start, min(start + tile, count))


class _Gradients:
    """Gradients of hidden states, weight and bias, filled tile by tile; None where not needed."""

    def __init__(self, hidden_NH: Tensor, head: Head, needs: tuple[bool, ...]) -> None:
        self.head = head
        weight_VH, bias_V = head.weight_VH, head.bias_V
        self.hidden_NH = torch.empty_like(hidden_NH) if needs[0] else None
        self.weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needs[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and needs[2] else None

    def add(self, tile: slice, hidden_nH: Tensor, slope_nV: Tensor) -> None:
        """Add a tile whose dL/dlogits (before the cap's own slope) is `slope_nV`."""
        weight_VH = self.head.weight_VH
        if self.bias_V is not None:
            self.bias_V += slope_nV.sum(0)
        slope_nV = slope_nV.to(weight_VH.dtype)
        if self.hidden_NH is not None:
            torch.mm(slope_nV, weight_VH, out=self.hidden_NH[tile])
        if self.weight_VH is not None:
            if weight_VH.dtype == torch.float32:
                self.weight_VH.addmm_(slope_nV.T, hidden_nH)
            else:
                self.weight_VH += torch.mm(slope_nV.T, hidden_nH)

    def scaled(self, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three gradients times `factor`, in the dtypes of what they are gradients of."""
        dtype = self.head.weight_VH.dtype
        found = (self.hidden_NH, self.weight_VH, self.bias_V)
        if factor is not None:
            found = tuple(None if g is None else g.mul_(factor) for g in found)
        hidden_NH, weight_VH, bias_V = found
        return (
            hidden_NH,
            None if weight_VH is None else weight_VH.to(dtype),
            None if bias_V is None else bias_V.to(dtype),
        )


def _tile_gradient(
    gradients: _Gradients, tile: slice, hidden_NH: Tensor, targets_N: Tensor, *, slopes_N: Tensor
) -> Tensor:
    """Add one tile's gradient, dL/dlogits = slope * (onehot - softmax) * dcap; returns its log-probs [n].

    A function of its own so that a tile's [n, V] are gone before the next one's are made.
    """
    head = gradients.head
    hidden_nH, target_n1, slope_n1 = hidden_NH[tile], targets_N[tile, None], slopes_N[tile, None]
    logits_nV = head.logits(hidden_nH)
    cap_slope_nV = None if head.softcap is None else 1 - (logits_nV / head.softcap) ** 2
    work_nV, sum_n1, logprobs_n = _exponentials(logits_nV, target_n1)
    work_nV.mul_(-slope_n1 / sum_n1).scatter_add_(1, target_n1, slope_n1)
    if cap_slope_nV is not None:
        work_nV.mul_(cap_slope_nV)
    gradients.add(tile, hidden_nH, work_nV)
    return logprobs_n


class _Sloped(torch.autograd.Function):
    """Gradient made in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(  # noqa: PLR0917 # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        slopes_N: Tensor,
        head: Head,
    ) -> tuple[Tensor, Tensor]:
        del weight_VH, bias_V  # they are inputs so that autograd hands their gradients on
        gradients = _Gradients(hidden_NH, head, ctx.needs_input_grad)
        logprobs_N = torch.empty(targets_N.shape, dtype=torch.float32, device=hidden_NH.device)
        for tile in _tiles(targets_N.shape[0], head.tile):
            logprobs_N[tile] = _tile_gradient(gradients, tile, hidden_NH, targets_N, slopes_N=slopes_N)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logprobs_N)
        return torch.dot(slopes_N, logprobs_N), logprobs_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return (*ctx.gradients.scaled(grads[0]), None, None, None)


class _Recomputed(torch.autograd.Function):
    """Only hidden states are kept; the backward pass makes each tile's logits again."""

    @staticmethod
    def forward(  # noqa: PLR0917 # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: Head
    ) -> Tensor:
        del weight_VH, bias_V
        logprobs_N = torch.empty(targets_N.shape, dtype=torch.float32, device=hidden_NH.device)
        for tile in _tiles(targets_N.shape[0], head.tile):
            logprobs_N[tile] = _exponentials(head.logits(hidden_NH[tile]), targets_N[tile, None])[2]
        ctx.save_for_backward(hidden_NH, targets_N)
        ctx.head = head
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden_NH, targets_N = ctx.saved_tensors
        head: Head = ctx.head
        gradients = _Gradients(hidden_NH, head, ctx.needs_input_grad)
        for tile in _tiles(targets_N.shape[0], head.tile):
            _tile_gradient(gradients, tile, hidden_NH, targets_N, slopes_N=grads[0])
        return (*gradients.scaled(None), None, None)
