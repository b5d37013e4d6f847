"""Collectives inside a loss: they change or make a tensor, and no gradient flows through them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.compare.graph import number_of, reached
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import PLAIN_TENSORS

IN_PLACE = ("allreduce", "allreduce_coalesced", "broadcast", "reduce")
GATHERS = ("allgather", "_allgather_base", "all_gather_single", "alltoall_base", "alltoall")
Origin = tuple[str, Place | None]  # the function that was called, and where


class LostGradientChecker:
    """Remembers such tensors, and looks for them in the graph of each backward.

    A loss that is reduced only to be printed is in no backward afterwards: nothing is said.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._marks: dict[int, Origin] = {}
        self._gathered: list[weakref.ref[torch.Tensor]] = []

    def call_begins(self, name: str, args: tuple, called: str) -> None:
        """A collective is about to be made."""
        if not torch.is_grad_enabled() or name not in (*IN_PLACE, *GATHERS):
            return
        given = args[0] if name in IN_PLACE else args[1]
        numbers = {n for tensor in tensors_in(given) if (n := number_of(tensor)) is not None}
        if not numbers:
            return
        origin = (called, innermost(places(user_frames()[0])))
        if name in IN_PLACE:
            self._marks |= dict.fromkeys(numbers, origin)
        else:
            for tensor in tensors_in(args[0]):
                self._tag(tensor, origin)

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        # a loss that was itself summed up: its gradient is 1, and DDP averages what follows
        own = {number_of(root) for root in roots if root.numel() == 1 and root.grad_fn is not None}
        for number in reached(roots, set(self._marks) - own):
            self._tell(*self._marks[number])

    def _tell(self, called: str, place: Place | None) -> None:
        cause = (
            f"a backward goes through the result of {called}, which has no gradient: what the "
            f"other ranks brought is a constant to autograd"
        )
        advice = (
            "use torch.distributed.nn.functional for a collective within a loss (its backward "
            "sums the ranks' gradients); to print a loss, reduce a copy: loss.detach().clone()"
        )
        frame = self.session.frame_of(place)
        kind = "no-gradient-through-collective"
        self.session.found(Finding(kind, cause, advice, (), self.session.step, frame))

    # ---- gathered tensors have no graph of their own: follow them to where they enter one

    def _tag(self, tensor: torch.Tensor, origin: Origin) -> None:
        if type(tensor) is torch.Tensor and not tensor.requires_grad and tensor.is_floating_point():
            tensor.__class__ = _Gathered
            tensor._origin = (self, origin)  # type: ignore[attr-defined]  # a _Gathered now
            self._gathered.append(weakref.ref(tensor))

    def follow(self, origin: Origin, result: object, given: Sequence[torch.Tensor]) -> None:
        """An operation used gathered tensors."""
        if not torch.is_grad_enabled():
            return
        for tensor in (*tensors_in(result), *given):
            if (number := number_of(tensor)) is not None:
                self._marks[number] = origin
            else:
                self._tag(tensor, origin)

    def step_ends(self, optimizer: Optimizer) -> None:
        """The graphs of this step are done with."""
        self._marks.clear()
        for reference in self._gathered:
            if (tensor := reference()) is not None:
                tensor.__class__ = torch.Tensor
        self._gathered.clear()


class _Gathered(torch.Tensor):
    """A tensor that a collective filled; it behaves like any other one."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with PLAIN_TENSORS.get()():
            result = func(*args, **(kwargs or {}))
        if func not in _LEAVES_THE_GRAPH:
            given = [t for t in tensors_in((args, kwargs or {})) if isinstance(t, cls)]
            for checker, origin in {t._origin for t in given if hasattr(t, "_origin")}:
                checker.follow(origin, result, given)
        return result

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)


_LEAVES_THE_GRAPH = (
    torch.Tensor.detach,
    torch.Tensor.data.__get__,  # type: ignore[attr-defined]  # a descriptor
    torch.Tensor.grad_fn.__get__,  # type: ignore[union-attr]  # a descriptor
    torch.Tensor.as_subclass,
)
