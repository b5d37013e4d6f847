"""Stop when the loss no longer falls. `fit` lets all ranks stop in the same epoch."""

from __future__ import annotations

from typing import TypedDict

from ddp_helpers.arguments import check_least, check_whole


class EarlyStopState(TypedDict):
    best: float
    waited: int


class EarlyStop:
    """Counts the epochs since the last better loss.

    Args:
        patience: epochs in a row without a better loss after which to stop, at least 1.
        min_delta: a loss is better only if it is lower by more than this.

    Raises:
        ValueError: patience below 1, or min_delta below 0.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        check_whole("patience", patience, least=1)
        check_least("min_delta", min_delta, 0)
        self.patience, self.min_delta = patience, min_delta
        self.best = float("inf")
        self.waited = 0

    def update(self, loss: float) -> bool:
        """Take note of a loss; True if this rank would stop now. A NaN is never better."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return self.done

    @property
    def done(self) -> bool:
        """True once `patience` epochs have passed without a better loss."""
        return self.waited >= self.patience

    def state_dict(self) -> EarlyStopState:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: EarlyStopState) -> None:
        self.best, self.waited = state["best"], state["waited"]
