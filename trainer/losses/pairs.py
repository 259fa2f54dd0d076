"""Preference pairs: from trained positions to one number per datum, from datums to chosen and rejected.

Datums come as chosen, rejected, chosen, rejected. P pairs, D = 2 P datums, N positions.
"""

from __future__ import annotations

from torch import Tensor

from trainer.losses.fields import TokenFields


def check_pairs(fields: TokenFields, loss: str) -> None:
    """Raise `ValueError` for half a pair, or a response of which nothing is trained (its log-prob would be a mean over
    nothing). The second check waits for the device, once for each piece."""
    if fields.datums % 2:
        raise ValueError(
            f"{loss}: got {fields.datums} datums, wanted pairs in the order chosen, rejected, chosen, rejected"
        )
    trained = fields.datum_N.bincount(minlength=fields.datums).tolist()
    empty = [index for index, count in enumerate(trained) if not count]
    if empty:
        raise ValueError(f"{loss}: datums {empty} have no trained position (0 chosen, 1 rejected, ...); drop the pair")


def split_pairs(values_D: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen [P] and rejected [P]."""
    return values_D[0::2], values_D[1::2]
