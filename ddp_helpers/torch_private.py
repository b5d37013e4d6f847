"""The versions of torch that we are tested with, and every private name of torch that we use.

Nothing else in the package names one, but for what an object may carry or not and is asked with a
default. A torch that is newer or older than those tested may lack a name: then `get` raises
NotInThisTorch. The sanitizer makes a note of that, once, and goes on without the check.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# `make matrix` runs the tests with both, and some between: the table is in README.md
TESTED_FROM, TESTED_TO = (2, 6), (2, 15)
TESTED = "tested with torch {}.{} to {}.{}".format(*TESTED_FROM, *TESTED_TO)


def torch_version(text: str = "") -> tuple[int, int]:
    """(2, 13) of `2.13.0+cpu`; without a text, of the torch that is installed."""
    import torch

    major, minor = re.findall(r"\d+", text or torch.__version__)[:2]
    return int(major), int(minor)


class NotInThisTorch(Exception):
    """A name that this torch lacks, and what is left out for it."""


@dataclass(frozen=True)
class PrivateName:
    """A name of torch: its module, the path in it, and what is left out where it is missing."""

    module: str
    path: str
    without: str

    def get(self) -> Any:
        """What torch has under this name.

        Raises:
            NotInThisTorch: it has nothing there.
        """
        owner, last = self._owner()
        try:
            return getattr(owner, last)
        except AttributeError:
            raise self._missing() from None

    def put(self, value: object) -> None:
        """Have torch use ours instead.

        Raises:
            NotInThisTorch: it has nothing there, so it would not use ours.
        """
        self.get()
        setattr(*self._owner(), value)

    def _owner(self) -> tuple[Any, str]:
        *parts, last = self.path.split(".")
        try:
            # some are asked for in each step, where the import's own look-up would tell
            module = sys.modules.get(self.module) or importlib.import_module(self.module)
            return functools.reduce(getattr, parts, module), last
        except (ImportError, AttributeError):
            raise self._missing() from None

    def _missing(self) -> NotInThisTorch:
        import torch

        name = f"{self.module}.{self.path}"
        return NotInThisTorch(f"torch {torch.__version__} has no {name}: {self.without}")


_C10D = "torch.distributed.distributed_c10d"
_LOADER = "torch.utils.data.dataloader"
_FETCH = "torch.utils.data._utils.fetch"
_WORKERS = "random numbers of workers are not compared"

DEFAULT_STORE = PrivateName(_C10D, "_get_default_store", "the ranks can't compare anything")
GROUPS = PrivateName(_C10D, "_world.pg_map", "shares of the data are compared under DDP only")
DEFAULT_TIMEOUT = PrivateName(_C10D, "default_pg_timeout", "this fault would hang for 30 minutes")
SET_TIMEOUT = PrivateName(
    _C10D, "_set_pg_timeout", "at dist.breakpoint() the groups keep their own timeouts"
)
CREATE_STORE = PrivateName(
    "torch.distributed.rendezvous",
    "_create_c10d_store",
    "under launch() a second process group may meet the keys of the first",
)
FIND_TENSORS = PrivateName(
    "torch.nn.parallel.distributed", "_find_tensors", "backwards of DDP models are not followed"
)
LOADER_ITERATOR = PrivateName(_LOADER, "_BaseDataLoaderIter", "DataLoaders are not followed")
NEXT_INDEX = PrivateName(_LOADER, "_BaseDataLoaderIter._next_index", "DataLoaders are not followed")
RESET = PrivateName(_LOADER, "_BaseDataLoaderIter._reset", "DataLoaders are not followed")
WORKER_ITERATOR = PrivateName(_LOADER, "_MultiProcessingDataLoaderIter", _WORKERS)
FETCHERS = (
    PrivateName(_FETCH, "_MapDatasetFetcher", _WORKERS),
    PrivateName(_FETCH, "_IterableDatasetFetcher", _WORKERS),
)
FLATTEN = PrivateName("torch._utils", "_flatten_dense_tensors", "weights are not compared")
SAVED_DATA = PrivateName(
    "torch._C._autograd", "SavedTensor.data", "losses over unequal batches are not compared"
)
FLIGHT_RECORD = PrivateName(
    "torch._C._distributed_c10d", "_dump_fr_trace", "only nccl's watchdog writes a flight record"
)
NOT_COMPILED = PrivateName("torch", "_disable_dynamo", "forwards of DDP models are not followed")
PLAIN_TENSORS = PrivateName(
    "torch._C", "DisableTorchFunctionSubclass", "gradients lost in a collective are not found"
)
OPERATOR_MODE = PrivateName(
    "torch.utils._python_dispatch", "TorchDispatchMode", "what a rank sends can't be watched"
)
TOTAL_NORM = PrivateName(
    "torch.nn.utils.clip_grad", "_get_total_norm", "clipping by a share's norm is not found"
)
FAKE_TENSORS = PrivateName(
    "torch._subclasses.fake_tensor", "FakeTensorMode", "models can't be traced for their memory"
)


def set_timeouts(seconds: float) -> None:
    """Let the collectives of all groups wait so long from now on, where torch can set that."""
    with contextlib.suppress(NotInThisTorch):
        for group in list(GROUPS.get()):
            SET_TIMEOUT.get()(timedelta(seconds=seconds), group)
