"""Assert tests split in two, so that an answer's code and the judgement never share a process.

`assert sorted(f([2, 1])) == [1, 2]` has a part that is the answer's, `f([2, 1])`, and a judgement over its value. The
first runs in a jail with the answer, which sends the value back as tagged JSON; the judgement is then made without the
answer: here, where it is a comparison with a literal, else in a second jail that never sees the answer. An answer that
patches `assert`, `==` or `sorted`, or ends its process with success, changes nothing but its own values.
"""

from __future__ import annotations

import ast
import builtins
import json
from dataclasses import dataclass
from typing import Any

from evaluators.rows import RowError

MAX_TEST = 20_000  # characters
_JUDGES_MODULES = frozenset({"math", "cmath", "re", "json", "collections", "itertools", "functools", "fractions",
                             "decimal", "statistics", "operator", "string"})  # fmt: skip
_JUDGES = frozenset(dir(builtins)) | _JUDGES_MODULES
_HOLE = "__value_{}__"

_CODEC = """
def pack(value, depth=0):
    if depth > 12:
        raise ValueError("nested too deeply")
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else {"int": str(value)}
    if kind is float:
        return {"float": repr(value)}
    if kind is list:
        return [pack(one, depth + 1) for one in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(one, depth + 1) for one in value]}
    if kind is dict:
        return {"dict": [[pack(key, depth + 1), pack(one, depth + 1)] for key, one in value.items()]}
    if kind in (bytes, complex):
        return {kind.__name__: value.hex() if kind is bytes else repr(value)}
    if isinstance(value, (int, float, str, list, tuple, set, dict)):
        for base in (int, float, str, list, tuple, set, dict):
            if isinstance(value, base):
                return pack(base(value), depth)
    raise TypeError("a value of type " + kind.__name__ + " cannot be judged outside of the answer")


def unpack(value):
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "dict":
        return {unpack(key): unpack(one) for key, one in inner}
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(one) for one in inner)
    if kind == "bytes":
        return bytes.fromhex(inner)
    return {"int": int, "float": float, "complex": complex}[kind](inner)
"""

ANSWER_HARNESS = (
    _CODEC
    + """

def main():
    import json, os, sys
    job = json.loads(sys.stdin.read())
    channel = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    names = {"__name__": "answer"}
    found = []
    try:
        for module in job["modules"]:
            names[module] = __import__(module)
        exec(compile(job["source"], "answer.py", "exec"), names)
        for step, text in job["steps"]:
            if step == "run":
                exec(compile(text, "test.py", "exec"), names)
            else:
                found.append({"value": pack(eval(compile(text, "test.py", "eval"), names))})
    except BaseException as error:
        found.append({"error": (type(error).__name__ + ": " + str(error))[:200]})
    line = json.dumps(found).encode()
    while line:
        line = line[os.write(channel, line):]


main()
"""
)

JUDGE_HARNESS = (
    _CODEC
    + """

def main():
    import json, sys
    job = json.loads(sys.stdin.read())
    names = {module: __import__(module) for module in job["modules"]}
    names.update({name: unpack(value) for name, value in job["values"].items()})
    print(json.dumps([bool(eval(compile(text, "test.py", "eval"), names)) for text in job["checks"]]))


main()
"""
)


@dataclass(frozen=True)
class Check:
    """One assert: its judgement over the values `__value_N__`; `literal` is set where it is value == literal."""

    judgement: str
    values: tuple[int, ...]
    literal: Any = None
    is_literal: bool = False


@dataclass(frozen=True)
class SplitTest:
    """steps: ("run", statement) or ("value", expression) in the answer's process. checks: over the values."""

    steps: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    modules: tuple[str, ...]


