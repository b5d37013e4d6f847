"""Loaders that give each rank its own share of a dataset, and the exact evaluation split."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, default_collate

from ddp_helpers.arguments import check_ranks, check_whole
from ddp_helpers.data.batches import empty_like
from ddp_helpers.data.sampler import GlobalBatchSampler

Collate = Callable[[list], Any]

# far longer than a batch takes, and far below the limit of a collective (10 minutes), so that the
# stuck worker is named and not the ranks that wait for it
_LOADER_TIMEOUT_S = 120


def exact_split(n: int, rank: int, world_size: int) -> range:
    """The indices of `rank` when every one of `n` samples goes to exactly one rank.

    No sample is repeated to even out the shares, as DistributedSampler does: a repeated sample
    counts twice in an accuracy. Shares differ by at most one sample, and may be empty.

    Raises:
        ValueError: n < 0, world_size < 1, or rank outside 0 .. world_size - 1.
    """
    check_ranks(rank, world_size)
    check_whole("n", n, least=0)
    return range(rank, n, world_size)


def make_train_loader(
    dataset: Dataset,
    batch_size_per_rank: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    drop_last: bool = False,
    num_workers: int = 0,
    collate_fn: Collate = default_collate,
) -> DataLoader:
    """A loader that shuffles and gives this rank its share; one code path for any world_size.

    Call `loader.sampler.set_epoch(epoch)` before each epoch. Batch k of all ranks together is
    batch k of one rank with the global batch size: the same samples, for the same seed.

    Args:
        dataset: map-style, at least one sample.
        batch_size_per_rank: samples in one batch of one rank.
        seed: the same on all ranks; it decides the order of the samples.
        drop_last: leave out the samples that do not fill a batch on every rank. Otherwise a few
            samples are repeated until all ranks have equally many.
        num_workers: loader processes of this rank, started with forkserver. Each rank and each
            worker gets its own random numbers, for augmentation.
        collate_fn: makes a batch of a list of samples, as in DataLoader.

    Raises:
        ValueError: an argument is out of range, or drop_last leaves no batch at all.
    """
    check_ranks(rank, world_size)
    samples = _check_loader(dataset, batch_size_per_rank, num_workers)
    check_whole("seed", seed, least=0)
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, world_size, rank, shuffle=True, seed=seed, drop_last=drop_last
    )
    if drop_last and samples < world_size * batch_size_per_rank:
        raise ValueError(
            f"drop_last=True leaves no batch: {samples} samples for {world_size} ranks with "
            f"batch_size_per_rank={batch_size_per_rank}: use a smaller batch, or drop_last=False"
        )
    return DataLoader(
        dataset,
        batch_size_per_rank,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=collate_fn,
        # one seed for all ranks would give every rank the same augmentations
        generator=torch.Generator().manual_seed(seed + rank),
        **_worker_options(num_workers),
    )


def make_eval_loader(
    dataset: Dataset,
    batch_size_per_rank: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    collate_fn: Collate = default_collate,
) -> DataLoader:
    """A loader over this rank's part of `exact_split`: each sample is seen by one rank, once.

    Ranks may have different numbers of batches, so the loop over it must hold no collective
    (no forward through a DDP wrapper): sum on each rank, then one all_reduce, as `evaluate` does.

    Raises:
        ValueError: an argument is out of range.
    """
    samples = _check_loader(dataset, batch_size_per_rank, num_workers=0)
    share = exact_split(samples, rank, world_size)
    return DataLoader(Subset(dataset, share), batch_size_per_rank, collate_fn=collate_fn)


def make_resumable_loader(
    dataset: Dataset,
    global_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    accumulation_steps: int = 1,
    drop_last: bool = False,
    num_workers: int = 0,
    collate_fn: Collate = default_collate,
) -> DataLoader:
    """A loader over a `GlobalBatchSampler`: no sample twice, and it can go on in mid-epoch.

    `loader.batch_sampler` holds the position (`state_dict`, `load_state_dict`, `set_epoch`,
    `advance`). A share without a sample comes as a batch of length 0, so that every rank takes
    part in every step.

    Args:
        dataset: map-style, at least one sample. With `num_workers` and random augmentation wrap
            it in `SeededSamples`; the workers' own random numbers can't be resumed.
        global_batch_size: samples of one optimizer step, all ranks and micro-batches together.
        accumulation_steps: micro-batches a rank in one optimizer step.
        collate_fn: makes a batch of a list of samples, never of an empty one.

    Raises:
        ValueError: an argument is out of range.
    """
    samples = _check_loader(dataset, global_batch_size, num_workers)
    sampler = GlobalBatchSampler(
        samples,
        global_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        accumulation_steps=accumulation_steps,
        drop_last=drop_last,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_CollateEvenNothing(dataset, collate_fn),
        # of its own: a loader without one draws from torch's generator at the start of each pass,
        # once more in a resumed run than in the one that was never stopped
        generator=torch.Generator().manual_seed(seed + rank),
        **_worker_options(num_workers),
    )


@dataclass(frozen=True)
class _CollateEvenNothing:
    """A collate_fn that also makes a batch of length 0, of the right shapes and types."""

    dataset: Dataset
    collate_fn: Collate

    def __call__(self, samples: list) -> Any:
        if samples:
            return self.collate_fn(samples)
        return empty_like(self.collate_fn([self.dataset[0]]))


class _WorkerOptions(TypedDict, total=False):
    num_workers: int
    multiprocessing_context: str
    persistent_workers: bool
    timeout: float


def _worker_options(num_workers: int) -> _WorkerOptions:
    """fork would copy threads in mid-flight and freeze: workers start from a clean process."""
    if num_workers == 0:
        return {}
    return {
        "num_workers": num_workers,
        "multiprocessing_context": "forkserver",
        "persistent_workers": True,  # a start takes seconds: once a run, not once an epoch
        "timeout": _LOADER_TIMEOUT_S,
    }


def _check_loader(dataset: Dataset, batch_size_per_rank: int, num_workers: int) -> int:
    """The number of samples, if the arguments are as they should be."""
    check_whole("batch_size_per_rank", batch_size_per_rank, least=1)
    check_whole("num_workers", num_workers, least=0)
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"{type(dataset).__name__} has no length, so it can't be shared out by index: "
            "use a map-style Dataset, or split the stream by rank yourself"
        )
    samples = len(dataset)
    if samples == 0:
        raise ValueError("the dataset is empty: expected at least one sample")
    return samples
