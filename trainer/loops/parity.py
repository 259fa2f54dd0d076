"""The parity gate: what is trained, what is sampled and what is saved must be the same model of the same tokens.

Before the first step, and again at each checkpoint that the plan asks for:
1. the same messages give the same ids by the run's renderer and by the tokenizer loaded back from where it was saved;
2. the renderer, the engine and the saved generation config end an answer at the same ids;
3. a few completions' log-probs are the same from the sampler that wrote them and from a training-style forward.
A breach before the first step refuses the run; a later one is reported and keeps that checkpoint from promotion. Costs
a few short completions; draws from seeds of its own, so it changes no number of the run.
N tokens of a prompt, n of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.datum import Datum
from trainer.data.model_card import declared
from trainer.data.render import Renderer, load_tokenizer
from trainer.data.rows import Row
from trainer.engine.base import Engine, SamplingParams

GAP = "parity/max_abs_logprob_gap"
_BOUND = {"float32": 1e-3, "bfloat16": 0.15}  # nats
_NEW_TOKENS = 8


class ParityBroken(ValueError):
    """Trainer, sampler and saved model differ; the message says in what and what to do."""


@dataclass(frozen=True, eq=False)
class SavedTokens:
    """The run's renderer beside the tokenizer that was saved in `folder`; `rows` are compared."""

    renderer: Renderer
    folder: Path
    rows: Sequence[Row]

    def breaches(self) -> list[str]:
        """Rows whose ids differ, in words; [] when all agree."""
        again = Renderer(load_tokenizer(str(self.folder), None), stop_ids=self.renderer.stop_ids)
        return [words for row in self.rows if (words := self._difference(row, again))]

    def _difference(self, row: Row, again: Renderer) -> str:
        pairs = [(self.renderer.render(row).ids, again.render(row).ids)]
        if row.kind != "text":
            pairs.append((self.renderer.prompt_ids(row), again.prompt_ids(row)))
        for here, there in pairs:
            if not np.array_equal(here, there):
                same = int((here[: len(there)] == there[: len(here)]).cumprod().sum())
                return (
                    f"{row.file}:{row.line}: the tokenizer as saved in {self.folder} gives other ids than training "
                    f"from token {same} on ({here[same : same + 4].tolist()} became {there[same : same + 4].tolist()})"
                )
        return ""


@dataclass(frozen=True, eq=False)
class ParityGate:
    """The gate of one run's model. `prompts`: int64 [N] each; `bound` in nats; no prompts = no gap is measured."""

    engine: Engine
    model: str
    prompts: Sequence[np.ndarray] = ()
    bound: float = 0.0
    seed: int = 0
    tokens: SavedTokens | None = None
    _params: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_params", SamplingParams(max_new_tokens=_NEW_TOKENS, seed=self.seed))

    def gap(self) -> float | None:
        """Largest gap of a sampled token's log-prob between sampler and trainer, in nats; None = not measured."""
        if not self.prompts:
            return None
        completions = [one[0] for one in self.engine.sample(self.model, self.prompts, self._params)]
        data = [_whole(prompt, one.tokens) for prompt, one in zip(self.prompts, completions, strict=True)]
        found = self.engine.forward(self.model, data).logprobs
        gaps = [
            np.abs(row_T[-len(one.tokens) :] - one.logprobs).max()
            for row_T, one in zip(found, completions, strict=True)
        ]
        return float(np.max(gaps))  # NaN stays NaN, and is a breach

    def breaches(self, gap: float | None) -> list[str]:
        """What is broken now, given the measured gap, in words."""
        found = self.tokens.breaches() + self._stops(self.engine.stop_ids, "the engine") if self.tokens else []
        if gap is not None and not gap <= self.bound:
            found.append(
                f"the sampler's log-probs are up to {gap:.3g} nats from the trainer's, the bound is {self.bound:g} "
                "(train.parity_max_gap)"
            )
        return found

    def breaches_of(self, weights: Path) -> list[str]:
        """What is broken in the files of a full model: its stop ids. An adapter's are its base's."""
        if self.tokens is None or not (weights / "config.json").is_file():
            return []
        return self._stops(tuple(declared(str(weights), None).stop_ids), f"the model saved in {weights}")

    def _stops(self, ids: tuple[int, ...], whose: str) -> list[str]:
        assert self.tokens is not None
        wanted = sorted(self.tokens.renderer.stop_ids)
        if sorted(ids) == wanted:
            return []
        return [
            f"training teaches {wanted} as the ends of an answer, {whose} stops at {sorted(ids)}: state them as "
            "eos_token_id in the base model's generation_config.json"
        ]


def gate(
    engine: Engine,
    model: str,
    *,
    train: Sequence[Datum],
    prompts: int,
    max_gap: float | None,
    dtype: str,
    seed: int,
    tokens: SavedTokens | None,
) -> ParityGate:
    """The gate with the prompts of the `prompts` shortest datums; `max_gap` None = the bound of `dtype`."""
    chosen = sorted(range(len(train)), key=lambda index: train[index].length)[:prompts]
    bound = _BOUND[dtype] if max_gap is None else max_gap
    return ParityGate(engine, model, [_prompt(train[index]) for index in chosen], bound, seed, tokens)


def _prompt(datum: Datum) -> np.ndarray:
    """What stands before the first trained token."""
    return datum.tokens[: int(np.argmax(datum.weights != 0)) + 1]


def _whole(prompt: np.ndarray, completion: np.ndarray) -> Datum:
    """Prompt and completion as a datum whose last n positions predict the completion."""
    ids = np.concatenate([prompt, completion])
    weights = np.zeros(len(ids) - 1, np.float32)
    weights[-len(completion) :] = 1
    return Datum(ids[:-1], ids[1:], weights)
