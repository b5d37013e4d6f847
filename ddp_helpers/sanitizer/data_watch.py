"""Puts together the checks of data, random numbers, checkpoints, the start and speed."""

from __future__ import annotations

from ddp_helpers.sanitizer.checkpoints import CheckpointChecker
from ddp_helpers.sanitizer.data_checks import Peers, ShareChecker
from ddp_helpers.sanitizer.epochs import EpochChecker
from ddp_helpers.sanitizer.evaluations import EvaluationChecker
from ddp_helpers.sanitizer.first_steps import FirstStepsChecker
from ddp_helpers.sanitizer.order import Order
from ddp_helpers.sanitizer.passes import PassRecorder
from ddp_helpers.sanitizer.session import Session
from ddp_helpers.sanitizer.slow import SlowChecker
from ddp_helpers.sanitizer.start import StartChecker
from ddp_helpers.sanitizer.training_events import TrainingEvents
from ddp_helpers.sanitizer.weights import WeightsChecker


def watch_data(session: Session, events: TrainingEvents, weights: WeightsChecker) -> None:
    """Add these checks to a session; `weights` looks once more at the end of a pass."""
    StartChecker(session)
    passes, peers = PassRecorder(session, events), Peers(session, events)
    passes.on_end.append(weights.pass_ends)
    EpochChecker(session, events, passes)
    ShareChecker(session, passes, peers)
    FirstStepsChecker(session, events, passes, peers)
    EvaluationChecker(session, passes)
    SlowChecker(session, events, passes)
    CheckpointChecker(session, Order(session, events))
