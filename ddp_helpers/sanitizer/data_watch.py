"""Puts together the checks of data, random numbers, checkpoints, the start and speed."""

from __future__ import annotations

from ddp_helpers.sanitizer.checks.checkpoints import CheckpointChecker
from ddp_helpers.sanitizer.checks.data_checks import Peers, ShareChecker
from ddp_helpers.sanitizer.checks.epochs import EpochChecker
from ddp_helpers.sanitizer.checks.evaluations import EvaluationChecker
from ddp_helpers.sanitizer.checks.first_steps import FirstStepsChecker
from ddp_helpers.sanitizer.checks.slow import SlowChecker
from ddp_helpers.sanitizer.checks.start import StartChecker
from ddp_helpers.sanitizer.checks.weights import WeightsChecker
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.order import Order
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents


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
