# ruff: noqa: F401
"""What the fork server imports once, so that each rank starts with it in memory.

Nothing here may start a thread or touch CUDA: neither survives a fork.
"""

import contextlib
import gc

with contextlib.suppress(ImportError):
    import cloudpickle
    import torch
    import torch._dynamo  # the first optimizer imports it, a second and a half in each rank
    import torch.distributed
    import torch.nn.parallel
    import torch.optim
    import torch.utils.data

import ddp_helpers.process_group
import ddp_helpers.worker

gc.freeze()  # ranks share these pages as long as the collector does not touch them
