"""From datums to packed micro-batches: tokens laid end to end, trained positions indexed once.

Datums are taken in the order given and cut into micro-batches of a bounded number of tokens; inside one they are laid
shortest first, so that rows of one length are adjacent and attention takes them in one call. Neither changes a number.
T tokens of the micro-batch, N positions that go through the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.datum import Datum
from trainer.engine.attention import Rows
from trainer.losses.fields import TokenFields


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Some datums, packed. `head_N` are the positions that need log-probs, None = all T of them."""

    order: list[int]
    rows: Rows
    tokens_1T: Tensor
    positions_1T: Tensor
    head_N: Tensor | None
    targets_N: Tensor
    trained_N: Tensor | None
    fields: TokenFields
    filled_T: np.ndarray

    def scatter(self, logprobs_N: Tensor, into: list[np.ndarray]) -> None:
        """Put log-probs back: `into[d]` becomes datum d's [T], 0 where none was asked for."""
        flat_T = np.zeros(self.filled_T.shape[0], dtype=np.float32)
        flat_T[self.filled_T] = logprobs_N.detach().cpu().numpy()
        stops = np.cumsum(self.rows.lengths)[:-1]
        for index, part in zip(self.order, np.split(flat_T, stops), strict=True):
            into[index] = part


def micro_batches(
    data: Sequence[Datum], token_budget: int, *, every_position: bool, device: torch.device, together: int = 1
) -> Iterator[MicroBatch]:
    """Pack `data`, at most `token_budget` tokens at a time (a longer datum goes alone).

    `every_position`: all positions go through the head, not only the trained ones. `together`: so many neighbours (2 =
    a pair) share a micro-batch, even where that goes over the budget; it divides the number of datums.
    """
    lengths = [sum(d.length for d in data[at : at + together]) for at in range(0, len(data), together)]
    for span in _spans(lengths, token_budget):
        datums = range(span.start * together, span.stop * together)
        yield _pack(data, datums, every_position=every_position, device=device)


def _spans(lengths: list[int], token_budget: int) -> Iterator[range]:
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > token_budget:
            yield range(start, index)
            start, total = index, 0
        total += length
    if lengths:
        yield range(start, len(lengths))


def _pack(data: Sequence[Datum], span: range, *, every_position: bool, device: torch.device) -> MicroBatch:
    order = sorted(span, key=lambda index: data[index].length)
    chosen = [data[index] for index in order]
    lengths = tuple(datum.length for datum in chosen)
    weights_T = np.concatenate([datum.weights for datum in chosen])
    targets_T = np.concatenate([datum.targets for datum in chosen])
    trained_T = weights_T != 0
    filled_T = np.ones_like(trained_T) if every_position else trained_T
    whole = bool(filled_T.all())

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def trained(name: str) -> Tensor | None:
        arrays = [getattr(datum, name) for datum in chosen]
        return None if arrays[0] is None else tensor(np.concatenate(arrays)[trained_T])

    return MicroBatch(
        order=order,
        rows=Rows(lengths, device),
        tokens_1T=tensor(np.concatenate([datum.tokens for datum in chosen]))[None],
        positions_1T=tensor(np.concatenate([np.arange(length) for length in lengths]))[None],
        head_N=None if whole else tensor(np.flatnonzero(filled_T)),
        targets_N=tensor(targets_T[filled_T]),
        trained_N=tensor(np.flatnonzero(trained_T[filled_T])) if every_position else None,
        fields=TokenFields(
            weights_N=tensor(weights_T[trained_T]),
            datum_N=tensor(np.repeat(np.asarray(order) - span.start, lengths)[trained_T]),  # as the caller counts
            datums=len(chosen),
            logprobs_N=trained("logprobs"),
            advantages_N=trained("advantages"),
            reference_N=trained("reference"),
        ),
        filled_T=filled_T,
    )
