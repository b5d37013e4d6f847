"""An evaluation that counts padded samples twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import Pass, length_of

GATHERS = (
    "allgather",
    "all_gather_single",
    "_allgather_base",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "gather",
)


MOST_COUNTS = 1024  # numbers in a tensor that may be counts; a larger one is weights or outputs


class EvaluationChecker:
    """Looks for sums over a padded sampler's samples.

    A DistributedSampler without drop_last repeats samples until all ranks have equally many. In
    training that is harmless. In an evaluation whose results are summed it is not, unless the
    results are gathered, where they may be cut to length, or the program counts without them.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._current: Pass | None
        self._padded: DistributedSampler | None  # the pass's sampler, if it repeats samples
        self.forget()

    def put_patches(self) -> None:
        """Stand in for what sums or gathers results."""
        look = self.session.guarded("evaluation", self._look_at_sum)
        put = self.session.patches.put
        put(dist.ProcessGroup, "allreduce", functools.partial(self._sums, look))
        for name in GATHERS:
            put(dist.ProcessGroup, name, self._gathers)

    def delivered(self, current: Pass, batch: object) -> None:
        """A batch was loaded; where it is another pass's, the one before is over."""
        if self._current is not current:
            self.decide()
            self.forget()
            self._current = current
            if isinstance(current.sampler, DistributedSampler) and padded_here(current.sampler):
                self._padded = current.sampler

    def forget(self) -> None:
        """A new process group, or another pass, starts."""
        self._current = self._padded = None
        self._gathered = False
        self._summed = self._counted_right = False

    def _gathers(self, original: Callable) -> Callable:
        def gather(*args: object, **kwargs: object) -> object:
            self._gathered = True
            return original(*args, **kwargs)

        return gather

    def _sums(self, look: Callable, original: Callable) -> Callable:
        def allreduce(group: object, *args: object, **kwargs: object) -> object:
            if self._padded is not None and self.session.channel is not None:
                look(*args, **kwargs)
            return original(group, *args, **kwargs)

        return allreduce

    def _look_at_sum(
        self,
        tensors: torch.Tensor | Sequence[torch.Tensor] = (),
        options: object = None,
        **_: object,
    ) -> None:
        """The numbers that a rank brings tell whether it counted its repeated samples."""
        current, sampler = self._current, self._padded
        if current is None or sampler is None or not _adds(getattr(options, "reduceOp", options)):
            return
        mine = padded_here(sampler)
        if current.delivered + mine <= sampler.num_samples:
            return  # it has not come to the repeated ones
        self._summed = True
        given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        small = [tensor for tensor in given if tensor.numel() <= MOST_COUNTS]
        if any(bool(tensor.eq(current.delivered - mine).any()) for tensor in small):
            self._counted_right = True
        if any(bool(tensor.eq(current.delivered).any()) for tensor in small):
            self._counted_right = False
            self.decide(sure=True)

    def decide(self, sure: bool = False) -> None:
        """Tell what was seen.

        Args:
            sure: this rank brought the number of its samples with the repeated ones to a sum.
        """
        current, sampler = self._current, self._padded
        if current is None or sampler is None:
            return
        if not self._summed or self._gathered or self._counted_right:
            return
        if current.steps or current.backwards:
            return  # training: a sample that comes twice does no harm
        self.forget()
        self.session.found(self._finding(current, sampler, sure))

    def _finding(self, current: Pass, sampler: DistributedSampler, sure: bool) -> Finding:
        size, places = length_of(sampler), sampler.total_size
        twice = places - size
        samples = "1 sample counts" if twice == 1 else f"{twice} samples count"
        if not sure:
            samples = f"{twice} sample{'s' if twice > 1 else ''} may count"
        place = self.session.frame_of(current.place)
        return Finding(
            "padded-evaluation",
            f"{samples} twice in an evaluation: DistributedSampler gave {places} places to "
            f"{size} samples, so that all ranks have {sampler.num_samples}",
            "evaluate on an exact split, for instance Subset(dataset, range(rank, len(dataset), "
            "world_size)), then all-reduce sums and counts; or gather, and cut to "
            "len(dataset)",
            (self.session.rank,),
            self.session.step,
            place,
            serious=sure,
        )


def padded_here(sampler: object) -> int:
    """How many of this rank's samples are repeated ones."""
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return 0
    rank, step, places = sampler.rank, sampler.num_replicas, sampler.total_size
    own = min(length_of(sampler), places)  # asked at every batch, so counted without a walk
    return len(range(rank, places, step)) - len(range(rank, own, step))


def _adds(operation: object) -> bool:
    # not `in`: only a ReduceOp on the left knows that it is equal to its kind
    return operation is None or operation == dist.ReduceOp.SUM or operation == dist.ReduceOp.AVG
