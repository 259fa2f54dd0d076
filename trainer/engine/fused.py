"""Decoder layers of the Llama family in three autograd steps, for fp32 on a CPU.

There, a transformers layer spends about as long on its element-wise operations, each of which walks through main
memory, as on its matrix products. Here a layer is: norm, projections, head norms and rotation; attention; output
projection; gated MLP, each with a hand-written backward pass that works through chunks of tokens small enough for the
cache. Adapters are part of the projection (their own passes over wide activations vanish), and the last layer goes on
with the positions that go through the head only. `fuse` decides layer by layer; anything unknown (another class,
adapter dropout, a key-value cache, half precision) goes through transformers' own code.
T tokens, C tokens of a chunk, H hidden size, F MLP size, N heads, D head size, R adapter rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from trainer.engine.attention import ATTENTION, packed_attention

_KNOWN = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)  # exactly these classes, not what derives from them
_CHUNK_ELEMENTS = 2**17  # of the widest activation: 512 KiB, and a backward pass holds half a dozen of them
_SMALLEST_CHUNK = 256  # tokens; below, matrix products lose more than the cache gives


@dataclass(frozen=True)
class _Weights:
    """A linear layer: weight [out, in], bias, and the active adapter's A [R, in] and B [out, R] with its scale."""

    tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
    scale: float = 0.0


def fuse(model: PreTrainedModel) -> bool:
    """Give the layers of `model` a fused forward pass; returns whether all of them have one.

    If so, the decoder takes `trainer_keep` (int64 [kept], or None) and returns the hidden states of these tokens only.
    """
    decoder: Any = model.get_decoder()
    layers, weight = list(getattr(decoder, "layers", ())), decoder.get_input_embeddings().weight
    fitting = bool(layers) and weight.device.type == "cpu" and weight.dtype == torch.float32
    if not fitting or not all(type(layer) in _KNOWN and _gated_by_silu(layer) for layer in layers):
        return False
    for layer in layers:
        layer.forward = _Layer(layer, last=layer is layers[-1])
    return True


def _gated_by_silu(layer: Any) -> bool:
    return type(layer.mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")


class _Layer:
    """Stands in for a layer's `forward`."""

    def __init__(self, layer: Any, *, last: bool) -> None:
        self.layer, self.last = layer, last
        self.original: Callable[..., Tensor] = layer.forward

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,
        trainer_rows: Any = None,
        trainer_keep: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the layer's own forward; of the last layer, only the tokens `trainer_keep`."""
        keep = trainer_keep if self.last else None
        plain = not args and kwargs.get("past_key_values") is None and kwargs.get("attention_mask") is None
        weights = self._weights() if trainer_rows is not None and plain else None
        if weights is not None and self.layer.self_attn.config._attn_implementation == ATTENTION:
            cos_1TD, sin_1TD = kwargs["position_embeddings"]
            rotation = (cos_1TD[0], sin_1TD[0])
            run = partial(self._fused, hidden_states[0], rotation, weights, rows=trainer_rows, keep=keep)
            if self.layer.gradient_checkpointing and self.layer.training:  # as the layer's own forward does
                return self.layer._gradient_checkpointing_func(run)[None]
            return run()[None]
        hidden_states = self.original(hidden_states, *args, trainer_rows=trainer_rows, **kwargs)
        return hidden_states if keep is None else hidden_states.index_select(1, keep)

    def _weights(self) -> dict[str, _Weights] | None:
        found: dict[str, _Weights] = {}
        for owner in (self.layer.self_attn, self.layer.mlp):
            for name, module in owner._modules.items():
                if name.endswith("_proj"):
                    weights = _weights_of(module)
                    if weights is None:
                        return None
                    found[name] = weights
        return found

    def _fused(
        self,
        x_TH: Tensor,
        rotation: tuple[Tensor, Tensor],
        weights: dict[str, _Weights],
        *,
        rows: Any,
        keep: Tensor | None,
    ) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        inputs = [weights[name] for name in ("q_proj", "k_proj", "v_proj")]
        norm = layer.input_layernorm
        q_TND, k_TKD, v_TKD = _Inputs.apply(
            x_TH,
            norm.weight,
            *rotation,
            None if q_norm is None else q_norm.weight,
            None if k_norm is None else k_norm.weight,
            norm.variance_epsilon,
            [one.scale for one in inputs],
            *(tensor for one in inputs for tensor in one.tensors),
        )  # pyright: ignore
        query, key, value = (x.transpose(0, 1)[None] for x in (q_TND, k_TKD, v_TKD))
        mixed_1TND, _ = packed_attention(
            attention,
            query,
            key,
            value,
            None,
            scaling=attention.scaling,
            sliding_window=getattr(attention, "sliding_window", None),
            trainer_rows=rows,
        )
        mixed_TE = mixed_1TND[0].flatten(1)
        if keep is not None:
            x_TH, mixed_TE = x_TH.index_select(0, keep), mixed_TE.index_select(0, keep)
        x_TH = _Output.apply(x_TH, mixed_TE, weights["o_proj"].scale, *weights["o_proj"].tensors)  # pyright: ignore
        gated, norm = [weights[name] for name in ("gate_proj", "up_proj", "down_proj")], layer.post_attention_layernorm
        return _Mlp.apply(
            x_TH,
            norm.weight,
            norm.variance_epsilon,
            [one.scale for one in gated],
            *(tensor for one in gated for tensor in one.tensors),
        )  # pyright: ignore


def _weights_of(module: Any) -> _Weights | None:
    """What `module` multiplies by; None where it does something else."""
    if type(module) is nn.Linear:
        return _Weights((module.weight, module.bias, None, None))
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.merged:
        return None
    base: Any = module.base_layer
    active = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]
    if not active:
        return _Weights((base.weight, base.bias, None, None))
    name = active[0]
    dropout: Any = module.lora_dropout[name]
    dropped = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    a: Any = module.lora_A[name]
    b: Any = module.lora_B[name]
    if (
        len(active) > 1
        or name in module.lora_variant
        or dropped
        or a.weight.dtype != torch.float32
        or b.bias is not None
    ):
        return None
    return _Weights((base.weight, base.bias, a.weight, b.weight), float(module.scaling[name]))


