"""The training loop and its parts, on any number of ranks. Nothing here starts a process."""

from ddp_helpers.training.digits import train_mnist_5k
from ddp_helpers.training.evaluation import evaluate
from ddp_helpers.training.loop import fit, train_one_epoch
from ddp_helpers.training.records import EpochRecord, EvalMetrics, TrainMetrics

__all__ = [
    "EpochRecord",
    "EvalMetrics",
    "TrainMetrics",
    "evaluate",
    "fit",
    "train_mnist_5k",
    "train_one_epoch",
]
