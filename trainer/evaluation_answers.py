"""Answers that a model gives to rows without one, through the engine; the tensor libraries load at the first use.

What a row's answer is does not depend on the rows beside it: each is sampled with the seed of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.rows import Row
from trainer.data.chat import read_prompt, read_tools
from trainer.data.problem import RowProblem
from trainer.evaluation_run import AnswerSettings, ModelPlace

BATCH = 16  # prompts sampled together


class Answerer:
    """One model, loaded. Raises `ValueError` for a model that the engine refuses."""

    def __init__(self, place: ModelPlace, settings: AnswerSettings) -> None:
        # Rows are read, and refused, before the tensor libraries load.
        from trainer.data.render import Renderer, load_tokenizer  # noqa: PLC0415
        from trainer.engine.base import SamplingParams  # noqa: PLC0415
        from trainer.engine.local import LocalEngine  # noqa: PLC0415

        adapter = Path(place.adapter) if place.adapter else None
        has_tokens = adapter is not None and (adapter / "tokenizer.json").is_file()
        self._engine = LocalEngine(place.base)
        self._engine.create_model("model", lora=None, base_only=adapter is None, warm_start=adapter)
        tokenizer = load_tokenizer(str(adapter) if has_tokens else place.base, None)
        self._renderer: Any = Renderer(tokenizer, stop_ids=self._engine.stop_ids)
        self._params = SamplingParams(
            max_new_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p,
            top_k=settings.top_k, seed=settings.seed,
        )  # fmt: skip

    def answer(self, rows: Sequence[Row]) -> list[str | ValueError]:
        """An answer to each row, or why there is none (a template that refuses it, a prompt beyond the context)."""
        found: list[str | ValueError] = []
        for row in rows:
            found.append(self._prompt_problem(row) or "")
        sound = [index for index, one in enumerate(found) if not isinstance(one, ValueError)]
        for start in range(0, len(sound), BATCH):
            together = sound[start : start + BATCH]
            for index, text in zip(together, self._sampled([rows[index] for index in together]), strict=True):
                found[index] = text
        return found

    def _prompt_problem(self, row: Row) -> ValueError | None:
        try:
            prompt = self._prompt(row)
        except RowProblem as problem:
            return ValueError(problem.message)  # whoever asked knows the row
        except ValueError as error:
            return error
        room = self._engine.context_length - self._params.max_new_tokens
        if len(prompt) > room:
            return ValueError(
                f"the prompt has {len(prompt):,} tokens; with {self._params.max_new_tokens} for the answer the model's "
                f"context of {self._engine.context_length:,} leaves {room:,}"
            )
        return None

    def _sampled(self, rows: Sequence[Row]) -> list[str]:
        sampled = self._engine.sample("model", [self._prompt(row) for row in rows], self._params)
        decode = self._renderer.tokenizer.decode
        return [str(decode(one.tokens.tolist(), skip_special_tokens=True)) for [one] in sampled]

    def _prompt(self, row: Row) -> Any:
        return self._renderer.chat_ids(read_prompt(_conversation(row)), tools=read_tools(row.get("tools"), Counter()))


def _conversation(row: Row) -> list[Any]:
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(messages, list) and messages:
        return messages
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    raise ValueError("the row has neither messages nor a prompt; a model cannot answer it")
