"""What a rank sends and receives, call by call, also inside DDP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ddp_helpers.torch_private import OPERATOR_MODE

# torch's operators that are not named like the function that people call
FUNCTIONS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce_coalesced",
    "allgather": "all_gather",
    "_allgather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all_single",
    "recv_any_source": "recv",
    "isend": "send",
    "irecv": "recv",
}


@dataclass(frozen=True)
class Call:
    """A call of one rank that exchanged data."""

    name: str
    """As in torch.distributed: all_reduce, broadcast, send, ..."""
    elements: int
    dtype: str
    """Such as float32; of several tensors the first one's."""
    at: int
    """time.time_ns() when it was made."""
    peer: int | None = None
    """Of send and recv: the other rank's number in the group; None for recv from anybody."""
    group: object = None
    """Of a functional collective: its group, or the group's name; others do not tell."""


@contextlib.contextmanager
def watched() -> Iterator[list[Call]]:
    """What this thread sends and receives inside the block, also in a backward that it starts.

    Each call ends in an operator of torch's (`c10d::allreduce_`), those that DDP makes in C++, too;
    the functional ones, which DTensor makes, in `_c10d_functional::all_reduce`.
    """
    calls: list[Call] = []

    class Watch(OPERATOR_MODE.get()):  # type: ignore[misc]  # a class of torch's
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            if _sends(func):
                calls.append(_call(func, args))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield calls


def _sends(operator: Any) -> bool:
    if operator.namespace == "c10d":
        return True
    return operator.namespace == "_c10d_functional" and _name(operator) != "wait_tensor"


def _name(operator: Any) -> str:
    """Of `_c10d_functional::all_gather_into_tensor_out` what is called all_gather_into_tensor."""
    name = operator.name().partition("::")[2].partition(".")[0]
    return name.rstrip("_").removesuffix("_out")


def _call(operator: Any, args: tuple) -> Call:
    name = _name(operator)
    tensors = list(tensors_in(_input(operator, args))) or list(tensors_in(args[0]))
    dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
    elements = sum(tensor.numel() for tensor in tensors)
    peers = [
        value
        for argument, value in zip(operator._schema.arguments, args, strict=False)
        if argument.name in ("dst", "src")
    ]
    groups = [
        value
        for argument, value in zip(operator._schema.arguments, args, strict=False)
        if argument.name == "group_name"
    ]
    peer, group = next(iter(peers), None), next(iter(groups), None)
    return Call(FUNCTIONS.get(name, name), elements, dtype, time.time_ns(), peer, group)


def _input(operator: Any, args: tuple) -> object:
    """The argument that is sent; what is sent in place has no `input`."""
    for argument, value in zip(operator._schema.arguments, args, strict=False):
        if argument.name.startswith("input"):
            return value
    return args[0]


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
