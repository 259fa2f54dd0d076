r"""A numeric or symbolic answer: found in the text, read, and compared by value.

Where the answer stands, in this order: the last `\boxed{...}`, after the last `####` (GSM8K), in the last
`<answer>...</answer>`, after the last "answer is", else the last number of the text (`anywhere`). Compared are numbers
(fractions, decimals, thousands separators, percent, units, currency), expressions, and lists of them; what is no
expression is compared as text. Percent: `50%` equals `50%`, and, against a truth without the sign, both 50 and 0.5.
With `symbolic: sympy` what is not found equal is asked of sympy, in the sandbox (`symbolic.py`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from evaluators.kinds import symbolic
from evaluators.kinds.base import OfRows, Runner, Settings, Tools
from evaluators.kinds.exact_match import last_tag
from evaluators.kinds.expressions import NotAnExpression, parse, same
from evaluators.protocol import Metric, Program, Result, Score
from evaluators.rows import Row, accepted, answer

MAX_ANSWER = 2_000  # characters of the found answer that are read
_NUMBER = re.compile(r"[-−]?[$£€]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)%?|[-−]?[$£€]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_ANSWER_IS = re.compile(r"answer\s*(?:is|:|=)+\s*", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DRESS = ("\\$", "$", "£", "€", "\\(", "\\)", "\\[", "\\]", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\left", "\\right",
          "^\\circ", "^{\\circ}", "°", "\u00a0", "**", "`")  # fmt: skip
_UNIT = re.compile(r"([-+]?[\d.,/ ]*\d(?:[eE][+-]?\d+)?)\s*([a-zA-Z][a-zA-Z .²³/^0-9-]*)")
_PLAIN = re.compile(r"[-+−]?(?:\d+(?:\.\d*)?|\.\d+)%?")
_LEFT_SIDE = re.compile(r"\s*[a-zA-Z](?:_\{?\w\}?)?(?:\([a-zA-Z]\))?\s*=(?!=)")


class Maths(Settings):
    """Where the answer may stand, and how near it must come."""

    field: str = Field(
        "ground_truth", description="field of the row with the right answer; a worked one with #### is read"
    )
    where: Literal["marked", "anywhere"] = Field(
        "anywhere", description="marked: only boxed, after ####, in <answer> or after 'answer is'; else 0"
    )
    tolerance: float = Field(0.0, ge=0, lt=1, description="relative, between plain numbers; 0 = exact")
    units: Literal["ignore", "compare"] = Field(
        "ignore", description="compare: a unit of the truth must be the answer's"
    )
    symbolic: Literal["off", "sympy"] = Field(
        "off", description="sympy: also what sympy proves equal, in the sandbox; it must be installed"
    )
    symbolic_seconds: float = Field(2.0, gt=0, le=60, description="for one row; later is `timeout`")


@dataclass(frozen=True)
class SymbolicMaths:
    """Rows by value, and by sympy where those differ."""

    settings: Maths
    runner: Runner
    program: Program

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row; one that sympy does not decide in time ends with `timeout`."""
        results = OfRows(lambda row: _score(row, self.settings)).evaluate(rows)
        asked: dict[int, tuple[str, list[str]]] = {}
        for index, result in enumerate(results):
            pair = (
                _compared(rows[index], self.settings) if result.ok and result.score and not result.score.score else None
            )
            if pair is not None:
                asked[index] = pair
        seconds = self.settings.symbolic_seconds
        decided = symbolic.decide(list(asked.values()), self.runner, asked=self.program, seconds=seconds)
        for index, found in zip(asked, decided, strict=True):
            results[index] = _decided(results[index], found)
        return results


def build(settings: Maths, tools: Tools) -> OfRows | SymbolicMaths:
    """The evaluator. Raises `ValueError` where sympy is asked for and not there, or without a sandbox for it."""
    if settings.symbolic == "sympy":
        return SymbolicMaths(settings, tools.sandbox("maths"), symbolic.program())
    return OfRows(lambda row: _score(row, settings))


def _score(row: Row, settings: Maths) -> Score:
    given, mark = find(answer(row))
    marked = mark != "last number"
    metrics = {"marked": Metric(float(marked), reason=mark or "no number at all")}
    truths = _truths(row, settings)  # before all else: a row without one is an error, whatever was answered
    if given is None or (settings.where == "marked" and not marked):
        return Score(0.0, reason="no marked answer" if given else "no answer found", metrics=metrics)
    right = any(equal(given, truth, tolerance=settings.tolerance, units=settings.units) for truth in truths)
    return Score(float(right), reason=f"{given[:80]!r} ({mark})", metrics=metrics)


def _truths(row: Row, settings: Maths) -> list[str]:
    return [find(text)[0] or text if _is_worked(text) else text for text in accepted(row, settings.field)]


def _compared(row: Row, settings: Maths) -> tuple[str, list[str]] | None:
    """What sympy is asked of a row that is not equal by value: never of plain numbers, which are decided."""
    given, mark = find(answer(row))
    if given is None or (settings.where == "marked" and mark == "last number"):
        return None
    truths = [_clean(truth) for truth in _truths(row, settings)]
    given = _clean(given)
    if not given or (_PLAIN.fullmatch(given) and all(map(_PLAIN.fullmatch, truths))):
        return None
    return given, truths


