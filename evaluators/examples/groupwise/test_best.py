# pyright: reportMissingImports=false
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import evaluation_test


@evaluation_test(input_dataset=["rows.jsonl"], completion_params=[{"model": "any"}], mode="groupwise")
def test_best(rows: list[EvaluationRow]) -> list[EvaluationRow]:
    """The shortest answer's length over one's own."""
    lengths = [len(row.messages[-1].content) for row in rows]
    for row, length in zip(rows, lengths, strict=True):
        row.evaluation_result = EvaluateResult(score=min(lengths) / length, reason=f"{length} characters")
    return rows
