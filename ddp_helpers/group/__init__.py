"""A process group's life: how ranks meet, who this process is among them, and the clean end."""

from ddp_helpers.group.devices import choose_backend
from ddp_helpers.group.lifetime import (
    DEFAULT_TIMEOUT,
    ProcessGroup,
    cleanup_distributed,
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_main_process,
    process_group,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "ProcessGroup",
    "choose_backend",
    "cleanup_distributed",
    "get_rank",
    "get_world_size",
    "init_distributed_mode",
    "is_main_process",
    "process_group",
]
