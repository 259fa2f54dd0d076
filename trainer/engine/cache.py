"""A key-value cache with room to grow: a token is written in place, where transformers' own copies the whole cache.

Only plain full-attention layers are replaced; sliding windows keep transformers' layer, whose cache is short anyway.
B rows, K key-value heads, S tokens held, C tokens there is room for, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

_ROOM = 128  # tokens of spare room after each growth


class RoomyLayer(DynamicLayer):
    """`keys` and `values` [B, K, S, D] are views of buffers [B, K, C, D]."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        if not held:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        if not self._buffers or self._buffers[0].shape[-2] < total:
            self._buffers = [_roomier(x, total + _ROOM) for x in (self.keys, self.values)]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:total] = new
        self.keys, self.values = (buffer[:, :, :total] for buffer in self._buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._buffers = []

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        if self._buffers:
            held = self.get_seq_length()
            self._buffers = [buffer[indices] for buffer in self._buffers]
            self.keys, self.values = (buffer[:, :, :held] for buffer in self._buffers)
        else:
            super().batch_select_indices(indices)


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model of `config`."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _roomier(held_BKSD: Tensor, room: int) -> Tensor:
    rows, heads, held, size = held_BKSD.shape
    buffer = torch.empty(rows, heads, room, size, dtype=held_BKSD.dtype, device=held_BKSD.device)
    buffer[:, :, :held] = held_BKSD
    return buffer
