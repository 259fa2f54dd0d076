"""The host's end of the line that an evaluator in a jail may ask a judge model on: `from evaluator_host import judge`.

The one decision: the jail sends a question and gets a text; the key, the address, the model and the budget stay here. A
question is read strictly, bounded in size, and counted for its row; what cannot be answered is refused in words, which
the evaluator gets as an exception. The same question asked again for the same row (after a jail died, or by the audit
of shared processes) gets the same answer, and is not paid for twice.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from evaluators.broker import SecretRefused
from evaluators.judge_client import Budget, JudgeClient, JudgeError, Spending
from evaluators.protocol import Program
from evaluators.sandbox.wire import REPLY_BYTES
from evaluators.scores import BadResult, decode

MODULE = b"evaluator_host"  # a program that names it may ask
_KEPT = 10_000  # answers that are remembered
_MOST_MESSAGES, _MOST_TOKENS = 50, 8_192
_ROLES = ("system", "user", "assistant")
_LARGEST = 1_000_000_000  # of a budget
_WORDS = 300  # characters of a refusal


class Desk(Protocol):
    """Who answers. calls_each: questions of one row; beyond them they are refused unread."""

    @property
    def calls_each(self) -> int: ...

    def answer(self, question: bytes, key: tuple[str, ...]) -> tuple[bytes, bool]:
        """(the answer as a line of JSON, whether it is one and no refusal). key: the same for the same again."""
        ...


@dataclass
class JudgeDesk:
    """Answers with a judge model. client: how it is reached, and its budget; safe for threads."""

    client: JudgeClient
    calls_each: int = 8
    redact: Callable[[str], str] = str  # a broker's, over whatever goes into the jail
    _kept: OrderedDict[tuple[str, ...], str] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, question: bytes, key: tuple[str, ...]) -> tuple[bytes, bool]:
        """As `Desk` has it. Refusals: a malformed question, a spent budget, a judge that is away, no key."""
        with self._lock:
            text = self._kept.get(key)
        try:
            if text is None:
                text = self.redact(self._asked(question))
                self._keep(key, text)
            told = json.dumps({"text": text}).encode() + b"\n"
            if len(told) > REPLY_BYTES:
                raise BadResult(f"the judge's answer has {len(told):,} bytes; {REPLY_BYTES:,} are passed on")
        except (JudgeError, BadResult, SecretRefused) as error:
            return refusal(self.redact(str(error))), False
        return told, True

    def _asked(self, question: bytes) -> str:
        asked = decode(question.rstrip(b"\n"), max_bytes=len(question))
        if not isinstance(asked, dict) or asked.keys() - {"messages", "max_tokens", "temperature"}:
            raise BadResult("a question is an object with messages, max_tokens and temperature")
        tokens, temperature = asked.get("max_tokens", 512), asked.get("temperature", 0.0)
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= _MOST_TOKENS:
            raise BadResult(f"max_tokens must be from 1 to {_MOST_TOKENS:,}")
        if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 <= temperature <= 2:
            raise BadResult("temperature must be from 0 to 2")
        messages = _messages(asked.get("messages"))
        return self.client.ask(messages, max_tokens=tokens, temperature=float(temperature))

    def _keep(self, key: tuple[str, ...], text: str) -> None:
        with self._lock:
            self._kept[key] = text
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


def configured(
    environment: Mapping[str, str], secret: Callable[[str], str], *, redact: Callable[[str], str] = str
) -> JudgeDesk | None:
    """The desk that an operator's settings describe; None where they name no judge. Raises `ValueError`.

    TRAINER_JUDGE_URL and TRAINER_JUDGE_MODEL say which; TRAINER_JUDGE_SECRET names its key, which `secret` gives when a
    question leaves (without one none is sent); TRAINER_JUDGE_REQUESTS and TRAINER_JUDGE_TOKENS are the budget of all
    questions, TRAINER_JUDGE_CALLS what a row may ask. redact: as the desk has it.
    """
    url, model = environment.get("TRAINER_JUDGE_URL", ""), environment.get("TRAINER_JUDGE_MODEL", "")
    if not url or not model:
        return None
    name = environment.get("TRAINER_JUDGE_SECRET", "")
    usual = Budget()
    budget = Budget(
        _whole(environment, "TRAINER_JUDGE_REQUESTS", usual.requests),
        _whole(environment, "TRAINER_JUDGE_TOKENS", usual.tokens),
    )
    client = JudgeClient(url, model, lambda: secret(name) if name else "", Spending(budget))
    return JudgeDesk(client, _whole(environment, "TRAINER_JUDGE_CALLS", JudgeDesk.calls_each), redact)


@dataclass
class Asking:
    """The questions of one process of a jail: which row asks, how often, and what it may not.

    rows: what tells each of its rows from others, in order.
    """

    desk: Desk
    rows: Sequence[str]
    calls: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)

    def answer(self, place: int, question: bytes) -> bytes:
        """The line that goes back into the jail."""
        place = min(max(place, 0), len(self.rows) - 1)
        self.calls[place] += 1
        if self.calls[place] > self.desk.calls_each:
            self.refused[place] += 1
            return refusal(f"this row has asked its {self.desk.calls_each} questions")
        key = (self.rows[place], str(self.calls[place]), question.decode("utf-8", "replace"))
        told, answered = self.desk.answer(question, key)
        self.refused[place] += not answered
        return told

    def record(self, place: int) -> dict[str, dict[str, int]]:
        """For the details of a row's result; empty where it asked nothing."""
        calls = self.calls[place]
        return {"judge": {"calls": calls, "refused": self.refused[place]}} if calls else {}


def may_ask(program: Program) -> bool:
    """Whether any file of the program names the module; others get no line."""
    return any(MODULE in content for content in program.files.values())


def refusal(words: str) -> bytes:
    """The line that says no."""
    return json.dumps({"refused": words[:_WORDS]}).encode() + b"\n"


def _whole(environment: Mapping[str, str], name: str, usual: int) -> int:
    text = environment.get(name) or str(usual)
    if not text.isdigit() or not 1 <= int(text) <= _LARGEST:
        raise ValueError(f"{name} {text!r} is no whole number from 1 to {_LARGEST:,}")
    return int(text)


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_MESSAGES:
        raise BadResult(f"messages must be a list of 1 to {_MOST_MESSAGES}")
    for one in value:
        if not isinstance(one, Mapping) or one.keys() != {"role", "content"}:
            raise BadResult("a message has a role and a content, and nothing else")
        if one["role"] not in _ROLES or not isinstance(one["content"], str):
            raise BadResult(f"a message's role is one of {', '.join(_ROLES)}, its content a text")
    return [dict(one) for one in value]
