"""What training and evaluation return: plain records, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainMetrics:
    """One epoch of training, over all ranks."""

    loss: float
    """Mean over the samples, measured as the weights changed."""
    samples: float
    """Or tokens, or weights: what the loss counts."""
    seconds: float
    """Of the slowest rank."""

    @property
    def samples_per_second(self) -> float:
        """All ranks together."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class EvalMetrics:
    """One evaluation, over all ranks: each sample counted as often as the loaders gave it."""

    loss: float
    correct: int | None
    """None where nothing is classified."""
    samples: float
    """Or tokens, or weights: what the loss counts; of a classification the labels that count."""
    metrics: dict[str, float] = field(default_factory=dict, hash=False)
    """What `metrics` gave, each sum divided by its count."""

    @property
    def accuracy(self) -> float | None:
        """From 0 to 1; None where nothing is classified."""
        return None if self.correct is None else self.correct / self.samples


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; the same on every rank."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    test_loss: float
    test_accuracy: float | None
    """From 0 to 1; None where nothing is classified."""
    samples_per_second: float
    """In training, all ranks together."""
    seconds: float
    """Of training and evaluation."""
    world_size: int
    metrics: dict[str, float] = field(default_factory=dict, hash=False)
    """On the held-out data, by name: what `metrics` gave."""
