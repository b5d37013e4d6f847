"""Puts together the checks of weights, gradients, optimisers and DDP's own communication."""

from __future__ import annotations

from ddp_helpers.sanitizer.collectives import CollectiveChecker
from ddp_helpers.sanitizer.ddp_calls import DdpCalls
from ddp_helpers.sanitizer.ddp_compare import DdpComparison
from ddp_helpers.sanitizer.gradients import GradientChecker
from ddp_helpers.sanitizer.loading import LoadingChecker
from ddp_helpers.sanitizer.lost_gradient import LostGradientChecker
from ddp_helpers.sanitizer.session import Session
from ddp_helpers.sanitizer.training_events import TrainingEvents
from ddp_helpers.sanitizer.unwrapped import UnwrappedChecker
from ddp_helpers.sanitizer.weights import WeightsChecker
from ddp_helpers.sanitizer.wrapped import Registry


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
