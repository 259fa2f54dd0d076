"""Decoder layers of the Llama family in three autograd steps, for fp32 on a CPU.

There, a transformers layer spends about as long on its element-wise operations, each of which walks through main
memory, as on its matrix products. Here a layer is: norm, projections, head norms and rotation; attention with its
output projection; gated MLP. Each has a hand-written backward pass, and all but attention (`causal.py`) work through
chunks of tokens small enough for the cache. Adapters are part of the projection (their own passes over wide activations
vanish), and the last layer goes on with the positions that go through the head only. `fuse` decides layer by layer;
anything unknown (another class, adapter dropout, a key-value cache, half precision) takes transformers' own code.
T tokens, C tokens of a chunk, H hidden size, F MLP size, N heads, K key-value heads, M = N + K, D head size, E all of
the heads side by side, R adapter rank.
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

from trainer.engine.attention import ATTENTION, Rows
from trainer.engine.causal import attend, attend_backward

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
        trainer_rows: Rows | None = None,
        trainer_keep: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the layer's own forward; of the last layer, only the tokens `trainer_keep`."""
        keep = trainer_keep if self.last else None
        plain = not args and kwargs.get("past_key_values") is None and kwargs.get("attention_mask") is None
        weights = self._weights() if trainer_rows is not None and plain else None
        ours = self.layer.self_attn.config._attn_implementation == ATTENTION
        if trainer_rows is not None and weights is not None and ours:
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
        rows: Rows,
        keep: Tensor | None,
    ) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        inputs = [weights[name] for name in ("q_proj", "k_proj", "v_proj")]
        norm = layer.input_layernorm
        qk_TMD, v_TKD = _Inputs.apply(
            x_TH,
            norm.weight,
            *rotation,
            None if q_norm is None else q_norm.weight,
            None if k_norm is None else k_norm.weight,
            norm.variance_epsilon,
            [one.scale for one in inputs],
            *(tensor for one in inputs for tensor in one.tensors),
        )  # pyright: ignore
        how = {"scale": attention.scaling, "window": getattr(attention, "sliding_window", None)}
        o_proj = weights["o_proj"]
        x_TH = _Attention.apply(x_TH, qk_TMD, v_TKD, rows.runs(), how, keep, o_proj.scale, *o_proj.tensors)  # pyright: ignore
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
    """Norm, three projections, head norms where there are any, rotation: x [T, H] -> q and k [T, M, D], v [T, K, D].

    The M = N + K heads of q and k lie side by side, so that what follows the projections takes both at once.
    """

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, *args: Any) -> tuple[Tensor, ...]:  # pyright: ignore
        norm_H, cos_TD, sin_TD, q_norm_D, k_norm_D, eps, scales, *flat = args
        projections = [_Projection(flat[4 * i : 4 * i + 4], scales[i]) for i in range(3)]
        (tokens, size), widths = cos_TD.shape, [projection.weight.shape[0] for projection in projections]
        head_norm_MD = None if q_norm_D is None else _side_by_side(q_norm_D, k_norm_D, widths)
        raw_TE, v_TE = x_TH.new_empty(tokens, widths[0] + widths[1]), x_TH.new_empty(tokens, widths[2])
        out_TE = torch.empty_like(raw_TE)
        inverse_T1, inverse_heads = _inverse_rms(x_TH, eps), list[Tensor]()
        signed_TD = _signed(sin_TD)
        for chunk in _chunks(tokens, raw_TE.shape[1]):
            n_CH = (x_TH[chunk] * inverse_T1[chunk]).mul_(norm_H)
            for projection, out in zip(projections, (*raw_TE[chunk].split(widths[:2], 1), v_TE[chunk]), strict=True):
                projection.forward(n_CH, out)
            x_CMD = raw_TE[chunk].unflatten(1, (-1, size))
            if head_norm_MD is not None:
                inverse_heads.append(_inverse_rms(x_CMD, eps))
                x_CMD = (x_CMD * inverse_heads[-1]).mul_(head_norm_MD)
            _rotate(x_CMD, cos_TD[chunk, None], signed_TD[chunk, None], out=out_TE[chunk].unflatten(1, (-1, size)))
        kept = (None, None) if head_norm_MD is None else (raw_TE, torch.cat(inverse_heads))
        ctx.save_for_backward(x_TH, inverse_T1, norm_H, cos_TD, signed_TD, q_norm_D, k_norm_D, *kept, *flat)
        ctx.scales = scales
        return out_TE.unflatten(1, (-1, size)), v_TE.unflatten(1, (-1, size))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x_TH, inverse_T1, norm_H, cos_TD, signed_TD, q_norm_D, k_norm_D, raw_TE, inverse_TM1, *flat = ctx.saved_tensors
        needs, size = ctx.needs_input_grad, cos_TD.shape[1]
        projections = [
            _Projection(flat[4 * i : 4 * i + 4], ctx.scales[i], needs[8 + 4 * i : 12 + 4 * i]) for i in range(3)
        ]
        widths = [projection.weight.shape[0] for projection in projections]
        head_norm_MD = None if q_norm_D is None else _side_by_side(q_norm_D, k_norm_D, widths)
        d_heads_MD = None if head_norm_MD is None or not any(needs[4:6]) else torch.zeros_like(head_norm_MD)
        dx_TH = torch.empty_like(x_TH) if needs[0] else None
        d_norm_H = torch.zeros_like(norm_H) if needs[1] else None
        back_TD = signed_TD.roll(size // 2, 1)  # the transpose of a rotation is one by these
        for chunk in _chunks(x_TH.shape[0], widths[0] + widths[1]):
            slope_CMD = slopes[0][chunk]
            slope_CMD = _rotate(slope_CMD, cos_TD[chunk, None], back_TD[chunk, None], out=torch.empty_like(slope_CMD))
            if head_norm_MD is not None:
                inverse_CM1 = inverse_TM1[chunk]
                unit_CMD = raw_TE[chunk].unflatten(1, (-1, size)) * inverse_CM1
                slope_CMD = _norm_backward(slope_CMD, unit_CMD, head_norm_MD, inverse_CM1, d_heads_MD)
            unit_CH = x_TH[chunk] * inverse_T1[chunk]
            n_CH = unit_CH * norm_H
            dn_CH = torch.empty_like(n_CH) if needs[0] or needs[1] else None
            slopes_of_qkv = (*slope_CMD.flatten(1).split(widths[:2], 1), slopes[1][chunk].flatten(1))
            for i, (projection, slope) in enumerate(zip(projections, slopes_of_qkv, strict=True)):
                projection.backward(n_CH, slope, dn_CH, add=i > 0)
            if dn_CH is not None:
                slope_CH = _norm_backward(dn_CH, unit_CH, norm_H, inverse_T1[chunk], d_norm_H)
                if dx_TH is not None:
                    dx_TH[chunk] = slope_CH
        d_heads = (None, None)
        if d_heads_MD is not None:
            parts = d_heads_MD.split([width // size for width in widths[:2]])
            d_heads = (part.sum(0) if need else None for part, need in zip(parts, needs[4:6], strict=True))
        gathered = (grad for projection in projections for grad in projection.grads)
        return (dx_TH, d_norm_H, None, None, *d_heads, None, None, *gathered)


class _Attention(Function):
    """x + projection(attention(q, k, v)): [T, H]; of the tokens `keep` only, [kept, H], where given."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, *args: Any) -> Tensor:  # pyright: ignore
        qk_TMD, v_TKD, runs, how, keep, scale, *flat = args
        q_TND, k_TKD = _apart(qk_TMD, v_TKD)
        mixed_TND, kept = attend(q_TND, k_TKD, v_TKD, runs, **how)
        mixed_TE = mixed_TND.flatten(1)
        if keep is not None:
            x_TH, mixed_TE = x_TH.index_select(0, keep), mixed_TE.index_select(0, keep)
        out_TH = torch.empty_like(x_TH)
        _Projection(flat, scale).forward(mixed_TE, out_TH)
        ctx.save_for_backward(qk_TMD, v_TKD, keep, mixed_TE, *flat, *kept)
        ctx.runs, ctx.how, ctx.scale = runs, how, scale
        return out_TH.add_(x_TH)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        qk_TMD, v_TKD, keep, mixed_TE, *rest = ctx.saved_tensors
        flat, kept = rest[:4], rest[4:]
        projection = _Projection(flat, ctx.scale, ctx.needs_input_grad[7:])
        d_mixed_TE, dx_TH = torch.empty_like(mixed_TE), slopes[0]
        projection.backward(mixed_TE, slopes[0], d_mixed_TE)
        if keep is not None:
            tokens = qk_TMD.shape[0]
            dx_TH, d_mixed_TE = (
                x.new_zeros(tokens, x.shape[1]).index_copy_(0, keep, x) for x in (slopes[0], d_mixed_TE)
            )
        d_qk_TMD, d_v_TKD = torch.empty_like(qk_TMD), torch.empty_like(v_TKD)
        q_TND, k_TKD = _apart(qk_TMD, v_TKD)
        attend_backward(
            d_mixed_TE.view(q_TND.shape),
            (q_TND, k_TKD, v_TKD),
            kept,
            ctx.runs,
            into=(*_apart(d_qk_TMD, d_v_TKD), d_v_TKD),
            **ctx.how,
        )
        return (dx_TH, d_qk_TMD, d_v_TKD, None, None, None, None, *projection.grads)


class _Mlp(Function):
    """x + down(silu(gate(n)) * up(n)), n = norm(x): [T, H] -> [T, H]."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, norm_H: Tensor, eps: float, scales: Any, *flat: Any) -> Tensor:  # pyright: ignore
        gate, up, down = (_Projection(flat[4 * i : 4 * i + 4], scales[i]) for i in range(3))
        gated_TF, upped_TF = (x_TH.new_empty(x_TH.shape[0], gate.weight.shape[0]) for _ in range(2))
        out_TH, inverse_T1 = torch.empty_like(x_TH), _inverse_rms(x_TH, eps)
        for chunk in _chunks(x_TH.shape[0], gate.weight.shape[0]):
            n_CH = (x_TH[chunk] * inverse_T1[chunk]).mul_(norm_H)
            gate.forward(n_CH, gated_TF[chunk])
            up.forward(n_CH, upped_TF[chunk])
            down.forward(functional.silu(gated_TF[chunk]).mul_(upped_TF[chunk]), out_TH[chunk])
            out_TH[chunk].add_(x_TH[chunk])
        ctx.save_for_backward(x_TH, inverse_T1, norm_H, gated_TF, upped_TF, *flat)
        ctx.scales = scales
        return out_TH

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x_TH, inverse_T1, norm_H, gated_TF, upped_TF, *flat = ctx.saved_tensors
        needs = ctx.needs_input_grad
        gate, up, down = (
            _Projection(flat[4 * i : 4 * i + 4], ctx.scales[i], needs[4 + 4 * i : 8 + 4 * i]) for i in range(3)
        )
        dx_TH = torch.empty_like(x_TH)
        d_norm_H = torch.zeros_like(norm_H) if needs[1] else None
        for chunk in _chunks(x_TH.shape[0], gate.weight.shape[0]):
            slope_CH, gated_CF, upped_CF = slopes[0][chunk], gated_TF[chunk], upped_TF[chunk]
            silu_CF = functional.silu(gated_CF)
            inner_CF = silu_CF * upped_CF
            d_inner_CF = torch.empty_like(inner_CF)
            down.backward(inner_CF, slope_CH, d_inner_CF)
            d_up_CF = torch.mul(d_inner_CF, silu_CF, out=inner_CF)
            d_inner_CF.mul_(upped_CF)
            d_gate_CF = torch.ops.aten.silu_backward(d_inner_CF, gated_CF, grad_input=d_inner_CF)
            unit_CH = x_TH[chunk] * inverse_T1[chunk]
            n_CH, dn_CH = unit_CH * norm_H, torch.empty_like(unit_CH)
            gate.backward(n_CH, d_gate_CF, dn_CH)
            up.backward(n_CH, d_up_CF, dn_CH, add=True)
            dn_CH = _norm_backward(dn_CH, unit_CH, norm_H, inverse_T1[chunk], d_norm_H)
            torch.add(dn_CH, slope_CH, out=dx_TH[chunk])
        return (dx_TH, d_norm_H, None, None, *gate.grads, *up.grads, *down.grads)


def _chunks(tokens: int, width: int) -> Iterator[slice]:
    """Slices of equal numbers of tokens whose activations of `width` stay in the cache."""
    most = max(_SMALLEST_CHUNK, _CHUNK_ELEMENTS // width)
    count = max(1, -(-tokens // most))
    step = -(-tokens // count)
    for start in range(0, tokens, max(1, step)):
        yield slice(start, min(start + step, tokens))


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(slope: Tensor, unit: Tensor, weight: Tensor, inverse: Tensor, d_weight: Tensor | None) -> Tensor:
    """dL/dx of w unit, unit = x inverse, inverse = (mean(x^2) + eps)^-1/2 over the last dimension; dL/dw is added."""
    if d_weight is not None:
        d_weight += (slope * unit).sum(0)
    dx = slope * weight
    along = torch.linalg.vecdot(dx, unit).div_(-unit.shape[-1]).unsqueeze(-1)
    return dx.addcmul_(unit, along).mul_(inverse)


def _side_by_side(q_norm_D: Tensor, k_norm_D: Tensor, widths: Sequence[int]) -> Tensor:
    """The weight [M, D] of the head norms of q and k."""
    heads = [width // q_norm_D.shape[0] for width in widths[:2]]
    return torch.cat([norm_D.expand(count, -1) for norm_D, count in zip((q_norm_D, k_norm_D), heads, strict=True)])


def _apart(qk_TMD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
    """q [T, N, D] and k [T, K, D], views."""
    heads = qk_TMD.shape[1] - v_TKD.shape[1]
    return qk_TMD[:, :heads], qk_TMD[:, heads:]


def _signed(sin: Tensor) -> Tensor:
    """The sine with the sign of rotate_half((u, v)) = (-v, u), which then is a swap of halves."""
    low, high = sin.chunk(2, -1)
    return torch.cat((-low, high), -1)


def _rotate(x: Tensor, cos: Tensor, signed: Tensor, *, out: Tensor) -> Tensor:
    """out = x cos + rotate_half(x) sin."""
    return torch.mul(x, cos, out=out).addcmul_(x.roll(x.shape[-1] // 2, -1), signed)
