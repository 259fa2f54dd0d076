"""Preference pairs as datums: one prompt, two answers of different lengths, and a reference's log-probs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.conformance.tiny_models import VOCABULARY
from trainer.data.datum import Datum


def make_pairs(count: int, *, seed: int = 0, reference: bool = True) -> list[Datum]:
    """chosen, rejected, chosen, ... ; every other pair's chosen answer is the longer one."""
    generator = np.random.default_rng(seed)
    data: list[Datum] = []
    for number in range(count):
        prompt = generator.integers(2, VOCABULARY, generator.integers(2, 8))
        lengths = sorted(generator.integers(1, 7, 2) + np.array([0, 6]), reverse=number % 2 == 0)
        for length in lengths:
            ids = np.concatenate([prompt, generator.integers(2, VOCABULARY, length)]).astype(np.int64)
            weights = (np.arange(1, len(ids)) >= len(prompt)).astype(np.float32)
            datum = Datum(ids[:-1], ids[1:], weights)
            if reference:
                datum = replace(datum, reference=generator.normal(-3, 1, datum.length).astype(np.float32))
            data.append(datum)
    return data


def swapped(data: list[Datum]) -> list[Datum]:
    """The pairs the other way round: rejected is chosen."""
    return [data[index ^ 1] for index in range(len(data))]
