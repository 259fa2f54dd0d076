"""Stand-in for reward-kit, eval-protocol's older name."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol.missing import attribute
from eval_protocol.models import EvaluateResult, Message, MetricResult, StepOutput
from eval_protocol.typed_interface import reward_function

__all__ = ["EvaluateResult", "Message", "MetricResult", "StepOutput", "reward_function"]
__getattr__ = attribute(__name__)
