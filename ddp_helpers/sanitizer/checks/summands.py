"""Tensor parallel: a rank's summand of a layer's output, taken for the output itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch.autograd.graph import Node
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.compare.callsite import innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session

LOOKED_AT = 3  # steps: the graph of each is walked
MOST_NODES = 20_000
TO_LOCAL = "_ToTorchTensorBackward"  # what DTensor.to_local() leaves in the graph


class SummandChecker:
    """Looks under the first losses for a DTensor of summands that became a plain tensor.

    A matrix product over features that are dealt out is a `Partial` DTensor: each rank has a
    summand. to_local() gives just that. What the program sums up itself is its own affair, and a
    loss that is a sum of the ranks' losses has the right gradient anyway.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._steps = 0
        self._summed: set[torch.Size] = set()  # shapes of what the program sent

    def call_begins(self, name: str, args: tuple, called: str) -> None:
        """The program makes a collective itself."""
        if self._steps < LOOKED_AT:
            self._summed |= {tensor.shape for tensor in tensors_in(list(args))}

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        """Look under a loss."""
        if self._steps >= LOOKED_AT or "torch.distributed.tensor" not in sys.modules:
            return
        for node in _nodes_under(roots):
            spec = getattr(node, "dtensor_spec", None) if node.name() == TO_LOCAL else None
            if spec is None or not any(placement.is_partial() for placement in spec.placements):
                continue
            if spec.shape.numel() > 1 and spec.shape not in self._summed:
                self._tell(tuple(spec.shape))

    def step_ends(self, optimizer: Optimizer) -> None:
        """What was sent for this step counts no more."""
        self._steps += 1
        self._summed.clear()

    def _tell(self, shape: tuple[int, ...]) -> None:
        cause = (
            f"a loss is computed from this rank's summand of a tensor of shape {shape}: to_local() "
            "was called before the ranks' summands were added up"
        )
        advice = (
            "take full_tensor(), or redistribute(placements=[Replicate()]) before to_local(); "
            "RowwiseParallel() does that by itself"
        )
        place = self.session.frame_of(innermost(places(user_frames()[0])))
        ranks, kind = (self.session.rank,), "summand-taken-for-sum"
        self.session.found(Finding(kind, cause, advice, ranks, self.session.step, place))


def _nodes_under(roots: Sequence[torch.Tensor]) -> Iterator[Node]:
    """All operations that the roots depend on, but none below one that adds up over the ranks."""
    ahead = [root.grad_fn for root in roots]
    seen: set[Node] = set()
    while ahead and len(seen) < MOST_NODES:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "reduce" in node.name().lower().replace("_", ""):
            continue
        yield node
        ahead += [child for child, _ in node.next_functions]
