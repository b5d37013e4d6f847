"""Whether the ranks' shares of one training pass fit together: pure functions of their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ddp_helpers.sanitizer.compare.samples import decode_indices

FEW = 8  # indices in the same order may still be chance below this
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
SORT = "sort what you list (`sorted(os.listdir(folder))`), and shuffle with one seed on all ranks"


@dataclass(frozen=True)
class Verdict:
    """What is wrong with the shares of one pass."""

    kind: str
    cause: str
    advice: str
    ranks: tuple[int, ...]


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


def judge(records: Mapping[int, dict]) -> list[Verdict]:
    """What is wrong with one training pass.

    Args:
        records: by rank, as `share_record` makes them.
    """
    verdicts = [*_judge_counts(records)]
    if all(record["inner"] is not None for record in records.values()):
        verdicts = [*_judge_shares(records), *verdicts]
    return verdicts


def _judge_counts(records: Mapping[int, dict]) -> list[Verdict]:
    ended = all(record["complete"] and not record["joined"] for record in records.values())
    counts = {rank: record["batches"] for rank, record in records.items()}
    if not ended or len(set(counts.values())) == 1:
        return []
    if _all_same([record["steps"] for record in records.values()]):
        return []  # those with fewer batches went on without: a join made by hand
    few = min(counts.values())
    fewest = tuple(rank for rank, count in counts.items() if count == few)
    what = ", ".join(f"rank {rank} {count}" for rank, count in counts.items())
    return [
        Verdict(
            "uneven-batch-counts",
            f"the ranks had different numbers of batches in one training pass: {what}",
            "give every rank equally many batches (DistributedSampler does, or drop_last=True on "
            "equal shares), or train within `with Join([model])`",
            fewest,
        )
    ]


def _judge_shares(records: Mapping[int, dict]) -> list[Verdict]:
    alike = _all_same([record["dataset"]["hash"] for record in records.values()])
    roots = _all_same([record["root"]["hash"] for record in records.values()])
    if not roots and _have_other_orders(records):
        return [Verdict("different-order", OTHER_ORDER, SORT, tuple(records))]
    if not roots or not have_same_samples(records):
        return []
    name = "outer" if alike else "inner"
    sets = Sets(
        {rank: decode_indices(record[name]) for rank, record in records.items()},
        max(record[name]["every"] for record in records.values()),
    )
    slack = 10 * sets.every if sets.every > 1 else 0
    found = []
    if sets.extra > _padding(records, alike) + slack:
        found += _judge_overlap(records, sets)
    if alike:
        found += _judge_missing(records, sets, slack)
    return found


def _have_other_orders(records: Mapping[int, dict]) -> bool:
    """True if a sampler splits data that each rank has, though not in the same order."""
    split = all(record["kind"] == "distributed" for record in records.values())
    bags = [record["bag"] for record in records.values()]
    if not split or None in bags:
        return False
    return _all_same([bag for bag, _ in bags]) and not _all_same([order for _, order in bags])


def have_same_samples(records: Mapping[int, dict]) -> bool:
    """True if equal indices surely mean equal samples on these ranks.

    A dataset may take its rank into account by itself; then equal indices mean nothing. So either
    contents of samples that all ranks loaded agree, or there is nothing to compare and the
    datasets hold the same data.
    """
    holds_data = all(record["root"]["data"] for record in records.values())
    common = set.intersection(*(set(record["contents"]) for record in records.values()))
    first = next(iter(records.values()))["contents"]
    widths = {len(first[index]) for index in common}
    if len(common) < 2 or len(widths) != 1 or widths == {0}:
        return holds_data
    for leaf in range(widths.pop()):
        columns = [[r["contents"][i][leaf] for i in common] for r in records.values()]
        if _all_same(columns) and len(set(columns[0])) > 1:
            rich = columns[0][0].startswith("r")
            return holds_data or rich
    return False  # all differ: a dataset that knows its rank, or everything is augmented


def _padding(records: Mapping[int, dict], alike: bool) -> int:
    """How many samples may come twice."""
    kinds = {record["kind"] for record in records.values()}
    if not alike:
        return len(records) - 1
    if kinds == {"distributed"}:
        return max(record["padding"] for record in records.values())
    return 0 if kinds <= {"plain", "random", "replacement"} else _one_batch_each(records)


def _one_batch_each(records: Mapping[int, dict]) -> int:
    return len(records) * max(record["batch"] for record in records.values()) - 1


def _judge_overlap(records: Mapping[int, dict], sets: Sets) -> list[Verdict]:
    kinds = {record["kind"] for record in records.values()}
    complete = all(record["complete"] for record in records.values())
    count = min(record["count"] for record in records.values())
    ranks = tuple(records)
    same_order = _all_same([record["order"] for record in records.values()])
    if same_order and (count >= FEW or (complete and "replacement" not in kinds)):
        what = f"all ranks train on the same {count} samples in the same order{who(records)}"
        return [Verdict("same-data-on-every-rank", what, split_advice(records), ranks)]
    if "replacement" in kinds or any(_draws_twice(record) for record in records.values()):
        return []
    if complete and sets.equal:
        what = f"every rank goes through the same {count} samples, each in its own order"
        advice = split_advice(records)
        return [Verdict("same-data-on-every-rank", what + who(records), advice, ranks)]
    if not complete and not kinds <= {"distributed"} and _all_same_datasets(records):
        return []  # a part of each rank's own shuffle overlaps by chance
    some = "about " if sets.every > 1 else ""
    what = f"{some}{sets.extra} samples of one training pass went to more than one rank"
    return [Verdict("overlapping-data", what + who(records), _shard_advice(records), ranks)]


def _judge_missing(records: Mapping[int, dict], sets: Sets, slack: int) -> list[Verdict]:
    values = list(records.values())
    kinds = {record["kind"] for record in values}
    if not all(record["complete"] for record in values) or not kinds <= {"distributed", "own"}:
        return []
    size = min(record["length"] for record in values)
    missing = size - len(sets.together) * sets.every
    batch = max(record["batch"] for record in values)
    dropped = len(records) * (batch - 1) if any(r["drop_last"] for r in values) else 0
    if kinds == {"distributed"}:
        allowed = dropped + max(record["dropped"] for record in values)
        whole = all(record["count"] + batch > record["share"] for record in values)
    else:
        allowed = dropped + _one_batch_each(records)
        whole = all(record["formula"] for record in values) and (
            all(record["again"] for record in values) or _is_periodic(sets, size, len(records))
        )
    if not whole or missing <= allowed + slack:
        return []
    some = "about " if sets.every > 1 else ""
    what = f"{some}{missing} of {size} samples went to no rank in one training pass{who(records)}"
    return [Verdict("missing-data", what, _shard_advice(records), tuple(records))]


def _is_periodic(sets: Sets, size: int, world_size: int) -> bool:
    """True if whole residue classes are missing: the mark of `indices[rank::too_many]`."""
    if sets.every > 1:
        return False
    there = torch.zeros(size, dtype=torch.bool, device="cpu")
    there[sets.together[sets.together < size]] = True
    for period in range(2, 4 * world_size + 1):
        if size >= 2 * period and bool((there[period:] == there[:-period]).all()):
            return True
    return False


def _draws_twice(record: dict) -> bool:
    return record["twice"] > max(record["padding"], record["batch"])


def who(records: Mapping[int, dict]) -> str:
    """What differs, or should, between the ranks' samplers, as far as that is the cause."""
    values = list(records.values())
    if not all(record["replicas"] for record in values):
        return ""
    for name in ("seed", "epoch"):
        if not _all_same([record[name] for record in values]):
            each = ", ".join(f"{record[name]} on rank {rank}" for rank, record in records.items())
            return f": their samplers have different {name}s ({each})"
    if all(r["replicas"] == [len(records), rank] for rank, r in records.items()):
        return ""
    each = ", ".join(
        f"rank={record['replicas'][1]}, num_replicas={record['replicas'][0]} on rank {rank}"
        for rank, record in records.items()
    )
    return f": their samplers say {each}"


def split_advice(records: Mapping[int, dict]) -> str:
    """The way out where nothing splits the data, or a sampler does it wrongly."""
    return _shard_advice(records) if who(records) else SPLIT


def _shard_advice(records: Mapping[int, dict]) -> str:
    what = who(records)
    if "seeds" in what or "epochs" in what:
        return "give the sampler the same seed and the same set_epoch(epoch) on every rank"
    if what:
        return (
            "give DistributedSampler num_replicas=dist.get_world_size() and rank=dist.get_rank(), "
            "or leave both out"
        )
    return SHARDS


def _all_same_datasets(records: Mapping[int, dict]) -> bool:
    return _all_same([record["dataset"]["hash"] for record in records.values()])


def _all_same(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)
