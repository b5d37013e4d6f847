"""Watch a run for what goes wrong without telling; the training code stays as it is.

Three ways to switch it on:

    launch(train, nprocs=2, sanitize=True)
    python -m ddp_helpers sanitize torchrun --nproc-per-node 2 train.py
    with sanitize(): train()
"""

from ddp_helpers.sanitizer.switch import install, sanitize, uninstall
from ddp_helpers.sanitizer.talk.session import FAILED, LEFT, Options, SanitizerError, Session

__all__ = [
    "FAILED",
    "LEFT",
    "Options",
    "SanitizerError",
    "Session",
    "install",
    "sanitize",
    "uninstall",
]
