"""What goes into the models where no DataLoader gives it: noted on n ranks, given again on one.

A script that draws its own batches (nanoGPT's get_batch) shows them only at the model's door: the
arguments of its forward, and the targets that torch's loss functions get.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.patches import Patches
from ddp_helpers.ranks.travel import dump_value
from ddp_helpers.verifier.records import Plan, RankRecord
from ddp_helpers.verifier.samples import join


class Door:
    """Notes what goes in; or puts what went in on the ranks in its place.

    `is_outermost()` tells if a module is called by the script, and not by another module.
    """

    def __init__(self, plan: Plan, record: RankRecord, is_outermost: Callable[[], bool]) -> None:
        self.plan, self.record, self.is_outermost = plan, record, is_outermost
        self.calls: list[bytes] = []
        self.targets: list[bytes] = []
        self.ranks: list[tuple[list[bytes], list[bytes]]] = []
        self.called = self.asked = 0
        self.exhausted: Callable[[], None] = lambda: None

    def put_patches(self, patches: Patches) -> None:
        """Stand in front of each module."""
        patches.put(nn.Module, "__call__", self._calling)

    def save(self) -> None:
        """Leave what this rank has noted, unless its batches come from a DataLoader."""
        if not self.record.loaders:
            path = Path(self.plan.folder) / f"door-{self.record.rank:05}.pkl"
            path.write_bytes(pickle.dumps((self.calls, self.targets)))

    def _calling(self, own: Callable) -> Callable:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._is_training(module):
                args, kwargs = self._through(args, kwargs)
            return own(module, *args, **kwargs)

        return call

    def _is_training(self, module: nn.Module) -> bool:
        outer = self.is_outermost() and is_training(module) and torch.is_grad_enabled()
        return outer and any(p.requires_grad for p in module.parameters())

    def _through(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.plan.door:
            self.called += 1
            return self._theirs(0, self.called - 1, (args, kwargs))
        if not self.plan.follows and not self.record.loaders:
            self.calls.append(dump_value((args, kwargs)))
        return args, kwargs

    def target(self, given: Any) -> Any:
        """The target of a loss function, or that of the ranks."""
        if not isinstance(given, Tensor):
            return given
        if self.plan.door:
            self.asked += 1
            return self._theirs(1, self.asked - 1, given)
        if not self.plan.follows and not self.record.loaders:
            self.targets.append(dump_value(given))
        return given

    def _theirs(self, kind: int, number: int, given: Any) -> Any:
        if not self.ranks:
            files = sorted(Path(self.plan.folder).glob("door-*.pkl"))
            self.ranks = [pickle.loads(file.read_bytes()) for file in files]
        lists = [rank[kind] for rank in self.ranks]
        if self.plan.in_turn:
            lists, number = [lists[number % len(lists)]], number // len(lists)
        parts = [pickle.loads(noted[number]) for noted in lists if number < len(noted)]
        if len(parts) < len(lists):
            self.exhausted()
            return given
        if self.plan.perturbed and not self.plan.in_order:
            parts.reverse()
        return _like(join(parts), given)


def is_training(module: nn.Module) -> bool:
    """The model itself: `model.eval()` leaves what wraps it in training mode."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return cast(nn.Module, inner).training


def _like(found: Any, given: Any) -> Any:
    """On the device of what the script gave: tensors travel on the CPU."""
    if isinstance(found, Tensor):
        device = given.device if isinstance(given, Tensor) else found.device
        return found.detach().to(device).requires_grad_(found.requires_grad)
    if isinstance(found, dict):
        return {name: _like(value, given.get(name)) for name, value in found.items()}
    if isinstance(found, list | tuple) and isinstance(given, list | tuple):
        parts = [_like(one, other) for one, other in zip(found, given, strict=True)]
        return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
    return found
