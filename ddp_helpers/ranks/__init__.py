# ruff: noqa: E402
"""Start real ranks, watch them, and end every one of them: `launch()` and what is behind it."""

from ddp_helpers.ranks.fork_server import warm_up_in_a_kernel

# before all else: it loads torch while this process imports the rest, and then torch itself
warm_up_in_a_kernel()

from ddp_helpers.ranks.conclusion import LaunchError, LaunchStopped, LaunchTimeoutError
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.ranks.progress import report
from ddp_helpers.ranks.session import Session

__all__ = ["LaunchError", "LaunchStopped", "LaunchTimeoutError", "Session", "launch", "report"]
