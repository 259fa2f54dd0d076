"""What a model does on held-out rows: its loss, and its answers beside the expected ones.

Both go through the rows in pieces and ask `keep_going` before each, so that a request to stop is heard within seconds;
an evaluation that was broken off gives None and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trainer.data.datum import Datum
from trainer.engine.base import Engine, SamplingParams

_LOSS_ROWS, _ANSWER_ROWS = 256, 64  # rows of one piece


def _always() -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Question:
    """A held-out row to answer: `prompt` int64 [N], what was asked and the expected answer as text."""

    prompt: np.ndarray
    asked: str
    expected: str


@dataclass(frozen=True)
class Answer:
    """One greedy answer beside the expected one."""

    asked: str
    expected: str
    given: str

    @property
    def exact(self) -> bool:
        """Equal but for white space at the ends."""
        return self.given.strip() == self.expected.strip()

    def record(self) -> dict[str, str | bool]:
        """For `samples.json`."""
        return {**asdict(self), "exact": self.exact}


def held_out_loss(
    engine: Engine, model: str, data: Sequence[Datum], *, keep_going: Callable[[], bool] = _always
) -> float | None:
    """Mean negative log-likelihood per trained token over all of `data`, in nats: one sum, one denominator."""
    total = 0.0
    for start in range(0, len(data), _LOSS_ROWS):
        if not keep_going():
            return None
        total += engine.forward(model, data[start : start + _LOSS_ROWS]).metrics["loss:sum"]
    return total / sum(float(datum.weights.sum()) for datum in data)


def answer_or_stop(
    engine: Engine,
    model: str,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    decode: Callable[[list[int]], str],
    keep_going: Callable[[], bool],
) -> list[Answer] | None:
    """`answer`, asked between pieces whether to go on; None when told not to."""
    given: list[Answer] = []
    for start in range(0, len(questions), _ANSWER_ROWS):
        if not keep_going():
            return None
        piece = questions[start : start + _ANSWER_ROWS]
        given += answer(engine, model, piece, max_tokens=max_tokens, decode=decode)
    return given


def answer(
    engine: Engine, model: str, questions: Sequence[Question], *, max_tokens: int, decode: Callable[[list[int]], str]
) -> list[Answer]:
    """Greedy answers to `questions`, in order; `decode` turns ids into text without special tokens."""
    if not questions:
        return []
    params = SamplingParams(max_new_tokens=max_tokens, temperature=0.0)
    completions = engine.sample(model, [question.prompt for question in questions], params)
    return [
        Answer(question.asked, question.expected, decode(one[0].tokens.tolist()))
        for question, one in zip(questions, completions, strict=True)
    ]


def exact_match(answers: Sequence[Answer]) -> float:
    """Share of answers that are exact, 0 to 1; of none, 0."""
    return sum(one.exact for one in answers) / max(1, len(answers))
