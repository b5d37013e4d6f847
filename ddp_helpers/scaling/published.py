"""Two published scaling tables, and what the cost model makes of them.

    for run in PUBLISHED:
        print(run.explain())

Fitted is the time of a sample, to one GPU. Where a run takes seconds, what does not shrink with
ranks (start-up and first batches) is fitted, too, to the last published time. The other times are
predicted. All else is taken from the source, or assumed and listed in `assumed`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ddp_helpers.scaling.records import Link, Machine, Setup, Work
from ddp_helpers.scaling.step_time import predict

RESNET50_PARAMETERS, RESNET50_TENSORS = 25_557_032, 161  # torchvision's resnet50


@dataclass(frozen=True)
class PublishedRun:
    """A published table: one training at several numbers of ranks, and how it is modelled."""

    name: str
    source: str
    published: dict[int, float]
    """Seconds by number of ranks."""
    unit: str
    """In which the source gives them: "min" or "s"."""
    machine: Machine
    work: Work
    """Its seconds_per_sample is a start value only; `fitted` finds the real one."""
    batch_size_per_rank: int
    samples: int
    """Of one epoch."""
    epochs: int
    assumed: tuple[str, ...]
    """What the source does not say."""
    starts: bool = False
    """Fit a constant time, too: the run is so short that its start counts."""
    verdict: str = ""
    """What the model does not explain."""

    def fitted(self) -> tuple[Work, float]:
        """(work, constant seconds) that give the first published time; if `starts`, the last."""
        first, last = min(self.published), max(self.published)
        if not self.starts:
            batches = self._steps(first) * self.batch_size_per_rank
            per_sample = self.published[first] / batches
            return dataclasses.replace(self.work, seconds_per_sample=per_sample), 0.0
        work, constant = self.work, 0.0
        for _ in range(20):  # what stays exposed changes a little with the time of a sample
            steps = {n: self._steps(n) for n in (first, last)}
            rest = {n: steps[n] * self._waiting(work, n) for n in (first, last)}
            rows = [(steps[n] * self.batch_size_per_rank, 1.0) for n in (first, last)]
            right = [self.published[n] - rest[n] for n in (first, last)]
            per_sample, constant = np.linalg.solve(rows, right)
            work = dataclasses.replace(self.work, seconds_per_sample=float(per_sample))
        return work, float(constant)

    def predicted(self) -> dict[int, float]:
        """Seconds by number of ranks, as the model has them."""
        work, constant = self.fitted()
        return {n: constant + self._steps(n) * self._step(work, n) for n in self.published}

    def step_seconds(self) -> dict[int, float]:
        """Published seconds of a step by number of ranks, all that is no step included."""
        return {n: seconds / self._steps(n) for n, seconds in self.published.items()}

    def explain(self) -> str:
        """A table of published and predicted times, with what was fitted and what was assumed."""
        work, constant = self.fitted()
        scale = 60 if self.unit == "min" else 1
        lines = [f"{self.name}\nsource: {self.source}", ""]
        lines += [f"{'ranks':>6}{'published':>12}{'model':>9}{'off':>8}   ({self.unit})"]
        ends = (min(self.published), max(self.published))[: 2 if self.starts else 1]
        for n, seconds in self.predicted().items():
            off = seconds / self.published[n] - 1
            note = "fitted" if n in ends else "predicted"
            times = f"{self.published[n] / scale:>12.2f}{seconds / scale:>9.2f}{off:>+8.1%}"
            lines.append(f"{n:>6}{times}   {note}")
        lines += [
            "",
            f"fitted, to the {'first and the last' if self.starts else 'first'} time only:",
        ]
        lines.append(
            f"  {1e3 * work.seconds_per_sample:.3f} ms a sample (one GPU, loading included)"
        )
        if self.starts:
            lines.append(f"  {constant:.1f} s that do not shrink with ranks")
        lines += ["assumed:", *(f"  {text}" for text in self.assumed)]
        lines += ["not explained:", f"  {self.verdict}"] if self.verdict else []
        return "\n".join(lines)

    def _steps(self, ranks: int) -> float:
        return self.epochs * float(np.ceil(self.samples / (ranks * self.batch_size_per_rank)))

    def _step(self, work: Work, ranks: int) -> float:
        setup = Setup(ranks=ranks, batch_size_per_rank=self.batch_size_per_rank)
        return float(predict(self.machine, work, setup).step.value)

    def _waiting(self, work: Work, ranks: int) -> float:
        """Seconds of a step that are not computing on samples."""
        return self._step(work, ranks) - work.seconds_per_sample * self.batch_size_per_rank


JUELICH = PublishedRun(
    name="ResNet50 on ImageNet, 10 epochs, at Juelich",
    source=(
        "A. Strube and S. Benassou, Bringing Deep Learning Workloads to JSC supercomputers, "
        "Parallelize Training, 25 June 2024: `real` after each sbatch script; "
        "https://github.com/javak87/2025-06-course-Bringing-Deep-Learning-Workloads-to-JSC-"
        "supercomputers, 03-parallelize-training.md"
    ),
    published={1: 20531.9, 4: 5355.9, 16: 1488.2, 32: 790.7, 64: 416.5, 128: 288.3},
    unit="min",
    machine=Machine(
        "JURECA-DC, 4 A100 a node",
        Link("NVLink 3", latency=1e-5, bandwidth=2e11, source="assumed"),
        network=Link("2 x InfiniBand HDR", latency=2e-5, bandwidth=4e10, source="assumed"),
        ranks_per_node=4,
    ),
    work=Work("ResNet50", RESNET50_PARAMETERS, seconds_per_sample=1.6e-3, tensors=RESNET50_TENSORS),
    batch_size_per_rank=256,
    samples=1_281_167,
    epochs=10,
    assumed=(
        "25.6 million float32 gradients, as torchvision's resnet50 has them",
        "256 samples a rank (the slides also show 128), 1,281,167 images an epoch",
        "links: 200 GB/s and 10 us inside a node, 40 GB/s and 20 us a node between nodes, which "
        "is about 80 % of two 200 Gbit/s ports",
        "ring all-reduce, DDP's default buckets, two thirds of the computing is backward",
        "loading keeps up as well on many nodes as on one; no stragglers, no contention",
    ),
    verdict=(
        "the table takes longer than the model on 4 to 128 GPUs, by 3.6, 3.3, 2.4, 1.5 and 2.1 "
        "min: less with more GPUs, so it is no fixed time; a step takes 4, 16, 23, 28 and 75 % "
        "longer. Messages should hide behind the backward. Files that more "
        "and more nodes read at once would look so, and stragglers; the table can't tell"
    ),
)

AI_SUMMER = PublishedRun(
    name="ResNet50 on CIFAR10, one epoch, by The AI Summer",
    source="https://github.com/The-AI-Summer/pytorch-ddp, README.md and train_ddp.py",
    published={1: 13.08, 2: 9.79, 4: 6.11},
    unit="s",
    machine=Machine(
        "one machine with 4 GPUs",
        Link("PCIe 3.0 x16", latency=2e-5, bandwidth=1e10, source="assumed"),
        step_overhead=5e-3,
    ),
    work=Work("ResNet50", RESNET50_PARAMETERS, seconds_per_sample=2e-4, tensors=RESNET50_TENSORS),
    batch_size_per_rank=256,
    samples=50_000,
    epochs=1,
    assumed=(
        "25.6 million float32 gradients, as torchvision's resnet50 has them",
        "256 samples a rank, as in the first version of train_ddp.py (a later one has 64)",
        "link: PCIe 3.0 x16 with 10 GB/s and 20 us; the GPUs are not named",
        "5 ms a step for SyncBatchNorm, which the script turns on: 53 layers, 2 small "
        "collectives each, about 50 us a collective",
        "ring all-reduce, DDP's default buckets, two thirds of the computing is backward",
        "the constant: starting 10 loader processes a rank and the GPU's first batches",
    ),
    starts=True,
)

PUBLISHED = (JUELICH, AI_SUMMER)
