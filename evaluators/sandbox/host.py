"""In the jail: how an evaluator asks the host's judge model, `from evaluator_host import judge`.

One question and one answer at a time, each a line of JSON, over two pipes that the row's own process inherits. The key
of the judge stays on the host, which also counts: `Refused` says that it would not or could not answer.
"""

from __future__ import annotations

import json
import os

from evaluators.sandbox.wire import REPLY_BYTES, REQUEST_BYTES


class Refused(RuntimeError):
    """The host did not answer: the budget is spent, the question is malformed, or the judge is away."""


class _Line:
    """The two pipes of this process; -1 = there are none."""

    asking = answering = -1


def connect(asking: int, answering: int) -> None:
    """Take the pipes of this evaluation."""
    _Line.asking, _Line.answering = asking, answering


def judge(messages, *, max_tokens: int = 512, temperature: float = 0.0) -> str:
    """What the judge model says to `messages` (a text, or a list of {"role", "content"}). Raises `Refused`."""
    if _Line.asking < 0:
        raise Refused("no judge is configured for this evaluator")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    question = {"messages": messages, "max_tokens": max_tokens, "temperature": temperature}
    line = json.dumps(question, separators=(",", ":")).encode() + b"\n"
    if len(line) > REQUEST_BYTES:
        raise Refused(f"the question has {len(line):,} bytes; {REQUEST_BYTES:,} are allowed")
    view = memoryview(line)
    while view:
        view = view[os.write(_Line.asking, view) :]
    answer = json.loads(_line(_Line.answering))
    if "text" not in answer:
        raise Refused(str(answer.get("refused", "no answer")))
    return answer["text"]


def _line(handle: int) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = os.read(handle, REPLY_BYTES)
        if not more:
            raise Refused("the host went away")
        found += more
    return found
