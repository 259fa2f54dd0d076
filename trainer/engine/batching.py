"""From datums to micro-batches, packed or padded: tokens laid out, trained positions indexed once.

Packed, datums are taken in the order given and cut into micro-batches of a bounded number of tokens; inside one they
are laid end to end, shortest first, so that rows of one length are adjacent and attention takes them in one call. Of
two neighbours with a long enough common beginning, such as a pair's prompt, the second is laid without it, and its
tokens see the first's. Padded, they are put into buckets of about one length (`trainer.data.buckets`) and padded on the
right: no token sees what follows it, so that causal attention needs no mask for it. None of this changes a number.
B rows of T tokens as laid (one of them where packed), S positions of all datums (more than T where some share, fewer
than B T where padded), N of them that need a log-prob, U of these that differ in token or target, K tokens that go
through the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.buckets import Bounds, buckets
from trainer.data.datum import Datum
from trainer.engine.attention import Rows
from trainer.losses.fields import TokenFields

LEAST_SHARED = 12  # tokens; at 8 the calls cost what the tokens save (docs/performance.md)
_PADDING = 0  # any id of the vocabulary would do


@dataclass(frozen=True, eq=False)
class Reads:
    """Log-probs that several positions have in common. again: int64, which of the K tokens that go through the head are
    followed by another target too (U = K + so many); read_N: int64, which of the U log-probs is a position's."""

    again: Tensor
    read_N: Tensor


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Some datums, packed or padded.

    `rows` are the packed ones, None where padded. `head_K` are the tokens that go through the head, None = all B T of
    them. `reads` says how log-probs of positions are read from these, None = one of each. `lengths` and `filled_S` are
    of the datums in `order`.
    """

    order: list[int]
    lengths: tuple[int, ...]
    rows: Rows | None
    tokens_BT: Tensor
    positions_1T: Tensor
    head_K: Tensor | None
    targets_U: Tensor
    reads: Reads | None
    trained_N: Tensor | None
    fields: TokenFields
    filled_S: np.ndarray

    @property
    def padding(self) -> int:
        """Tokens that are no datum's."""
        return 0 if self.rows is not None else self.tokens_BT.numel() - sum(self.lengths)

    def logprobs(self, hidden_KH: Tensor, head: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Log-probs [N] by `head(hidden_UH, targets_U)`, which is asked once for a token and a target of it."""
        if self.reads is None:
            return head(hidden_KH, self.targets_U)
        again_H = hidden_KH.index_select(0, self.reads.again)
        return head(torch.cat((hidden_KH, again_H)), self.targets_U).index_select(0, self.reads.read_N)

    def scatter(self, logprobs_N: Tensor, into: list[np.ndarray]) -> None:
        """Put log-probs back: `into[d]` becomes datum d's own, 0 where none was asked for."""
        flat_S = np.zeros(self.filled_S.shape[0], dtype=np.float32)
        flat_S[self.filled_S] = logprobs_N.detach().cpu().numpy()
        stops = np.cumsum(self.lengths)[:-1]
        for index, part in zip(self.order, np.split(flat_S, stops), strict=True):
            into[index] = part


def micro_batches(
    data: Sequence[Datum],
    token_budget: int,
    *,
    every_position: bool,
    device: torch.device,
    together: int = 1,
    share: int = 0,
) -> Iterator[MicroBatch]:
    """Pack `data`, at most `token_budget` tokens at a time (a longer datum goes alone; all count, shared or not).

    `every_position`: all positions go through the head, not only the trained ones. `together`: so many neighbours (2 =
    a pair) share a micro-batch, even where that goes over the budget; it divides the number of datums. `share`: lay
    what two neighbours have in common at their beginning once, where it is at least so many tokens; 0 = never.
    """
    lengths = [sum(d.length for d in data[at : at + together]) for at in range(0, len(data), together)]
    for span in _spans(lengths, token_budget):
        datums = range(span.start * together, span.stop * together)
        yield _pack(data, datums, every_position=every_position, device=device, share=share)


def padded_batches(
    data: Sequence[Datum], bounds: Bounds, *, every_position: bool, device: torch.device, together: int = 1
) -> Iterator[MicroBatch]:
    """Put `data` into buckets within `bounds` and pad each to its longest row; the rest as in `micro_batches`."""
    for bucket in buckets([datum.length for datum in data], bounds, together=together):
        yield _pad(data, bucket, every_position=every_position, device=device)


def _spans(lengths: list[int], token_budget: int) -> Iterator[range]:
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > token_budget:
            yield range(start, index)
            start, total = index, 0
        total += length
    if lengths:
        yield range(start, len(lengths))


def shared_lengths(data: Sequence[Datum], least: int) -> list[int]:
    """How many tokens each datum shares with the one before it: none or at least `least`.

    Where it shares some, the one before shares none.
    """
    found: list[int] = []
    for index, datum in enumerate(data):
        free = index > 0 and not found[-1]
        common = _common(data[index - 1].tokens, datum.tokens) if free else 0
        found.append(common if common >= least else 0)
    return found


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


@dataclass(frozen=True)
class _Layout:
    """Which datum each row is, how many of its tokens are laid, and the tokens of another row that it begins with."""

    order: list[int]
    own: tuple[int, ...]
    shared: tuple[range, ...]

    @property
    def branched(self) -> bool:
        """Whether any row does."""
        return any(self.shared)

    def places(self) -> np.ndarray:
        """Which of the T tokens each of the S positions is, int64 [S]."""
        stops = np.cumsum(self.own).tolist()
        laid = [range(stop - own, stop) for stop, own in zip(stops, self.own, strict=True)]
        return np.concatenate([np.r_[one, other] for one, other in zip(self.shared, laid, strict=True)]).astype(
            np.int64
        )


def _layout(data: Sequence[Datum], span: range, *, share: int) -> _Layout:
    """Whole rows shortest first, then those that share: rows which attention takes in one call are adjacent."""
    chosen = [data[index] for index in span]
    common = dict(zip(span, shared_lengths(chosen, share) if share else [0] * len(span), strict=True))
    own = {index: data[index].length - common[index] for index in span}
    order = sorted(span, key=lambda index: (common[index] > 0, own[index], common[index]))
    starts, start = dict[int, int](), 0
    for index in order:
        starts[index] = start
        start += own[index]
    beginnings = (range(starts[i - 1], starts[i - 1] + common[i]) if common[i] else range(0) for i in order)
    return _Layout(order, tuple(own[index] for index in order), tuple(beginnings))


def _reads(places_N: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens that go through the head [K], targets [U], which of K are read again, and which of U each of N reads."""
    targets = int(targets_N.max(initial=0)) + 1
    found_U, inverse_N = np.unique(places_N * targets + targets_N, return_inverse=True)
    places_U, targets_U = np.divmod(found_U, targets)
    first_U = np.diff(places_U, prepend=-1) != 0
    again = (np.cumsum(first_U) - 1)[~first_U]
    order_U = np.concatenate((np.flatnonzero(first_U), np.flatnonzero(~first_U)))
    read_N = np.argsort(order_U)[inverse_N]
    return places_U[first_U], targets_U[order_U], again, read_N


def _pack(data: Sequence[Datum], span: range, *, every_position: bool, device: torch.device, share: int) -> MicroBatch:
    layout = _layout(data, span, share=share)
    chosen = [data[index] for index in layout.order]
    laid = _Positions(chosen, every_position=every_position, device=device)
    skips = [len(shared) for shared in layout.shared]  # tokens of a datum that are laid elsewhere
    head_K, targets_U, reads = np.flatnonzero(laid.filled_S), laid.targets_N, None
    if layout.branched:
        head_K, targets_U, *indices = _reads(layout.places()[laid.filled_S], targets_U)
        reads = Reads(*map(laid.tensor, indices))
    tokens_T = np.concatenate([one.tokens[skip:] for one, skip in zip(chosen, skips, strict=True)])
    positions_T = np.concatenate([np.arange(n, m) for n, m in zip(skips, laid.lengths, strict=True)])
    return MicroBatch(
        order=layout.order,
        lengths=laid.lengths,
        rows=Rows(layout.own, device, layout.shared if layout.branched else None),
        tokens_BT=laid.tensor(tokens_T)[None],
        positions_1T=laid.tensor(positions_T)[None],
        head_K=None if len(head_K) == sum(layout.own) else laid.tensor(head_K),
        targets_U=laid.tensor(targets_U),
        reads=reads,
        trained_N=laid.trained_N(),
        fields=laid.fields(np.asarray(layout.order) - span.start),
        filled_S=laid.filled_S,
    )


def _pad(data: Sequence[Datum], bucket: list[int], *, every_position: bool, device: torch.device) -> MicroBatch:
    chosen = [data[index] for index in bucket]
    laid = _Positions(chosen, every_position=every_position, device=device)
    real_BT = np.arange(max(laid.lengths)) < np.asarray(laid.lengths)[:, None]
    tokens_BT = np.full(real_BT.shape, _PADDING, np.int64)
    tokens_BT[real_BT] = np.concatenate([one.tokens for one in chosen])
    head_K = np.flatnonzero(real_BT)[laid.filled_S]
    return MicroBatch(
        order=bucket,
        lengths=laid.lengths,
        rows=None,
        tokens_BT=laid.tensor(tokens_BT),
        positions_1T=laid.tensor(np.arange(real_BT.shape[1]))[None],
        head_K=None if len(head_K) == real_BT.size else laid.tensor(head_K),
        targets_U=laid.tensor(laid.targets_N),
        reads=None,
        trained_N=laid.trained_N(),
        fields=laid.fields(np.arange(len(chosen))),
        filled_S=laid.filled_S,
    )


class _Positions:
    """The S positions of datums one after the other: which are asked for, which are trained, and a loss's fields."""

    def __init__(self, chosen: Sequence[Datum], *, every_position: bool, device: torch.device) -> None:
        self.chosen, self.every, self.device = chosen, every_position, device
        self.lengths = tuple(datum.length for datum in chosen)
        self.weights_S = np.concatenate([datum.weights for datum in chosen])
        self.trained_S = self.weights_S != 0
        self.filled_S = np.ones_like(self.trained_S) if every_position else self.trained_S
        self.targets_N = np.concatenate([datum.targets for datum in chosen])[self.filled_S]

    def tensor(self, array: np.ndarray) -> Tensor:
        """On the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def trained_N(self) -> Tensor | None:
        """Which of the N positions are trained; None where only these are asked for."""
        return self.tensor(np.flatnonzero(self.trained_S[self.filled_S])) if self.every else None

    def fields(self, numbers: np.ndarray) -> TokenFields:
        """Of the trained positions; `numbers` are the datums' as the caller counts."""
        return TokenFields(
            weights_N=self.tensor(self.weights_S[self.trained_S]),
            datum_N=self.tensor(np.repeat(numbers, self.lengths)[self.trained_S]),
            datums=len(self.chosen),
            logprobs_N=self._trained("logprobs"),
            advantages_N=self._trained("advantages"),
            reference_N=self._trained("reference"),
        )

    def _trained(self, name: str) -> Tensor | None:
        arrays = [getattr(datum, name) for datum in self.chosen]
        return None if arrays[0] is None else self.tensor(np.concatenate(arrays)[self.trained_S])
