"""A datum: one training example on its way to the engine.

Token ids, per-token targets and weights, for RL the sampler's log-probs and advantages, for preference losses and KL
penalties the frozen reference's log-probs; numpy, all of one length and already shifted by one: position i reads
`tokens[:i+1]` and predicts `targets[i]`. T is that length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Datum:
    """One shifted example; checked on construction.

    tokens, targets: int64 [T]. weights: float32 [T], signed, 0 = not trained. logprobs: float32 [T] of the sampler,
    advantages: float32 [T], both None outside RL. reference: float32 [T], log-probs of the frozen reference, None where
    no loss needs it. Raises `ValueError` naming the field, its dtype and its shape.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray | None = None
    advantages: np.ndarray | None = None
    reference: np.ndarray | None = None

    def __post_init__(self) -> None:
        length = self.tokens.shape[0] if self.tokens.ndim == 1 else -1
        if length < 1:
            raise ValueError(f"Datum.tokens: want int64 [T] with T >= 1, got shape {self.tokens.shape}")
        for name, want in _DTYPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != (length,) or value.dtype != want:
                raise ValueError(f"Datum.{name}: want {want} [{length}], got {value.dtype} {list(value.shape)}")
            if want == np.float32 and not np.isfinite(value).all():
                raise ValueError(f"Datum.{name}: holds a value that is not finite")

    @property
    def length(self) -> int:
        """T, in tokens."""
        return int(self.tokens.shape[0])

    @property
    def trained(self) -> int:
        """Positions whose weight is not 0."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True, eq=False)
class Pair:
    """A preference pair: two answers to one prompt. Engines are given it as two datums, chosen and rejected."""

    chosen: Datum
    rejected: Datum

    @property
    def length(self) -> int:
        """Tokens of both."""
        return self.chosen.length + self.rejected.length

    @property
    def trained(self) -> int:
        """Positions of both whose weight is not 0."""
        return self.chosen.trained + self.rejected.trained

    @property
    def datums(self) -> tuple[Datum, Datum]:
        """Chosen and rejected, in the order that losses of pairs want."""
        return self.chosen, self.rejected


Example = Datum | Pair  # what one row of a data set comes to

_DTYPES = {
    "tokens": np.dtype(np.int64),
    "targets": np.dtype(np.int64),
    "weights": np.dtype(np.float32),
    "logprobs": np.dtype(np.float32),
    "advantages": np.dtype(np.float32),
    "reference": np.dtype(np.float32),
}


def from_row(ids: np.ndarray, mask: np.ndarray) -> Datum:
    """Shift a whole row into a datum: `ids` int [N] with N >= 2, `mask` bool or float [N], T = N - 1.

    `mask[j]` says whether token j is learnt; it weighs the position that predicts it, so token 0, which nothing
    predicts, is never learnt.
    """
    if ids.ndim != 1 or ids.shape != mask.shape or ids.shape[0] < 2:
        raise ValueError(f"from_row: want ids and mask of one length >= 2, got {ids.shape} and {mask.shape}")
    row = ids.astype(np.int64)
    return Datum(tokens=row[:-1], targets=row[1:], weights=mask[1:].astype(np.float32))
