"""What an evaluator reads of a row: the answer, what was asked, what is right.

A row is a chat (`messages`, the answer last) or a `prompt` with its `completion`; `ground_truth` is what is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row lacks what an evaluator needs; the message names it."""


def answer(row: Row) -> str:
    """The text to be scored: the last message where the assistant wrote it, else `completion`. Raises `RowError`."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            return text_of(last)
        raise RowError("there is no answer to score: the last message is not the assistant's")
    completion = row.get("completion")
    if isinstance(completion, str):
        return completion
    raise RowError("there is no answer to score: neither messages that end with the assistant's, nor a completion")


def has_answer(row: Row) -> bool:
    """True where `answer` finds one."""
    try:
        answer(row)
    except RowError:
        return False
    return True


def with_answer(row: Row, text: str) -> dict[str, Any]:
    """A copy of the row that ends with `text` as the assistant's answer."""
    if isinstance(row.get("messages"), list):
        return {**row, "messages": [*row["messages"], {"role": "assistant", "content": text}]}
    return {**row, "completion": text}


def question(row: Row) -> str:
    """What was asked: the last user message, else the prompt, else ""."""
    messages = row.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return text_of(message)
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def ground_truth(row: Row, field: str = "ground_truth") -> Any:
    """What is right. Raises `RowError` where the row has no such field."""
    if row.get(field) is None:
        raise RowError(f"the row has no {field!r}")
    return row[field]


def accepted(row: Row, field: str = "ground_truth") -> list[str]:
    """The texts that are right: one, or each of a list. Raises `RowError`."""
    truth = ground_truth(row, field)
    found = truth if isinstance(truth, list) else [truth]
    if not found or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in found):
        raise RowError(f"{field!r} is neither a text or number nor a list of them")
    return [str(one) for one in found]


def text_of(message: Row) -> str:
    """A message's text; the texts of its parts joined, where it has parts; "" where it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def digest(row: Row) -> str:
    """sha256 of the row's canonical JSON, in hex."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()
