"""The Engine protocol: what a loop trains against, wherever the tensors are.

An engine holds one base model's weights once and any number of trained models on them: adapters of their own rank,
alpha and targets, or the one full-parameter model. Every call names its model. Training calls are synchronous and
ordered; gradients of all `forward_backward` calls between two `optim_step` calls accumulate as a **sum**, and
`optim_step` divides once by the denominator it is given. How an engine batches is its own affair: the numbers do not
depend on it. Shapes: T tokens of one datum, V vocabulary. Log-probs are natural, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from trainer.data.datum import Datum


@dataclass(frozen=True)
class LoraSpec:
    """An adapter: scale alpha/rank, or alpha/sqrt(rank) when `rslora`.

    targets: last names of layers, a regular expression of whole names, or `all-linear`: every linear one but the head.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False


@dataclass(frozen=True)
class AdamParams:
    """One AdamW step (decoupled decay, 1711.05101): the rate of this step and the constants."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0  # 0 = no clipping


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. temperature 0 = greedy; top_p 1 and top_k 0 = off; `seed` makes each completion repeatable,
    whatever else is in the batch."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_samples: int = 1
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None  # None = the model's declared end-of-turn ids
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled continuation of n tokens, the stop token included when there is one.

    tokens: int64 [n]. logprobs: float32 [n], of the model's own distribution (temperature 1, nothing cut off).
    sampling_logprobs: float32 [n], of the distribution that was sampled from (0 where greedy).
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class ForwardResult:
    """`logprobs[d]` float32 [T] per datum, log p(targets[i] | tokens[:i+1]).

    `forward` fills every position; `forward_backward` those with a weight, 0 elsewhere. `metrics` has "loss:sum" and
    what else the loss tells, each name ending in its reduction (:sum, :min, :max). `padding`: tokens that were
    computed for no datum.
    """

    logprobs: list[np.ndarray]
    metrics: dict[str, float] = field(default_factory=dict)
    padding: int = 0


class Engine(Protocol):
    """Four primitives plus save and load. Unknown models raise `KeyError`, bad data `ValueError`; a call that carries
    `seq` must carry the model's last one plus 1 (the first is 1), else `ValueError`. `stop_ids` end an answer.

    `loss` and the constants in `loss_config` are those of `trainer.loss_specs`. Where a loss works on pairs, `data` is
    chosen, rejected, chosen, rejected; a pair is never parted.
    """

    stop_ids: tuple[int, ...]

    def create_model(
        self,
        model: str,
        *,
        lora: LoraSpec | None,
        seed: int = 0,
        base_only: bool = False,
        warm_start: Path | None = None,
    ) -> None:
        """Add a trained model. `lora` None = all parameters (at most one such model, and no adapters beside it).

        `base_only`: the base with no adapter, for reference log-probs; refuses training. `warm_start`: a folder of
        PEFT files (adapter) or of a full model, weights only; with an adapter `lora` None takes its own settings.
        """
        ...

    def forward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        """Log-probs and the loss, without gradients and with dropout off."""
        ...

    def forward_backward(
        self,
        model: str,
        data: Sequence[Datum],
        *,
        loss: str = "cross_entropy",
        loss_config: Mapping[str, float] | None = None,
        seq: int | None = None,
    ) -> ForwardResult:
        """Add the gradient of the loss **sum** over `data` to the model's accumulated gradient."""
        ...

    def optim_step(
        self, model: str, params: AdamParams, *, denominator: float, seq: int | None = None
    ) -> dict[str, float]:
        """Divide the accumulated gradient by `denominator`, clip, step, clear. Returns "grad_norm" (before clipping).

        Raises `FloatingPointError` when the gradient is not finite; nothing has changed then but that the
        accumulated gradient is cleared.
        """
        ...

    def clear_gradient(self, model: str) -> None:
        """Forget the gradient accumulated since the last `optim_step`; no weight and no moment changes."""
        ...

    def sample(self, model: str, prompts: Sequence[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
        """`params.num_samples` completions for each prompt (int [N] token ids), in order."""
        ...

    def stream(self, model: str, prompt: np.ndarray, params: SamplingParams) -> Iterator[Completion]:
        """One completion of one prompt, token by token: each item is what was new since the last."""
        ...

    def save_weights(self, model: str, folder: Path) -> None:
        """Write files that plain peft or transformers load: an adapter's, or the full model's. Safetensors only."""
        ...

    def save_state(self, model: str, folder: Path) -> None:
        """Write all that training needs to go on exactly, beside the weights: optimizer, step count, RNG."""
        ...

    def load_state(self, model: str, weights: Path, state: Path | None) -> None:
        """Restore what `save_weights` and `save_state` wrote; `state` None = weights only, a fresh optimizer."""
        ...
