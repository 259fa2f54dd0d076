"""Render rows into token ids and a mask of the tokens that are learnt.

The one decision: a row is tokenised so that what the sampler is given is exactly what training saw. A chat is rendered
to one text by the chat template (Jinja, in the sandbox of transformers) and tokenised in one go without added special
tokens, as `apply_chat_template` does; a prompt for sampling is rendered and tokenised the same way. Where an answer
begins comes from the template's `{% generation %}` marks, or, where it has none, from comparing what it writes for
the prompt before a turn, for the conversation through it, and for the whole row. Either way the prompt's tokens must
be an exact prefix of the row's, else `PrefixRuleError` names the message. A completion row's prompt is tokenised
alone, as sampling would.

A turn's mask ends with its stop token: what a template writes after it (often a line break) no sampler ever produces,
and a stop token that stands right after the mark is taken in, as the model must learn to stop.

Not guaranteed: that a template ends (a Jinja loop may run long), and that text in a message that spells a control
token is kept from becoming one; templates and rows are the user's own.

N tokens of one row.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.data.rows import Row

_WORDS = 300  # characters of a template's complaint that are told; it may quote the row
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Message = dict[str, Any]
Span = tuple[int, int]  # [begin, end), of characters or tokens


class RenderError(ValueError):
    """A row that the template or the tokenizer cannot render; `code` is its reason in the ledger."""

    code = "template"


class PrefixRuleError(RenderError):
    """A template under which no prompt of a sampler is a prefix of the training row. `message_index` is the turn's."""

    code = "prefix_rule"

    def __init__(self, message_index: int, why: str) -> None:
        self.message_index = message_index
        super().__init__(
            f"the chat template breaks the prefix rule at messages[{message_index}]: {why}. Mark what the assistant "
            "writes with {% generation %} in jinja_template, or train only the last turn (weight 0 on earlier ones)"
        )


@dataclass(frozen=True)
class Turn:
    """A trained turn: the tokens of `spans` ([start, end), in order) are learnt; mostly there is one span.

    `stop_trained`: the last of them is a stop token.
    """

    message: int
    spans: tuple[tuple[int, int], ...]
    stop_trained: bool


@dataclass(frozen=True, eq=False)
class Rendered:
    """A row as tokens: ids int64 [N], mask bool [N] (the tokens that are learnt, never the first)."""

    ids: np.ndarray
    mask: np.ndarray
    turns: tuple[Turn, ...]

    @property
    def stop_trained(self) -> bool:
        """Whether every trained turn learns to stop (True when there is none)."""
        return all(turn.stop_trained for turn in self.turns)

    def cut(self, length: int) -> Rendered:
        """The first `length` tokens. A turn that loses its end loses its stop token."""
        turns = []
        for turn in self.turns:
            spans = tuple((start, min(end, length)) for start, end in turn.spans if start < length)
            if spans:
                turns.append(Turn(turn.message, spans, turn.stop_trained and spans == turn.spans))
        return Rendered(self.ids[:length], self.mask[:length], tuple(turns))


