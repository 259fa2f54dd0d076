r"""Mathematical expressions, as models and data sets write them, read and compared without running anything.

A recursive-descent parser over a bounded number of tokens, plain or LaTeX (`\frac{1}{2}`, `3\sqrt{2}`, `2x^2-1`,
`1,234.5`), gives a tree of plain tuples; two trees are equal if they have the same value at several fixed points of
their variables. Rational arithmetic is exact; roots, logarithms and the like are compared in complex floating point.
Only the standard library, and nothing else of this package, so that the file can be put into a jail as it is.

Not guaranteed: two expressions that differ only where none of the points lies are called equal.
"""

from __future__ import annotations

import cmath
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_TOKENS = 400
MAX_DEPTH = 40
MAX_BITS = 4_096  # of a numerator or denominator; beyond it an expression is refused, not computed
_INDEX = "[index"  # the bracket in \\sqrt[3]{2}
_RELATIVE = 1e-9  # to which inexact values must agree

Value = Fraction | complex
Env = Mapping[str, Value]
# ("number", Fraction) ("constant", name) ("variable", name) ("call", name, tree) ("root", index, tree)
# ("log", base, tree) ("+" "-" "*" "/" "^" "binom", left, right) ("minus" "absolute" "factorial", tree)
Tree = tuple[Any, ...]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d])|\d+(?:\.\d*)?|\.\d+)(?P<power>[eE][+-]?\d+)?"
    r"|\\(?P<command>[a-zA-Z]+)|(?P<word>[a-zA-Zα-ωπ√]+)|(?P<sign>\*\*|[-+*/^(){}\[\]_|!·×÷−–]))"
)
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sqrt": cmath.sqrt, "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "exp": cmath.exp, "ln": cmath.log,
    "log": cmath.log, "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "asin": cmath.asin,
    "acos": cmath.acos, "atan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x), "cot": lambda x: 1 / cmath.tan(x),
}  # fmt: skip
_SIGNS = {"**": "^", "·": "*", "×": "*", "÷": "/", "−": "-", "–": "-", "{": "(", "}": ")", "[": "(", "]": ")"}
_COMMAND_SIGNS = {"cdot": "*", "times": "*", "div": "/", "ast": "*", "lbrace": "(", "rbrace": ")"}
_COMMAND_NAMES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom"}
_SILENT = {"left", "right", "displaystyle", "quad", "qquad", "big", "Big", "bigl", "bigr", "limits", "mathrm"}
_CONSTANTS: dict[str, Value] = {"pi": complex(math.pi), "π": complex(math.pi), "e": complex(math.e), "i": 1j}
_POINTS = (  # what variables are, one tuple after another; neither small nor related, so that chance equality is rare
    (Fraction(7, 3), Fraction(-11, 5), Fraction(13, 7), Fraction(17, 11), Fraction(-19, 13)),
    (Fraction(23, 9), Fraction(29, 8), Fraction(-31, 6), Fraction(5, 17), Fraction(41, 12)),
    (Fraction(-43, 10), Fraction(3, 19), Fraction(47, 14), Fraction(-53, 15), Fraction(59, 16)),
)


class NotAnExpression(ValueError):
    """The text is not one that is understood, or is too large."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression: `at` computes it for values of its `variables`."""

    tree: Tree
    variables: frozenset[str]

    def at(self, env: Env) -> Value:
        """Its value. Raises `NotAnExpression` where that is too large, `ArithmeticError` or `ValueError` where none."""
        return _value(self.tree, env)


def parse(text: str) -> Expression:
    """The expression. Raises `NotAnExpression`."""
    parser = _Parser(_tokens(text))
    tree = parser.sum(0)
    if parser.at < len(parser.tokens):
        raise NotAnExpression(f"unexpected {parser.tokens[parser.at]!r}")
    return Expression(tree, frozenset(parser.variables))


def same(left: Expression, right: Expression, *, tolerance: float = 0.0) -> bool:
    """Whether both have the same value at every point where both have one; at least one such point must exist.

    tolerance: relative, for expressions that are plain numbers; 0 = exact where both are rational.
    """
    names = left.variables | right.variables
    compared = 0
    for point in _POINTS:
        env = dict(zip(sorted(names), point, strict=False))
        if len(env) < len(names):
            raise NotAnExpression(f"{len(names)} variables; {len(point)} are understood")
        try:
            one, other = left.at(env), right.at(env)
        except (ArithmeticError, ValueError) as error:
            if isinstance(error, NotAnExpression):
                raise
            continue
        if not close(one, other, tolerance=0.0 if names else tolerance):
            return False
        compared += 1
    return compared > 0


