"""The moments of a training step, seen from outside: wrap, forward, backward, optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ddp_helpers.sanitizer.session import Session


class TrainingEvents:
    """Calls what is registered in its lists at each moment; counts `session.step`.

    Nothing is called in a world of one rank. A callback may raise SanitizerError.

    before_wrap(module), after_wrap(ddp): around DistributedDataParallel(...).
    before_forward(ddp, args, kwargs), after_forward(ddp, output): around ddp(...).
    before_backward(roots), after_backward(roots): around loss.backward() and
        torch.autograd.backward(...); roots are the tensors that were given.
    before_step(optimizer), after_step(optimizer): around optimizer.step(), of every optimizer.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.before_wrap: list[Callable[[torch.nn.Module], None]] = []
        self.after_wrap: list[Callable[[DistributedDataParallel], None]] = []
        self.before_forward: list[Callable[[DistributedDataParallel, tuple, dict], None]] = []
        self.after_forward: list[Callable[[DistributedDataParallel, object], None]] = []
        self.before_backward: list[Callable[[Sequence[torch.Tensor]], None]] = []
        self.after_backward: list[Callable[[Sequence[torch.Tensor]], None]] = []
        self.before_step: list[Callable[[Optimizer], None]] = []
        self.after_step: list[Callable[[Optimizer], None]] = []
        self._in_backward = False
        session.patches.put(DistributedDataParallel, "__init__", self._wrapping)
        session.patches.put(DistributedDataParallel, "forward", self._forward)
        session.patches.put(torch.autograd, "backward", self._backward)
        hooks = [
            register_optimizer_step_pre_hook(lambda o, *_: self._tell(self.before_step, o)),
            register_optimizer_step_post_hook(lambda o, *_: self._stepped(o)),
        ]
        session.patches.on_undo(lambda: [hook.remove() for hook in hooks])

    def _tell(self, listeners: Sequence[Callable], *args: object) -> None:
        if self.session.channel is not None:
            for listener in listeners:
                listener(*args)

    def _wrapping(self, original: Callable) -> Callable:
        def init(ddp: DistributedDataParallel, module: torch.nn.Module, *args, **kwargs) -> None:
            self._tell(self.before_wrap, module)
            original(ddp, module, *args, **kwargs)
            self._tell(self.after_wrap, ddp)

        return init

    def _forward(self, original: Callable) -> Callable:
        def forward(ddp: DistributedDataParallel, *args: object, **kwargs: object) -> object:
            self._tell(self.before_forward, ddp, args, kwargs)
            output = original(ddp, *args, **kwargs)
            self._tell(self.after_forward, ddp, output)
            return output

        return forward

    def _backward(self, original: Callable) -> Callable:
        def backward(tensors: object, *args: object, **kwargs: object) -> None:
            roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            if self._in_backward:  # a checkpointed layer calls it again inside
                return original(tensors, *args, **kwargs)
            self._in_backward = True
            try:
                self._tell(self.before_backward, roots)
                original(tensors, *args, **kwargs)
            finally:
                self._in_backward = False
            self._tell(self.after_backward, roots)

        return backward

    def _stepped(self, optimizer: Optimizer) -> None:
        self._tell(self.after_step, optimizer)
        self.session.step += 1
