"""Preference pairs: the shapes they come in, and what a pair must be.

    {"input": {"messages": [...]}, "preferred_output": [{...}], "non_preferred_output": [{...}]}   the gateway's
    {"chosen": {"messages": [...]}, "rejected": {"messages": [...]}}                               whole conversations
    {"samples": [{"messages": [...], "score": 1.0}, {"messages": [...], "evals": {"score": 0.0}}]} one good, one bad
    {"prompt": ..., "chosen": ..., "rejected": ...}      TRL's: three strings, or three lists of messages; without
                                                         `prompt` two lists are whole conversations

The one decision: both sides are one prompt with two answers. They may differ in the last message alone, which is the
assistant's; so the prompt is the same text, and its tokens are the common prefix that is not learnt. What is wrong
raises `RowProblem`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from trainer.data.chat import read_messages, read_tools
from trainer.data.problem import RowProblem, json_type, shown

PAIR_KEYS = frozenset({"input", "preferred_output", "non_preferred_output", "chosen", "rejected", "samples", "prompt",
                       "tools"})  # fmt: skip
_GATEWAY = ("input", "preferred_output", "non_preferred_output")


@dataclass(frozen=True)
class Side:
    """Chosen or rejected: `messages` up to the answer (with `tools`), or `prompt` and `completion`."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""


def read_pair(row: dict[str, Any], unused: Counter[str]) -> tuple[Side, Side]:
    """(chosen, rejected) of a row without nulls. Raises `RowProblem`."""
    unused.update(key for key in row if key not in PAIR_KEYS)
    if any(key in row for key in _GATEWAY):
        sides = _gateway(row, unused)
    elif "samples" in row:
        sides = _samples(row, unused)
    elif "chosen" in row and "rejected" in row:
        sides = _chosen_and_rejected(row, unused)
    else:
        raise RowProblem(
            "format",
            f"no preference pair: the keys are {', '.join(sorted(row)[:12]) or 'none'}; wanted chosen and rejected, or "
            "input, preferred_output and non_preferred_output, or samples, or name the columns with data.columns",
        )
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        answer = side.messages[-1] if side.messages else {"content": side.completion}
        if not any((answer.get("content", "").strip(), answer.get("reasoning_content"), answer.get("tool_calls"))):
            raise RowProblem("empty_side", f"the {name} answer is empty; leave the pair out")
    return sides


def _gateway(row: dict[str, Any], unused: Counter[str]) -> tuple[Side, Side]:
    missing = [key for key in _GATEWAY if key not in row]
    if missing:
        raise RowProblem("format", f"{missing[0]} is missing; such a pair has {', '.join(_GATEWAY)}")
    given = row["input"]
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise RowProblem("format", 'input must be {"messages": [...]}')
    unused.update(f"input.{key}" for key in given if key not in ("messages", "tools"))
    prompt = given["messages"]
    if any(isinstance(message, dict) and message.get("role") == "assistant" for message in prompt):
        raise RowProblem(
            "multi_turn",
            "input.messages holds an answer of the assistant, and this shape is one user turn; give whole "
            'conversations as {"chosen": {"messages": [...]}, "rejected": {"messages": [...]}}',
        )
    tools = given.get("tools") or row.get("tools")
    answers = [_one_answer(row[key], key) for key in _GATEWAY[1:]]
    chosen, rejected = (_conversation([*prompt, answer], tools, unused) for answer in answers)
    return chosen, rejected


def _one_answer(value: Any, name: str) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        count = f"{len(value)} messages" if isinstance(value, list) else json_type(value)
        raise RowProblem("multi_turn", f"{name} must be an array of exactly one assistant message, not {count}")
    if not isinstance(value[0], dict) or value[0].get("role") != "assistant":
        raise RowProblem("role", f"{name}[0] must be a message of the assistant")
    return value[0]


