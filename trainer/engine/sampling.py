"""Batched generation with a key-value cache: one loop, used for whole batches and for streams alike.

Prompts are left-padded per chunk of similar lengths, prefilled once for all their samples, and decoded together; rows
that finish leave the batch and the cache. Each completion draws from its own uniform numbers by inverse CDF, so its
tokens do not depend on what else is in the batch, but for floating-point rounding within about 1e-6 of a boundary.
B rows alive, R rows of the chunk, V vocabulary, P prompts, N longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from trainer.engine.admission import stopped_by_string, uniforms
from trainer.engine.base import Completion, SamplingParams
from trainer.engine.cache import roomy_cache
from trainer.engine.head import Head

_CHUNK_TOKENS = 65_536  # cached tokens of a chunk at most: rows x (prompt + new tokens)
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Sampler:
    """What sampling needs of a model."""

    decoder: nn.Module
    head: Head
    config: PretrainedConfig
    stop_ids: tuple[int, ...]
    context: int
    decode: Decode | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One token of each row alive: which rows, the tokens, their log-probs, and who stops (`stop`, `length`, None)."""

    rows_B: np.ndarray
    tokens_B: np.ndarray
    logprobs_B: np.ndarray
    sampling_logprobs_B: np.ndarray
    finish_B: list[str | None]


