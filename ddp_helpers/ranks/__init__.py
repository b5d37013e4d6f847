"""Start real ranks, watch them, and end every one of them: `launch()` and what is behind it."""

from ddp_helpers.ranks.launcher import LaunchError, LaunchStopped, LaunchTimeoutError, launch
from ddp_helpers.ranks.progress import report
from ddp_helpers.ranks.session import Session

__all__ = ["LaunchError", "LaunchStopped", "LaunchTimeoutError", "Session", "launch", "report"]
