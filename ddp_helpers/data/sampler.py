"""A batch sampler that knows the global batch: exact for uneven sizes, and it can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ddp_helpers.arguments import check_ranks, check_whole

_SAME_DATA = ("samples", "global_batch_size", "seed", "shuffle", "drop_last")


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffle, cut into global batches, and give this rank its share of each, as micro-batches.

    Global batch k is the same set of samples for every number of ranks. No sample is repeated:
    shares differ by at most one sample, and in a small last batch some micro-batches are empty.
    So the gradient must be weighted by counts, as `train_one_epoch` does.

    The position counts global batches that were *trained on*, not those that were drawn: the
    workers of a DataLoader draw ahead. Call `advance()` after each optimizer step.

    Args:
        samples: the size of the dataset, at least 1.
        global_batch_size: samples in one optimizer step, all ranks together; a number of ranks
            that does not divide it is fine.
        seed: the same on all ranks. The order is `randperm` of seed + epoch, that of
            DistributedSampler.
        accumulation_steps: micro-batches that a rank's share of a full batch is cut into.
        drop_last: leave out a last global batch that is not full.

    Raises:
        ValueError: an argument is out of range, a rank's share of a full batch would not fill
            its micro-batches, or drop_last leaves nothing.
    """

    def __init__(
        self,
        samples: int,
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        accumulation_steps: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        check_ranks(rank, world_size)
        for name, value in (("samples", samples), ("global_batch_size", global_batch_size)):
            check_whole(name, value, least=1)
        check_whole("accumulation_steps", accumulation_steps, least=1)
        check_whole("seed", seed, least=0)
        _check_fills(samples, global_batch_size, world_size * accumulation_steps, drop_last)
        self.samples, self.global_batch_size = samples, global_batch_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.accumulation_steps = accumulation_steps
        self.epoch = 0
        self.finished = 0
        """Global batches of this epoch that were trained on."""
        self._resumed = False

    @property
    def steps(self) -> int:
        """Global batches in an epoch, the same on every rank."""
        full, rest = divmod(self.samples, self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def samples_in(self, step: int) -> int:
        """Samples of all ranks in global batch `step`, counted from 0; no rank has to ask."""
        return min(self.global_batch_size, self.samples - step * self.global_batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; right after load_state_dict, to the saved place in it."""
        if not (self._resumed and epoch == self.epoch):
            self.finished = 0
        self.epoch, self._resumed = epoch, False

    def advance(self) -> None:
        """One more global batch was trained on."""
        self.finished += 1

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, the same on every rank, whatever the position."""
        return (self.steps - 1) * self.accumulation_steps + self._parts(self.steps - 1)

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of indices, from the position on; an empty one where a rank has no sample left."""
        order = self._order()
        for step in range(self.finished, self.steps):
            first = step * self.global_batch_size
            share = order[first : first + self.samples_in(step)][self.rank :: self.world_size]
            yield from _cut(share.tolist(), self._parts(step))

    def state_dict(self) -> dict[str, int | bool]:
        """Where it stands, and what the order depends on."""
        names = (*_SAME_DATA, "epoch", "finished")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Go on where `state` was taken, on any number of ranks.

        Raises:
            ValueError: `state` belongs to another order of samples.
        """
        for name in _SAME_DATA:
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}, but the saved run had {name}={state[name]}: "
                    f"its place means nothing here; use {name}={state[name]}, or start anew"
                )
        self.epoch, self.finished, self._resumed = state["epoch"], state["finished"], True

    def _order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.samples)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.samples, generator=generator)

    def _parts(self, step: int) -> int:
        """Micro-batches of a step: a small last batch has fewer, but all ranks equally many.

        A model may communicate in its forward (SyncBatchNorm): then an odd one would wait for ever.
        """
        largest_share = -(-self.samples_in(step) // self.world_size)
        return min(self.accumulation_steps, largest_share)


def _cut(share: list[int], parts: int) -> Iterator[list[int]]:
    """Into `parts` pieces whose sizes differ by at most one."""
    size, longer = divmod(len(share), parts)
    start = 0
    for part in range(parts):
        end = start + size + (part < longer)
        yield share[start:end]
        start = end


def _check_fills(samples: int, global_batch_size: int, pieces: int, drop_last: bool) -> None:
    if global_batch_size < pieces:
        raise ValueError(
            f"global_batch_size={global_batch_size} is less than world_size x accumulation_steps "
            f"= {pieces}: some micro-batches would be empty; use at least {pieces}"
        )
    if drop_last and samples < global_batch_size:
        raise ValueError(
            f"drop_last=True leaves no batch: {samples} samples for global_batch_size="
            f"{global_batch_size}: use a smaller batch, or drop_last=False"
        )
