"""From records of one step that differ between ranks to the most exact cause that they prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import innermost
from ddp_helpers.sanitizer.compare.fingerprint import first_difference, first_setting, odd_ranks
from ddp_helpers.sanitizer.compare.records import Edits, ModelState, Stamped, StepRecord
from ddp_helpers.sanitizer.talk.session import Session


class Counted(Protocol):
    """A record with the number of steps that one model has done."""

    @property
    def steps(self) -> int: ...


class State(Counted, Protocol):
    """A record with a model's weights, too."""

    @property
    def weights(self) -> str: ...

    @property
    def edits(self) -> Edits: ...


Steps = Mapping[int, StepRecord]
Places = Mapping[int, Stamped]


class Causes:
    """Writes the findings; it compares nothing with the outer world, only records."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def of_step(self, records: Steps, names: Sequence[str]) -> Finding | None:
        """Why the records of one optimizer step differ, or None if they do not."""
        records = dict(sorted(records.items()))
        if len({record.synced for record in records.values()}) > 1:
            return self._shifted(records)
        if len({record.which for record in records.values()}) > 1:
            return self._settings(records)  # a share each, as ZeRO deals them; sent round later
        return (
            self._settings(records)
            or self._edits(records, names)
            or self._gradients(records, names)
            or self._after(records, names)
        )

    # ---- steps

    def of_steps(self, counts: Mapping[int, Counted], records: Places) -> Finding | None:
        """Why the ranks took unequal numbers of steps, or None."""
        steps = {rank: count.steps for rank, count in sorted(counts.items())}
        odd = odd_ranks(steps)
        if not odd:
            return None
        most = max(steps.values())
        fewer = [rank for rank, count in steps.items() if count < most]
        ranks = odd if len(odd) < len(steps) else fewer
        taken = ", ".join(f"{count} on rank {rank}" for rank, count in steps.items())
        cause = f"the ranks took different numbers of optimizer steps on one model: {taken}"
        return self._finding("steps-differ", cause, DECIDE_TOGETHER, ranks, records)

    def _shifted(self, records: Steps) -> Finding:
        synced = {rank: record.synced for rank, record in records.items()}
        ahead = [rank for rank, count in synced.items() if count == max(synced.values())]
        odd = odd_ranks(synced)
        ranks = odd if len(odd) < len(synced) else ahead
        cause = f"{name_ranks(ranks)} skipped an optimizer step that the other ranks took"
        return self._finding("steps-differ", cause, DECIDE_TOGETHER, ranks, records)

    def within_step(self, states: Mapping[int, ModelState], records: Places) -> Finding:
        """The ranks came apart where an optimizer calls a closure several times in one step."""
        name = next(state.stepping for state in states.values() if state.stepping)
        odd = odd_ranks({rank: state.weights for rank, state in states.items()})
        cause = (
            f"the ranks came apart within a step of {name}, which calls its closure several times "
            "and decides by the loss that it returns: each rank returns its own"
        )
        advice = (
            "let the closure return the mean of all ranks' losses: after backward(), "
            "`mean = loss.detach().clone(); dist.all_reduce(mean); return mean / world_size`"
        )
        ranks = odd or tuple(states)
        return self._finding("weights-differ", cause, advice, ranks, records)

    # ---- settings

    def _settings(self, records: Steps) -> Finding | None:
        values = {rank: record.settings for rank, record in records.items()}
        found = first_setting(values)
        if found is None:
            return None
        group, name = found
        each = {rank: groups[group].get(name) for rank, groups in values.items()}
        odd = odd_ranks(each)
        listed = ", ".join(f"{value} on rank {rank}" for rank, value in each.items())
        optimizer = records[odd[0]].optimizer
        where = f" (parameter group {group})" if any(len(g) > 1 for g in values.values()) else ""
        cause = f"{optimizer} works with different `{name}`{where}: {listed}"
        advice = (
            "compute it from what all ranks share: all-reduce the metric before "
            "scheduler.step(metric), and build the optimizer alike on every rank"
        )
        return self._finding("different-learning-rates", cause, advice, odd, records)

    # ---- weights changed outside an optimizer

    def of_weights(self, states: Mapping[int, State], records: Places, name: str) -> Finding:
        """The weights differ before a backward, and the last step explains nothing."""
        edits = {rank: state.edits for rank, state in states.items()}
        if any(edit.edited for edit in edits.values()):
            return self._changed(edits, records, name)
        odd = odd_ranks({rank: state.weights for rank, state in states.items()})
        steps = max(state.steps for state in states.values())
        since = (
            f"since optimizer step {steps - 1}, though gradients and settings were equal"
            if steps
            else "from the wrap on"
        )
        cause = f"the weights differ between ranks {since}; the first is `{name}`"
        advice = (
            f"load the optimizer's state on every rank, too; {HARDWARE}"
            if steps
            else "leave init_sync=True, or bring the same weights to the wrap on every rank"
        )
        return self._finding("weights-differ", cause, advice, odd, records)

    def _edits(self, records: Steps, names: Sequence[str]) -> Finding | None:
        edits = {rank: record.edits for rank, record in records.items()}
        edited = any(edit.edited for edit in edits.values())
        place = first_difference([record.after for record in records.values()])
        alike = first_difference([record.grads for record in records.values()]) is None
        if not edited or place is None or not alike:
            return None
        return self._changed(edits, records, names[place])

    def _changed(self, edits: Mapping[int, Edits], records: Places, name: str) -> Finding:
        ranks = [rank for rank, edit in edits.items() if edit.edited]
        known = {rank: edit for rank in ranks if (edit := edits[rank].edit) is not None}
        only = " only" if len(ranks) < len(records) else ""
        how = f" (by {next(iter(known.values())).what})" if known else ""
        cause = (
            f"weights changed after the wrap on {name_ranks(ranks)}{only}{how}, and not by an "
            f"optimizer step; the first that differs is `{name}`"
        )
        advice = (
            "load, initialise and edit weights before DistributedDataParallel(...), which copies "
            "rank 0's to all; afterwards do it on every rank alike"
        )
        details = [
            f"rank {rank}: {edit.what} at {self.session.frame(edit.place)}"
            for rank, edit in known.items()
        ]
        found = self._finding("changed-after-wrap", cause, advice, ranks, records, details)
        return found

    # ---- gradients

    def _gradients(self, records: Steps, names: Sequence[str]) -> Finding | None:
        grads = {rank: record.grads for rank, record in records.items()}
        place = first_difference(list(grads.values()))
        if place is None:
            return None
        name = names[next(iter(records.values())).which[place]]
        odd = odd_ranks(grads)
        if ranks := [rank for rank, record in records.items() if record.in_no_sync]:
            return self._no_sync(ranks, records, name)
        if ranks := [rank for rank, record in records.items() if not record.since]:
            return self._skipped(ranks, records, name, "no gradient was averaged")
        if ranks := [rank for rank, record in records.items() if record.elsewhere]:
            return self._skipped(ranks, records, name, "a part of the gradients was not averaged")
        cause = (
            f"the gradients differ between ranks when the optimizer steps, though DDP had averaged "
            f"them; the first is `{name}`"
        )
        advice = (
            "change gradients after backward() by numbers that all ranks share: clip by the norm "
            "of the averaged gradients, all-reduce whatever else decides"
        )
        return self._finding("gradients-differ", cause, advice, odd, records)

    def _no_sync(self, ranks: Sequence[int], records: Steps, name: str) -> Finding:
        cause = (
            f"the last forward before the optimizer step ran inside no_sync() on "
            f"{name_ranks(ranks)}, so the gradients were not averaged; the first that differs is "
            f"`{name}`"
        )
        advice = (
            "leave no_sync() for the forward and backward of the last batch before every step, "
            "also at the end of an epoch"
        )
        return self._finding("ended-inside-no-sync", cause, advice, ranks, records)

    def _skipped(self, ranks: Sequence[int], records: Steps, name: str, what: str) -> Finding:
        cause = (
            f"{what} on {name_ranks(ranks)}: the loss did not come from the DDP wrapper's forward "
            f"and backward(); the first gradient that differs is `{name}`"
        )
        advice = (
            "compute the loss from `ddp(x)`, not from `ddp.module(x)`, another method or "
            "torch.autograd.grad; let the model's forward() lead to other methods"
        )
        return self._finding("forward-skipped-ddp", cause, advice, ranks, records)

    def _after(self, records: Steps, names: Sequence[str]) -> Finding | None:
        texts = {rank: record.after for rank, record in records.items()}
        place = first_difference(list(texts.values()))
        if place is None:
            return None
        cause = (
            f"the weights differ after an optimizer step whose gradients and settings were equal; "
            f"the first is `{names[place]}`"
        )
        advice = (
            "bring the optimizers' own states (momentum) in line: load them on every rank; a "
            "`with Join(...)` block leaves them apart where ranks took unequal numbers of steps; "
            f"{HARDWARE}"
        )
        return self._finding("weights-differ", cause, advice, odd_ranks(texts), records)

    # ---- words

    def _finding(
        self,
        kind: str,
        cause: str,
        advice: str,
        ranks: Sequence[int],
        records: Places,
        details: Sequence[str] = (),
    ) -> Finding:
        record = records[ranks[0]]
        place = self.session.frame_of(innermost(record.stack))
        cause = f"{cause} (optimizer step {record.step}, counted from 0)"
        return Finding(kind, cause, advice, tuple(ranks), record.step, place, tuple(details))


HARDWARE = (
    "if that is alike, too, equal numbers led to others on one rank: its memory or its device may "
    "be at fault, so try again elsewhere"
)
DECIDE_TOGETHER = (
    "let all ranks take or skip a step together: all-reduce the check that decides, and give "
    "every rank equally many batches"
)
