"""Data-parallel PyTorch, learned and started with real processes.

Importing this package loads neither torch nor matplotlib; each function loads what it needs.
In a notebook it also starts the process that will start ranks, which loads torch meanwhile.
"""

from ddp_helpers.ranks import (  # first of all: importing it starts that process
    LaunchError,
    LaunchStopped,
    LaunchTimeoutError,
    Session,
    launch,
    report,
)

# isort: split
from ddp_helpers.environment import check_environment
from ddp_helpers.group import (
    cleanup_distributed,
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_main_process,
    process_group,
)
from ddp_helpers.sanitizer import sanitize
from ddp_helpers.verifier import verify

__all__ = [
    "LaunchError",
    "LaunchStopped",
    "LaunchTimeoutError",
    "Session",
    "check_environment",
    "cleanup_distributed",
    "get_rank",
    "get_world_size",
    "init_distributed_mode",
    "is_main_process",
    "launch",
    "process_group",
    "report",
    "sanitize",
    "verify",
]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # slower to load than most of this package

    return version("ddp_helpers")
