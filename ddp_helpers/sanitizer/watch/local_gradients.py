"""What each rank brings to DDP's average: the size of a few gradients before they are averaged."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import unserializable_hook

from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

# the gradient of the first layer has gone through all the others: what is wrong above is seen there
MOST = 4
WIDE = 4  # bytes of a number that are enough for its square


@dataclass
class Sample:
    """The parameters of one model that are looked at."""

    ddp: weakref.ref[DistributedDataParallel]
    places: list[int]
    norms: list[torch.Tensor | None] = field(default_factory=list)
    looks: bool = False
    """The backward that runs now is looked at."""


class LocalGradients:
    """Reads norms by hooks on some parameters, which autograd calls before DDP averages."""

    def __init__(self, session: Session, registry: Registry) -> None:
        self.session = session
        self.registry = registry
        self._samples: list[Sample] = []
        self._told = session.guarded("local gradients", self._note)

    def forget(self) -> None:
        """A new process group starts."""
        self._samples.clear()

    def wrapped(self, ddp: DistributedDataParallel) -> None:
        """Put hooks on a few parameters, from the first to the last."""
        model = self.registry.of(ddp)
        if model is None:
            return
        averaged = [
            (place, p)
            for place, p in enumerate(model.alive())
            if p is not None and id(p) in model.reduced
        ]
        count = min(MOST, len(averaged))
        chosen = [averaged[i * (len(averaged) - 1) // max(1, count - 1)] for i in range(count)]
        sample = Sample(weakref.ref(ddp), [place for place, _ in chosen], [None] * count)
        self._samples = [each for each in self._samples if each.ddp() is not None] + [sample]
        for number, (_, parameter) in enumerate(chosen):
            handle = parameter.register_hook(self._hook(sample, number))
            self.session.patches.on_undo(handle.remove)

    def _hook(self, sample: Sample, number: int) -> Callable[[torch.Tensor], None]:
        @unserializable_hook  # a program that sends its parameters elsewhere is not warned of ours
        def look(gradient: torch.Tensor) -> None:
            if sample.looks:
                self._told(sample, number, gradient)

        return look

    def _note(self, sample: Sample, number: int, gradient: torch.Tensor) -> None:
        if type(gradient) is torch.Tensor and gradient.layout is torch.strided:
            # of half precision the squares would overflow
            wide = None if gradient.dtype.itemsize >= WIDE else torch.float32
            sample.norms[number] = torch.linalg.vector_norm(gradient.detach(), dtype=wide)

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        """Look at the models whose gradients this backward averages, as often as asked."""
        every = self.session.options.every
        looked = [m.ddp() for m in self.registry.in_backward if (m.synced - 1) % every == 0]
        for sample in self._samples:
            sample.looks = any(ddp is sample.ddp() for ddp in looked)
            if sample.looks:
                sample.norms = [None] * len(sample.places)

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over."""
        for sample in self._samples:
            sample.looks = False

    def of(self, model: Wrapped) -> Sample | None:
        """What was seen of a model."""
        ddp = model.ddp()
        return next((each for each in self._samples if each.ddp() is ddp), None)

    def norms(self, model: Wrapped) -> tuple[float, ...]:
        """Of the last backward that was looked at; -1 for a gradient that was not seen."""
        sample = self.of(model)
        if sample is None or all(norm is None for norm in sample.norms):
            return ()
        return tuple(-1.0 if norm is None else float(norm) for norm in sample.norms)
