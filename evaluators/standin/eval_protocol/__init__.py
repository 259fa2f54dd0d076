"""Stand-in for eval-protocol: what evaluators use of it, without what its trainers and tools need."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol import models
from eval_protocol.missing import attribute
from eval_protocol.models import (
    EvaluateResult,
    EvaluationRow,
    InputMetadata,
    Message,
    MetricResult,
    Status,
    StepOutput,
)
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test
from eval_protocol.typed_interface import reward_function

__version__ = "0.3.33+standin"
__all__ = [
    "EvaluateResult", "EvaluationRow", "InputMetadata", "Message", "MetricResult", "SingleTurnRolloutProcessor",
    "Status", "StepOutput", "evaluation_test", "models", "reward_function",
]  # fmt: skip
__getattr__ = attribute(__name__)
