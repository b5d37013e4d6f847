"""`verify()`: the runs, what follows from them, and how it is told."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_helpers.arguments import check_whole
from ddp_helpers.environment.check import default_nprocs, gpu_count, usable_cpu_count
from ddp_helpers.ranks.conclusion import LaunchError, finished
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.verifier.records import EQUAL, NOT_COMPARED, PARTS, Plan, RankRecord, Verdict
from ddp_helpers.verifier.remarks import UNEXPLAINED, notes_of, unexplained
from ddp_helpers.verifier.same_batches import other_batches, other_way
from ddp_helpers.verifier.told import told

if TYPE_CHECKING:
    from ddp_helpers.verifier.compare import Comparison
    from ddp_helpers.verifier.evidence import Cause


def verify(
    fn: Callable | str,
    nprocs: int | None = None,
    *,
    args: tuple = (),
    kwargs: Mapping[str, object] | None = None,
    steps: int = 5,
    float64: bool = False,
    alone: Mapping[str, object] | Sequence[str] = (),
    timeout: float = 600.0,
    threads_per_rank: int | None = None,
) -> Verdict:
    """Compare a training on n ranks with the same training in one process on the whole batches.

    Args:
        fn: a function written for torchrun or `launch()`; `path/script.py:function`; or
            `path/script.py`, which runs as a program.
        nprocs: the number of ranks, at least 2.
        args, kwargs: for the function, the same on every rank.
        steps: of the first optimizer; the function is ended after them.
        float64: compute in double precision, without autocast: shows what rounding hides.
        alone: what the run on one rank gets besides: keyword arguments, as {"batch_size": 64} for a
            function that divides by the batch size it was given; or words for a script's sys.argv.
        timeout: seconds for each run.
        threads_per_rank: the same in all runs; by default cores // nprocs.

    Returns:
        A `Verdict`; `print(verdict)` tells it. It does not raise for what the function does wrong:
        a function that fails can't be compared, and the verdict quotes its error.

    Raises:
        ValueError, TypeError: an argument is wrong, or can't travel to the ranks.
    """
    nprocs = default_nprocs() if nprocs is None else nprocs
    check_whole("nprocs", nprocs, least=2)
    check_whole("steps", steps, least=1)
    _check_target(fn)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ddp-verify-") as folder:
        plan = Plan(
            target=fn,
            args=tuple(args),
            kwargs=dict(kwargs or {}),
            alone_kwargs=dict(alone) if isinstance(alone, Mapping) else {},
            alone_arguments=() if isinstance(alone, Mapping) else tuple(alone),
            steps=steps,
            folder=folder,
            name="",
            float64=float64,
        )
        threads = threads_per_rank or max(1, usable_cpu_count() // nprocs)
        verdict = _Verification(plan, nprocs, timeout, threads).verdict()
    verdict = replace(verdict, seconds=time.monotonic() - begin)
    return replace(verdict, text=told(verdict))


def _check_target(fn: Callable | str) -> None:
    if not isinstance(fn, str):
        if not callable(fn):
            raise TypeError(f"fn={fn!r}: expected a function, or a text like 'script.py:main'")
        return
    path = fn.rpartition(":")[0] or fn
    if not Path(path).is_file():
        raise ValueError(f'"{fn}": there is no file {path}; expected path/script.py:function')


class _CannotCompare(Exception):
    def __init__(self, why: str, way_out: str = "") -> None:
        super().__init__(why)
        self.why, self.way_out = why, way_out


@dataclass
class _Three:
    """The records of one comparison: n ranks, one process, the same perturbed."""

    ranks: list[RankRecord]
    one: RankRecord
    perturbed: RankRecord
    comparison: Comparison
    cause: Cause | None = None


@dataclass
class _Verification:
    plan: Plan
    nprocs: int
    timeout: float
    threads: int
    notes: list[str] = field(default_factory=list)

    def verdict(self) -> Verdict:
        try:
            return self._verdict()
        except _CannotCompare as problem:
            return Verdict(
                NOT_COMPARED,
                self.nprocs,
                0,
                why=problem.why,
                way_out=problem.way_out,
                notes=tuple(self.notes),
            )

    def _verdict(self) -> Verdict:
        from ddp_helpers.verifier.evidence import Cause
        from ddp_helpers.verifier.factors import undivided

        three = self._compare(self.plan)
        self.notes += notes_of(self.plan, three.ranks, three.comparison)
        parting = three.comparison.parting
        if parting is None:
            if three.one.other_samples:
                return self._other_samples(three)
            if (found := undivided(three.one)) is not None:
                return self._undivided(three, *found)
            return Verdict(EQUAL, self.nprocs, three.comparison.steps, notes=tuple(self.notes))
        cause = three.cause
        if cause is None or cause.name in WEAK:
            three, cause = self._try_out(three)
            parting = three.comparison.parting or parting
        if cause is not None and not cause.compared:
            raise _CannotCompare(cause.why, cause.way_out)
        if cause is None:
            cause = Cause("", unexplained(three.one, parting), UNEXPLAINED)
        name = parting.names[0] if parting.names else None
        return Verdict(
            PARTS,
            self.nprocs,
            three.comparison.steps,
            step=parting.step + 1,
            stage=parting.stage,
            parameter=name,
            module=three.ranks[0].modules.get(name or "", ""),
            factor=parting.factor,
            cause=cause.name,
            why=cause.why,
            way_out=cause.way_out,
            notes=tuple(self.notes),
        )

    # ---- runs

    def _run(self, plan: Plan, nprocs: int) -> list[RankRecord]:
        Path(plan.folder).mkdir(exist_ok=True)
        env = {"CUDA_VISIBLE_DEVICES": ""} if 0 < gpu_count() < self.nprocs else {}
        from ddp_helpers.verifier.on_rank import note_this_rank

        result = launch(
            note_this_rank,
            nprocs,
            args=(plan,),
            env=env,  # else one rank would take a GPU, and several the CPU
            threads_per_rank=self.threads,
            timeout=self.timeout,
            echo=False,
        )
        finished(result)
        files = sorted(Path(plan.folder).glob(f"{plan.name}-*.pkl"))
        records: list[RankRecord] = [pickle.loads(file.read_bytes()) for file in files]
        for trouble in filter(None, (record.trouble for record in records)):
            raise _CannotCompare(trouble)
        return records

    def _ranks(self, plan: Plan) -> list[RankRecord]:
        try:
            records = self._run(replace(plan, name="ranks"), self.nprocs)
        except LaunchError as error:
            report = _short(error)
            way_out = (
                "mend that first. A script whose main() takes arguments: give path/script.py, "
                "without a function"
            )
            raise _CannotCompare(
                f"the function fails on {self.nprocs} ranks: {report}",
                "" if "what to do:" in report else way_out,
            ) from None
        counts = [len(record.steps) for record in records]
        if not all(counts):
            raise _CannotCompare(
                "no optimizer.step() of a torch.optim optimizer was seen",
                "give the function that trains, in the ranks themselves: not one that starts "
                "processes (mp.spawn); and let it train for at least one step",
            )
        if records[0].world < self.nprocs:
            raise _CannotCompare(
                "the ranks train without a process group, each alone"
                if not records[0].world
                else f"the process group has {records[0].world} of {self.nprocs} ranks",
                "call torch.distributed.init_process_group(), which reads the environment",
            )
        if len(set(counts)) > 1:
            self.notes.append(f"the ranks made unequal numbers of steps: {counts}")
        return records

    def _alone(self, plan: Plan, name: str, **changes: bool) -> RankRecord:
        plan = replace(plan, name=name, follows=True, **changes)  # type: ignore[arg-type]
        try:
            record = self._run(plan, 1)[0]
        except LaunchError as error:
            raise _CannotCompare(
                f"one rank can't run the function on the whole batch: {_short(error)}",
                "let it run with world_size 1, and with sizes taken from the batch; what needs "
                "several ranks can't be compared",
            ) from None
        if not record.steps:
            raise _CannotCompare(
                f"on one rank the function makes no step; on {self.nprocs} ranks it does",
                "let it train with world_size 1, too, in the same function",
            )
        return record

    def _compare(self, plan: Plan) -> _Three:
        from ddp_helpers.verifier.compare import compare, turning_matters
        from ddp_helpers.verifier.why import ORDER, explain

        ranks = self._ranks(plan)
        way = {"replays": ranks[0].loaders and not ranks[0].own_batches}
        one = self._alone(plan, "one", **way)
        if (others := other_batches(ranks, one)) and (other := other_way(ranks, one)):
            way = other
            one = self._alone(plan, "one-fed", **way)
            others = other_batches(ranks, one)
        if others:
            raise _CannotCompare(
                f"on one rank the function trains on other samples: {others}",
                "take all that a step trains on from one DataLoader, or derive a rank's batch from "
                "a fixed global one (global_batch_size // world_size)",
            )
        if way.get("door"):
            self.notes.append(
                "no DataLoader: one process gets what went into the models, and into torch's loss "
                "functions, on the ranks"
            )
        perturbed = self._alone(plan, "perturbed", perturbed=True, **way)
        order = turning_matters(one, perturbed)
        if order:  # then a batch turned round tells nothing of rounding
            perturbed = self._alone(plan, "moved", perturbed=True, in_order=True, **way)
        found = compare(ranks, one, perturbed)
        if not found.steps:
            raise _CannotCompare(
                "the gradients of the first step are not finite",
                "lower the learning rate, or look for a log or a division of zero",
            )
        three = _Three(ranks, one, perturbed, found)
        three.cause = explain(ranks, one, found.parting) if found.parting else None
        if found.parting and three.cause is None and order and not one.batchnorm:
            three.cause = ORDER
        return three

    # ---- what only another run can tell

    def _try_out(self, three: _Three) -> tuple[_Three, Cause | None]:
        """Causes that are known by the difference that goes with them."""
        from ddp_helpers.verifier.evidence import Cause

        parting = three.comparison.parting
        assert parting is not None
        if three.one.batchnorm:
            folder = str(Path(self.plan.folder) / "frozen")
            frozen = self._compare(replace(self.plan, folder=folder, freeze_batchnorm=True))
            if frozen.comparison.parting is None:
                names = three.one.batchnorm
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                return three, Cause(
                    "BatchNorm",
                    f"{names[0]}{more} takes mean and variance of the rank's own part of the "
                    "batch, one process those of the whole; with these modules in eval() "
                    "everything agrees",
                    "nn.SyncBatchNorm.convert_sync_batchnorm(model) before the wrap takes them "
                    "over all ranks; GroupNorm and LayerNorm need none. With big batches on each "
                    "rank most trainings are fine without",
                )
            self.notes.append("BatchNorm is in eval() from outside: it would part by itself")
            if frozen.cause is not None:
                return frozen, frozen.cause
            three, parting = frozen, frozen.comparison.parting
        repeats = three.one.steps[parting.step].repeats
        if repeats:
            return three, self._repeats(three, repeats) or three.cause
        return three, three.cause

    def _repeats(self, three: _Three, repeats: int) -> Cause | None:
        from ddp_helpers.verifier.compare import compare
        from ddp_helpers.verifier.evidence import Cause

        frozen = bool(three.one.batchnorm) and len(self.notes) > 0
        folder = str(Path(self.plan.folder) / "frozen") if frozen else self.plan.folder
        plan = replace(self.plan, folder=folder, freeze_batchnorm=frozen)
        one = self._alone(plan, "kept", replays=True, keep_repeats=True)
        moved = self._alone(plan, "kept-moved", replays=True, keep_repeats=True, perturbed=True)
        again = compare(three.ranks, one, moved).parting
        assert three.comparison.parting is not None
        if again is not None and again.step <= three.comparison.parting.step:
            return None
        s = "s" if repeats > 1 else ""
        return Cause(
            "samples counted twice",
            f"{repeats} sample{s} of this step had been in the epoch before: DistributedSampler "
            "fills up until all ranks have the same number, and these count twice; with them one "
            "process agrees",
            "drop_last=True leaves the rest out instead; a sampler of your own may give each "
            "sample once, with the loss divided by the count of all ranks",
        )

    # ---- verdicts without a parting

    def _other_samples(self, three: _Three) -> Verdict:
        from ddp_helpers.verifier.compare import SAMPLES

        return Verdict(
            PARTS,
            self.nprocs,
            three.comparison.steps,
            step=three.one.other_samples_at,
            stage=SAMPLES,
            cause="samples",
            why="the ranks do not hold the same data: " + "; ".join(three.one.other_samples),
            way_out="prepare the data the same way on every rank",
            notes=tuple(self.notes),
        )

    def _undivided(self, three: _Three, step: int, pieces: int) -> Verdict:
        from ddp_helpers.verifier.compare import GRADIENTS

        name = next(iter(three.one.steps[step].gradients), None)
        return Verdict(
            PARTS,
            self.nprocs,
            three.comparison.steps,
            step=step + 1,
            stage=GRADIENTS,
            parameter=name,
            module=three.ranks[0].modules.get(name or "", ""),
            factor=float(pieces),
            cause="accumulation undivided",
            why=f"all gradients are {pieces:.2f} times too large: the mean losses of {pieces} "
            f"batches are added up, and one process with the {pieces} batches as one takes their "
            "mean",
            way_out=f"divide each loss by {pieces} before backward(); where the batches are "
            "unequal, divide sums by the count of all",
            notes=tuple(self.notes),
        )


# known by what was seen to be there, not by what it did: what another run can tell goes first
WEAK = {
    "gradients scaled",
    "random draws",
    "comm hook",
    "order in a batch",
    "no gradient through a collective",
}


def _short(error: LaunchError) -> str:
    """Its report, without the way to a traceback that is gone by then."""
    lines = str(error.args[0] if error.args else error).splitlines()
    return "\n  ".join(line for line in lines if not line.startswith("full traceback"))