class _Projection:
    """y = x W' + b + scale (x A') B' of one chunk after another; gathers gradients of what needs one."""

    def __init__(
        self, tensors: Sequence[Tensor | None], scale: float, needs: Sequence[bool] = (False, False, False, False)
    ) -> None:
        weight, self.bias, self.a, self.b = tensors
        assert weight is not None
        self.weight, self.scale, self.begun = weight, scale, False
        made = (torch.empty_like(t) if t is not None and need else None for t, need in zip(tensors, needs, strict=True))
        self.grads: list[Tensor | None] = list(made)

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Write y to `out`."""
        if self.bias is None:
            torch.mm(x, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=out)
        if self.a is not None and self.b is not None:
            out.addmm_(x @ self.a.t(), self.b.t(), alpha=self.scale)

    def backward(self, x: Tensor, slope: Tensor, into: Tensor | None, *, add: bool = False) -> None:
        """Take dL/dy; write (or add) dL/dx to `into`."""
        weight, bias, a, b = self.grads
        beta, self.begun = float(self.begun), True
        if weight is not None:
            weight.addmm_(slope.t(), x, beta=beta)
        if bias is not None:
            torch.add(slope.sum(0), bias if beta else 0.0, out=bias)
        if into is not None:
            into.addmm_(slope, self.weight, beta=float(add))
        if self.a is None or self.b is None:
            return
        if b is not None:
            b.addmm_(slope.t(), x @ self.a.t(), beta=beta, alpha=self.scale)
        inner = slope @ self.b
        if a is not None:
            a.addmm_(inner.t(), x, beta=beta, alpha=self.scale)
        if into is not None:
            into.addmm_(inner, self.a, alpha=self.scale)


class _Inputs(Function):
    """Norm, the three projections, head norms where there are any, and rotation: x [T, H] -> q, k, v [T, heads, D]."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, *args: Any) -> tuple[Tensor, ...]:  # pyright: ignore
        norm_H, cos_TD, sin_TD, q_norm_D, k_norm_D, eps, scales, *flat = args
        projections = [_Projection(flat[4 * i : 4 * i + 4], scales[i]) for i in range(3)]
        tokens, size = cos_TD.shape
        raw = [x_TH.new_empty(tokens, projection.weight.shape[0]) for projection in projections]
        out = [torch.empty_like(x) for x in raw[:2]]
        head_norms = (q_norm_D, k_norm_D)
        for chunk in _chunks(tokens, max(x.shape[1] for x in raw)):
            n_CH = _normed(x_TH[chunk], norm_H, eps)
            for projection, x in zip(projections, raw, strict=True):
                projection.forward(n_CH, x[chunk])
            cos_C1D, sin_C1D = cos_TD[chunk, None], sin_TD[chunk, None]
            for x, norm_D, y in zip(raw, head_norms, out, strict=False):
                x_CND = x[chunk].unflatten(1, (-1, size))
                x_CND = x_CND if norm_D is None else _normed(x_CND, norm_D, eps)
                _rotate(x_CND, cos_C1D, sin_C1D, out=y[chunk].unflatten(1, (-1, size)))
        kept = [None if norm is None else x for x, norm in zip(raw, head_norms, strict=False)]
        ctx.save_for_backward(x_TH, norm_H, cos_TD, sin_TD, *head_norms, *kept, *flat)
        ctx.eps, ctx.scales = eps, scales
        return tuple(x.unflatten(1, (-1, size)) for x in (*out, raw[2]))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x_TH, norm_H, cos_TD, sin_TD, *rest = ctx.saved_tensors
        head_norms, raw, flat = rest[:2], rest[2:4], rest[4:]
        needs = ctx.needs_input_grad
        projections = [
            _Projection(flat[4 * i : 4 * i + 4], ctx.scales[i], needs[8 + 4 * i : 12 + 4 * i]) for i in range(3)
        ]
        dx_TH = torch.empty_like(x_TH) if needs[0] else None
        d_norm = torch.zeros_like(norm_H) if needs[1] else None
        d_heads = [
            torch.zeros_like(norm) if norm is not None and needs[4 + i] else None for i, norm in enumerate(head_norms)
        ]
        inside = dx_TH is not None or d_norm is not None
        for chunk in _chunks(x_TH.shape[0], max(p.weight.shape[0] for p in projections)):
            x_CH = x_TH[chunk]
            n_CH = _normed(x_CH, norm_H, ctx.eps)
            dn_CH = torch.empty_like(n_CH) if inside else None
            for i, projection in enumerate(projections):
                slope_CND = slopes[i][chunk]
                if i < 2:
                    slope_CND = _rotated_back(slope_CND, cos_TD[chunk, None], sin_TD[chunk, None])
                    if head_norms[i] is not None:
                        raw_CND = raw[i][chunk].view_as(slope_CND)
                        slope_CND = _norm_backward(slope_CND, raw_CND, head_norms[i], ctx.eps, d_heads[i])
                projection.backward(n_CH, slope_CND.flatten(1), dn_CH, add=i > 0)
            if dn_CH is not None:
                slope_CH = _norm_backward(dn_CH, x_CH, norm_H, ctx.eps, d_norm)
                if dx_TH is not None:
                    dx_TH[chunk] = slope_CH
        gathered = (grad for projection in projections for grad in projection.grads)
        return (dx_TH, d_norm, None, None, *d_heads, None, None, *gathered)


