"""Puts together the checks of weights, gradients, optimisers and DDP's own communication."""

from __future__ import annotations

from ddp_helpers.sanitizer.checks.collectives import CollectiveChecker
from ddp_helpers.sanitizer.checks.ddp_compare import DdpComparison
from ddp_helpers.sanitizer.checks.gradients import GradientChecker
from ddp_helpers.sanitizer.checks.loading import LoadingChecker
from ddp_helpers.sanitizer.checks.lost_gradient import LostGradientChecker
from ddp_helpers.sanitizer.checks.unwrapped import UnwrappedChecker
from ddp_helpers.sanitizer.checks.weights import WeightsChecker
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.ddp_calls import DdpCalls
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
