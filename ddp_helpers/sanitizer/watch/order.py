"""What surely happened before what on two ranks: told by the collectives between, not by clocks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.collective_methods import (
    INPUTS,
    POINT_TO_POINT,
    is_asynchronous,
    options_in,
)
from ddp_helpers.sanitizer.talk.session import Session

# here only its root is known to have come
FROM_ROOT = ("broadcast", "scatter")
# these order two ranks, too, but not in a way that is followed here
OTHERS = ("reduce", "gather", *POINT_TO_POINT)
# whoever is through with any other one knows that all its ranks have come to it


@dataclass(frozen=True)
class Moment:
    """Where a rank stands in the order of things.

    Args:
        entered: collectives of each group that it has come to.
        left: of each group, how many collectives all others have come to, as far as it knows.
        roots: the same for one root only, as `group/rank`.
        clock: seconds; ranks of one machine share it.
        loose: the clock when something last happened that may order ranks in another way.
    """

    entered: dict[str, int]
    left: dict[str, int]
    roots: dict[str, int]
    clock: float
    loose: float


def is_before(earlier: Moment, rank: int, later: Moment) -> bool:
    """True if `earlier`, on this rank, happened before `later`, on another one, or may have.

    The other rank is through with a collective that this rank came to only after `earlier`.
    """
    for group, count in later.left.items():
        if count > earlier.entered.get(group, 0):
            return True
    for key, count in later.roots.items():
        group, _, root = key.rpartition("/")
        if root == str(rank) and count > earlier.entered.get(group, 0):
            return True
    return earlier.clock < later.loose  # a message or a smaller group may have ordered them


class Order:
    """Counts this rank's collectives."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.reset()

    def put_patches(self) -> None:
        """Stand in for each method of ProcessGroup."""
        for name in (*INPUTS, *POINT_TO_POINT):
            self.session.patches.put(dist.ProcessGroup, name, self._counted(name))

    def reset(self) -> None:
        """A new process group starts."""
        self.entered: dict[str, int] = defaultdict(int)
        self.left: dict[str, int] = {}
        self.roots: dict[str, int] = {}
        self.loose = 0.0
        self._synced: dist.ProcessGroup | None = None

    def now(self) -> Moment:
        """This rank's moment."""
        entered, left, roots = dict(self.entered), dict(self.left), dict(self.roots)
        return Moment(entered, left, roots, time.monotonic(), self.loose)

    def _counted(self, name: str) -> Callable[[Callable], Callable]:
        note = self.session.guarded("order", self._note)

        def make(original: Callable) -> Callable:
            def call(group: dist.ProcessGroup, *args: object, **kwargs: object) -> object:
                if self.session.channel is None:
                    return original(group, *args, **kwargs)
                number = note(name, group)
                work = original(group, *args, **kwargs)
                if number is not None:
                    note_end(name, group, number, args, kwargs)
                return work

            return call

        note_end = self.session.guarded("order", self._note_end)
        return make

    def _note(self, name: str, group: dist.ProcessGroup) -> int:
        self.entered[group.group_name] += name not in OTHERS
        return self.entered[group.group_name]

    def _note_end(
        self, name: str, group: dist.ProcessGroup, number: int, args: tuple, kwargs: dict
    ) -> None:
        """Take it as done: who calls it without async_op waits before it goes on."""
        options = options_in((*args, *kwargs.values()))
        everyone = group.size() == self.session.world_size
        if name in OTHERS or not everyone or is_asynchronous(options):
            self.loose = time.monotonic()
        elif name in FROM_ROOT:
            self.roots[f"{group.group_name}/{getattr(options, 'rootRank', -1)}"] = number
        else:
            self.left[group.group_name] = number

    # ---- what DDP does in C++

    def _all_came(self, group: dist.ProcessGroup | None) -> None:
        if group is None or group.size() != self.session.world_size:
            self.loose = time.monotonic()
            return
        name = f"ddp/{group.group_name}"
        self.entered[name] += 1
        self.left[name] = self.entered[name]

    def wrapped(self, ddp: DistributedDataParallel) -> None:
        """The wrap sends rank 0's weights to all."""
        self._all_came(ddp.process_group)

    def forward(self, ddp: DistributedDataParallel, args: tuple, kwargs: dict) -> None:
        """Note whether the next backward averages."""
        syncs = ddp.require_backward_grad_sync and torch.is_grad_enabled() and ddp.training
        self._synced = ddp.process_group if syncs else None

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over."""
        if self._synced is not None:
            self._all_came(self._synced)
        self._synced = None
