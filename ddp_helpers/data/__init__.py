"""The shipped digits, and who gets which samples of any dataset.

Where the data lies can be asked without torch; every other name loads it when it is first used.
"""

from typing import TYPE_CHECKING

from ddp_helpers.data.folder import data_root

if TYPE_CHECKING:
    from ddp_helpers.data.batches import empty_like, to_device
    from ddp_helpers.data.digits import (
        MNIST_MEAN,
        MNIST_STD,
        DatasetError,
        load_mnist_5k,
        read_idx,
    )
    from ddp_helpers.data.loaders import (
        exact_split,
        make_eval_loader,
        make_resumable_loader,
        make_train_loader,
    )
    from ddp_helpers.data.sampler import GlobalBatchSampler

__all__ = [
    "MNIST_MEAN",
    "MNIST_STD",
    "DatasetError",
    "GlobalBatchSampler",
    "data_root",
    "empty_like",
    "exact_split",
    "load_mnist_5k",
    "make_eval_loader",
    "make_resumable_loader",
    "make_train_loader",
    "read_idx",
    "to_device",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddp_helpers.data import batches, digits, loaders, sampler

    return next(
        vars(room)[name] for room in (batches, digits, loaders, sampler) if name in vars(room)
    )
