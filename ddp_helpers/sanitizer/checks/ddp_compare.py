"""What is wrong with one call of DDP's own communication, given the records of all its ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import CLEAN_UP, innermost, left_loop
from ddp_helpers.sanitizer.compare.fingerprint import odd_ranks
from ddp_helpers.sanitizer.compare.records import BackwardRecord, CallRecord, Doing, ParameterKind
from ddp_helpers.sanitizer.talk.sequence import Calls, describe
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.ddp_calls import BACKWARD, BUFFERS, DOING, WRAP

TOLERANCE = 1e-3  # between the weights of one element on two ranks, relative
EQUAL_COUNTS = (
    "give every rank equally many batches (DistributedSampler, drop_last=True, the same stop on "
    "all ranks), or train inside `with torch.distributed.algorithms.join.Join([ddp]):`"
)
TOGETHER = (
    "decide together: all-reduce the check (is the loss finite?) and let all ranks skip the batch, "
    "or none"
)
EVALUATE = (
    "evaluate on every rank, or on one with `ddp.module(...)`, which sends nothing, and without "
    "collectives"
)
SAME_MODEL = "build the model from what all ranks share, and wrap it on every rank, equally often"
Backwards = Mapping[int, BackwardRecord]


class DdpComparison:
    """Explains calls of which at least one rank's is DDP's own.

    Args:
        session: this process's session.
        weights: asked about the weights before a backward, when all ranks have come.
    """

    def __init__(
        self, session: Session, weights: Callable[[Backwards, Calls], Finding | None]
    ) -> None:
        self.session = session
        self.weights = weights
        self.modes: Callable[[Backwards, Calls], Finding | None] = lambda backwards, records: None
        """Asked about the modes of the models, too."""
        self.numbers: Callable[[Backwards, Calls], None] = lambda backwards, records: None
        """Told of the losses and the gradients, where all else is well."""

    def compare(self, records: Calls, frames: Sequence[FrameType]) -> Finding | None:
        """What is wrong, or None where the general comparison is to say it."""
        ops = {rank: record.op for rank, record in sorted(records.items())}
        if not {WRAP, BUFFERS, BACKWARD} & set(ops.values()):
            return None
        if len(set(ops.values())) > 1:
            return self._unlike(records, ops)
        if WRAP in ops.values():
            return self._models(records)
        if finding := self._left(records, ops):
            return finding
        backwards = {r: record.backward for r, record in records.items() if record.backward}
        if BACKWARD in ops.values() and self._same_models(backwards):
            found = (
                self.weights(backwards, records)
                or self.modes(backwards, records)
                or self._batch_weights(backwards, records)
            )
            if found is None:
                self.numbers(backwards, records)
            return found
        return None

    def explain_end(
        self, record: CallRecord, ranks: list[int], details: list[str]
    ) -> Finding | None:
        """Some ranks ended before a call that this one makes."""
        who = name_ranks(ranks)
        channel = self.session.channel
        ended = channel.read_those_here(DOING, ranks, Doing) if channel is not None else {}
        if record.op == BACKWARD and (finding := self._skipped(record, ended, details)):
            return finding
        if record.op == WRAP:
            cause = f"{who} ended without the wrap that other ranks make"
            return self._finding("different-models", cause, SAME_MODEL, ranks, record, details)
        if record.op == BACKWARD or record.mode == "training":
            cause = f"{who} ended while others still train"
            return self._finding("uneven-batch-counts", cause, EQUAL_COUNTS, ranks, record, details)
        if record.op == BUFFERS:
            cause = f"{who} ended while others still evaluate through the DDP wrapper"
            advice = "evaluate with `ddp.module(...)`, which sends nothing, or on every rank"
            return self._finding("different-collective", cause, advice, ranks, record, details)
        return None

    # ---- unlike calls

    def _unlike(self, records: Calls, ops: Mapping[int, str]) -> Finding | None:
        if WRAP in ops.values():
            odd = [rank for rank, op in ops.items() if op != WRAP]
            cause = f"{name_ranks(odd)} does not wrap a model where the others do"
            return self._told("different-models", cause, SAME_MODEL, odd, records)
        return self._left(records, ops)

    def _left(self, records: Calls, ops: Mapping[int, str]) -> Finding | None:
        """One rank trains, another one does not."""
        training = [r for r, op in ops.items() if op == BACKWARD or _trains(records[r])]
        others = {r: record.doing for r, record in records.items() if ops[r] != BACKWARD}
        back = [records[r] for r, op in ops.items() if op == BACKWARD]
        if back and (finding := self._skipped(back[0], others, self._details(records))):
            return finding
        others = {r: doing for r, doing in others.items() if r not in training}
        if training and (evaluating := [r for r, doing in others.items() if doing.evaluates]):
            trainer = records[training[0]]
            if not all(_has_ended(others[r], trainer.doing) for r in evaluating):
                return self._evaluating(evaluating, training, records)
        return self._left_loop(training, records)

    def _skipped(
        self, trainer: CallRecord, others: Mapping[int, Doing], details: Sequence[str]
    ) -> Finding | None:
        """Ranks whose forwards were not all followed by a backward."""
        ranks = [rank for rank, doing in others.items() if doing.idle > trainer.doing.idle]
        if not ranks:
            return None
        cause = (
            f"{name_ranks(ranks)} ran a forward of the wrapped model without a backward, which "
            "the others did not: each backward since then met one of another batch"
        )
        return self._finding("steps-differ", cause, TOGETHER, ranks, trainer, details)

    def _evaluating(self, ranks: Sequence[int], training: Sequence[int], records: Calls) -> Finding:
        cause = (
            f"the model of {name_ranks(ranks)} is in evaluation mode while "
            f"{name_ranks(training)} trains: both wait for calls that the other does not make"
        )
        if not records[ranks[0]].doing.passes:  # no loader tells
            cause += f"; or {name_ranks(ranks)} had fewer batches, and went on to evaluate"
        return self._told("different-collective", cause, EVALUATE, ranks, records)

    def _left_loop(self, training: Sequence[int], records: Calls) -> Finding | None:
        for trainer in training:
            gone = [r for r in records if _has_left(records[trainer], records[r])]
            if gone:
                cause = f"{name_ranks(gone)} left the training loop while others still train"
                return self._told("uneven-batch-counts", cause, EQUAL_COUNTS, gone, records)
        return None

    # ---- the wrap

    def _models(self, records: Calls) -> Finding | None:
        signatures = {rank: record.signature for rank, record in sorted(records.items())}
        odd = odd_ranks(signatures)
        if not odd:
            return None
        longest = max(len(signature) for signature in signatures.values())
        for place in range(longest):
            entries = {
                rank: signature[place] if place < len(signature) else None
                for rank, signature in signatures.items()
            }
            if odd_ranks(entries):
                break
        name = next(entry.name for entry in entries.values() if entry)
        cause = (
            f"the ranks wrap different models: the first difference is parameter {place}, `{name}`"
        )
        details = [f"rank {rank}: {_parameter(entry)}" for rank, entry in entries.items()]
        record = records[odd[0]]
        return self._finding("different-models", cause, SAME_MODEL, odd, record, details)

    # ---- the loss

    def _same_models(self, backwards: Backwards) -> bool:
        return len({tuple(sorted(backward.models)) for backward in backwards.values()}) == 1

    def _batch_weights(self, backwards: Backwards, records: Calls) -> Finding | None:
        terms = {rank: backward.terms or () for rank, backward in sorted(backwards.items())}
        if len({len(found) for found in terms.values()}) != 1:
            return None
        for term in zip(*terms.values(), strict=True):
            counts, weights = [t.count for t in term], [t.weight for t in term]
            alike = all(math.isclose(w, weights[0], rel_tol=TOLERANCE) for w in weights)
            if len(set(counts)) > 1 and not alike:
                return self._uneven(records, dict(zip(terms, counts, strict=True)))
        return None

    def _uneven(self, records: Calls, counts: Mapping[int, int]) -> Finding:
        odd = odd_ranks(counts)
        cause = (
            "the ranks' losses are means over different numbers of elements, and DDP averages "
            "them as if they were equal: " + _listed(counts)
        )
        advice = (
            "scale each rank's loss by world_size * count / total, the total from an all_reduce of "
            "the counts; or leave out the uneven last batch with drop_last=True"
        )
        return self._finding("uneven-batch-weights", cause, advice, odd, records[odd[0]], ())

    # ---- words

    def _told(
        self, kind: str, cause: str, advice: str, ranks: Sequence[int], records: Calls
    ) -> Finding:
        record, details = records[ranks[0]], self._details(records)
        return self._finding(kind, cause, advice, ranks, record, details)

    def _details(self, records: Calls) -> list[str]:
        return [describe(self.session, rank, record) for rank, record in sorted(records.items())]

    def _finding(
        self,
        kind: str,
        cause: str,
        advice: str,
        ranks: Sequence[int],
        record: CallRecord,
        details: Sequence[str],
    ) -> Finding:
        place = self.session.frame_of(innermost(record.stack))
        return Finding(kind, cause, advice, tuple(ranks), record.step, place, tuple(details))


def _trains(record: CallRecord) -> bool:
    return record.op == BUFFERS and record.mode == "training"


def _has_left(trainer: CallRecord, other: CallRecord) -> bool:
    """True if the other rank is out of the loop in which the first one trains."""
    if (trainer.op, trainer.stack) == (other.op, other.stack):
        return False
    if other.called == CLEAN_UP:
        return True
    mine, theirs = trainer.doing, other.doing
    if mine.passes and theirs.passes and not _is_behind(theirs, mine):
        return False
    left = left_loop(trainer.stack, other.stack)
    if left is not None:
        return left
    # a library's loop: both were at this very place before, and only one is there again
    return trainer.op != other.op and all(
        before is not None and (before.op, before.stack) == (trainer.op, trainer.stack)
        for before in (trainer.before, other.before)
    )


def _is_behind(doing: Doing, trainer: Doing) -> bool:
    """True if a rank may have left the pass over the data that another one still goes through."""
    return doing.passes == trainer.passes and doing.batches < trainer.batches


def _has_ended(doing: Doing, trainer: Doing) -> bool:
    """True if a rank's pass over the data is over, and the trainer has more batches in its own."""
    return doing.complete and _is_behind(doing, trainer)


def _parameter(entry: ParameterKind | None) -> str:
    if entry is None:
        return "no such parameter"
    return f"`{entry.name}`, {entry.dtype} {entry.shape}{'' if entry.trainable else ', frozen'}"


def _listed(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{count} on rank {rank}" for rank, count in counts.items())
