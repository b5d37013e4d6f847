"""The random generators of a process: torch (CPU and current GPU), Python's, NumPy's."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class RandomState(TypedDict):
    """Tensors and plain values, so that a checkpoint can hold them."""

    torch: Tensor
    python: tuple[int, Tensor, float | None]
    numpy: tuple[Tensor, int, int, float]
    cuda: NotRequired[Tensor]


def capture_random_state() -> RandomState:
    """Where all generators of this process stand."""
    of_numpy = np.random.get_state(legacy=False)
    keys = torch.from_numpy(of_numpy["state"]["key"].astype(np.int64))
    version, numbers, gauss_next = random.getstate()
    state: RandomState = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(numbers), gauss_next),
        "numpy": (keys, of_numpy["state"]["pos"], of_numpy["has_gauss"], of_numpy["gauss"]),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Go on drawing where `state` was captured."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(*key: int) -> None:
    """Seed all generators from a few numbers; keys that differ in any place draw differently."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    number = int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch's seed is signed
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # NumPy takes no more


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, it goes on outside as if nothing had been."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)


class MapStyle(Protocol):
    """A dataset whose samples are asked for by index; torch's Dataset promises no length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SeededSamples(Dataset):
    """Makes a random augmentation depend on (seed, epoch, index) and on nothing else.

    So it is the same for any number of ranks and workers, and after a resume in mid-epoch. Costs
    some 50 microseconds a sample. `train_one_epoch` calls `set_epoch`.

    Args:
        dataset: map-style.
        seed: the same on all ranks.
    """

    def __init__(self, dataset: MapStyle, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        # shared with loader workers, which got their copy of the dataset before
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Other augmentations of the same samples."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> object:
        with random_state_kept():
            seed_everything(self.seed, int(self._epoch), int(index))
            return self.dataset[index]
