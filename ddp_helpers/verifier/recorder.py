"""What a training does, noted step by step on one rank: losses, gradients, weights."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ddp_helpers.evidence.frames import is_user_file
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.ranks.travel import dump_value
from ddp_helpers.verifier.calls import Calls
from ddp_helpers.verifier.door import Door, is_training
from ddp_helpers.verifier.feed import Feed
from ddp_helpers.verifier.neutral import as_float64, drawn_state, quieten, uses_tf32
from ddp_helpers.verifier.records import (
    Backward,
    CannotCompare,
    Plan,
    RankRecord,
    Sampled,
    Step,
)
from ddp_helpers.verifier.samples import in_order

MOST = 1 << 14  # elements of a tensor that are compared one by one
MOST_FROZEN = 1000
_SPREAD = 2654435761  # without it the chosen elements could be one column of a matrix


class Enough(BaseException):
    """Ends the function; no Exception, so that `except Exception` in it does not hold it up."""


def sampled(tensor: Tensor) -> Sampled:
    """Some elements of a tensor, on the CPU, and the length of all of it."""
    flat = tensor.detach()
    flat = (flat.to_dense() if flat.layout is not torch.strided else flat).reshape(-1)
    norm = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) if flat.numel() else 0.0
    if flat.numel() > MOST:
        places = torch.arange(MOST, device=flat.device) * _SPREAD % flat.numel()
        return Sampled(flat[places].cpu(), norm, flat.numel())
    return Sampled(flat.cpu().clone(), norm, flat.numel())


class Recorder:
    """Notes the steps of one run; begins it with the first weights of the n ranks if asked."""

    def __init__(self, plan: Plan, record: RankRecord, feed: Feed) -> None:
        self.plan, self.record, self.feed = plan, record, feed
        self.names: dict[int, str] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.roots: list[nn.Module] = []
        self.optimizers: list[Optimizer] = []
        self.stepping = self.depth = self.in_backward = 0
        self.firsts: list[dict[str, Tensor]] = []
        self.drawn: tuple | None = None
        self.after_backward: dict[str, Sampled] = {}
        self.door = Door(plan, record, lambda: self.depth == 0)
        self.calls = Calls(plan, record, self.door)
        self._clear()
        feed.on_batch = self._batch_given
        feed.step = lambda: len(self.record.steps)
        feed.enough = self._end_if_enough
        self.door.exhausted = self._end_if_enough

    def _clear(self) -> None:
        self.backwards: list[Backward] = []
        self.rows = self.rows_before = self.fed = self.repeats = 0
        self.inputs = self.input_size = 0.0
        self.keys: list | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the training is noted."""
        patches = Patches()
        for hook in (
            register_module_forward_pre_hook(cast(Callable[..., None], self._before_forward)),
            register_module_forward_hook(self._after_forward, always_call=True),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            patches.on_undo(hook.remove)
        patches.put(torch.autograd, "backward", self._backward)
        patches.put(DistributedDataParallel, "__init__", self._wrapping)
        patches.put(DistributedDataParallel, "register_comm_hook", self._hooking)
        patches.put(Join, "__enter__", _refuse_join)
        self.calls.put_patches(patches)
        self.feed.put_patches(patches)
        self.door.put_patches(patches)
        try:
            yield
        finally:
            patches.undo()

    # ---- batches and forwards

    def _batch_given(self, count: int, keys: list | None, repeats: int) -> None:
        self.fed += count
        self.repeats += repeats
        if keys is not None:
            self.keys = (self.keys or []) + keys
        self.drawn = drawn_state()

    def _end_if_enough(self) -> None:
        done = [step for step in self.record.steps if step.optimizer == 0]
        if len(done) >= self.plan.steps:
            raise Enough

    def _wrapping(self, own: Callable) -> Callable:
        def init(ddp: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
            module = args[0] if args else kwargs["module"]
            if self.plan.float64:
                module.double()
            own(ddp, *args, **kwargs)
            self.record.wrapped = True

        return init

    def _hooking(self, own: Callable) -> Callable:
        def register(ddp: DistributedDataParallel, state: object, hook: Callable) -> None:
            name = getattr(hook, "__name__", type(hook).__name__)
            self.record.hooks.append(name)
            for low, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
                if low in name:
                    self._coarsest(torch.finfo(dtype).eps, f"the comm hook {name}")
            own(ddp, state, hook)

        return register

    def _before_forward(self, module: nn.Module, args: tuple) -> tuple | None:
        self.depth += 1
        if self.depth > 1:
            return None
        if not any(p.requires_grad for p in module.parameters()):
            self._note_frozen(module)
        if not (torch.is_grad_enabled() and is_training(module)):
            return None
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            return None
        self._check_drawn("before the model is called")
        if self.drawn is None:  # no DataLoader tells where a batch begins
            self.drawn = drawn_state()
        if any(id(p) not in self.names for p in trained):
            self._meet(module)
        quieten(module, self.plan, self.record)
        self._rounding(trained[0])
        tensors = [a for a in args if isinstance(a, Tensor) and a.ndim]
        self.rows += len(tensors[0]) if tensors else 0
        for values in (t.detach().double() for t in tensors):
            self.inputs += float(values.sum())
            self.input_size += float(values.abs().sum())
        return as_float64(args) if self.plan.float64 else None

    def _after_forward(self, module: nn.Module, *_: object) -> None:
        self.depth -= 1
        if torch.is_grad_enabled() and is_training(module) and self.drawn is not None:
            self._check_drawn(f"in {type(module).__name__}")

    def _check_drawn(self, where: str) -> None:
        """Tell who has drawn since the batch was given."""
        now = drawn_state() if self.drawn is not None else None
        if now != self.drawn and where not in self.record.draws:
            self.record.draws.append(where)
        self.drawn = now

    def _meet(self, module: nn.Module) -> None:
        """A model is called for the first time: learn its names, and begin with equal weights."""
        wrapped = isinstance(module, DistributedDataParallel)
        root = cast(nn.Module, module.module) if wrapped else module
        if self.plan.float64 and not wrapped:
            root.double()
        prefix = f"{_variable(module) or type(root).__name__}." if self.roots else ""
        self.roots.append(root)
        state: dict[str, Tensor] = {}
        kinds = dict(root.named_modules())
        for name, parameter in root.named_parameters():
            if id(parameter) in self.names:
                continue
            if not isinstance(parameter.data, Tensor) or hasattr(parameter, "full_tensor"):
                raise CannotCompare(
                    f"{name} is a {type(parameter.data).__name__}, in pieces on the ranks: verify "
                    "compares DistributedDataParallel's whole weights"
                )
            full = prefix + name
            while full in self.parameters:
                full += "'"
            self.names[id(parameter)], self.parameters[full] = full, parameter
            self.record.modules[full] = type(kinds[name.rpartition(".")[0]]).__name__
            if not wrapped:
                self.record.outside.add(full)
            state[full] = parameter
        for name, buffer in root.named_buffers():
            state.setdefault(f"{prefix}{name} (buffer)", buffer)
        self._begin_alike(state)

    def _begin_alike(self, state: dict[str, Tensor]) -> None:
        if not self.plan.follows:
            self.firsts.append({name: t.detach().cpu().clone() for name, t in state.items()})
            return
        if not self.firsts:
            self.firsts = pickle.loads((Path(self.plan.folder) / "first.pkl").read_bytes())
        theirs: dict[str, Tensor] = {}
        for first in self.firsts:
            theirs |= first
        draws = torch.Generator().manual_seed(1)
        for name, tensor in state.items():
            first_value = theirs.get(name)
            if first_value is None or first_value.shape != tensor.shape:
                found = "absent" if first_value is None else tuple(first_value.shape)
                raise CannotCompare(
                    f"{name} is {tuple(tensor.shape)} on one rank and {found} on several: the "
                    "model depends on the number of ranks"
                )
            with torch.no_grad():
                tensor.copy_(first_value)
                if self.plan.perturbed and tensor.is_floating_point():
                    signs = torch.randint(0, 2, tensor.shape, generator=draws) * 2.0 - 1.0
                    eps = max(self.record.eps, self._rounding(tensor))
                    tensor.mul_(1 + eps * signs.to(tensor.device, tensor.dtype))

    def _rounding(self, tensor: Tensor) -> float:
        """A rounding in the arithmetic that works on this tensor."""
        kind = tensor.device.type
        eps, why = torch.finfo(tensor.dtype).eps, str(tensor.dtype).removeprefix("torch.")
        with contextlib.suppress(RuntimeError):  # a device that knows no autocast
            if torch.is_autocast_enabled(kind) and tensor.dtype == torch.float32:
                low = torch.get_autocast_dtype(kind)
                eps, why = torch.finfo(low).eps, f"autocast to {str(low).removeprefix('torch.')}"
        if kind == "cuda" and tensor.dtype == torch.float32 and uses_tf32() and eps < 1e-3:
            eps, why = 2**-10, "TF32"
        self._coarsest(eps, why)
        return eps

    def _coarsest(self, eps: float, why: str) -> None:
        if eps > self.record.eps:
            self.record.eps, self.record.coarse = eps, why

    def _note_frozen(self, module: nn.Module) -> None:
        """A teacher, or a loss with weights: no optimizer and no DDP looks after it."""
        kind = _variable(module) or type(module).__name__
        for name, parameter in module.named_parameters():
            key = f"{kind}.{name}"
            if key not in self.record.frozen and len(self.record.frozen) < MOST_FROZEN:
                self.record.frozen[key] = sampled(parameter).norm

    # ---- losses and backwards

    def _backward(self, own: Callable) -> Callable:
        def backward(tensors: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
            if self.in_backward:  # a checkpointed layer calls it again inside
                return own(tensors, *args, **kwargs)
            self._check_drawn("after the model was called")
            self.in_backward = 1
            try:
                own(tensors, *args, **kwargs)
            finally:
                self.in_backward = 0
            roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            one = len(roots) == 1 and roots[0].numel() == 1
            value = float(roots[0].detach()) if one else None
            rows, self.rows_before = self.rows - self.rows_before, self.rows
            losses = self.calls.take_losses()
            if rows or losses:  # else one that makes DDP ready, or a second one of a forward
                self.backwards.append(Backward(value, rows, losses, self.feed.batches))
            self.after_backward = self._gradients(self.parameters.values())

        return backward

    # ---- steps

    def _gradients(self, parameters: Any) -> dict[str, Sampled]:
        return {
            self._name(p): sampled(p.grad) for p in parameters if p.grad is not None and p.numel()
        }

    def _name(self, parameter: nn.Parameter) -> str:
        if id(parameter) not in self.names:
            name = f"parameter {len(self.names)} (of no model that was called)"
            self.names[id(parameter)], self.parameters[name] = name, parameter
            self.record.modules[name] = ""
        return self.names[id(parameter)]

    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        self.stepping += 1
        if self.stepping > 1:  # of one that another one holds (ZeroRedundancyOptimizer)
            return
        if not any(optimizer is known for known in self.optimizers):
            self.optimizers.append(optimizer)
        number = next(n for n, known in enumerate(self.optimizers) if known is optimizer)
        if number == 0:
            self._end_if_enough()
        self._check_drawn("after the model was called")
        self.drawn = None
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in held[:1]:
            self._rounding(parameter)
        self.record.world = dist.get_world_size() if dist.is_initialized() else 0
        self.record.steps.append(
            Step(
                optimizer=number,
                backwards=self.backwards,
                weights={self._name(p): sampled(p) for p in held if p.numel()},
                after_backward=self.after_backward,
                gradients=self._gradients(held),
                options=[_numbers(group) for group in optimizer.param_groups],
                clipped=self.calls.take_clipped(),
                repeats=self.repeats,
                rows=self.rows,
                inputs=self.inputs,
                input_size=self.input_size,
                fed=self.fed,
                keys=None if self.keys is None else in_order(self.keys),
            )
        )
        self._clear()

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        self.stepping -= 1
        if self.stepping:
            return
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.record.steps[-1].updated = {self._name(p): sampled(p) for p in held if p.numel()}

    def save(self) -> None:
        """Leave what the comparison needs."""
        folder = Path(self.plan.folder)
        if not self.plan.follows:  # before the record, of which it tells a part
            self.feed.save()
            self.door.save()
        if not self.plan.follows and self.record.rank == 0:
            (folder / "first.pkl").write_bytes(dump_value(self.firsts))
        path = folder / f"{self.plan.name}-{self.record.rank:05}.pkl"
        path.write_bytes(pickle.dumps(self.record))


def _refuse_join(_: Callable) -> Callable:
    def refuse(*_: object) -> None:
        raise CannotCompare(
            "the ranks train with Join, on unequal numbers of batches: a step of the ranks has no "
            "step of one process beside it. Compare without Join, with equal numbers (drop_last)"
        )

    return refuse


def _numbers(group: dict) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in group.items():
        if isinstance(value, bool | int | float):
            found[name] = float(value)
        elif name in ("lr", "betas"):  # lr may be a tensor
            parts = value if isinstance(value, tuple) else [value]
            found |= {f"{name}{i or ''}": float(part) for i, part in enumerate(parts)}
    return found


def _variable(module: nn.Module) -> str:
    """The name by which the reader's own line knows a model."""
    frame = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            for name, value in frame.f_locals.items():
                if value is module and name != "self":
                    return name
        frame = frame.f_back  # type: ignore[assignment]  # None at the outermost
    return ""


def leave_group() -> None:
    """The function was ended before its own clean-up."""
    if dist.is_initialized():
        dist.destroy_process_group()
