"""Notes on what makes a run slow, given only where it is sure."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ddp_helpers.evidence.cores import ranks_on_these_cores, usable_cores
from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session
from ddp_helpers.sanitizer.watch.passes import Pass

MB = 1024 * 1024
DEFAULT_BUCKET = 25 * MB
MANY = 4  # times as many buckets as needed, and at least so many
CROWDED = 2  # loader workers on each core; they wait for files half of the time
FEW_STEPS = 3  # too few backwards to say that no parameter is ever unused


@dataclass(frozen=True)
class UsedCount:
    """Backwards of one model on one rank."""

    steps: int
    missed: int
    """Those that left a parameter out."""


class SlowChecker:
    """Looks at threads, buckets, unused parameters and loader workers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.used: list[UsedParameters] = []
        self._told: set[str] = set()

    def forget(self) -> None:
        """A new process group starts."""
        self.used.clear()

    def _note(self, kind: str, cause: str, advice: str) -> None:
        if kind in self._told:
            return
        self._told.add(kind)
        everyone = tuple(range(self.session.world_size))
        self.session.found(Finding(kind, cause, advice, everyone, None, None, (), serious=False))

    def stepping(self, optimizer: torch.optim.Optimizer) -> None:
        """The first step: are there more threads than cores?"""
        if "threads" in self._told:
            return
        self._told.add("threads")
        threads, ranks, cores = torch.get_num_threads(), ranks_on_these_cores(), usable_cores()
        device = next(iter(optimizer.param_groups[0]["params"])).device
        if device.type == "cpu" and threads > 1 and threads * ranks > cores:
            self._note(
                "too-many-threads",
                f"{ranks} ranks with {threads} threads each share {cores} cores",
                f"torch.set_num_threads({max(1, cores // ranks)}), or OMP_NUM_THREADS",
            )

    def pass_begins(self, begun: Pass) -> None:
        """Are there more workers than cores?"""
        loader = begun.loader()
        workers = loader.num_workers if isinstance(loader, DataLoader) else 0
        ranks, cores = ranks_on_these_cores(), usable_cores()
        if workers > 1 and workers * ranks > CROWDED * cores:
            self._note(
                "too-many-workers",
                f"{ranks} ranks with {workers} loader workers each share {cores} cores",
                f"num_workers={max(1, cores // ranks)} is as fast here, or faster",
            )

    def wrapped(self, ddp: DistributedDataParallel) -> None:
        """Look at the buckets of a wrap."""
        sizes = [p.numel() * p.element_size() for p in ddp.parameters() if p.requires_grad]
        cap = getattr(ddp, "bucket_bytes_cap", DEFAULT_BUCKET)
        made, needed = count_buckets(sizes, cap), count_buckets(sizes, DEFAULT_BUCKET)
        lists = getattr(ddp, "bucket_bytes_cap_list", [])
        if cap < MB and not lists and made >= MANY * needed:
            self._note(
                "tiny-buckets",
                f"DDP sends its gradients in {made} buckets, where {needed} would do: "
                f"bucket_cap_mb is {cap / MB:g}",
                "leave bucket_cap_mb at its default of 25",
            )
        if ddp.find_unused_parameters:
            self.used.append(UsedParameters(ddp))

    def forward(self, ddp: DistributedDataParallel, args: tuple, kwargs: dict) -> None:
        """Count the backward before."""
        for used in self.used:
            if used.ddp() is ddp:
                used.forward_begins()

    def at_end(self) -> None:
        """Leave what was counted."""
        for number, used in enumerate(self.used):
            used.remove()
            self.session.line.publish(f"unused/{number}", UsedCount(used.steps, used.missed))

    def at_last(self) -> None:
        """Judge what all ranks counted."""
        for number, used in enumerate(self.used):
            if all(c.steps >= FEW_STEPS and not c.missed for c in self._records(number)):
                self._note(
                    "needless-find-unused",
                    f"find_unused_parameters=True, but in {used.steps} backwards every parameter "
                    "was used",
                    "leave find_unused_parameters out: it costs a walk through the graph each step",
                )

    def _records(self, number: int) -> list[UsedCount]:
        """What each rank counted for one model; zeros for a rank that did not tell."""
        name, everyone = f"unused/{number}", range(self.session.world_size)
        channel = self.session.line
        with contextlib.suppress(Gone):
            channel.wait(name, everyone, UsedCount, PATIENCE_AT_END, self.session.have_left_all)
        found = channel.read_those_here(name, everyone, UsedCount)
        return [found.get(rank, UsedCount(0, 0)) for rank in everyone]


class UsedParameters:
    """Counts the backwards of one model, and those that left a parameter out."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self.ddp = weakref.ref(ddp)
        self.steps, self.missed = 0, 0
        self._seen: set[int] = set()
        parameters = [p for p in ddp.parameters() if p.requires_grad]
        self._expected = len(parameters)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(number))
            for number, parameter in enumerate(parameters)
        ]

    def _hook(self, number: int) -> Callable[[torch.Tensor], None]:
        return lambda parameter: self._seen.add(number)

    def forward_begins(self) -> None:
        """Judge the backward since the last forward."""
        if self._seen:
            self.steps += 1
            self.missed += len(self._seen) < self._expected
            self._seen.clear()

    def remove(self) -> None:
        """Take the hooks away."""
        self.forward_begins()
        for hook in self._hooks:
            hook.remove()


def count_buckets(sizes: list[int], cap: int) -> int:
    """How many buckets DDP makes of gradients of these sizes in bytes, filling one at a time."""
    count, filled = 0, 0
    for size in reversed(sizes):
        filled += size
        if filled >= cap:
            count, filled = count + 1, 0
    return count + (filled > 0)
