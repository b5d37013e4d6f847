"""Asynchronous collectives: their result is there once they were waited for, and not before."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.collective_methods import INPUTS, is_asynchronous, options_in
from ddp_helpers.evidence.records import Finding
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session

# what they change lies in the first argument, and nothing else writes to it meanwhile
IN_PLACE = ("allreduce", "broadcast", "reduce")
# who calls one of these waits, or learns that it is done
WAITS = ("wait", "get_future", "synchronize", "is_completed")
KEPT = 64  # calls that are remembered; a program may start many and care for none


@dataclass
class Flying:
    """One call that has not been waited for."""

    work: object
    called: str
    place: Place | None
    tensors: list[tuple[weakref.ref[torch.Tensor], int]]
    """With the count of changes that each had when the call was made."""
    addresses: set[int]


class AsyncChecker:
    """Remembers the asynchronous collectives that the program itself calls.

    On the CPU only: on a GPU the order of streams may do what a wait would.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._flying: deque[Flying] = deque(maxlen=KEPT)
        self._note_call = session.guarded("asynchronous calls", self._begin)
        self._note_wait = session.guarded("asynchronous calls", self._waited)

    def put_patches(self) -> None:
        """Stand in for what begins a collective, and for what waits for one."""
        put = self.session.patches.put
        for name in INPUTS:
            if INPUTS[name] is not None:
                put(dist.ProcessGroup, name, functools.partial(self._calling, name))
        for name in WAITS:
            if hasattr(dist.Work, name):
                put(dist.Work, name, functools.partial(self._waiting, name == "is_completed"))

    def forget(self) -> None:
        """A new process group starts."""
        self._flying.clear()

    # ---- what stands in for torch's functions

    def _calling(self, name: str, original: Callable) -> Callable:
        def call(group: object, *args: object, **kwargs: object) -> object:
            work = original(group, *args, **kwargs)
            if self.session.channel is not None and work is not None:
                self._note_call(name, work, args, kwargs)
            return work

        return call

    def _waiting(self, asks: bool, original: Callable) -> Callable:
        def wait(work: object, *args: object, **kwargs: object) -> object:
            flying = bool(self._flying)
            if flying and asks is False:
                self._note_wait(work)
            result = original(work, *args, **kwargs)
            if flying and asks and result:
                self._note_wait(work)
            return result

        return wait

    # ---- the life of a call

    def _begin(self, name: str, work: object, args: tuple, kwargs: Mapping) -> None:
        if not is_asynchronous(options_in((*args, *kwargs.values()))):
            return
        frames, called = user_frames(2)
        if (
            called not in dist.distributed_c10d.__all__
        ):  # another part of torch made it, and knows what it does
            return
        written = list(tensors_in(args[0] if args else None))
        if not written or not all(tensor.is_cpu for tensor in written):
            return
        followed = written if name in IN_PLACE else _inputs(name, args)
        self._flying.append(
            Flying(
                work,
                called,
                innermost(places(frames)),
                # a view counts the changes of all that it shares memory with
                [(weakref.ref(t), t._version) for t in followed if not t._is_view()],
                {tensor.data_ptr() for tensor in written},
            )
        )

    def _waited(self, work: object) -> None:
        for flying in [each for each in self._flying if each.work is work]:
            self._flying.remove(flying)
            if any((t := ref()) is not None and t._version != n for ref, n in flying.tensors):
                self._tell_changed(flying)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Does it step with gradients that are still on their way?"""
        if not self._flying:
            return
        grads = {
            p.grad.data_ptr()
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.layout is torch.strided
        }
        for flying in self._flying:
            if flying.addresses & grads:
                name = type(optimizer).__name__
                cause = (
                    f"{name} steps with a gradient of which {flying.called}(async_op=True) has not "
                    "been waited for: it may still be this rank's own, or half of each"
                )
                self._found("async-not-waited", cause, WAIT, flying, serious=True)

    def at_end(self) -> None:
        """What was never waited for."""
        for group in _by_place(self._flying):
            times = "once" if len(group) == 1 else f"{len(group)} times"
            cause = (
                f"nobody waited for {group[0].called}(async_op=True), {times} at this line: its "
                "result is only sure to be there after a wait"
            )
            self._found("async-not-waited", cause, WAIT, group[0], serious=False)
        self._flying.clear()

    # ---- words

    def _tell_changed(self, flying: Flying) -> None:
        cause = (
            f"a tensor was changed while {flying.called}(async_op=True) worked on it, before "
            "anybody waited: the ranks may get the old numbers, the new ones, or some of each"
        )
        advice = "wait first, or give the call a copy: dist.all_reduce(x.clone(), async_op=True)"
        self._found("async-tensor-changed", cause, advice, flying, serious=True)

    def _found(self, kind: str, cause: str, advice: str, flying: Flying, *, serious: bool) -> None:
        place, ranks = self.session.frame_of(flying.place), (self.session.rank,)
        step = self.session.step
        self.session.found(Finding(kind, cause, advice, ranks, step, place, serious=serious))


WAIT = "keep what the call returns, and call .wait() on it before its tensor is used"


def _inputs(name: str, args: tuple) -> list[torch.Tensor]:
    position = INPUTS[name]
    return list(tensors_in(args[position])) if position and len(args) > position else []


def _by_place(flying: Iterable[Flying]) -> list[list[Flying]]:
    found: dict[Place | None, list[Flying]] = {}
    for each in flying:
        found.setdefault(each.place, []).append(each)
    return list(found.values())
