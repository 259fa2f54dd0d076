"""What every engine checks at its door, before anything is computed; numpy only.

One home, so that the toy refuses what the real engine refuses, with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from trainer.data.datum import Datum
from trainer.engine.base import AdamParams, SamplingParams
from trainer.loss_specs import LossSpec

_LARGEST_UNIFORM = 1 - 2**-24  # below 1 in fp32 too: inverse-CDF sampling never runs off the end


def check_sequence(model: str, last: int, seq: int | None) -> int:
    """The model's sequence number after this call. Raises `ValueError` when `seq` is not the next one."""
    if seq is None:
        return last
    if seq != last + 1:
        raise ValueError(f"seq: model {model!r} has seen call {last}, so this must be {last + 1}, got {seq}")
    return seq


def check_data(data: Sequence[Datum], vocabulary: int, context: int) -> None:
    """Raise `ValueError` for no data, ids outside the vocabulary, rows over the context, fields in some rows only."""
    if not data:
        raise ValueError("data: got no datum")
    longest = max(datum.length for datum in data)
    if longest > context:
        raise ValueError(f"data: a datum of {longest} tokens is over the model's context of {context}; cut it")
    for name in ("tokens", "targets"):
        ids = np.concatenate([getattr(datum, name) for datum in data])
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f"data: {name} hold ids {ids.min()}..{ids.max()}, the model has 0..{vocabulary - 1}")
    for name in ("logprobs", "advantages", "reference"):
        missing = sum(getattr(datum, name) is None for datum in data)
        if missing not in (0, len(data)):
            raise ValueError(f"data: {missing} of {len(data)} datums have no {name}; give it to all or to none")


def check_loss(data: Sequence[Datum], loss: str, spec: LossSpec) -> None:
    """Raise `ValueError` where `data` is not what `loss` works on: fields it reads, whole pairs, both sides trained."""
    for name in spec.needs:
        if getattr(data[0], name) is None:
            raise ValueError(f"{loss}: the datums have no {name}; it needs Datum.{name}, one number for each position")
    if not spec.pairs:
        return
    if len(data) % 2:
        raise ValueError(
            f"{loss}: got {len(data)} datums, wanted pairs in the order chosen, rejected, chosen, rejected"
        )
    empty = [index for index, datum in enumerate(data) if not datum.trained]
    if empty:
        raise ValueError(
            f"{loss}: datums {empty[:8]} have no trained position (even: chosen, odd: rejected); leave the pair out"
        )


def check_step(params: AdamParams, denominator: float, *, accumulated: bool) -> None:
    """Raise `ValueError` for a denominator that cannot divide, settings out of range, or nothing to step with."""
    if not (math.isfinite(denominator) and denominator > 0):
        raise ValueError(f"denominator: want a finite number > 0, got {denominator}")
    if not (math.isfinite(params.learning_rate) and params.learning_rate >= 0 and params.max_grad_norm >= 0):
        raise ValueError(f"AdamParams: learning_rate and max_grad_norm must be finite and >= 0, got {params}")
    if not accumulated:
        raise ValueError("optim_step: no gradient since the last step; call forward_backward first")


def check_sampling(
    prompts: Sequence[np.ndarray],
    params: SamplingParams,
    *,
    vocabulary: int,
    context: int,
    decode: Callable[[list[int]], str] | None,
) -> None:
    """Raise `ValueError` for prompts that leave no room or hold unknown ids, and for settings out of range."""
    if params.max_new_tokens < 1 or params.num_samples < 1 or params.top_k < 0 or params.seed < 0:
        raise ValueError(f"SamplingParams: max_new_tokens, num_samples >= 1, top_k, seed >= 0 wanted, got {params}")
    if not (math.isfinite(params.temperature) and params.temperature >= 0 and 0 < params.top_p <= 1):
        raise ValueError(f"SamplingParams: temperature >= 0 and top_p in (0, 1] wanted, got {params}")
    if params.stop_strings and decode is None:
        raise ValueError("stop_strings: this engine was made without a decode function; pass one, or use stop_ids")
    for prompt in prompts:
        if prompt.ndim != 1 or not 1 <= prompt.shape[0] < context:
            raise ValueError(
                f"prompt: want int [N] with 1 <= N < {context} (the context, room for one token), got {prompt.shape}"
            )
        if prompt.min() < 0 or prompt.max() >= vocabulary:
            raise ValueError(f"prompt: holds ids {prompt.min()}..{prompt.max()}, the model has 0..{vocabulary - 1}")


def uniforms(params: SamplingParams, prompt: np.ndarray, sample: int, count: int) -> np.ndarray:
    """`count` uniform numbers of one completion, from the seed, its number and its prompt, and of nothing else."""
    words = np.ascontiguousarray(prompt, dtype=np.uint32)
    generator = np.random.default_rng(np.random.SeedSequence([params.seed, sample, *words.tolist()]))
    return np.minimum(generator.random(count), _LARGEST_UNIFORM)


def stopped_by_string(tokens: Sequence[int], params: SamplingParams, decode: Callable[[list[int]], str] | None) -> bool:
    """Whether the text of `tokens` holds a stop string; looks at the end only, as it is asked after every token."""
    if not params.stop_strings or decode is None:
        return False
    tail = 8 + 4 * max(len(stop) for stop in params.stop_strings)  # a character is at most 4 byte-level tokens
    text = decode(list(tokens[-tail:]))
    return any(stop in text for stop in params.stop_strings)
