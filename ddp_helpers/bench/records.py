"""What `bench` asks of its ranks, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ddp_helpers.timeline.records import RankTimeline


@dataclass(frozen=True)
class Change:
    """What is different from the function as it stands; by default nothing."""

    batch_factor: int = 1
    """Times the batch size of each DataLoader."""
    accumulate: int = 1
    """Average the gradients in every n-th step only."""
    bucket_cap_mb: float | None = None
    gradient_as_bucket_view: bool | None = None
    compress: bool = False
    """Send bfloat16."""
    num_workers: int | None = None
    threads_per_rank: int | None = None

    @property
    def parts(self) -> set[str]:
        """Names of the fields that are not as they are by default."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        texts = {
            "batch_factor": f"a batch {self.batch_factor} times as big on each rank",
            "accumulate": f"average the gradients every {self.accumulate} batches (no_sync)",
            "bucket_cap_mb": f"DistributedDataParallel(..., bucket_cap_mb={self.bucket_cap_mb:g})"
            if self.bucket_cap_mb
            else "",
            "gradient_as_bucket_view": "DistributedDataParallel(..., gradient_as_bucket_view="
            f"{self.gradient_as_bucket_view})",
            "compress": "a hook that sends bfloat16 (ddp.register_comm_hook)",
            "num_workers": f"DataLoader(..., num_workers={self.num_workers})",
            "threads_per_rank": f"{self.threads_per_rank} CPU threads a rank (OMP_NUM_THREADS)",
        }
        return ", ".join(texts[name] for name in texts if name in self.parts) or "as it is"


@dataclass(frozen=True)
class Job:
    """What each rank of a run measures."""

    target: str
    """path/script.py:function, or with `is_model` a factory there or in a module."""
    is_model: bool = False
    batch_size: int = 32
    """For a model; a function has its own."""
    backend: str | None = None
    """For a model; by default what fits each number of ranks."""
    steps: int = 20
    profile: bool = True
    change: Change = Change()


@dataclass(frozen=True)
class Measured:
    """What one rank measured."""

    rank: int
    seconds: float
    """Of a step, the mean of the timed ones."""
    samples: float
    """Of this rank in a step, the mean."""
    timeline: RankTimeline | None
    unused: tuple[str, ...] = ()
    """Parts of the change for which the function gave no occasion."""
