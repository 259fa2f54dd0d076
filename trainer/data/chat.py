"""Chat rows: what `messages` and `tools` must be, and how they are handed on to a chat template.

The one decision: a message comes out with the keys that templates read and no others (content a string, reasoning
under `reasoning_content`, arguments parsed), and every key that is left out is counted. What is wrong raises
`RowProblem` naming the message.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer.data.problem import RowProblem, json_type, shown, string
from trainer.data.strict_json import Decoder

_BEFORE = {  # which message may stand before one of this role
    "system": ("the beginning",),
    "user": ("the beginning", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_REASONING = ("thinking", "reasoning", "reasoning_content")  # the first that is not empty wins
_MESSAGE_KEYS = {"role", "content", "weight", "trainable", "tool_calls", "tool_call_id", "name", "tools", *_REASONING}


def read_messages(value: Any, unused: Counter[str]) -> tuple[tuple[dict[str, Any], ...], tuple[int, ...]]:
    """The messages as templates want them, and the indices of those that are learnt. Raises `RowProblem`."""
    if not isinstance(value, list) or not value:
        raise RowProblem("messages", f"messages must be an array with at least one message, not {json_type(value)}")
    messages: list[dict[str, Any]] = []
    trained: list[int] = []
    call_ids: set[str] = set()
    before = "the beginning"
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RowProblem("messages", f"{where} must be an object, not {json_type(message)}")
        given = {key: item for key, item in message.items() if item is not None}
        before = _role(given, where, before=before)
        unused.update(f"messages[].{key}" for key in given if key not in _MESSAGE_KEYS)
        messages.append(_message(given, where, unused=unused))
        if _is_trained(given, where, unused=unused):
            trained.append(index)
        call_ids |= {call["id"] for call in messages[-1].get("tool_calls", ()) if "id" in call}
        _check_call_id(messages[-1], where, call_ids=call_ids)
    if before != "assistant":
        raise RowProblem(
            "grammar", f"the last message is of {before}, it must be the assistant's (the answer to learn)"
        )
    return tuple(messages), tuple(trained)


def read_prompt(value: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages that a model is to answer, as templates want them and as training has them; in any order of roles.
    Raises `RowProblem` for what a model that reads text cannot be given."""
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowProblem("messages", f"{where} must be an object with a role")
        given = {key: item for key, item in message.items() if item is not None}
        messages.append(_message(given, where, unused=Counter()))
    return messages


def _role(given: dict[str, Any], where: str, *, before: str) -> str:
    role = given.get("role")
    if not isinstance(role, str) or role not in _BEFORE:
        raise RowProblem("role", f"{where}.role is {shown(role)}; allowed are {', '.join(_BEFORE)}")
    if before not in _BEFORE[role]:
        raise RowProblem(
            "grammar", f"{where}: {role} stands after {before}; it may follow {' or '.join(_BEFORE[role])}"
        )
    return role


def _message(given: dict[str, Any], where: str, *, unused: Counter[str]) -> dict[str, Any]:
    role = given["role"]
    if given.get("tools"):
        raise RowProblem("message_tools", f"{where}.tools: tools of one message cannot be rendered; give tools per row")
    content, thoughts = _content(given.get("content"), where, unused=unused)
    reasoning = _reasoning(given, where, thoughts=thoughts, unused=unused)
    calls = _tool_calls(given.get("tool_calls"), where, unused=unused)
    if role != "assistant" and (reasoning or calls):
        name = "reasoning" if reasoning else "tool_calls"
        raise RowProblem("field_of_role", f"{where}: {name} on a message of {role}; only the assistant has it")
    if content is None and not reasoning and not calls:
        raise RowProblem(
            "content", f"{where}.content is missing; only an assistant that calls tools or reasons may lack it"
        )
    result: dict[str, Any] = {"role": role}
    if content is not None:
        result["content"] = content
    if reasoning:
        result["reasoning_content"] = reasoning
    if calls:
        result["tool_calls"] = calls
    for key, of in (("tool_call_id", ("tool",)), ("name", tuple(_BEFORE))):
        if key in given:
            result[key] = string(given[key], f"{where}.{key}")
            if role not in of:
                raise RowProblem("field_of_role", f"{where}: {key} on a message of {role}; only {of[0]} has it")
    return result