class _Output(Function):
    """x + projection(mixed): the output projection of attention and the residual; all [T, ...] at once."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, mixed_TE: Tensor, scale: float, *flat: Any) -> Tensor:  # pyright: ignore
        out_TH = torch.empty_like(x_TH)
        _Projection(flat, scale).forward(mixed_TE, out_TH)
        ctx.save_for_backward(mixed_TE, *flat)
        ctx.scale = scale
        return out_TH.add_(x_TH)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        mixed_TE, *flat = ctx.saved_tensors
        projection = _Projection(flat, ctx.scale, ctx.needs_input_grad[3:])
        d_mixed_TE = torch.empty_like(mixed_TE) if ctx.needs_input_grad[1] else None
        projection.backward(mixed_TE, slopes[0], d_mixed_TE)
        return (slopes[0], d_mixed_TE, None, *projection.grads)


class _Mlp(Function):
    """x + down(silu(gate(n)) * up(n)), n = norm(x): [T, H] -> [T, H]."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, norm_H: Tensor, eps: float, scales: Any, *flat: Any) -> Tensor:  # pyright: ignore
        gate, up, down = (_Projection(flat[4 * i : 4 * i + 4], scales[i]) for i in range(3))
        gated_TF, upped_TF = (x_TH.new_empty(x_TH.shape[0], gate.weight.shape[0]) for _ in range(2))
        out_TH = torch.empty_like(x_TH)
        for chunk in _chunks(x_TH.shape[0], gate.weight.shape[0]):
            n_CH = _normed(x_TH[chunk], norm_H, eps)
            gate.forward(n_CH, gated_TF[chunk])
            up.forward(n_CH, upped_TF[chunk])
            down.forward(functional.silu(gated_TF[chunk]).mul_(upped_TF[chunk]), out_TH[chunk])
            out_TH[chunk].add_(x_TH[chunk])
        ctx.save_for_backward(x_TH, norm_H, gated_TF, upped_TF, *flat)
        ctx.eps, ctx.scales = eps, scales
        return out_TH

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x_TH, norm_H, gated_TF, upped_TF, *flat = ctx.saved_tensors
        needs = ctx.needs_input_grad
        gate, up, down = (
            _Projection(flat[4 * i : 4 * i + 4], ctx.scales[i], needs[4 + 4 * i : 8 + 4 * i]) for i in range(3)
        )
        dx_TH = torch.empty_like(x_TH)
        d_norm = torch.zeros_like(norm_H) if needs[1] else None
        for chunk in _chunks(x_TH.shape[0], gate.weight.shape[0]):
            x_CH, slope_CH, gated_CF, upped_CF = x_TH[chunk], slopes[0][chunk], gated_TF[chunk], upped_TF[chunk]
            sigmoid_CF = torch.sigmoid(gated_CF)
            silu_CF = gated_CF * sigmoid_CF
            inner_CF = silu_CF * upped_CF
            d_inner_CF = torch.empty_like(inner_CF)
            down.backward(inner_CF, slope_CH, d_inner_CF)
            torch.mul(d_inner_CF, silu_CF, out=inner_CF)  # dL/d up; inner is not needed any more
            d_inner_CF.mul_(upped_CF)
            # d silu(z)/dz = s + silu(z) (1 - s), s = sigmoid(z)
            d_inner_CF.mul_(torch.addcmul(sigmoid_CF + silu_CF, silu_CF, sigmoid_CF, value=-1))
            n_CH, dn_CH = _normed(x_CH, norm_H, ctx.eps), torch.empty_like(x_CH)
            gate.backward(n_CH, d_inner_CF, dn_CH)
            up.backward(n_CH, inner_CF, dn_CH, add=True)
            torch.add(_norm_backward(dn_CH, x_CH, norm_H, ctx.eps, d_norm), slope_CH, out=dx_TH[chunk])
        return (dx_TH, d_norm, None, None, *gate.grads, *up.grads, *down.grads)


