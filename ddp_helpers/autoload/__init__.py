"""Switches the sanitizer on in a script that knows nothing of it:

    DDP_HELPERS_SANITIZE=1 torchrun --nproc-per-node 2 train.py

torch calls `start` at the end of `import torch`: it is an entry point of group `torch.backends`.
This is a package of its own, `ddp_helpers_autoload`, so that every other `import torch` loads
these few lines and nothing else. TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch from calling it.
"""

import os
import sys

SWITCH = "DDP_HELPERS_SANITIZE"


def start() -> None:
    """Watch this process if it is a rank of torchrun, or of another launcher, and is to be."""
    try:
        if os.environ.get(SWITCH, "0") in ("", "0") or not is_rank():
            return
        every = int(os.environ[SWITCH])
        from ddp_helpers.sanitizer.script import watch_script

        watch_script(every)
    except Exception as error:  # whatever it is, `import torch` must not fail for it
        if os.environ.get("RANK", "0") == "0":
            print(
                f"the sanitizer is off: {SWITCH}={os.environ.get(SWITCH)!r}: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )


def is_rank() -> bool:
    """True in a rank itself: not in its launcher, not in a loader's worker.

    launch() watches its ranks by itself.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    if "DDP_HELPERS_INSIDE_A_RANK" in os.environ:
        return False
    # spawn and forkserver start workers, and a server of theirs, that inherit the variables
    return not any("multiprocessing" in argument for argument in sys.orig_argv[1:5])
