"""Did one process train on what all ranks together trained on?"""

from __future__ import annotations

from collections.abc import Sequence

from ddp_helpers.verifier.records import RankRecord


def other_way(ranks: Sequence[RankRecord], one: RankRecord) -> dict[str, bool]:
    """How to feed one rank where it did not take the same batches by itself; {}: no way is left.

    A script that accumulates over n times as many batches on one rank gets the ranks' in turn.
    """
    theirs, ours = (len(r.steps[0].backwards) for r in (ranks[0], one))
    in_turn = ours == len(ranks) * theirs
    if not ranks[0].loaders:
        return {"door": True, "in_turn": in_turn}
    if ranks[0].own_batches or in_turn:
        return {"replays": True, "in_turn": in_turn and not ranks[0].own_batches}
    return {}


def other_batches(ranks: Sequence[RankRecord], one: RankRecord) -> str:
    """In words, the first step whose samples are not those of all ranks; else nothing."""
    for number, ours in enumerate(one.steps[: min(len(r.steps) for r in ranks)]):
        theirs = [r.steps[number] for r in ranks]
        lists = [step.keys for step in theirs]
        if ours.keys is not None and all(keys is not None for keys in lists):
            union = sorted(key for keys in lists for key in keys or ())
            if len(union) == len(ours.keys) + ours.repeats:
                if ours.repeats or union == ours.keys:
                    continue
                return f"in step {number + 1} other indices"
            return f"{len(ours.keys)} in step {number + 1}, and {len(union)} on all ranks"
        what = "fed" if ranks[0].loaders else "rows"
        count, counts = getattr(ours, what), [getattr(step, what) for step in theirs]
        if sum(counts) != count + ours.repeats:
            return f"{count} in step {number + 1}, and {sum(counts)} on all ranks"
        far = abs(sum(step.inputs for step in theirs) - ours.inputs)
        if number == 0 and not ranks[0].loaders and far > 1e-4 * ours.input_size:
            return "as many in step 1, and not the same"
    return ""


def same_samples(ranks: Sequence[RankRecord]) -> bool:
    lists = [[step.keys for step in r.steps] for r in ranks]
    return lists[0] != [] and None not in lists[0] and all(keys == lists[0] for keys in lists[1:])