def split(test: str) -> SplitTest:
    """The two halves of a test. Raises `RowError` where asserts stand within loops or functions, or none stands."""
    if len(test) > MAX_TEST:
        raise RowError(f"a test of {len(test):,} characters; {MAX_TEST:,} are allowed")
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowError(f"a test that is not Python: {error}") from None
    steps: list[tuple[str, str]] = []
    checks: list[Check] = []
    own = _assigned(body)
    for statement in body:
        if isinstance(statement, ast.Assert):
            checks.append(_check(statement.test, steps, own))
        elif any(isinstance(inner, ast.Assert) for inner in ast.walk(statement)):
            raise RowError(f"line {statement.lineno} of a test has an assert within a block; write asserts at the top")
        else:
            steps.append(("run", ast.unparse(statement)))
    if not checks:
        raise RowError("a test without an assert")
    used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    return SplitTest(tuple(steps), tuple(checks), tuple(sorted(used & _JUDGES_MODULES)))


def _check(expression: ast.expr, steps: list[tuple[str, str]], own: frozenset[str]) -> Check:
    parts = _Holes(steps, own)
    judged = parts.visit(expression)
    values = tuple(parts.numbers)
    if isinstance(judged, ast.Compare) and len(judged.ops) == 1 and isinstance(judged.ops[0], ast.Eq):
        left, right = judged.left, judged.comparators[0]
        if _is_hole(right):
            left, right = right, left
        if _is_hole(left):
            try:
                return Check(ast.unparse(judged), values, ast.literal_eval(right), True)
            except ValueError:
                pass  # no literal: the second jail judges
    return Check(ast.unparse(judged), values)


class _Holes(ast.NodeTransformer):
    """Takes the largest parts that are the answer's out of an expression, each into a step."""

    def __init__(self, steps: list[tuple[str, str]], own: frozenset[str]) -> None:
        self.steps, self.own, self.numbers = steps, own, []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.NamedExpr):
            return self._hole(node) if self._has_own(node) else node
        if isinstance(node, ast.Call | ast.Attribute | ast.Subscript | ast.Name) and self._is_own(node):
            return self._hole(node)
        return self.generic_visit(node)

    def _hole(self, node: ast.AST) -> ast.Name:
        if isinstance(node, ast.GeneratorExp):  # a generator cannot leave its process, its list can
            node = ast.ListComp(node.elt, node.generators)
        number = sum(kind == "value" for kind, _ in self.steps)
        self.steps.append(("value", ast.unparse(node)))
        self.numbers.append(number)
        return ast.Name(_HOLE.format(number), ast.Load())

    def _is_own(self, node: ast.AST) -> bool:
        """Whether what is called, or looked into, is the answer's."""
        while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and (node.id not in _JUDGES or node.id in self.own)

    def _has_own(self, node: ast.AST) -> bool:
        bound = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)
                 and isinstance(inner.ctx, ast.Store)}  # fmt: skip
        bound |= {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} - bound
        return any(name not in _JUDGES or name in self.own for name in names)


def _is_hole(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id.startswith("__value_")


def _assigned(body: list[ast.stmt]) -> frozenset[str]:
    """Names that the test itself assigns: they live with the answer."""
    return frozenset(node.id for one in body for node in ast.walk(one)
                     if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))  # fmt: skip


def answer_job(source: str, test: SplitTest) -> str:
    """Standard input of the answer's jail."""
    return json.dumps({"source": source, "steps": test.steps, "modules": test.modules})


def judge_job(checks: list[Check], values: list[Any], modules: tuple[str, ...]) -> str:
    """Standard input of the judgement's jail."""
    named = {_HOLE.format(number): values[number] for check in checks for number in check.values}
    return json.dumps({"checks": [check.judgement for check in checks], "values": named, "modules": modules})


def unpack(value: Any) -> Any:
    """A value as the answer's jail tagged it. Raises `ValueError` where it is not of that form."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a tagged value")
    kind, inner = next(iter(value.items()))
    try:
        return _unpack_tagged(kind, inner)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a tagged value: {error}") from None


def _unpack_tagged(kind: str, inner: Any) -> Any:
    if kind == "dict":
        return {unpack(key): unpack(one) for key, one in inner}
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(one) for one in inner)
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "int" and len(inner) > 4_000:
        raise ValueError("an integer too long to compare")
    return {"int": int, "float": float, "complex": complex}[kind](inner)
