"""What is changed from outside so that n ranks can be compared with one.

Each rank draws its own dropout, so that is off; each loads its samples itself, so that they can be
noted; what is compiled would hide its modules.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ddp_helpers.evidence.patches import Patches
from ddp_helpers.verifier.records import CannotCompare, Plan, RankRecord

WRAPPERS = ("module", "_orig_mod", "module")
_DROPOUTS = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"
).split()
_OF_WORKERS = (
    "prefetch_factor persistent_workers multiprocessing_context timeout worker_init_fn in_order"
).split()


@contextlib.contextmanager
def neutral(plan: Plan, record: RankRecord) -> Iterator[None]:
    """Within it no dropout drops, and DataLoaders have no workers."""
    patches = Patches()
    for name in _DROPOUTS:
        patches.put(nn.functional, name, lambda own: _no_dropout(own, record))
    patches.put(nn.functional, "scaled_dot_product_attention", lambda own: _attend(own, record))
    patches.put(DataLoader, "__init__", _without_workers)
    patches.put(torch, "compile", _not_compiled)
    patches.put(torch.multiprocessing, "spawn", _refuse_to_spawn)
    patches.put(nn.Module, "compile", lambda _: lambda *_, **__: None)
    patches.put(torch, "set_float32_matmul_precision", lambda _: lambda *_: None)
    # on a GPU it would hide what is smaller than a thousandth
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if plan.float64:
        torch.set_default_dtype(torch.float64)
        patches.on_undo(lambda: torch.set_default_dtype(torch.float32))
        patches.put(torch.Tensor, "float", lambda _: torch.Tensor.double)
        patches.put(torch.amp.autocast_mode.autocast, "__init__", _no_autocast)
    try:
        yield
    finally:
        patches.undo()


def uses_tf32() -> bool:
    """The script has switched TF32 on again."""
    try:
        return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it did so by torch's newer settings, which refuse the older question
        return True


def quieten(root: nn.Module, plan: Plan, record: RankRecord) -> None:
    """Before each forward: `model.train()` may have set the modules back."""
    for long_name, module in root.named_modules():
        kind, name = type(module).__name__, plain_name(long_name)
        if "drop" in kind.lower() and module.training and not any(module.parameters()):
            module.eval()
            if getattr(module, "p", 1):  # one that drops nothing is no news
                record.dropout.add(f"{name or kind} ({kind})")
        if isinstance(module, nn.RNNBase) and module.dropout:
            module.dropout = 0.0
            record.dropout.add(f"{name} ({kind})")
        if _own_statistics(module):
            text = f"{name or kind} ({kind})"
            if text not in record.batchnorm:
                record.batchnorm.append(text)
            if plan.freeze_batchnorm:
                module.eval()


def plain_name(name: str) -> str:
    """Without what DistributedDataParallel and torch.compile put in front."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(f"{wrapper}.")
    return name


def as_float64(tree: Any) -> Any:
    """The same nesting with its real numbers in float64."""
    if isinstance(tree, torch.Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: as_float64(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [as_float64(value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def seed_all(seed: int) -> None:
    """torch, random and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)


def drawn_state() -> tuple:
    """What changes when somebody draws a random number."""
    numpy = sys.modules.get("numpy")
    gpu = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_initialized() else b""
    return (
        hash(torch.get_rng_state().numpy().tobytes()),
        hash(random.getstate()),
        hash(numpy.random.get_state()[1].tobytes()) if numpy else 0,
        hash(gpu),
    )


def _own_statistics(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not isinstance(module, nn.SyncBatchNorm)
        and module.training
    )


def _no_dropout(own: Callable, record: RankRecord) -> Callable:
    def kept(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if training and p:
            record.dropout.add(f"torch.nn.functional.{own.__name__}")
        return input

    return kept


def _attend(own: Callable, record: RankRecord) -> Callable:
    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        if len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        if kwargs.get("dropout_p"):
            record.dropout.add("dropout_p of scaled_dot_product_attention")
            kwargs["dropout_p"] = 0.0
        return own(*args, **kwargs)

    return attend


def _no_autocast(own: Callable) -> Callable:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs | {"enabled": False})

    return init


def _refuse_to_spawn(_: Callable) -> Callable:
    def refuse(*_: object, **__: object) -> None:
        raise CannotCompare(
            "the function starts processes of its own (mp.spawn), where verify can't look: give it "
            "the function that trains in one rank, and takes rank and world_size from the "
            "environment, as under torchrun"
        )

    return refuse


def _not_compiled(_: Callable) -> Callable:
    def leave(model: Any = None, **_: Any) -> Any:
        return model if model is not None else lambda function: function

    return leave


def _without_workers(own: Callable) -> Callable:
    signature = inspect.signature(own)

    def init(self: DataLoader, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        given.pop("self", None)
        if given.get("num_workers"):
            given = {name: value for name, value in given.items() if name not in _OF_WORKERS}
            given["num_workers"] = 0
        own(self, **given)

    return init
