"""Stand-in for reward_kit.models: eval-protocol's older name."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol.models import *  # noqa: F403
from eval_protocol.models import __getattr__  # noqa: F401