def close(one: Value, other: Value, *, tolerance: float) -> bool:
    """Equal: exactly where both are rational and tolerance is 0, else to 1e-9 or the tolerance, relative."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        if tolerance == 0:
            return one == other
        return abs(one - other) <= Fraction(tolerance) * max(abs(one), abs(other))
    return cmath.isclose(complex(one), complex(other), rel_tol=max(tolerance, _RELATIVE), abs_tol=1e-12)


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotAnExpression(f"unexpected {text[at : at + 10]!r}")
        at = match.end()
        more = _token(match)
        found += [_INDEX] if match["sign"] == "[" and found[-1:] == ["sqrt"] else more
        if len(found) > MAX_TOKENS:
            raise NotAnExpression(f"more than {MAX_TOKENS} tokens")
    return found


def _token(match: re.Match[str]) -> list[str]:
    if match["number"]:
        return [match["number"].replace(",", "") + (match["power"] or "")]
    if match["command"]:
        name = match["command"]
        if name in _SILENT:
            return []
        return [_COMMAND_SIGNS.get(name, _COMMAND_NAMES.get(name, name))]
    if match["word"]:
        return _words(match["word"])
    return [_SIGNS.get(match["sign"], match["sign"])]


def _words(word: str) -> list[str]:
    """A run of letters: known names, else one variable a letter (`xy` is x times y)."""
    if word == "√":
        return ["sqrt"]
    found: list[str] = []
    while word:
        name = max((one for one in (*_FUNCTIONS, "pi", "frac") if word.startswith(one)), key=len, default=word[0])
        found.append(name)
        word = word[len(name) :]
    return found


class _Parser:
    """sum -> product -> power -> atom, with products implied by standing together."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0
        self.variables: set[str] = set()

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        mark = self.peek()
        if not mark or (expected and mark != expected):
            raise NotAnExpression(f"expected {expected or 'more'}, found {mark or 'the end'!r}")
        self.at += 1
        return mark

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotAnExpression(f"nested deeper than {MAX_DEPTH}")
        tree = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = self.take()
            tree = (sign, tree, self.product(depth))
        return tree

    def product(self, depth: int) -> Tree:
        tree = self.signed(depth)
        while True:
            mark = self.peek()
            if mark in ("*", "/"):
                self.take()
                tree = (mark, tree, self.signed(depth))
            elif mark and mark not in "+-)|!^":
                mixed = _is_whole(self.tokens[self.at - 1]) and mark[0].isdigit()
                mixed = mixed or (mark == "frac" and _is_whole(self.tokens[self.at - 1]))
                tree = self._mixed(tree, depth) if mixed else ("*", tree, self.power(depth))
            else:
                return tree

    def _mixed(self, whole: Tree, depth: int) -> Tree:
        """`1 1/2` and `1\\frac{1}{2}` are one and a half."""
        if self.peek() == "frac":
            return ("+", whole, self.atom(depth))
        top = self.power(depth)
        self.take("/")
        return ("+", whole, ("/", top, self.power(depth)))

    def signed(self, depth: int) -> Tree:
        if self.peek() == "-":
            self.take()
            if depth > MAX_DEPTH:
                raise NotAnExpression(f"nested deeper than {MAX_DEPTH}")
            return ("minus", self.signed(depth + 1))
        if self.peek() == "+":
            self.take()
            return self.signed(depth + 1) if depth <= MAX_DEPTH else self.power(depth)
        return self.power(depth)

    def power(self, depth: int) -> Tree:
        base = self.atom(depth)
        while self.peek() == "!":
            self.take()
            base = ("factorial", base)
        if self.peek() == "^":
            self.take()
            if depth > MAX_DEPTH:
                raise NotAnExpression(f"nested deeper than {MAX_DEPTH}")
            return ("^", base, self.signed(depth + 1))
        return base

    def atom(self, depth: int) -> Tree:  # noqa: PLR0911 - one return a kind of atom
        mark = self.take()
        if mark[0].isdigit() or mark[0] == ".":
            return ("number", _number(mark))
        if mark == "(":
            return self.closed(depth, ")")
        if mark == "|":
            return ("absolute", self.closed(depth, "|"))
        if mark in ("frac", "binom"):
            top = self.argument(depth)
            return ("/" if mark == "frac" else "binom", top, self.argument(depth))
        if mark in _FUNCTIONS:
            return self._call(mark, depth)
        if mark in _CONSTANTS:
            return ("constant", "pi" if mark == "π" else mark)
        if mark[0].isalpha():
            return self._variable(mark)
        raise NotAnExpression(f"unexpected {mark!r}")

    def closed(self, depth: int, end: str) -> Tree:
        tree = self.sum(depth + 1)
        self.take(end)
        return tree

    def argument(self, depth: int) -> Tree:
        """`{...}`, or the one digit or letter that LaTeX takes without braces."""
        if self.peek() == "(":
            self.take()
            return self.closed(depth, ")")
        mark = self.peek()
        if len(mark) > 1 and mark.isdigit():  # \frac12
            self.tokens[self.at : self.at + 1] = [mark[0], mark[1:]]
        return self.atom(depth)

    def _call(self, name: str, depth: int) -> Tree:
        if name == "sqrt":
            return self._root(depth)
        base: Tree | None = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.argument(depth)
        inner = self.argument(depth) if self.peek() == "(" else self.power(depth)
        return ("call", name, inner) if base is None else ("log", base, inner)

    def _root(self, depth: int) -> Tree:
        index: Tree = ("number", Fraction(2))
        if self.peek() == _INDEX:
            self.take()
            index = self.closed(depth, ")")
        return ("root", index, self.argument(depth))

    def _variable(self, name: str) -> Tree:
        if len(name) > 12:
            raise NotAnExpression(f"{name[:20]!r} is not a name")
        if self.peek() == "_":  # x_1, x_{1}
            self.take()
            inside = self.take()
            if inside == "(":
                inside = self.take()
                self.take(")")
            name = f"{name}_{inside}"
        self.variables.add(name)
        return ("variable", name)


