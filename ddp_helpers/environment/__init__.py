"""What this machine can do for data-parallel training: facts, and advice on each."""

from ddp_helpers.environment.check import (
    check_environment,
    default_nprocs,
    gpu_count,
    main_check,
    usable_cpu_count,
)
from ddp_helpers.environment.report import Check, EnvironmentReport

__all__ = [
    "Check",
    "EnvironmentReport",
    "check_environment",
    "default_nprocs",
    "gpu_count",
    "main_check",
    "usable_cpu_count",
]