def _decided(own: Result, found: Result) -> Result:
    """The row's result with sympy's word: its score where it decided, its status where it did not."""
    if not found.ok or found.score is None or own.score is None:
        return replace(found, score=None)
    metrics = {**own.score.metrics, "symbolic": Metric(found.score.score, reason=found.score.reason)}
    return replace(own, score=replace(own.score, score=found.score.score, metrics=metrics), tier=found.tier)


def find(text: str) -> tuple[str | None, str]:
    """(the answer in the text, or None; where it stood)."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed[:MAX_ANSWER], "boxed"
    if "####" in text:
        after = text.rsplit("####", 1)[1].strip()
        return (after.splitlines()[0][:MAX_ANSWER] if after else None), "after ####"
    tagged = last_tag(text, "answer")
    if tagged is not None:
        return tagged.strip()[:MAX_ANSWER], "in <answer>"
    said = [match.end() for match in _ANSWER_IS.finditer(text)]
    if said:
        line = text[said[-1] :].strip().splitlines()
        if line:
            return re.split(r"\.(?:\s|$)", line[0], maxsplit=1)[0].strip()[:MAX_ANSWER], "after 'answer is'"
    numbers = _NUMBER.findall(text)
    return (numbers[-1] if numbers else None), "last number"


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...} whose braces close."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for at in range(begin, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[begin:at].strip()
    return None


def equal(given: str, truth: str, *, tolerance: float = 0.0, units: str = "ignore") -> bool:
    """Whether both say the same, by value where both can be read, else as text."""
    one, other = _clean(given), _clean(truth)
    if one == other and one:
        return True
    lists = _items(one), _items(other)
    if lists[0] and lists[1]:
        return _equal_lists(one, other, lists[0], lists[1], tolerance=tolerance)
    (one, own), (other, asked) = _without_unit(one), _without_unit(other)
    if units == "compare" and asked and own.casefold() != asked.casefold():
        return False
    if "%" in one + other:
        return _equal_percent(one, other, tolerance=tolerance)
    return _equal_values(one, other, tolerance=tolerance)


def _equal_values(one: str, other: str, *, tolerance: float) -> bool:
    if "=" in one and "=" in other:
        sides = zip(one.split("=", 1), other.split("=", 1), strict=True)
        return all(_equal_values(left, right, tolerance=tolerance) for left, right in sides)
    one, other = (_LEFT_SIDE.sub("", text, count=1) for text in (one, other))
    try:
        return same(parse(one), parse(other), tolerance=tolerance)
    except NotAnExpression:
        return _as_text(one) == _as_text(other) != ""


def _equal_percent(one: str, other: str, *, tolerance: float) -> bool:
    plain = one.replace("\\%", "").replace("%", ""), other.replace("\\%", "").replace("%", "")
    if _equal_values(*plain, tolerance=tolerance):
        return True
    if "%" in one and "%" in other:
        return False
    hundredth = [f"({text})/100" if "%" in whole else text for text, whole in zip(plain, (one, other), strict=True)]
    return _equal_values(*hundredth, tolerance=tolerance)


def _equal_lists(one: str, other: str, left: list[str], right: list[str], *, tolerance: float) -> bool:
    if len(left) != len(right) or _brackets(one) != _brackets(other):
        return False
    if _brackets(one) in ("()", "[]", "(]", "[)"):  # points, vectors and intervals have an order
        return all(equal(a, b, tolerance=tolerance) for a, b in zip(left, right, strict=True))
    rest = list(right)
    for item in left:
        found = next((other for other in rest if equal(item, other, tolerance=tolerance)), None)
        if found is None:
            return False
        rest.remove(found)
    return True


def _brackets(text: str) -> str:
    text = text.replace("\\{", "{").replace("\\}", "}")
    pair = text[:1] + text[-1:]
    return pair if pair in ("()", "[]", "(]", "[)") else ""


def _items(text: str) -> list[str]:
    """The items of a list, a set, a tuple or an interval; [] where the text is one value."""
    inner = text.replace("\\{", "{").replace("\\}", "}")
    inner = inner[1:-1] if inner[:1] in "([{" and inner[-1:] in ")]}" and len(inner) > 1 else inner
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", inner):
        return []
    items, depth, begun = [], 0, 0
    for at, char in enumerate(inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append(inner[begun:at].strip())
            begun = at + 1
    items.append(inner[begun:].strip())
    return items if 1 < len(items) <= 50 and all(items) else []


def _clean(text: str) -> str:
    text = _TEXT.sub(r" \1 ", text[:MAX_ANSWER])
    for dress in _DRESS:
        text = text.replace(dress, " " if dress in ("\u00a0", "\\ ") else "")
    return " ".join(text.replace("\\%", "%").replace(" and ", ", ").split()).rstrip(".").strip()


def _without_unit(text: str) -> tuple[str, str]:
    """(the value, its unit or "")."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text, ""
    unit = match[2].strip()
    if len(unit) == 1 and unit not in "mgslhVAWJNK":  # `2x` is an expression
        return text, ""
    if unit.startswith(("pi", "sqrt")) or re.fullmatch(r"[eE]-?\d+", unit):
        return text, ""
    return match[1].strip(), unit


def _as_text(text: str) -> str:
    return re.sub(r"[\s\\{}()]+", "", text).casefold()


def _is_worked(text: str) -> bool:
    return "####" in text or "\\boxed" in text