def _chunks(tokens: int, width: int) -> Iterator[slice]:
    """Slices of equal numbers of tokens whose activations of `width` stay in the cache."""
    most = max(_SMALLEST_CHUNK, _CHUNK_ELEMENTS // width)
    count = max(1, -(-tokens // most))
    step = -(-tokens // count)
    for start in range(0, tokens, max(1, step)):
        yield slice(start, min(start + step, tokens))


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _norm_backward(slope: Tensor, x: Tensor, weight: Tensor, eps: float, d_weight: Tensor | None) -> Tensor:
    """dL/dx of w x r, r = (mean(x^2) + eps)^-1/2, and dL/dw added to `d_weight`; both over the last dimension."""
    inverse = _inverse_rms(x, eps)
    if d_weight is not None:
        d_weight += (slope * x).mul_(inverse).flatten(0, -2).sum(0)
    dx = slope * weight
    along = (dx * x).sum(-1, keepdim=True)
    return dx.mul_(inverse).addcmul_(x, along.mul_(inverse**3).div_(-x.shape[-1]))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> None:
    """out = x cos + rotate_half(x) sin, rotate_half((u, v)) = (-v, u)."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


def _rotated_back(slope: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of `_rotate`."""
    half = slope.shape[-1] // 2
    out = slope * cos
    out[..., :half].addcmul_(slope[..., half:], sin[..., half:])
    out[..., half:].addcmul_(slope[..., :half], sin[..., :half], value=-1)
    return out
