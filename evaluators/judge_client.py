"""A judge model behind any OpenAI-compatible endpoint: one chat completion a question, within a budget.

The one decision: the key is a *name*. It is looked up when a request leaves, never stored, and struck out of every
message. A budget of requests, tokens and money is spent under a lock before a request leaves, so that no number of
threads can overspend it.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any, Protocol

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_ANSWER = 4 << 20  # bytes
_LONGEST_WAIT = 30.0  # seconds that a Retry-After may ask for
_CHARS_PER_TOKEN = 2  # a cautious guess for what a request will cost, before it is known


class JudgeError(RuntimeError):
    """The judge did not answer; the message has no secret in it."""


class BudgetSpent(JudgeError):
    """Nothing more may be asked."""


class Transport(Protocol):
    """One POST: (status, headers in lower case, body). Raises `OSError` where nobody answers."""

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send and wait."""
        ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(  # noqa: PLR0917 - the standard library's signature
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def post(url: str, headers: Mapping[str, str], body: bytes, timeout: float) -> tuple[int, Mapping[str, str], bytes]:
    """The transport of the standard library; follows no redirect."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"the judge's address {url!r} is neither http:// nor https://")
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")  # noqa: S310
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=timeout) as answer:
            found = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, found, answer.read(_LONGEST_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            found = {name.lower(): value for name, value in error.headers.items()}
            return error.code, found, error.read(_LONGEST_ANSWER)


@dataclass(frozen=True)
class Budget:
    """What one job may spend; 0 = no limit of that kind. Prices are per million tokens, in the currency of `cost`."""

    requests: int = 1_000
    tokens: int = 2_000_000
    cost: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0


class Spending:
    """What has been spent of a budget; safe for threads."""

    def __init__(self, budget: Budget) -> None:
        if budget.cost and not (budget.price_in or budget.price_out):
            raise ValueError("a budget of cost needs price_in or price_out (per million tokens)")
        self.budget = budget
        self.requests = self.tokens_in = self.tokens_out = 0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float:
        """So far, at the budget's prices."""
        return (self.tokens_in * self.budget.price_in + self.tokens_out * self.budget.price_out) / 1e6

    def reserve(self, tokens_in: int, tokens_out: int) -> None:
        """Count a request at the most it may take. Raises `BudgetSpent` where that passes the budget."""
        with self._lock:
            one = self.budget
            if one.requests and self.requests + 1 > one.requests:
                raise BudgetSpent(f"the judge's budget of {one.requests:,} requests is spent")
            if one.tokens and self.tokens_in + self.tokens_out + tokens_in + tokens_out > one.tokens:
                raise BudgetSpent(f"the judge's budget of {one.tokens:,} tokens is spent")
            added = (tokens_in * one.price_in + tokens_out * one.price_out) / 1e6
            if one.cost and self.cost + added > one.cost:
                raise BudgetSpent(f"the judge's budget of {one.cost:g} is spent")
            self.requests += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out

    def settle(self, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        """Put what was really used in place of what was reserved."""
        with self._lock:
            self.tokens_in += used[0] - reserved[0]
            self.tokens_out += used[1] - reserved[1]


@dataclass
class JudgeClient:
    """Asks one model. `key` gives the secret when it is needed ("" = none is sent)."""

    base_url: str
    model: str
    key: Callable[[], str]
    spending: Spending
    transport: Transport = post
    timeout: float = 60.0
    attempts: int = 3
    sleep: Callable[[float], None] = time.sleep

    def ask(self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float = 0.0) -> str:
        """The text of the model's answer. Raises `JudgeError`, `BudgetSpent`."""
        question = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature}
        body = json.dumps(question).encode()
        reserved = (len(body) // _CHARS_PER_TOKEN, max_tokens)
        secret, problem = self.key(), ""
        for attempt in range(1, self.attempts + 1):
            self.spending.reserve(*reserved)
            try:
                wait = self._attempt(body, secret, reserved)
            except JudgeError as error:
                raise type(error)(_struck(str(error), secret)) from None
            if isinstance(wait, str):
                return wait
            seconds, problem = wait
            if attempt < self.attempts:
                self.sleep(seconds if seconds >= 0 else min(2.0 ** (attempt - 1), 8.0))
        raise JudgeError(_struck(f"the judge did not answer in {self.attempts} attempts: {problem}", secret))

    def _attempt(self, body: bytes, secret: str, reserved: tuple[int, int]) -> str | tuple[float, str]:
        """The answer, or (seconds to wait or -1, what went wrong) where trying again makes sense."""
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {secret}"} if secret else {})}
        try:
            status, found, answer = self.transport(
                f"{self.base_url.rstrip('/')}/chat/completions", headers, body, self.timeout
            )
        except OSError as error:
            self.spending.settle(reserved, (0, 0))
            return -1.0, f"{type(error).__name__}: {error}"
        if status != 200:
            self.spending.settle(reserved, (0, 0))
            words = f"HTTP {status}: {answer[:200].decode('utf-8', 'replace')}"
            if status not in _RETRIED:
                raise JudgeError(f"the judge refused: {words}")
            return _retry_after(found), words
        return self._read(answer, reserved)

    def _read(self, answer: bytes, reserved: tuple[int, int]) -> str:
        if len(answer) > _LONGEST_ANSWER:
            raise JudgeError(f"the judge's answer is longer than {_LONGEST_ANSWER:,} bytes")
        try:
            found = json.loads(answer)
            text = found["choices"][0]["message"]["content"]
            usage = found.get("usage") or {}
            used = int(usage.get("prompt_tokens", reserved[0])), int(usage.get("completion_tokens", reserved[1]))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise JudgeError(f"the judge's answer is no chat completion: {type(error).__name__}: {error}") from None
        if not isinstance(text, str):
            raise JudgeError("the judge's answer has no text")
        self.spending.settle(reserved, (max(used[0], 0), max(used[1], 0)))
        return text


def _retry_after(headers: Mapping[str, str]) -> float:
    value: Any = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        return -1.0
    return min(seconds, _LONGEST_WAIT) if seconds >= 0 else -1.0


def _struck(text: str, secret: str) -> str:
    return text.replace(secret, "[secret]") if secret else text