def sample(sampler: Sampler, prompts: Sequence[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
    """`params.num_samples` completions of each prompt, in order; prompts and params have been checked."""
    results: list[list[Completion]] = [[] for _ in prompts]
    for indices in _chunks(prompts, params, context=sampler.context):
        chunk = [prompts[index] for index in indices]
        for index, completions in zip(indices, _sample_chunk(sampler, chunk, params), strict=True):
            results[index] = completions
    return results


def steps(sampler: Sampler, prompts: Sequence[np.ndarray], params: SamplingParams) -> Iterator[Step]:
    """The loop itself: row r is sample r % num_samples of prompt r // num_samples."""
    device = sampler.head.weight_VH.device
    copies = params.num_samples
    limits_R = np.array([min(params.max_new_tokens, sampler.context - len(p)) for p in prompts for _ in range(copies)])
    most = int(limits_R.max())
    draws = [uniforms(params, prompt, copy, most) for prompt in prompts for copy in range(copies)]
    draws_RM = torch.from_numpy(np.stack(draws)).to(device, torch.float32 if device.type == "mps" else torch.float64)
    stop_ids = np.array(sampler.stop_ids if params.stop_ids is None else params.stop_ids, dtype=np.int64)
    written: list[list[int]] = [[] for _ in limits_R]  # only kept where stop strings are looked for
    rows_B = np.arange(len(limits_R))
    state = _prefill(sampler, prompts, copies, device)
    for step in range(most):
        chosen = choose(state.logits_BV, params, draws_RM[torch.from_numpy(rows_B).to(device), step])
        tokens_B, logprobs_B, sampling_logprobs_B = (x.cpu().numpy() for x in chosen)
        full_B = limits_R[rows_B] <= step + 1
        stop_B = np.isin(tokens_B, stop_ids)
        if params.stop_strings:
            for place, (row, token) in enumerate(zip(rows_B, tokens_B, strict=True)):
                written[row].append(int(token))
                stop_B[place] |= stopped_by_string(written[row], params, sampler.decode)
        finish = ["stop" if s else "length" if f else None for s, f in zip(stop_B, full_B, strict=True)]
        yield Step(rows_B, tokens_B, logprobs_B, sampling_logprobs_B, finish)
        alive_B = ~(stop_B | full_B)
        if not alive_B.any():
            return
        next_B = chosen[0]
        if not alive_B.all():
            keep = torch.from_numpy(np.flatnonzero(alive_B)).to(device)
            rows_B, next_B = rows_B[alive_B], next_B[keep]
            state.keep(keep)
        state.advance(sampler, next_B)


class _State:
    """The rows alive: cache, positions, padding mask (None when nothing is padded), and the next logits."""

    def __init__(self, cache: DynamicCache, logits_BV: Tensor, positions_B: Tensor, mask_BN: Tensor | None) -> None:
        self.cache, self.logits_BV, self.positions_B, self.mask_BN = cache, logits_BV, positions_B, mask_BN

    def keep(self, indices: Tensor) -> None:
        """Drop all rows but `indices`."""
        self.cache.batch_select_indices(indices)
        self.positions_B = self.positions_B[indices]
        if self.mask_BN is not None:
            self.mask_BN = self.mask_BN[indices]

    def advance(self, sampler: Sampler, tokens_B: Tensor) -> None:
        """Feed one token a row."""
        if self.mask_BN is not None:
            self.mask_BN = torch.cat([self.mask_BN, self.mask_BN.new_ones(len(tokens_B), 1)], dim=1)
        hidden_B1H = sampler.decoder(
            input_ids=tokens_B[:, None],
            attention_mask=self.mask_BN,
            position_ids=self.positions_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )[0]
        self.positions_B = self.positions_B + 1
        self.logits_BV = sampler.head.logits(hidden_B1H[:, -1])


def choose(logits_BV: Tensor, params: SamplingParams, uniforms_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, their log-probs in the model's distribution, in the one sampled from), each [B]; logits fp32.

    The distribution sampled from is the model's at `temperature`, cut to the `top_k` most likely, then to the smallest
    set whose probability reaches `top_p`, renormalised. Greedy at temperature 0, where the last log-probs are 0.
    """
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    if params.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        logprobs_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
        return tokens_B, logprobs_B, torch.zeros_like(logprobs_B)
    sampled_BV = logprobs_BV
    if params.temperature != 1 or params.top_k or params.top_p < 1:
        sampled_BV = torch.log_softmax(_truncated(logits_BV / params.temperature, params), dim=-1)
    cumulative_BV = sampled_BV.exp().cumsum(-1, dtype=uniforms_B.dtype)
    targets_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp_(max=logits_BV.shape[-1] - 1)
    return tokens_B1[:, 0], logprobs_BV.gather(1, tokens_B1)[:, 0], sampled_BV.gather(1, tokens_B1)[:, 0]


def _truncated(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    if 0 < params.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(params.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if params.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        probs_BV = sorted_BV.softmax(-1)
        beyond_BV = probs_BV.cumsum(-1) - probs_BV >= params.top_p  # what comes before already suffices
        beyond_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(torch.zeros_like(beyond_BV).scatter(1, order_BV, beyond_BV), -torch.inf)
    return logits_BV


def _prefill(sampler: Sampler, prompts: Sequence[np.ndarray], copies: int, device: torch.device) -> _State:
    longest = max(len(prompt) for prompt in prompts)
    tokens_PN = np.zeros((len(prompts), longest), dtype=np.int64)
    mask_PN = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens_PN[row, longest - len(prompt) :] = prompt
        mask_PN[row, longest - len(prompt) :] = 1
    mask = None if mask_PN.all() else torch.from_numpy(mask_PN).to(device)
    positions_PN = torch.from_numpy(np.maximum(mask_PN.cumsum(1) - 1, 0)).to(device)
    cache = roomy_cache(sampler.config)
    hidden_PNH = sampler.decoder(
        input_ids=torch.from_numpy(tokens_PN).to(device),
        attention_mask=mask,
        position_ids=positions_PN,
        past_key_values=cache,
        use_cache=True,
    )[0]
    logits_BV, positions_B = sampler.head.logits(hidden_PNH[:, -1]), positions_PN[:, -1] + 1
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits_BV, positions_B = logits_BV.repeat_interleave(copies, 0), positions_B.repeat_interleave(copies, 0)
        mask = None if mask is None else mask.repeat_interleave(copies, 0)
    return _State(cache, logits_BV, positions_B, mask)


def _chunks(prompts: Sequence[np.ndarray], params: SamplingParams, *, context: int) -> Iterator[list[int]]:
    """Indices of prompts of similar lengths, shortest first, as many as the cache may hold."""
    chunk: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        row = min(len(prompts[index]) + params.max_new_tokens, context) * params.num_samples
        if chunk and (len(chunk) + 1) * row > _CHUNK_TOKENS:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def _sample_chunk(sampler: Sampler, prompts: list[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
    count, longest = len(prompts) * params.num_samples, min(params.max_new_tokens, sampler.context)
    tokens_RM = np.zeros((count, longest), dtype=np.int64)
    logprobs_RM = np.zeros((count, longest), dtype=np.float32)
    sampling_RM = np.zeros((count, longest), dtype=np.float32)
    done: list[Completion | None] = [None] * count
    for position, step in enumerate(steps(sampler, prompts, params)):
        tokens_RM[step.rows_B, position] = step.tokens_B
        logprobs_RM[step.rows_B, position] = step.logprobs_B
        sampling_RM[step.rows_B, position] = step.sampling_logprobs_B
        for row, finish in zip(step.rows_B, step.finish_B, strict=True):
            if finish is not None:
                n = position + 1
                parts = (array[row, :n].copy() for array in (tokens_RM, logprobs_RM, sampling_RM))
                done[row] = Completion(*parts, finish="stop" if finish == "stop" else "length")
    completions = [completion for completion in done if completion is not None]
    return [completions[i : i + params.num_samples] for i in range(0, count, params.num_samples)]
