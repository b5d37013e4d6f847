"""Mixed precision: what runs in 16 bits, and what keeps small gradients alive meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """The weights stay as they are; autocast runs matrix products in 16 bits.

    "fp32" changes nothing. "bf16" has float32's range and needs no more than autocast, on CPU
    and GPU. "fp16" loses gradients below 6e-8, so a GradScaler multiplies the loss first; it is
    for GPUs (Micikevicius et al. 2018, arXiv:1710.03740).

    Raises:
        ValueError: an unknown precision, fp16 on the CPU, or a GPU that has no bf16.
    """

    def __init__(self, precision: str, device: torch.device | str) -> None:
        self.precision, self.device = precision, torch.device(device)
        _check(precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        """For the forward and the loss; the backward runs outside, in the types it finds."""
        dtype = _DTYPES[self.precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype)

    def backward(self, loss: Tensor) -> None:
        """loss.backward(), of the scaled loss where there is a scaler."""
        self.scaler.scale(loss).backward()

    def step(
        self, optimizer: Optimizer, parameters: Iterable[Tensor], max_grad_norm: float | None
    ) -> Tensor | None:
        """Clip what the ranks have averaged, then step.

        All ranks hold the same gradients by now, so all clip alike and all step or none does.

        Returns:
            The norm of the gradient, before it was clipped. None if fp16 overflowed and no step
            was taken; the scaler then tries a smaller scale.
        """
        parameters = list(parameters)
        self.scaler.unscale_(optimizer)  # else the size is that of the scaled gradients
        if max_grad_norm is not None:
            size = _whole(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
        else:
            size = norm([part.grad for part in parameters if part.grad is not None])
        self.scaler.step(optimizer)
        if not self.scaler.is_enabled():
            return size
        before = self.scaler.get_scale()
        self.scaler.update()
        return size if self.scaler.get_scale() >= before else None

    def state_dict(self) -> dict[str, object]:
        """The scale and when it last changed; empty without a scaler."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        if state or self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def as_precision(precision: str | MixedPrecision, device: torch.device | str) -> MixedPrecision:
    """A MixedPrecision of that name; one that is given stays itself, and keeps its scale."""
    if isinstance(precision, MixedPrecision):
        return precision
    return MixedPrecision(precision, device)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them together; not finite if an element is not."""
    dense = [part.coalesce().values() if part.is_sparse else part for part in tensors]
    parts = [part.detach() for part in dense if part.numel()]
    # 65504 is the largest number of float16, and a norm may well be larger than all elements; the
    # largest of them can't overflow by itself, but takes ten times as long
    half = any(part.dtype == torch.float16 for part in parts)
    return _whole(torch.nn.utils.get_total_norm(parts, torch.inf if half else 2.0))


def _whole(size: Tensor) -> Tensor:
    """Of all ranks together, where FSDP gives each a part."""
    return size.full_tensor() if hasattr(size, "full_tensor") else size


def _check(precision: str, device: torch.device) -> None:
    if precision not in _DTYPES:
        raise ValueError(f'precision="{precision}": expected "fp32", "bf16" or "fp16"')
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f'precision="fp16" on {device.type}: it is for GPUs; use "bf16", or "fp32"'
        )
    if precision == "bf16" and device.type == "cuda" and not _has_bf16():
        raise ValueError('precision="bf16", but this GPU has no bfloat16: use "fp16"')


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
