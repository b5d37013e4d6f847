"""Whether the ranks' shares of one training pass fit together: pure functions of their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ddp_helpers.sanitizer.compare.callsite import Place
from ddp_helpers.sanitizer.compare.samples import DatasetPrint, IndexSet, decode_indices

FEW = 8  # indices in the same order may still be chance below this
COMPARED = 2  # samples: the contents of a single one may be a constant
# of a large dataset only a part of the indices is looked at: there, so few of them are no sign
SAMPLED_SLACK = 10
MOST_PERIODS = 4  # times the number of ranks: what a wrong stride in a formula may be
SPLIT = (
    "give each rank its own share: `DataLoader(dataset, sampler=DistributedSampler(dataset))`, "
    "and `sampler.set_epoch(epoch)` before each epoch"
)
SHARDS = (
    "check the formula that gives a rank its share: `indices[rank::world_size]` with the rank and "
    "the world size of this run; or let DistributedSampler do it"
)
OTHER_ORDER = (
    "the ranks' datasets hold the same samples in different orders: an index means another sample "
    "on each rank, so DistributedSampler gives some samples twice and others to nobody"
)
MAY_BE = "if that is meant so, all is well; if each sample was to go to one rank: "
ONE_SPLIT = (
    "split with one seed on all ranks, random_split(..., generator=torch.Generator()."
    "manual_seed(0)), or let DistributedSampler do it"
)
SORT = "sort what you list (`sorted(os.listdir(folder))`), and shuffle with one seed on all ranks"


@dataclass(frozen=True)
class SamplerRecord:
    """What is to be expected of the sampler of a pass."""

    kind: str
    """`distributed` (torch's own, over the loader's dataset), `random`, `plain`, `replacement`, or
    the reader's `own`, which may well be built around one of these."""
    padding: int = 0
    """Samples that a DistributedSampler gives twice."""
    dropped: int = 0
    """Samples that it leaves out."""
    share: int = 0
    """Samples of each rank, as it says."""
    replicas: tuple[int, int] | None = None
    """How many ranks it was told, and which of them this one is."""
    seed: int | None = None
    epoch: int | None = None
    drop_last: bool = False
    """Of the loader's batches."""
    formula: bool = False
    """It was given no list of indices, so it computes them."""


@dataclass(frozen=True)
class Samples:
    """Which samples a rank went through in one pass."""

    count: int
    twice: int
    """How many of them came again."""
    order: str
    """A hash of the indices in their order."""
    outer: IndexSet
    """Indices of the loader's dataset."""
    inner: IndexSet
    """The same as indices of the dataset inside of Subset(Subset(...))."""
    length: int
    """Of the loader's dataset."""
    root_length: int
    """Of the dataset inside."""
    dataset: DatasetPrint
    root: DatasetPrint
    """The dataset inside."""
    bag: tuple[str, str] | None
    """Hashes of what the dataset holds: in whatever order, and of the order."""
    contents: dict[int, tuple[str, ...]]
    """Hashes of a few samples' tensors, by their index in the dataset inside."""
    batch: int
    """The largest batch size."""
    sampler: SamplerRecord


@dataclass(frozen=True)
class ShareRecord:
    """One training pass of one rank."""

    batches: int
    steps: int
    complete: bool
    """The loader was gone through to its end."""
    joined: bool
    """It was within `with Join(...)`."""
    place: Place | None
    samples: Samples | None = None
    """None where the indices are no plain numbers."""
    rows: int = 0
    """The most samples that one of the first forwards got, 0 where that was not seen."""
    inputs: tuple[str, ...] = ()
    """Hashes of what these forwards got."""
    together: bool = True
    """Something was seen that keeps the ranks' models alike: a wrapper, shards, collectives."""


Shares = Mapping[int, Samples]


@dataclass(frozen=True)
class Verdict:
    """What is wrong with the shares of one pass."""

    kind: str
    cause: str
    advice: str
    ranks: tuple[int, ...]
    serious: bool = True
    """False where a correct program may look the same."""


