"""What a model makes of preference pairs, added up over any number of pairs and told as means.

The one decision: figures of the pair itself come from its log-probs and are the same whatever the loss; what only a
loss knows (its margin, its rewards) it tells itself, as sums over pairs, and is divided by the same count.

    loss                               mean over pairs
    accuracy                           share of pairs whose margin, as the loss has it, is above 0
    preference                         share of pairs whose chosen answer has the higher mean log-prob
    margin, chosen_reward, ...         DPO: beta (D_c - D_r), beta D_c; ORPO: log_odds, nll
    chosen_logprob, rejected_logprob   of the whole answer, mean over pairs, nats
    kl_k3                              mean over the chosen answers' positions of e^(f-p) - (f-p) - 1, f the reference's
                                       log-prob: the k3 estimator of the KL divergence, on the answers that the policy
                                       is to give and not on its own, so a sign of how far it has gone and no estimate
    chosen_tokens, rejected_tokens     mean length of the answers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from trainer.data.datum import Datum
from trainer.engine.base import ForwardResult

_LARGEST_GAP = 20.0  # e^20 is finite in fp32; as trainer.losses.kl
_OF_LOSS = ("margin", "log_odds", "nll", "chosen_reward", "rejected_reward")


class PairFigures:
    """Sums over the pairs seen so far."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()

    def add(self, data: Sequence[Datum], result: ForwardResult) -> None:
        """`result` of the pairs `data`: chosen, rejected, chosen, rejected."""
        sums, means, counts = [], [], []
        for index, (datum, row_T) in enumerate(zip(data, result.logprobs, strict=True)):
            total = float(np.dot(datum.weights, row_T))
            sums.append(total)
            means.append(total / datum.trained)
            counts.append(datum.trained)
            if datum.reference is not None and index % 2 == 0:
                trained = datum.weights != 0
                behind = np.minimum(datum.reference[trained] - row_T[trained], _LARGEST_GAP)
                self._add("kl_k3", float((np.exp(behind) - behind - 1).sum(dtype=np.float64)))
        self._add("pairs", len(data) // 2)
        self._add("tokens", sum(counts))
        self._add("preference", sum(c > r for c, r in zip(means[0::2], means[1::2], strict=True)))
        for name, values in (("logprob", sums), ("tokens", counts)):
            self._add(f"chosen_{name}", sum(values[0::2]))
            self._add(f"rejected_{name}", sum(values[1::2]))
        self._add("loss", result.metrics["loss:sum"])
        self._add("accuracy", result.metrics["correct:sum"])
        for name in _OF_LOSS:
            if f"{name}:sum" in result.metrics:
                self._add(name, result.metrics[f"{name}:sum"])

    @property
    def pairs(self) -> int:
        """Pairs seen."""
        return int(self._sums["pairs"])

    @property
    def trained(self) -> int:
        """Trained positions seen."""
        return int(self._sums["tokens"])

    def values(self, prefix: str = "") -> dict[str, float]:
        """The means, each name with `prefix` before it."""
        of = {"kl_k3": self._sums["chosen_tokens"]}
        names = ["loss", *(name for name in self._sums if name not in ("loss", "pairs", "tokens"))]
        return {f"{prefix}{name}": self._sums[name] / of.get(name, self._sums["pairs"]) for name in names}

    def _add(self, name: str, value: float) -> None:
        self._sums[name] += value  # pyright: ignore[reportArgumentType]
