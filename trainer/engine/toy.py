"""A toy engine: a table of bigram logits in numpy, so that loops are tested in milliseconds. It never imports torch.

log p(target | token) = log_softmax(base + delta)[token, target], with delta the model's own [V, V] table: an adapter
and a full model differ only in what may stand beside them. It keeps the Engine contract in full, except that its weight
files are its own and that it only knows the losses of `trainer.engine.toy_losses`. T tokens of a datum, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from trainer.data.datum import Datum
from trainer.engine.admission import (
    check_data,
    check_loss,
    check_sampling,
    check_sequence,
    check_step,
    stopped_by_string,
    uniforms,
)
from trainer.engine.base import AdamParams, Completion, ForwardResult, LoraSpec, SamplingParams
from trainer.engine.toy_losses import toy_loss
from trainer.loss_specs import filled, find_spec

_WEIGHTS = "toy_model.safetensors"


@dataclass(eq=False)
class _Table:
    """One model: its table, its moments, its accumulated gradient (None = nothing since the last step)."""

    kind: str
    delta_VV: np.ndarray
    moments: list[np.ndarray] = field(default_factory=list)
    gradient_VV: np.ndarray | None = None
    steps: int = 0
    seq: int = 0


class ToyEngine:
    """`Engine` over a table of bigrams; `vocabulary` tokens, of which `stop_ids` end a completion."""

    def __init__(
        self,
        vocabulary: int = 16,
        *,
        context_length: int = 64,
        stop_ids: tuple[int, ...] = (0,),
        seed: int = 0,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.context_length = context_length
        self.stop_ids = stop_ids
        self.parameter_count = vocabulary * vocabulary
        self.device = "cpu"
        self._decode = decode
        self._base_VV = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary))
        self._models: dict[str, _Table] = {}

    def create_model(
        self,
        model: str,
        *,
        lora: LoraSpec | None,
        seed: int = 0,
        base_only: bool = False,
        warm_start: Path | None = None,
    ) -> None:
        del seed  # every table starts at zero
        if model in self._models:
            raise ValueError(f"model: {model!r} exists already; models are {sorted(self._models)}")
        if base_only and (lora is not None or warm_start is not None):
            raise ValueError(f"model {model!r}: base_only is the bare base, give no lora and no warm_start")
        kind = "base" if base_only else "full" if lora is None and not _is_adapter(warm_start) else "lora"
        if any(kind == "full" or other.kind == "full" for other in self._models.values()):
            raise ValueError(f"model {model!r}: a full model stands alone, this engine has {sorted(self._models)}")
        self._models[model] = _Table(kind, np.zeros_like(self._base_VV))
        if warm_start is not None:
            self.load_state(model, warm_start, None)

    def forward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        config = dict(loss_config or {})
        table = self._admit(model, data, loss, config, seq)
        logprobs_VV = self._logprobs(table)
        logprobs = [logprobs_VV[datum.tokens, datum.targets].astype(np.float32) for datum in data]
        total, _, metrics = toy_loss(loss, data, logprobs, config)
        return ForwardResult(logprobs, {"loss:sum": total, **metrics})

    def forward_backward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        self._trained(model)
        config = dict(loss_config or {})
        table = self._admit(model, data, loss, config, seq)
        logprobs_VV = self._logprobs(table)
        probs_VV = np.exp(logprobs_VV)
        gradient_VV = np.zeros_like(self._base_VV) if table.gradient_VV is None else table.gradient_VV
        rows = [logprobs_VV[datum.tokens, datum.targets] for datum in data]
        logprobs = [
            np.where(datum.weights != 0, row_T, 0).astype(np.float32) for datum, row_T in zip(data, rows, strict=True)
        ]
        total, slopes, metrics = toy_loss(loss, data, logprobs, config)
        for datum, slope_T in zip(data, slopes, strict=True):
            # d(log p)/dlogits = onehot - softmax
            np.add.at(gradient_VV, datum.tokens, -slope_T[:, None] * probs_VV[datum.tokens])
            np.add.at(gradient_VV, (datum.tokens, datum.targets), slope_T)
        table.gradient_VV = gradient_VV
        return ForwardResult(logprobs, {"loss:sum": total, **metrics})

    def optim_step(
        self, model: str, params: AdamParams, *, denominator: float, seq: int | None = None
    ) -> dict[str, float]:
        table = self._trained(model)
        check_step(params, denominator, accumulated=table.gradient_VV is not None)
        table.seq = check_sequence(model, table.seq, seq)
        assert table.gradient_VV is not None
        gradient_VV, table.gradient_VV = table.gradient_VV / denominator, None
        norm = float(np.linalg.norm(gradient_VV))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"optim_step: the gradient's norm is {norm}; it was dropped, no weight has changed"
            )
        if params.max_grad_norm > 0:
            gradient_VV *= min(1.0, params.max_grad_norm / (norm + 1e-6))
        table.steps += 1
        first, second = table.moments or [np.zeros_like(gradient_VV), np.zeros_like(gradient_VV)]
        first = params.beta1 * first + (1 - params.beta1) * gradient_VV
        second = params.beta2 * second + (1 - params.beta2) * gradient_VV**2
        table.moments = [first, second]
        root = np.sqrt(second / (1 - params.beta2**table.steps)) + params.eps
        step_VV = first / (1 - params.beta1**table.steps) / root + params.weight_decay * table.delta_VV
        table.delta_VV = table.delta_VV - params.learning_rate * step_VV
        return {"grad_norm": norm}

    def clear_gradient(self, model: str) -> None:
        self._trained(model).gradient_VV = None

    def sample(self, model: str, prompts: Sequence[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
        table = self._find(model)
        self._check_sampling(prompts, params)
        return [
            [_joined(list(self._tokens(table, prompt, params, sample))) for sample in range(params.num_samples)]
            for prompt in prompts
        ]

    def stream(self, model: str, prompt: np.ndarray, params: SamplingParams) -> Iterator[Completion]:
        """Each item is one token; `finish` means something in the last only."""
        table = self._find(model)
        self._check_sampling([prompt], params)
        return self._tokens(table, prompt, replace(params, num_samples=1), 0)

    def save_weights(self, model: str, folder: Path) -> None:
        table = self._trained(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"delta": table.delta_VV}, folder / _WEIGHTS, metadata={"kind": table.kind})
        if table.kind == "lora":
            (folder / "adapter_config.json").write_text("{}\n", encoding="utf-8")

    def save_state(self, model: str, folder: Path) -> None:
        """Raises `ValueError` between forward_backward and optim_step."""
        table = self._trained(model)
        if table.gradient_VV is not None:
            raise ValueError(f"save_state: model {model!r} has a gradient under way; call optim_step first")
        folder.mkdir(parents=True, exist_ok=True)
        moments = {f"moment{index}": moment for index, moment in enumerate(table.moments)}
        save_file(moments, folder / "optimizer.safetensors")
        state = {"version": 1, "steps": table.steps, "seq": table.seq}
        (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    def load_state(self, model: str, weights: Path, state: Path | None) -> None:
        table = self._trained(model)
        if not (weights / _WEIGHTS).is_file():
            raise ValueError(f"{weights}: has no {_WEIGHTS}")
        table.delta_VV = load_file(weights / _WEIGHTS)["delta"]
        table.moments, table.gradient_VV, table.steps = [], None, 0
        if state is not None:
            document = json.loads((state / "state.json").read_text(encoding="utf-8"))
            saved = load_file(state / "optimizer.safetensors")
            table.moments = [saved[name] for name in sorted(saved)]
            table.steps, table.seq = document["steps"], document["seq"]

    def _find(self, model: str) -> _Table:
        if model not in self._models:
            raise KeyError(f"model: {model!r} does not exist; models are {sorted(self._models)}")
        return self._models[model]

    def _trained(self, model: str) -> _Table:
        table = self._find(model)
        if table.kind == "base":
            raise ValueError(
                f"model {model!r} is base_only: it has log-probs and samples, but nothing to train or save"
            )
        return table

    def _admit(
        self, model: str, data: Sequence[Datum], loss: str, config: Mapping[str, float], seq: int | None
    ) -> _Table:
        table, spec = self._find(model), find_spec(loss)
        filled(loss, config)
        check_data(data, self.vocabulary, self.context_length)
        check_loss(data, loss, spec)
        table.seq = check_sequence(model, table.seq, seq)
        return table

    def _check_sampling(self, prompts: Sequence[np.ndarray], params: SamplingParams) -> None:
        check_sampling(prompts, params, vocabulary=self.vocabulary, context=self.context_length, decode=self._decode)

    def _logprobs(self, table: _Table) -> np.ndarray:
        return _log_softmax(self._base_VV + table.delta_VV)

    def _tokens(self, table: _Table, prompt: np.ndarray, params: SamplingParams, sample: int) -> Iterator[Completion]:
        limit = min(params.max_new_tokens, self.context_length - len(prompt))
        stop_ids = self.stop_ids if params.stop_ids is None else params.stop_ids
        written: list[int] = []
        for uniform in uniforms(params, prompt, sample, limit):
            logprobs_V = self._logprobs(table)[written[-1] if written else prompt[-1]]
            token, sampled = _choose(logprobs_V, params, float(uniform))
            written.append(token)
            stop = token in stop_ids or stopped_by_string(written, params, self._decode)
            yield Completion(
                np.array([token], dtype=np.int64),
                logprobs_V[[token]].astype(np.float32),
                np.array([sampled], dtype=np.float32),
                finish="stop" if stop else "length",
            )
            if stop:
                return


def _is_adapter(folder: Path | None) -> bool:
    return folder is not None and (folder / "adapter_config.json").is_file()


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _choose(logprobs_V: np.ndarray, params: SamplingParams, uniform: float) -> tuple[int, float]:
    """The token and its log-prob in the distribution sampled from, as `sampling.choose` defines it."""
    if params.temperature == 0:
        return int(logprobs_V.argmax()), 0.0
    logits_V = logprobs_V / params.temperature
    order_V = np.argsort(-logits_V, kind="stable")
    if params.top_k:
        logits_V[order_V[params.top_k :]] = -np.inf
    if params.top_p < 1:
        sorted_V = np.exp(_log_softmax(logits_V))[order_V]
        logits_V[order_V[1:][np.cumsum(sorted_V)[:-1] >= params.top_p]] = -np.inf
    sampled_V = _log_softmax(logits_V)
    cumulative_V = np.cumsum(np.exp(sampled_V))
    token = int(np.searchsorted(cumulative_V, uniform * cumulative_V[-1], side="right"))
    return token, float(sampled_V[token])


def _joined(parts: list[Completion]) -> Completion:
    return Completion(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.sampling_logprobs for part in parts]),
        finish=parts[-1].finish,
    )