def _samples(row: dict[str, Any], unused: Counter[str]) -> tuple[Side, Side]:
    samples = row["samples"]
    if not isinstance(samples, list) or not all(isinstance(one, dict) for one in samples):
        raise RowProblem("format", f"samples must be an array of objects, not {json_type(samples)}")
    scores = [_score(sample, f"samples[{index}]") for index, sample in enumerate(samples)]
    if sorted(scores) != [0.0, 1.0]:
        raise RowProblem("score", f"the scores of samples are {shown(scores)}; wanted exactly one 1.0 and one 0.0")
    for sample in samples:
        unused.update(f"samples[].{key}" for key in sample if key not in ("messages", "score", "evals", "tools"))
    good, bad = (samples[scores.index(score)] for score in (1.0, 0.0))
    return _same_prompt(
        _conversation(good.get("messages"), good.get("tools") or row.get("tools"), unused),
        _conversation(bad.get("messages"), bad.get("tools") or row.get("tools"), unused),
    )


def _score(sample: dict[str, Any], where: str) -> float:
    evals = sample.get("evals")
    value = (
        sample["score"] if sample.get("score") is not None else evals.get("score") if isinstance(evals, dict) else None
    )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem("score", f"{where} must have a number as score, or evals.score, not {shown(value)}")
    return float(value)


def _chosen_and_rejected(row: dict[str, Any], unused: Counter[str]) -> tuple[Side, Side]:
    given = [row["chosen"], row["rejected"]]
    if all(isinstance(one, str) for one in given):
        if not isinstance(row.get("prompt"), str):
            raise RowProblem("format", "chosen and rejected are strings, so prompt must be one too")
        return Side(prompt=row["prompt"], completion=given[0]), Side(prompt=row["prompt"], completion=given[1])
    tools: list[Any] = [row.get("tools"), row.get("tools")]
    for index, (name, one) in enumerate(zip(("chosen", "rejected"), given, strict=True)):
        if isinstance(one, dict):
            unused.update(f"{name}.{key}" for key in one if key not in ("messages", "tools"))
            given[index], tools[index] = one.get("messages"), one.get("tools") or tools[index]
        if not isinstance(given[index], list):
            raise RowProblem(
                "format",
                f'{name} must be {{"messages": [...]}}, a list of messages, or (like rejected and prompt) a string',
            )
    prompt = row.get("prompt", [])
    if isinstance(prompt, str) and all(_asks(one, prompt) for one in given):  # said twice, as some sets do
        unused["prompt"] += 1
        prompt = []
    if not isinstance(prompt, list):
        raise RowProblem("format", "chosen and rejected are messages, so prompt must be a list of messages too")
    return _same_prompt(*(_conversation([*prompt, *one], tool, unused) for one, tool in zip(given, tools, strict=True)))


def _asks(messages: list[Any], prompt: str) -> bool:
    """Whether a message of the user is `prompt`."""
    return any(isinstance(one, dict) and one.get("role") == "user" and one.get("content") == prompt for one in messages)


def _conversation(messages: Any, tools: Any, unused: Counter[str]) -> Side:
    found, trained = read_messages(messages, unused)
    if len(found) - 1 not in trained:
        raise RowProblem("weight", "the last answer has weight 0 (or trainable false), and it is what is learnt")
    return Side(found, read_tools(tools, unused))


def _same_prompt(chosen: Side, rejected: Side) -> tuple[Side, Side]:
    ours, theirs = chosen.messages[:-1], rejected.messages[:-1]
    if chosen.tools != rejected.tools:
        raise RowProblem("multi_turn", "chosen and rejected have different tools; they must be answers to one prompt")
    if ours != theirs:
        at = next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                  min(len(ours), len(theirs)))  # fmt: skip
        raise RowProblem(
            "multi_turn",
            f"chosen and rejected part at messages[{at}] already; they may differ in the last message only. Leave out "
            "the pair, or what follows the first answer that differs",
        )
    return chosen, rejected