def load_tokenizer(path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id. Code from the model's repository is never run.

    Raises `ValueError` naming the path and the way out.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        where = "the folder" if Path(path).expanduser().is_dir() else "no such folder here, and as a hub id"
        raise ValueError(
            f"model {path!r}: its tokenizer cannot be loaded ({where}): {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}. "
            "Give a folder with tokenizer.json and tokenizer_config.json, or a hub id while online"
        ) from error


class Renderer:
    """Rows to tokens, with one tokenizer and one chat template (None = the tokenizer's own).

    `stop_ids` are the ids that end an answer when sampled (the model's declared end-of-turn ids); None = the
    tokenizer's eos token alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        *,
        stop_ids: Collection[int] | None = None,
    ) -> None:
        if template is not None:
            _check_template(template)
        eos: Any = tokenizer.eos_token_id
        self.tokenizer, self.template = tokenizer, template
        self._eos: int | None = eos
        self.stop_ids = frozenset(stop_ids if stop_ids is not None else () if eos is None else (eos,))
        named = sorted(filter(None, map(str, tokenizer.all_special_tokens)), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, named))) if named else None
        self._adds_eos = eos is not None and self._encode(["a"], special=True)[0][-1:] == [eos]

    # --- Whole rows ---

    def render(self, row: Row) -> Rendered:
        """One row. Raises `RenderError`."""
        result = self.render_batch([row])[0]
        if isinstance(result, RenderError):
            raise result
        return result

    def render_batch(self, rows: Sequence[Row]) -> list[Rendered | RenderError]:
        """Each row rendered, or why it cannot be; many rows at once are tokenised faster than one by one.

        Raises `ValueError` where the fault is the job's and not a row's: no chat template, or a broken one.
        """
        results: dict[int, Rendered | RenderError] = {}
        for kind, render in (("chat", self._chats), ("completion", self._completions), ("text", self._texts)):
            numbers = [number for number, row in enumerate(rows) if row.kind == kind]
            results.update(zip(numbers, render([rows[number] for number in numbers]), strict=True))
        return [results[number] for number in range(len(rows))]

    def spelled(self, row: Row) -> set[str]:
        """The control tokens that the text of a row spells, and that the tokenizer therefore makes of it."""
        texts = [row.prompt, row.completion, row.text]
        texts += [message.get(key, "") for message in row.messages for key in ("content", "reasoning_content", "name")]
        texts += strings([message.get("tool_calls") for message in row.messages]) + strings(row.tools)
        parts = [self.spelled(side) for side in row.sides]
        return set().union(*parts, *(self._control.findall(text) for text in texts if self._control and text))

    # --- Prompts and references ---

    def prompt_ids(self, row: Row) -> np.ndarray:
        """int64 [N]: what a sampler is given for `row`, up to its last answer and with the generation prompt."""
        if row.kind == "chat":
            return self.chat_ids(row.messages[:-1], tools=row.tools)
        if row.kind == "completion":
            return np.asarray(self._encode_plain([row.prompt])[0], np.int64)
        raise ValueError(f"{row.file}:{row.line}: a text row has no prompt; sample from chat or completion rows")

    def chat_ids(self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = ()) -> np.ndarray:
        """int64 [N]: messages with the generation prompt, as a sampler is given them. Raises `RenderError`."""
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        text, _ = self._text(given, tools=tools, prompt=True)
        return np.asarray(self._encode([text])[0], np.int64)

    @staticmethod
    def reference(row: Row) -> str:
        """The answer expected after `prompt_ids(row)`: the last message's content (without its reasoning)."""
        if row.kind == "chat":
            return row.messages[-1].get("content", "")
        if row.kind == "completion":
            return row.completion
        raise ValueError(f"{row.file}:{row.line}: a text row has no answer; score chat or completion rows")

    # --- Chat ---

    def _chats(self, rows: Sequence[Row]) -> list[Rendered | RenderError]:
        if not rows:
            return []
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer {type(self.tokenizer).__name__} does not say where in a text its tokens stand, which "
                "chat rows need; use a model with a tokenizer.json, or prompt and completion rows"
            )
        texts: list[str] = []
        answers: list[list[tuple[int, Span]] | RenderError] = []
        for row in rows:
            try:
                text, marks = self._text(row.messages, tools=row.tools)
                found = self._mark_owners(row, text, marks=marks) if marks else self._compared(row, text)
            except RenderError as error:
                text, found = "", error
            texts.append(text)
            answers.append(found)
        results: list[Rendered | RenderError] = []
        for row, text, found, (ids, offsets) in zip(rows, texts, answers, self._located(texts), strict=True):
            try:
                if isinstance(found, RenderError):
                    raise found
                turns = self._turns(row, ids, offsets=offsets, text=text, answers=found)
                results.append(_masked(ids, _all_there(row, turns)))
            except RenderError as error:
                results.append(error)
        return results

    def _turns(
        self, row: Row, ids: np.ndarray, *, offsets: np.ndarray, text: str, answers: list[tuple[int, Span]]
    ) -> list[Turn]:
        """The tokens of each trained message; `answers` are the spans of characters it was written to."""
        spans: dict[int, list[Span]] = {}
        known = 0  # tokens before this one are as a sampler would have them
        for message, (begin, end) in answers:
            if message not in row.trained or end <= begin:
                continue
            first = int(np.searchsorted(offsets[:, 1], begin, side="right"))  # the first that ends after `begin`
            last = int(np.searchsorted(offsets[:, 0], end, side="left"))  # the first that starts at `end` or after
            if last <= first:
                continue
            self._check_start(message, ids[:first], text=text, begin=begin, known=known, offsets=offsets)
            if offsets[last - 1, 1] > end:
                raise PrefixRuleError(message, "a token of the row joins the end of the answer with what follows it")
            spans.setdefault(message, []).append((first, last))
            if int(ids[last - 1]) in self.stop_ids:
                known = last
        return [self._close(Turn(message, tuple(found), stop_trained=False), ids) for message, found in spans.items()]

    def _check_start(
        self, message: int, ids: np.ndarray, *, text: str, begin: int, known: int, offsets: np.ndarray
    ) -> None:
        """The text before an answer, tokenised without it, must give the row's tokens before the answer.

        A stop token splits the text, so what stands before it need not be tokenised again; where the tokenizer does
        not agree to that, the whole text decides.
        """
        if known and self._encode([text[int(offsets[known - 1, 1]) : begin]])[0] == ids[known:].tolist():
            return
        if self._encode([text[:begin]])[0] != ids.tolist():
            raise PrefixRuleError(message, "a token of the row joins the end of its prompt with its beginning")

    def _mark_owners(self, row: Row, text: str, *, marks: list[Span]) -> list[tuple[int, Span]]:
        """Which message each mark belongs to: by order when that is plain, else by where each message's text ends."""
        answers = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        if len(answers) == len(marks) and all(
            row.messages[index].get("content", "").strip() in text[begin:end]
            for index, (begin, end) in zip(answers, marks, strict=True)
        ):
            return list(zip(answers, marks, strict=True))
        owners: list[tuple[int, Span]] = []
        for index in answers:
            so_far, _ = self._text(row.messages[: index + 1], tools=row.tools)
            if not text.startswith(so_far):
                raise PrefixRuleError(index, "its marks cannot be told apart, as later turns change its text")
            while len(owners) < len(marks) and marks[len(owners)][1] <= len(so_far):
                owners.append((index, marks[len(owners)]))
        return owners

    def _compared(self, row: Row, text: str) -> list[tuple[int, Span]]:
        """Without marks: an answer is what the text through it has more than the prompt before it."""
        found: list[tuple[int, Span]] = []
        for index in row.trained:
            prompt, _ = self._text(row.messages[:index], tools=row.tools, prompt=True)
            if index == len(row.messages) - 1:
                through, end = text, len(text)
            else:
                through, _ = self._text(row.messages[: index + 1], tools=row.tools)
                end = self._stop_end(through, start=len(prompt))
            _check_prefix(index, prompt, longer=through, what="the prompt before it (with the generation prompt)")
            _check_prefix(index, through[:end], longer=text, what="the conversation through it, rendered alone,")
            found.append((index, (len(prompt), end)))
        return found

    def _stop_end(self, text: str, *, start: int) -> int:
        """Where the last stop token after `start` ends, or the end of the text."""
        [(ids, offsets)] = self._located([text[start:]])
        stops = np.flatnonzero(np.isin(ids, list(self.stop_ids)))
        return start + int(offsets[stops[-1], 1]) if len(stops) else len(text)

    def _located(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text: ids int64 [N], and int64 [N, 2], where in the text each token begins and ends."""
        encoded: Any = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            (np.asarray(ids, np.int64), np.asarray(offsets, np.int64).reshape(-1, 2))
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _close(self, turn: Turn, ids: np.ndarray) -> Turn:
        """End the turn with its stop token, if it has one in its last span or right after it."""
        *before, (start, stop) = turn.spans
        for end in range(stop, start, -1):
            if int(ids[end - 1]) in self.stop_ids:
                return Turn(turn.message, (*before, (start, end)), stop_trained=True)
        if stop < len(ids) and int(ids[stop]) in self.stop_ids:
            return Turn(turn.message, (*before, (start, stop + 1)), stop_trained=True)
        return turn

    def _text(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]], prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The template's text of messages, and its marks as character spans (none where it has no marks)."""
        given: Any = list(tools) or None
        try:
            template: Any = self.tokenizer.get_chat_template(self.template, given)
        except ValueError as error:
            raise ValueError(
                "chat rows need a chat template and the model's tokenizer has none: give one as jinja_template "
                "(jinjaTemplate), or use prompt and completion rows"
            ) from error
        try:
            settings: Any = {
                **self.tokenizer.special_tokens_map,
                "chat_template": template,
                "add_generation_prompt": prompt,
                "return_assistant_tokens_mask": bool(_MARKS.search(template)),
            }
            rendered: Any = render_jinja_template([list(messages)], given, **settings)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"jinja_template: line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            words = str(error)
            shown = words if len(words) <= _WORDS else f"{words[:_WORDS]} .. ({len(words):,} characters)"
            raise RenderError(f"the chat template refuses the row: {type(error).__name__}: {shown}") from error
        texts, marks = rendered
        return texts[0], marks[0] if marks else []

    # --- Completion and text ---

    def _completions(self, rows: Sequence[Row]) -> list[Rendered | RenderError]:
        prompts = self._encode_plain([row.prompt for row in rows])
        wholes = self._encode_plain([row.prompt + row.completion for row in rows])
        alone = self._encode([row.completion for row in rows])
        results: list[Rendered | RenderError] = []
        for prompt, whole, completion in zip(prompts, wholes, alone, strict=True):
            # In one go where that leaves the prompt as it is (some tokenizers put a space before every text).
            answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else completion
            results.append(self._ended([*prompt, *answer], start=len(prompt)))
        return results

    def _texts(self, rows: Sequence[Row]) -> list[Rendered | RenderError]:
        return [self._ended(ids, start=0) for ids in self._encode_plain([row.text for row in rows])]

    def _ended(self, ids: list[int], *, start: int) -> Rendered:
        if self._eos is not None and (ids[-1:] != [self._eos] or len(ids) == start):
            ids = [*ids, self._eos]
        turn = Turn(0, ((start, len(ids)),), stop_trained=bool(ids) and ids[-1] in self.stop_ids)
        return _masked(np.asarray(ids, np.int64), [turn])

    def _encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        encoded: Any = (
            self.tokenizer(list(texts), add_special_tokens=special, verbose=False) if texts else {"input_ids": []}
        )
        return encoded["input_ids"]

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the bos that the tokenizer adds, never twice, and without the eos it may add."""
        bos: Any = self.tokenizer.bos_token_id
        result = []
        for given in self._encode(texts, special=True):
            ids = given[:-1] if self._adds_eos else given
            result.append(ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids)
        return result


def strings(value: Any) -> list[str]:
    """All texts within a JSON value, keys of objects too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *strings(item))]
    return [text for item in value for text in strings(item)] if isinstance(value, list | tuple) else []


