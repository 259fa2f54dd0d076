"""Maths by sympy, in the sandbox: what is proved equal, what is not, what takes too long; and what sympy never sees."""

from collections.abc import Iterator
from typing import Any

import pytest

from evaluators.kinds import symbolic
from evaluators.kinds.base import Tools
from evaluators.kinds.expressions import NotAnExpression, parse, same
from evaluators.kinds.maths import equal
from evaluators.kinds.table import make
from evaluators.protocol import Result, Status
from evaluators.sandboxed import SandboxRunner

pytest.importorskip("sympy", reason="sympy is optional")


@pytest.fixture(scope="module")
def runner() -> Iterator[SandboxRunner]:
    with SandboxRunner(workers=1) as found:
        yield found


def results(runner: SandboxRunner, pairs: list[tuple[str, Any]], **settings: Any) -> list[Result]:
    evaluator = make("maths", {"symbolic": "sympy", **settings}, Tools(runner))
    return evaluator.evaluate([{"completion": f"\\boxed{{{given}}}", "ground_truth": truth} for given, truth in pairs])


EQUAL = [  # none of them is equal by `expressions.py`
    ("x>2", "2<x"), ("2x+2y=4", "x+y=2"), (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    ("x<2", r"(-\infty,2)"), ("1<x<3", "(1,3)"), ("2^{5000}", "4^{2500}"), ("300!", r"300\cdot 299!"),
    ("a+b+c+d+f+g", "g+f+d+c+b+a"), ("x^2>4", r"(-\infty,-2)\cup(2,\infty)"), ("-x<y", "x+y>0"),
]  # fmt: skip
DIFFERENT = [
    ("x+1", "x-1"), (r"x\ge 2", "x>2"), ("2x+2y=4", "x+y=3"), ("Monday", "Tuesday"), (r"9^{9^{9^9}}", "1"),
    ("x<2", r"(-\infty,2]"), ("x>2", "x=2"), ("__import__('os').system('true')", "0"), (r"\frac{1}{x-x}", "0"),
]  # fmt: skip


def test_what_sympy_proves_equal_scores_and_the_rest_does_not(runner: SandboxRunner) -> None:
    assert [pair for pair in (*EQUAL, *DIFFERENT) if equal(*pair)] == []
    found = results(runner, [*EQUAL, *DIFFERENT], symbolic_seconds=20)
    wrong = [
        (pair, result.status, result.message)
        for pair, result, expected in zip(
            [*EQUAL, *DIFFERENT], found, [1.0] * len(EQUAL) + [0.0] * len(DIFFERENT), strict=True
        )
        if result.score is None or result.score.score != expected
    ]
    assert wrong == []
    assert all(one.score and one.score.metrics["symbolic"].score == one.score.score for one in found)


def test_what_is_decided_by_value_never_reaches_sympy(runner: SandboxRunner) -> None:
    found = results(runner, [("1/2", "0.5"), ("5", "6"), ("7", ["8", "9"]), ("", "1")])
    assert [result.score and result.score.score for result in found] == [1.0, 0.0, 0.0, 0.0]
    assert all(result.score and "symbolic" not in result.score.metrics for result in found)


def test_what_is_not_decided_in_time_is_masked(runner: SandboxRunner) -> None:
    long = "+".join(f"\\sin({n}x)\\cos({n}x)\\tan({n}x)" for n in range(1, 12))
    (late,) = results(runner, [(long, long + "+x-x+\\sin(x)^2\\binom{x}{y}")], symbolic_seconds=0.001)
    assert (late.status, late.score) == (Status.TIMEOUT, None)
    assert late.message == "sympy did not decide within 0.001 s"


def test_its_absence_is_said_when_the_evaluator_is_made() -> None:
    with pytest.raises(ValueError, match="needs the package surely_not_installed, which is not installed here: pip"):
        symbolic._folder("surely_not_installed")
    with pytest.raises(ValueError, match="'maths' runs code and needs a sandbox"):
        make("maths", {"symbolic": "sympy"}, Tools())


@pytest.mark.parametrize(
    ("given", "truth"),
    [(r"\sqrt[3]{8}", "2"), (r"\sqrt[3]{-8}", "-2"), (r"\log_2 8", "3"), (r"\log_{10}(100)", "2"), (r"\sec 0", "1"),
     (r"\binom{5}{2}", "10"), (r"\dbinom{4}{1}", "4"), (r"\cot(\pi/4)", "1"), (r"\sqrt{[4]}", "2")],
)  # fmt: skip
def test_roots_logarithms_and_binomials_are_read(given: str, truth: str) -> None:
    assert equal(given, truth)
    assert not equal(given, f"{truth}1")


def test_what_is_too_large_to_compute_is_refused() -> None:
    for text in (r"\binom{5000}{2}", "201!", "9^{9^9}"):
        with pytest.raises(NotAnExpression):
            same(parse(text), parse("1"))
