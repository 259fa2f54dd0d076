"""AdamW over one model's parameters, stepping fp32 masters whatever the dtype of the weights.

fp32 parameters are their own masters. Weights in half precision get an fp32 copy, which takes the gradients of every
micro-batch and every step, and is rounded into the weights afterwards: tiny updates do not vanish.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engine.base import AdamParams

_MOMENTS = ("exp_avg", "exp_avg_sq")
_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


class MasterAdamW:
    """torch.optim.AdamW with named moments; gradients accumulate as a sum until `step` divides them once.

    Weight decay applies to all parameters of an adapter, and of a full model to tensors of two or more dimensions.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], *, decay_vectors: bool) -> None:
        self._parameters = parameters
        self._masters = {
            name: parameter if parameter.dtype == torch.float32 else parameter.detach().float()
            for name, parameter in parameters.items()
        }
        self._copies = [name for name, master in self._masters.items() if master is not parameters[name]]
        decayed = {name: decay_vectors or master.ndim >= 2 for name, master in self._masters.items()}
        groups = [
            {"params": [m for name, m in self._masters.items() if decayed[name] is wanted], "decayed": wanted}
            for wanted in (True, False)
        ]
        self._adam = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        self.steps = 0
        self.accumulated = False

    def gather(self) -> None:
        """Take over the gradients of one backward pass; without a gradient the sum gains zero."""
        self.accumulated = True
        for name in self._copies:
            parameter, master = self._parameters[name], self._masters[name]
            if parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    def clear(self) -> None:
        """Forget the accumulated gradient."""
        self._adam.zero_grad(set_to_none=True)
        self.accumulated = False

    def step(self, params: AdamParams, denominator: float) -> float:
        """Divide the sum by `denominator`, clip the global norm, step, clear; returns the norm before clipping.

        Raises `FloatingPointError` when the norm is not finite; nothing but the gradient has changed then.
        """
        masters = list(self._masters.values())
        for master in masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        grads: list[Tensor] = [master.grad for master in masters]  # pyright: ignore[reportAssignmentType]
        norm = float(torch.nn.utils.get_total_norm(grads, foreach=True)) / denominator
        if not math.isfinite(norm):
            self.clear()
            raise FloatingPointError(
                f"optim_step: the gradient's norm is {norm}; it was dropped, no weight has changed"
            )
        scale = 1.0 / denominator
        if params.max_grad_norm > 0:
            scale *= min(1.0, params.max_grad_norm / (norm + _CLIP_EPS))
        torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
        for group in self._adam.param_groups:
            group["lr"], group["eps"] = params.learning_rate, params.eps
            group["betas"] = (params.beta1, params.beta2)
            group["weight_decay"] = params.weight_decay if group["decayed"] else 0.0
        self._adam.step()
        self.steps += 1
        self.clear()
        self._round_into_weights()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments, and masters where they are not the weights themselves, keyed by kind and parameter name."""
        tensors = {f"master.{name}": self._masters[name] for name in self._copies}
        for name, master in self._masters.items():
            moments = self._adam.state.get(master, {})
            tensors |= {f"{kind}.{name}": moments[kind] for kind in _MOMENTS if kind in moments}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `state` gave after `steps` steps. Raises `ValueError` when the names do not fit this model."""
        kinds = (_MOMENTS if steps else ()) + (("master",) if self._copies else ())
        owners = {"master": self._copies}
        wanted = {f"{kind}.{name}" for kind in kinds for name in owners.get(kind, self._masters)}
        if wanted != set(tensors):
            raise ValueError(
                f"optimizer state: does not fit this model, differs in {sorted(wanted ^ set(tensors))[:4]}"
            )
        self.steps = steps
        self._adam.state.clear()
        for name, master in self._masters.items():
            if name in self._copies:
                master.copy_(tensors[f"master.{name}"])
            if steps:
                self._adam.state[master] = self._moments_of(name, master, tensors)
        self._round_into_weights()

    def reset(self) -> None:
        """A fresh optimizer for weights that were just replaced."""
        self.clear()
        self._adam.state.clear()
        self.steps = 0
        for name in self._copies:
            self._masters[name].copy_(self._parameters[name].detach())

    def _moments_of(self, name: str, master: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        # A fused AdamW keeps its step count beside the weights.
        state: dict[str, Any] = {"step": torch.tensor(float(self.steps), dtype=torch.float32, device=master.device)}
        for kind in _MOMENTS:
            moment = torch.empty_like(master)
            moment.copy_(tensors[f"{kind}.{name}"])
            state[kind] = moment
        return state

    @torch.no_grad()
    def _round_into_weights(self) -> None:
        if self._copies:
            weights: list[Tensor] = [self._parameters[name] for name in self._copies]
            masters = [self._masters[name] for name in self._copies]
            torch._foreach_copy_(weights, masters)  # pyright: ignore[reportPrivateImportUsage]