def _check_template(template: str) -> None:
    """Raise `ValueError` for a text that is no chat template, whatever rows there are to render."""
    if "{{" not in template and "{%" not in template:
        raise ValueError(
            f"jinja_template: {template[:60]!r} has neither {{{{ nor {{%, so that every row would read the same; give "
            "the text of a Jinja template (jinjaTemplate), or on a command line the name of a file that holds it"
        )
    try:
        render_jinja_template([[{"role": "user", "content": ""}]], chat_template=template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"jinja_template: line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return  # it can be read; what it makes of the rows is seen with the rows


def _all_there(row: Row, turns: list[Turn]) -> list[Turn]:
    missing = set(row.trained) - {turn.message for turn in turns}
    if missing:
        raise RenderError(
            f"messages[{min(missing)}] is to be learnt, but the chat template writes (or marks) nothing for it; "
            "mend jinja_template, or give the message weight 0"
        )
    return turns


def _masked(ids: np.ndarray, turns: Sequence[Turn]) -> Rendered:
    mask = np.zeros(ids.shape, bool)
    for turn in turns:
        for start, end in turn.spans:
            mask[start:end] = True
    mask[:1] = False  # nothing predicts the first token
    return Rendered(ids, mask, tuple(turns))


def _check_prefix(index: int, shorter: str, *, longer: str, what: str) -> None:
    if not longer.startswith(shorter):
        pairs = enumerate(zip(shorter, longer, strict=False))
        at = next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(shorter), len(longer)))
        raise PrefixRuleError(
            index,
            f"{what} is not how the row begins: they part at character {at}, "
            f"{shorter[at : at + 20]!r} against {longer[at : at + 20]!r}",
        )
