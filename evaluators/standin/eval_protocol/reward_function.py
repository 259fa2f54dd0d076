"""Stand-in for eval_protocol.reward_function, as far as evaluators import from it."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol.missing import attribute
from eval_protocol.typed_interface import reward_function

__all__ = ["reward_function"]
__getattr__ = attribute(__name__)
