# pyright: reportMissingImports=false
from eval_protocol import reward_function
from eval_protocol.models import EvaluateResult, MetricResult


@reward_function
def contains_truth(messages, ground_truth=None, **kwargs):
    """1 where the truth occurs in the answer."""
    ok = str(ground_truth) in messages[-1]["content"]
    hit = MetricResult(score=float(ok), is_score_valid=True, reason="")
    return EvaluateResult(score=float(ok), reason="substring", metrics={"hit": hit})