@dataclass(frozen=True)
class Sets:
    """The ranks' sets of indices, put together.

    Args:
        every: only one of so many indices was looked at.
    """

    by_rank: Mapping[int, torch.Tensor]
    every: int

    @property
    def together(self) -> torch.Tensor:
        """Sorted, each index once."""
        return torch.unique(torch.cat(list(self.by_rank.values())))

    @property
    def extra(self) -> int:
        """How many samples too many: a sample of three ranks counts two."""
        total = sum(len(indices) for indices in self.by_rank.values())
        return (total - len(self.together)) * self.every

    @property
    def equal(self) -> bool:
        """True if every rank has all of them."""
        return all(len(own) == len(self.together) for own in self.by_rank.values())


def judge(records: Mapping[int, ShareRecord]) -> list[Verdict]:
    """What is wrong with one training pass.

    Args:
        records: by rank.
    """
    together = any(record.together for record in records.values())
    verdicts = [*_judge_counts(records)] if together else []
    shares = {rank: r.samples for rank, r in records.items() if r.samples is not None}
    # ranks that train models of their own may have whatever data, unless a sampler splits it
    if len(shares) < len(records) or not (together or _kinds(shares) == {"distributed"}):
        return verdicts
    if are_sliced(records):
        return verdicts
    complete = all(record.complete for record in records.values())
    found = _judge_shares(shares, complete)
    return [*(v if together else replace(v, serious=False) for v in found), *verdicts]


