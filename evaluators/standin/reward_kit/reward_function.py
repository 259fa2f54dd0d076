"""Stand-in for reward_kit.reward_function: eval-protocol's older name."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol.reward_function import *  # noqa: F403
from eval_protocol.reward_function import __getattr__  # noqa: F401
