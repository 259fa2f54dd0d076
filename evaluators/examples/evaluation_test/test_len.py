# pyright: reportMissingImports=false
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test


@evaluation_test(
    input_dataset=["rows.jsonl"],
    completion_params=[{"model": "accounts/local/models/tiny", "temperature": 1.0}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="pointwise",
)
def test_len(row: EvaluationRow) -> EvaluationRow:
    """1 where the answer has fewer than 50 characters."""
    n = len(row.messages[-1].content or "")
    row.evaluation_result = EvaluateResult(score=1.0 if n < 50 else 0.0, reason=f"len={n}")
    return row
