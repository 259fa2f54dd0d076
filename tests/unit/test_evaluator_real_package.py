"""The published eval-protocol, built and driven in the sandbox, scores as the stand-in does; both ways to drive it."""

from pathlib import Path

import pytest

from evaluators.build import Builder, BuildState
from evaluators.custom import project
from evaluators.outcomes import values
from evaluators.protocol import Limits
from evaluators.sandboxed import SandboxRunner

pytestmark = pytest.mark.clients

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = "eval-protocol==0.3.33\npytest\npytest-asyncio\n"
SOURCE = """
from eval_protocol.models import EvaluateResult, EvaluationRow, MetricResult
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test

@evaluation_test(input_dataset=["rows.jsonl"], completion_params=[{"model": "m", "temperature": 1.0}],
                 rollout_processor=SingleTurnRolloutProcessor(), mode="pointwise")
def test_len(row: EvaluationRow) -> EvaluationRow:
    n = len(row.messages[-1].content or "")
    metrics = {"short": MetricResult(score=1 / n, is_score_valid=True, reason="")}
    row.evaluation_result = EvaluateResult(score=float(n < 5), reason=f"len={n}", metrics=metrics)
    return row
"""


def test_the_package_and_the_stand_in_agree() -> None:
    build = Builder(ROOT / ".venv-clients" / "evaluator-environments").build(REQUIREMENTS)
    assert build.state is BuildState.ACTIVE, build.message
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x" * n}]} for n in (1, 4, 9)
    ]
    real = {"test_len.py": SOURCE.encode(), "requirements.txt": REQUIREMENTS.encode()}
    limits = Limits(60, 60, 2 << 30, processes=64, descriptors=256, scratch_bytes=64 << 20)
    with SandboxRunner(workers=2) as runner:
        slim = project.evaluator({"test_len.py": SOURCE.encode()}, "test_len.py::test_len", runner).evaluate(rows)
        called = project.evaluator(real, "test_len.py::test_len", runner, python=build.python, limits=limits)
        session = project.evaluator(
            real, "test_len.py::test_len", runner, python=build.python, limits=limits, drive="pytest"
        )
        for found in (called.evaluate(rows), session.evaluate(rows)):
            assert values(found) == values(slim) == [1.0, 1.0, 0.0], found
            assert [one.score for one in found] == [one.score for one in slim]
