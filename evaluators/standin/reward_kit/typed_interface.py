"""Stand-in for reward_kit.typed_interface: eval-protocol's older name."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false

from eval_protocol.typed_interface import *  # noqa: F403
from eval_protocol.typed_interface import __getattr__  # noqa: F401