def _content(value: Any, where: str, *, unused: Counter[str]) -> tuple[str | None, str]:
    """The content's text (None if there is none) and the text of its thinking parts."""
    if value is None or isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        raise RowProblem("content", f"{where}.content must be a string, null or parts, not {json_type(value)}")
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for number, part in enumerate(value):
        place = f"{where}.content[{number}]"
        type_ = part.get("type") if isinstance(part, dict) else None
        if not isinstance(type_, str) or type_ not in texts:
            raise RowProblem("part_type", _unreadable_part(place, type_))
        texts[type_].append(string(part.get(type_), f"{place}.{type_}"))
        unused.update(f"messages[].content[].{key}" for key in part if key not in ("type", type_))
    text = "".join(texts["text"]) if texts["text"] or not texts["thinking"] else None
    return text, "".join(texts["thinking"])


def _unreadable_part(place: str, type_: Any) -> str:
    if isinstance(type_, str) and re.search("image|audio|video|file", type_):
        return f"{place} is of type {shown(type_)}: the model reads text only; remove the part, or leave the row out"
    return f"{place} is of type {shown(type_)}; allowed are text and thinking"


def _reasoning(given: dict[str, Any], where: str, *, thoughts: str, unused: Counter[str]) -> str:
    values = {key: string(given[key], f"{where}.{key}") for key in _REASONING if key in given}
    winner = next((key for key in _REASONING if values.get(key)), None)
    if winner is None:
        return thoughts
    if thoughts:
        raise RowProblem("reasoning", f"{where} has both thinking parts and {winner}; keep one of them")
    unused.update(f"messages[].{key}" for key, value in values.items() if value and value != values[winner])
    return values[winner]


def _is_trained(given: dict[str, Any], where: str, *, unused: Counter[str]) -> bool:
    weight, trainable = given.get("weight"), given.get("trainable")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        raise RowProblem("weight", f"{where}.weight is {shown(weight)}; allowed are 0 and 1")
    if not isinstance(trainable, bool | None):
        raise RowProblem("trainable", f"{where}.trainable is {shown(trainable)}; allowed are true and false")
    if given["role"] == "assistant":
        if None not in (weight, trainable) and trainable != bool(weight):
            unused["messages[].weight (trainable says otherwise)"] += 1
        return trainable if trainable is not None else weight != 0
    if trainable:
        raise RowProblem(
            "trainable", f"{where}.trainable is true on a message of {given['role']}; only the assistant's"
        )
    if weight:
        unused[f"messages[].weight (1 on {given['role']})"] += 1
    return False


def _tool_calls(value: Any, where: str, *, unused: Counter[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list | None):
        raise RowProblem("tool_calls", f"{where}.tool_calls must be an array, not {json_type(value)}")
    calls = []
    for number, call in enumerate(value or []):
        place = f"{where}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem("tool_calls", f'{place} must be {{"function": {{"name": ..., "arguments": ...}}}}')
        if call.get("type") not in (None, "function"):
            raise RowProblem("tool_calls", f"{place}.type is {shown(call['type'])}; allowed is 'function'")
        arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
        result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if call.get("id") is not None:
            result["id"] = string(call["id"], f"{place}.id")
        unused.update(f"messages[].tool_calls[].{key}" for key in call if key not in ("id", "type", "function"))
        unused.update(f"messages[].tool_calls[].function.{key}" for key in function if key not in ("name", "arguments"))
        calls.append(result)
    return calls


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            return Decoder().decode(value)
        except RowProblem as problem:
            raise RowProblem(
                "tool_calls", f"{where} is a string that is no JSON object: {problem.message}"
            ) from problem
    if not isinstance(value, dict):
        raise RowProblem("tool_calls", f"{where} must be an object or its JSON as a string, not {json_type(value)}")
    return value


def _check_call_id(message: dict[str, Any], where: str, *, call_ids: set[str]) -> None:
    call_id = message.get("tool_call_id")
    if call_id is not None and call_ids and call_id not in call_ids:
        calls = ", ".join(sorted(call_ids)[:12])[:200]
        raise RowProblem("tool_call_id", f"{where}.tool_call_id {shown(call_id)} answers no call; calls are {calls}")


def read_tools(value: Any, unused: Counter[str]) -> tuple[dict[str, Any], ...]:
    """A row's tools; columnar sets often hold them as one JSON string, as their shapes differ. Raises `RowProblem`."""
    if isinstance(value, str):
        try:
            value = Decoder().decode(f'{{"tools": {value}}}')["tools"]
        except RowProblem as problem:
            raise RowProblem("tools", f"tools is a string that is no JSON array: {problem.message}") from problem
    if not isinstance(value, list | None):
        raise RowProblem("tools", f"tools must be an array, not {json_type(value)}")
    for number, tool in enumerate(value or []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem("tools", f'tools[{number}] must be {{"type": "function", "function": {{"name": ...}}}}')
    return tuple(value or ())
