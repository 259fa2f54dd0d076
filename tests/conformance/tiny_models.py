"""Tiny random models of four architectures, written to a folder and loaded the real way (`from_pretrained`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.data.datum import Datum

VOCABULARY = 48
CONTEXT = 64
STOP = 1
ARCHITECTURES = ("qwen3", "llama", "gemma3", "gpt2")
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": STOP,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def make_model(folder: Path, architecture: str = "qwen3", *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model of `architecture` to `folder`, always the same one, and return the folder."""
    torch.manual_seed(0)
    _build(architecture).to(dtype).save_pretrained(folder)  # pyright: ignore
    return folder


def _build(architecture: str) -> PreTrainedModel:
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**_SHAPE, tie_word_embeddings=True))
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=False, attention_bias=True))
    if architecture == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        extra = {"sliding_window": 5, "layer_types": layers, "final_logit_softcapping": 3.0}
        return Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE, **extra))
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, eos_token_id=STOP, bos_token_id=None
    )
    config.initializer_range = 0.2
    return GPT2LMHeadModel(config)


def make_rows(count: int, *, seed: int = 0, vocabulary: int = VOCABULARY, longest: int = 24) -> list[Datum]:
    """Datums of 4..`longest` tokens whose second half is trained, some with weights other than 1."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = generator.integers(2, vocabulary, generator.integers(5, longest + 2))
        weights = np.zeros(len(ids) - 1, dtype=np.float32)
        weights[len(weights) // 2 :] = generator.choice([1.0, 0.5, -0.5], len(weights) - len(weights) // 2)
        rows.append(Datum(ids[:-1].astype(np.int64), ids[1:].astype(np.int64), weights))
    return rows
