"""Puts the checks together, in the order in which they must be told."""

from __future__ import annotations

from ddp_helpers.sanitizer.checks.checkpoints import CheckpointChecker
from ddp_helpers.sanitizer.checks.collectives import CollectiveChecker
from ddp_helpers.sanitizer.checks.data_checks import Peers, ShareChecker
from ddp_helpers.sanitizer.checks.ddp_compare import DdpComparison
from ddp_helpers.sanitizer.checks.epochs import EpochChecker
from ddp_helpers.sanitizer.checks.evaluations import EvaluationChecker
from ddp_helpers.sanitizer.checks.first_steps import FirstStepsChecker
from ddp_helpers.sanitizer.checks.gradients import GradientChecker
from ddp_helpers.sanitizer.checks.loading import LoadingChecker
from ddp_helpers.sanitizer.checks.lost_gradient import LostGradientChecker
from ddp_helpers.sanitizer.checks.slow import SlowChecker
from ddp_helpers.sanitizer.checks.start import StartChecker
from ddp_helpers.sanitizer.checks.unwrapped import UnwrappedChecker
from ddp_helpers.sanitizer.checks.weights import WeightsChecker
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.ddp_calls import DdpCalls
from ddp_helpers.sanitizer.watch.order import Order
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry


def watch_training(
    session: Session, events: TrainingEvents, calls: CollectiveChecker
) -> WeightsChecker:
    """Begin to watch; the order matters: DDP's calls come first at each moment."""
    registry = Registry()
    DdpCalls(session, events, calls.sequence, registry)
    weights = WeightsChecker(session, events, registry)
    comparison = DdpComparison(session, weights.before_backward)
    GradientChecker(session, events, registry)
    LoadingChecker(session, registry)
    lost = LostGradientChecker(session, events)
    unwrapped = UnwrappedChecker(session, events, registry)
    calls.joining = lambda: events.joining > 0
    calls.listeners += [lost.call_begins, unwrapped.call_begins]
    calls.explain.append(comparison.compare)
    calls.sequence.explain_end = comparison.explain_end
    return weights


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
