"""What training and evaluation return: plain records, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainMetrics:
    """One epoch of training, over all ranks."""

    loss: float
    """Mean over the samples, measured as the weights changed."""
    samples: int
    """Or tokens, where the loss counts these."""
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
    correct: int
    samples: int
    """Or tokens, where the loss counts these."""

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.samples


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; the same on every rank."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    test_loss: float
    test_accuracy: float
    """From 0 to 1."""
    samples_per_second: float
    """In training, all ranks together."""
    seconds: float
    """Of training and evaluation."""
    world_size: int
