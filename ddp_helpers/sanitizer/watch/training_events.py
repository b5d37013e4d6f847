"""The moments of a training step, seen from outside: wrap, forward, backward, optimizer step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import NOT_COMPILED


class TrainingEvents:
    """Calls what is registered in its lists at each moment; counts `session.step`.

    Nothing is called in a world of one rank. A callback may raise SanitizerError, and nothing else.

    before_wrap(module, group), after_wrap(ddp): around DistributedDataParallel(...).
    before_forward(ddp, args, kwargs), after_forward(ddp, output): around ddp(...).
    before_backward(roots), after_backward(roots): around loss.backward() and
        torch.autograd.backward(...); roots are the tensors that were given.
    before_step(optimizer), after_step(optimizer): around optimizer.step(), of every optimizer,
        but not of one that another one holds and steps (ZeroRedundancyOptimizer).
    after_join(): a `with Join(...)` block is over; the ranks may have taken unequal steps.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.before_wrap: list[Callable[[torch.nn.Module, dist.ProcessGroup], None]] = []
        self.after_wrap: list[Callable[[DistributedDataParallel], None]] = []
        self.before_forward: list[Callable[[DistributedDataParallel, tuple, dict], None]] = []
        self.after_forward: list[Callable[[DistributedDataParallel, object], None]] = []
        self.before_backward: list[Callable[[Sequence[torch.Tensor]], None]] = []
        self.after_backward: list[Callable[[Sequence[torch.Tensor]], None]] = []
        self.before_step: list[Callable[[Optimizer], None]] = []
        self.after_step: list[Callable[[Optimizer], None]] = []
        self.after_join: list[Callable[[], None]] = []
        self.wrap_options: dict[str, object] = {}  # the wrap's arguments, while it runs
        # backward's own arguments, while it runs
        self.gradients_given: torch.Tensor | Sequence[torch.Tensor | None] | None = None
        self.inputs_given: torch.Tensor | Sequence[torch.Tensor] | None = None
        self.joining = 0  # `with Join(...)` blocks around us
        self.stepper = ""  # the class of the optimizer that steps, or stepped last
        self.stepping = 0  # optimizer steps around us: a closure runs within one
        self._in_backward = False

    def put_patches(self) -> None:
        """Stand in for what a training step calls."""
        patches = self.session.patches
        patches.put(DistributedDataParallel, "__init__", self._wrapping)
        patches.put(DistributedDataParallel, "forward", self._forward)
        patches.put(torch.autograd, "backward", self._backward)
        patches.put(Join, "__enter__", self._entering_join)
        patches.put(Join, "__exit__", self._leaving_join)
        hooks = [
            register_optimizer_step_pre_hook(lambda o, *_: self._step_begins(o)),
            register_optimizer_step_post_hook(lambda o, *_: self._step_ends(o)),
        ]
        for hook in hooks:
            patches.on_undo(hook.remove)

    def _tell(self, listeners: Sequence[Callable], *args: object) -> None:
        if self.session.channel is not None:
            for listener in listeners:
                listener(*args)

    def _wrapping(self, original: Callable) -> Callable:
        signature = inspect.signature(original)

        def init(ddp: DistributedDataParallel, *args: object, **kwargs: object) -> None:
            given = self.wrap_options = signature.bind_partial(ddp, *args, **kwargs).arguments
            self._tell(self.before_wrap, given.get("module"), _group_of(given))
            original(ddp, *args, **kwargs)
            self._tell(self.after_wrap, ddp)

        return init

    def _forward(self, original: Callable) -> Callable:
        def forward(ddp: DistributedDataParallel, *args: object, **kwargs: object) -> object:
            self._tell(self.before_forward, ddp, args, kwargs)
            output = original(ddp, *args, **kwargs)
            self._tell(self.after_forward, ddp, output)
            return output

        # torch.compile leaves DDP's own forward alone, and must leave this one alone, too
        return NOT_COMPILED.get()(forward, recursive=False)

    def _backward(self, original: Callable) -> Callable:
        def backward(
            tensors: torch.Tensor | Sequence[torch.Tensor], *args: Any, **kwargs: Any
        ) -> None:
            if self._in_backward:  # a checkpointed layer calls it again inside
                return original(tensors, *args, **kwargs)
            roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            self.gradients_given = args[0] if args else kwargs.get("grad_tensors")
            self.inputs_given = kwargs.get("inputs", args[4] if len(args) > 4 else None)
            self._in_backward = True
            try:
                self._tell(self.before_backward, roots)
                original(roots, *args, **kwargs)
            finally:
                self._in_backward = False
            self._tell(self.after_backward, roots)

        return backward

    def _step_begins(self, optimizer: Optimizer) -> None:
        self.stepping += 1
        if self.stepping == 1:
            self.stepper = type(optimizer).__name__
            self._tell(self.before_step, optimizer)

    def _step_ends(self, optimizer: Optimizer) -> None:
        self.stepping -= 1
        if self.stepping == 0:
            self._tell(self.after_step, optimizer)
            self.session.step += 1

    def _entering_join(self, original: Callable) -> Callable:
        def enter(join: Join) -> object:
            self.joining += 1 if join._enable else 0
            return original(join)

        return enter

    def _leaving_join(self, original: Callable) -> Callable:
        def leave(join: Join, *error: object) -> object:
            try:
                return original(join, *error)
            finally:
                self.joining -= 1 if join._enable else 0
                if join._enable and error[0] is None:
                    self._tell(self.after_join)

        return leave


def _group_of(given: dict) -> dist.ProcessGroup:
    """The process group that DistributedDataParallel(...) will use."""
    if mesh := given.get("device_mesh"):
        return mesh.get_group(mesh_dim=0)
    group = given.get("process_group") or dist.group.WORLD
    assert group is not None  # torch refuses to wrap without a group
    return group
