"""Runs in a jail: whether two mathematical texts say the same, decided by sympy.

The texts are read by `expressions.py`, never by sympy's own parser, which runs what it reads as Python: the answers of
many rows share this process, and none of them may decide about another. Only the comparison is sympy's. Beyond
expressions it knows equations (equal up to a factor), inequalities of one variable, intervals and unions of them.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
from __future__ import annotations

import re
import signal
import time
from functools import reduce
from itertools import pairwise

import expressions
import sympy

_RELATION = re.compile(r"\\(?:leq?|geq?)(?![a-zA-Z])|<=|>=|≤|≥|<|>|=")
_MEANING: dict[str, str] = {"\\le": "<=", "\\leq": "<=", "≤": "<=", "\\ge": ">=", "\\geq": ">=", "≥": ">="}
_UNION = re.compile(r"\\cup(?![a-zA-Z])|∪")
_INTERVAL = re.compile(r"([(\[])([^,;]+)[,;]([^,;]+)([)\]])")
_AGAIN_SECONDS = 0.1  # the alarm rings until it is heard: sympy catches whatever is raised in some places
_LARGEST_POWER = 100_000  # bits; sympy would compute it, in one step that no alarm interrupts
_CALLS: dict[str, str] = {"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}


class Undecided(BaseException):
    """The alarm rang."""


def score(given: str, truths: list[str], seconds: float) -> dict:
    """1 where `given` equals one of `truths`; not a valid score where that is not decided within `seconds`."""
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    undecided = {"score": 0.0, "is_score_valid": False, "reason": f"sympy did not decide within {seconds:g} s"}
    begun = time.monotonic()
    try:
        _Alarm.on = True
        right = any(_same(given, truth) for truth in truths)
        _Alarm.on = False
    except Undecided:
        _Alarm.on = False
        return undecided
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - begun > seconds:  # sympy has swallowed the alarm on its way
        return undecided
    return {"score": float(right), "reason": "equal by sympy" if right else "not equal by sympy"}


class _Alarm:
    """Whether it may ring."""

    on = False


def _ring(*_: object) -> None:
    if _Alarm.on:
        raise Undecided


def _same(given: str, truth: str) -> bool:
    try:
        one, other = read(given), read(truth)
        return equal(one, other)
    except (expressions.NotAnExpression, ArithmeticError, ValueError, TypeError, NotImplementedError, RecursionError):
        return False  # sympy has many ways to say that it cannot read or compare these


def read(text: str):
    """An expression, a set, or a relation. Raises `NotAnExpression`."""
    parts = _UNION.split(text)
    intervals = [_INTERVAL.fullmatch(part.strip()) for part in parts]
    if all(intervals):
        return reduce(sympy.Union, [_interval(match) for match in intervals if match])
    signs: list[str] = [_MEANING.get(sign) or sign for sign in _RELATION.findall(text)]
    if not signs:
        return expression(text)
    sides = [expression(side) for side in _RELATION.split(text)]
    relations = [_related(sign, *pair) for sign, pair in zip(signs, pairwise(sides), strict=True)]
    return relations[0] if len(relations) == 1 else sympy.And(*relations)


def expression(text: str):
    """The text as sympy's expression of real variables."""
    return _made(expressions.parse(text).tree)


def equal(one, other) -> bool:
    """Whether both say the same."""
    if isinstance(one, sympy.Set) or isinstance(other, sympy.Set):
        return _as_set(one) == _as_set(other)
    if _is_relation(one) or _is_relation(other):
        return _is_relation(one) and _is_relation(other) and _equal_relations(one, other)
    difference = one - other
    if difference.has(sympy.nan, sympy.zoo):
        return one == other
    return difference == 0 or sympy.simplify(difference) == 0 or difference.equals(0) is True


def _equal_relations(one, other) -> bool:
    if isinstance(one, sympy.Equality) and isinstance(other, sympy.Equality):
        ratio = sympy.simplify((one.lhs - one.rhs) / (other.lhs - other.rhs))
        return bool(ratio.is_number and ratio.is_finite and ratio != 0)
    if one == other:
        return True
    if len(one.free_symbols) == 1 and one.free_symbols == other.free_symbols:
        return _as_set(one) == _as_set(other)
    if not all(isinstance(relation, sympy.core.relational._Inequality) for relation in (one, other)):
        return False
    if isinstance(one.gts - one.lts, sympy.Expr) and one.func(0, 0) == other.func(0, 0):
        ratio = sympy.simplify((one.gts - one.lts) / (other.gts - other.lts))
        return bool(ratio.is_number and ratio.is_positive)
    return False


def _is_relation(value) -> bool:
    return isinstance(value, sympy.core.relational.Relational | sympy.logic.boolalg.Boolean)


def _as_set(value):
    return value if isinstance(value, sympy.Set) else value.as_set() if _is_relation(value) else sympy.FiniteSet(value)


def _interval(match: re.Match):
    left, right = expression(match[2]), expression(match[3])
    return sympy.Interval(left, right, left_open=match[1] == "(", right_open=match[4] == ")")


def _related(sign: str, left, right):
    made = {"=": sympy.Eq, "<": sympy.Lt, ">": sympy.Gt, "<=": sympy.Le, ">=": sympy.Ge}[sign]
    return made(left, right)


def _made(tree: tuple):
    kind = tree[0]
    if kind == "number":
        return sympy.Rational(tree[1].numerator, tree[1].denominator)
    if kind == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[tree[1]]
    if kind == "variable":
        return sympy.oo if tree[1] == "infty" else sympy.Symbol(tree[1], real=True)
    if kind == "call":
        name: str = tree[1]
        return getattr(sympy, _CALLS.get(name, name))(_made(tree[2]))
    return _OPERATIONS[kind](*map(_made, tree[1:]))


def _power(base, exponent):
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(int(base.p)).bit_length(), int(base.q).bit_length())
        if bits * abs(exponent) > _LARGEST_POWER:
            raise expressions.NotAnExpression("a number too large to compute")
    return base**exponent


def _root(index, value):
    odd = index.is_Integer and index % 2 and value.is_real and not value.free_symbols
    return sympy.real_root(value, index) if odd else sympy.root(value, index)


def _factorial(value):
    if value.is_Integer and value > 5_000:
        raise expressions.NotAnExpression("a number too large to compute")
    return sympy.factorial(value)


_OPERATIONS = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b, "^": _power,
    "minus": lambda a: -a, "absolute": sympy.Abs, "factorial": _factorial, "binom": sympy.binomial, "root": _root,
    "log": lambda base, value: sympy.log(value, base),
}  # fmt: skip