def are_sliced(records: Mapping[int, ShareRecord]) -> bool:
    """True if all ranks load whole batches, and each trains on a part of its own of each."""
    most = max(record.rows for record in records.values())
    batch = max(r.samples.batch if r.samples is not None else 0 for r in records.values())
    seen = all(record.rows for record in records.values())
    if not seen or most == batch or most > -(-batch // len(records)):
        return False
    together = zip(*(record.inputs for record in records.values()), strict=False)
    return all(len(set(inputs)) > 1 for inputs in together)


def _judge_counts(records: Mapping[int, ShareRecord]) -> list[Verdict]:
    ended = all(record.complete and not record.joined for record in records.values())
    counts = {rank: record.batches for rank, record in records.items()}
    if not ended or len(set(counts.values())) == 1:
        return []
    if _all_same([record.steps for record in records.values()]):
        return []  # those with fewer batches went on without: a join made by hand
    few = min(counts.values())
    fewest = tuple(rank for rank, count in counts.items() if count == few)
    what = ", ".join(f"{count} on rank {rank}" for rank, count in counts.items())
    return [
        Verdict(
            "uneven-batch-counts",
            f"the ranks had different numbers of batches in one training pass: {what}",
            "give every rank equally many batches (DistributedSampler does, or drop_last=True on "
            "equal shares), or train within `with Join([model])`",
            fewest,
        )
    ]


def _judge_shares(shares: Shares, complete: bool) -> list[Verdict]:
    alike = _all_same([share.dataset.hash for share in shares.values()])
    roots = _all_same([share.root.hash for share in shares.values()])
    if not roots and _have_other_orders(shares):
        return [Verdict("different-order", OTHER_ORDER, SORT, tuple(shares))]
    if not roots or not have_same_samples(shares):
        return []
    packed = {rank: share.outer if alike else share.inner for rank, share in shares.items()}
    sets = Sets(
        {rank: decode_indices(indices) for rank, indices in packed.items()},
        max(indices.every for indices in packed.values()),
    )
    if not alike and complete and (twice := _judge_split_twice(shares, sets)):
        return [twice]
    slack = SAMPLED_SLACK * sets.every if sets.every > 1 else 0
    found = []
    if sets.extra > _padding(shares, alike) + slack:
        found += _judge_overlap(shares, sets, complete, alike)
    if alike and complete:
        found += _judge_missing(shares, sets, slack)
    return found


def _have_other_orders(shares: Shares) -> bool:
    """True if a sampler splits data that each rank has, though not in the same order."""
    split = all(share.sampler.kind == "distributed" for share in shares.values())
    bags = [share.bag for share in shares.values() if share.bag is not None]
    if not split or len(bags) < len(shares):
        return False
    return _all_same([bag for bag, _ in bags]) and not _all_same([order for _, order in bags])


def have_same_samples(shares: Shares) -> bool:
    """True if equal indices surely mean equal samples on these ranks.

    A dataset may take its rank into account by itself; then equal indices mean nothing. So either
    contents of samples that all ranks loaded agree, or there is nothing to compare and the
    datasets hold the same data.
    """
    holds_data = all(share.root.data for share in shares.values())
    common = set.intersection(*(set(share.contents) for share in shares.values()))
    first = next(iter(shares.values())).contents
    widths = {len(first[index]) for index in common}
    if len(common) < COMPARED or len(widths) != 1 or widths == {0}:
        return holds_data
    for leaf in range(widths.pop()):
        columns = [[share.contents[i][leaf] for i in common] for share in shares.values()]
        if _all_same(columns) and len(set(columns[0])) > 1:
            rich = columns[0][0].startswith("r")
            return holds_data or rich
    return False  # all differ: a dataset that knows its rank, or everything is augmented


def _padding(shares: Shares, alike: bool) -> int:
    """How many samples may come twice."""
    kinds = _kinds(shares)
    if not alike:
        return len(shares) - 1
    if kinds == {"distributed"}:
        return max(share.sampler.padding for share in shares.values())
    return 0 if kinds <= {"plain", "random", "replacement"} else _one_batch_each(shares)


def _kinds(shares: Shares) -> set[str]:
    return {share.sampler.kind for share in shares.values()}


def _one_batch_each(shares: Shares) -> int:
    return len(shares) * max(share.batch for share in shares.values()) - 1


def _judge_overlap(shares: Shares, sets: Sets, complete: bool, alike: bool) -> list[Verdict]:
    kinds, samplers = _kinds(shares), _samplers(shares)
    count = min(share.count for share in shares.values())
    ranks = tuple(shares)
    same_order = _all_same([share.order for share in shares.values()])
    if same_order and (count >= FEW or (complete and "replacement" not in kinds)):
        what = f"all ranks train on the same {count} samples in the same order{who(samplers)}"
        return [Verdict("same-data-on-every-rank", what, split_advice(samplers), ranks)]
    if "replacement" in kinds or any(_draws_twice(share) for share in shares.values()):
        return []
    if complete and sets.equal:
        what = f"every rank goes through the same {count} samples, each in its own order"
        advice, sure = split_advice(samplers), "own" not in kinds
        advice = advice if sure else MAY_BE + advice
        what += who(samplers)
        return [Verdict("same-data-on-every-rank", what, advice, ranks, serious=sure)]
    some = "about " if sets.every > 1 else ""
    what = f"{some}{sets.extra} samples of one training pass went to more than one rank"
    if kinds == {"distributed"}:
        advice = _shard_advice(samplers)
        if not alike and not who(samplers):
            what, advice = f"{what}: their loaders hold other parts of one dataset", ONE_SPLIT
        return [Verdict("overlapping-data", what + who(samplers), advice, ranks)]
    if not complete and alike:
        return []  # a part of each rank's own shuffle overlaps by chance
    plain = kinds <= {"plain", "random"}
    if all(_is_run(own, sets.every, shares[r].count) for r, own in sets.by_rank.items()):
        advice = SHARDS if plain else MAY_BE + SHARDS
        return [Verdict("overlapping-data", what, advice, ranks, serious=plain)]
    if plain and abs(sum(s.count for s in shares.values()) - _held(shares)) < len(shares):
        what += ", though together they went through as many as there are"
        return [Verdict("overlapping-data", what, MAY_BE + ONE_SPLIT, ranks, serious=False)]
    return []  # hard examples for all, repeated augmentation, folds: on purpose


def _judge_missing(shares: Shares, sets: Sets, slack: int) -> list[Verdict]:
    values, samplers, kinds = list(shares.values()), _samplers(shares), _kinds(shares)
    if not kinds <= {"distributed", "own"}:
        return []
    size = min(share.length for share in values)
    missing = size - len(sets.together) * sets.every
    batch = max(share.batch for share in values)
    dropped = len(shares) * (batch - 1) if any(s.sampler.drop_last for s in values) else 0
    if kinds == {"distributed"}:
        allowed = dropped + max(share.sampler.dropped for share in values)
        whole = all(share.count + batch > share.sampler.share for share in values)
    else:
        allowed = dropped + _one_batch_each(shares)
        # an epoch may be a part of the data; a stride that is too long leaves a trace of its own
        whole = all(share.sampler.formula for share in values)
        whole = whole and _is_periodic(sets, size, len(shares))
    if not whole or missing <= allowed + slack:
        return []
    some = "about " if sets.every > 1 else ""
    what = f"{some}{missing} of {size} samples went to no rank in one training pass{who(samplers)}"
    advice, sure = _shard_advice(samplers), kinds == {"distributed"}
    advice = advice if sure else MAY_BE + advice
    return [Verdict("missing-data", what, advice, tuple(shares), serious=sure)]


def _judge_split_twice(shares: Shares, sets: Sets) -> Verdict | None:
    """Parts of the data that are split once more: what a rank holds, it does not go through."""
    ranks = tuple(shares)
    if _kinds(shares) != {"distributed"} or who(_samplers(shares)) or sets.every > 1:
        return None
    held = sum(share.length for share in shares.values())
    used = sum(share.count for share in shares.values())
    parts = sets.extra <= len(ranks) and held <= _held(shares) + len(ranks)
    dealt = all(share.count <= share.sampler.share < share.length for share in shares.values())
    if not parts or not dealt or held - used <= _one_batch_each(shares):
        return None
    what = (
        f"each rank holds a part of the data of its own, and DistributedSampler splits it again: "
        f"{held - used} of {held} samples went to no rank in one training pass"
    )
    advice = (
        "split once: give DistributedSampler the whole dataset, or go through each rank's own part "
        "with shuffle=True and no sampler"
    )
    return Verdict("missing-data", what, advice, ranks)


def _held(shares: Shares) -> int:
    """How many samples there are, in the dataset inside."""
    return max(share.root_length for share in shares.values())


def _is_run(indices: torch.Tensor, every: int, count: int) -> bool:
    """True for a block, or every n-th: what a formula for a split gives.

    Args:
        indices: sorted, each once.
        every: only one of so many was looked at, of so many as `count`.
    """
    if len(indices) < COMPARED:
        return False
    if every == 1:
        return len(torch.unique(torch.diff(indices))) == 1
    span = int(indices[-1] - indices[0]) + 1
    step = max(1, round(span / count))
    in_step = bool((indices % step == indices[0] % step).all())
    return in_step and abs(span - step * count) <= step * every * SAMPLED_SLACK


def _is_periodic(sets: Sets, size: int, world_size: int) -> bool:
    """True if whole residue classes are missing: the mark of `indices[rank::too_many]`."""
    if sets.every > 1:
        return False
    there = torch.zeros(size, dtype=torch.bool, device="cpu")
    there[sets.together[sets.together < size]] = True
    for period in range(2, MOST_PERIODS * world_size + 1):
        if size >= 2 * period and bool((there[period:] == there[:-period]).all()):
            return True
    return False


def _draws_twice(share: Samples) -> bool:
    return share.twice > max(share.sampler.padding, share.batch)


Samplers = Mapping[int, SamplerRecord | None]


def _samplers(shares: Shares) -> Samplers:
    return {rank: share.sampler for rank, share in shares.items()}


def who(samplers: Samplers) -> str:
    """What differs, or should, between the ranks' samplers, as far as that is the cause."""
    split = {r: (s, s.replicas) for r, s in samplers.items() if s is not None and s.replicas}
    if len(split) < len(samplers):
        return ""
    seeds = {rank: sampler.seed for rank, (sampler, _) in split.items()}
    epochs = {rank: sampler.epoch for rank, (sampler, _) in split.items()}
    for name, numbers in (("seeds", seeds), ("epochs", epochs)):
        if not _all_same(list(numbers.values())):
            each = ", ".join(f"{number} on rank {rank}" for rank, number in numbers.items())
            return f": their samplers have different {name} ({each})"
    if all(replicas == (len(split), rank) for rank, (_, replicas) in split.items()):
        return ""
    each = ", ".join(
        f"rank={own}, num_replicas={count} on rank {rank}"
        for rank, (_, (count, own)) in split.items()
    )
    return f": their samplers say {each}"


def split_advice(samplers: Samplers) -> str:
    """The way out where nothing splits the data, or a sampler does it wrongly."""
    return _shard_advice(samplers) if who(samplers) else SPLIT


def _shard_advice(samplers: Samplers) -> str:
    what = who(samplers)
    if "seeds" in what or "epochs" in what:
        return "give the sampler the same seed and the same set_epoch(epoch) on every rank"
    if what:
        return (
            "give DistributedSampler num_replicas=dist.get_world_size() and rank=dist.get_rank(), "
            "or leave both out"
        )
    return SHARDS


def _all_same(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)