def _value(tree: Tree, env: Env) -> Value:
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind in ("constant", "variable"):
        return _CONSTANTS[tree[1]] if kind == "constant" else env[tree[1]]
    if kind == "call":
        return _FUNCTIONS[tree[1]](complex(_value(tree[2], env)))
    return _OPERATORS[kind](*(_value(part, env) for part in tree[1:]))


def _exact(operation: Callable[[Any, Any], Any]) -> Callable[[Value, Value], Value]:
    def apply(left: Value, right: Value) -> Value:
        found = operation(left, right)
        return _bounded(found) if isinstance(found, Fraction) else complex(found)

    return apply


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) * bits > MAX_BITS:
                raise NotAnExpression("a number too large to compute")
            return base ** int(exponent)
        if exponent == Fraction(1, 2):
            return _root(base)
    return complex(base) ** complex(exponent)


def _root(value: Value) -> Value:
    """The square root: exact of a rational square."""
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
    return cmath.sqrt(complex(value))


def _indexed_root(index: Value, value: Value) -> Value:
    """The real root where there is one, else the principal one."""
    if index == 2:
        return _root(value)
    if isinstance(index, Fraction) and index.denominator == 1 and index % 2 and isinstance(value, Fraction):
        return complex(math.copysign(abs(float(value)) ** float(1 / index), value))
    return complex(value) ** (1 / complex(index))


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 200:
        raise NotAnExpression("a factorial of something other than 0 to 200")
    return Fraction(math.factorial(int(value)))


def _binomial(top: Value, bottom: Value) -> Value:
    if not all(isinstance(one, Fraction) and one.denominator == 1 and 0 <= one <= 1_000 for one in (top, bottom)):
        raise NotAnExpression("a binomial coefficient of something other than 0 to 1,000")
    return Fraction(math.comb(int(top.real), int(bottom.real)))


def _absolute(value: Value) -> Value:
    return abs(value) if isinstance(value, Fraction) else complex(abs(value))


def _number(mark: str) -> Fraction:
    mantissa, _, power = mark.lower().partition("e")
    if len(mantissa) > 600 or (power and abs(int(power)) > 300):
        raise NotAnExpression("a number too large to compute")
    return Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(power or 0)


def _is_whole(mark: str) -> bool:
    return mark.isdigit()


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotAnExpression("a number too large to compute")
    return value


_OPERATORS: dict[str, Callable[..., Value]] = {
    "+": _exact(operator.add), "-": _exact(operator.sub), "*": _exact(operator.mul), "/": _exact(operator.truediv),
    "^": _power, "root": _indexed_root, "log": lambda base, value: cmath.log(complex(value)) / cmath.log(complex(base)),
    "binom": _binomial, "minus": lambda value: -value, "absolute": _absolute, "factorial": _factorial,
}  # fmt: skip
