"""All that watches one process, made but not connected: no constructor patches or registers."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_helpers.sanitizer.checks.async_calls import AsyncChecker
from ddp_helpers.sanitizer.checks.checkpoints import CheckpointChecker
from ddp_helpers.sanitizer.checks.collectives import CollectiveChecker
from ddp_helpers.sanitizer.checks.data_checks import Peers, ShareChecker
from ddp_helpers.sanitizer.checks.epochs import EpochChecker
from ddp_helpers.sanitizer.checks.evaluations import EvaluationChecker
from ddp_helpers.sanitizer.checks.first_steps import FirstStepsChecker
from ddp_helpers.sanitizer.checks.gradients import GradientChecker
from ddp_helpers.sanitizer.checks.kept_gradients import KeptGradientChecker
from ddp_helpers.sanitizer.checks.leaks import LeakChecker
from ddp_helpers.sanitizer.checks.loading import LoadingChecker
from ddp_helpers.sanitizer.checks.lost_gradient import LostGradientChecker
from ddp_helpers.sanitizer.checks.modes import ModeChecker
from ddp_helpers.sanitizer.checks.numbers import NumbersChecker
from ddp_helpers.sanitizer.checks.sharded import ShardedChecker
from ddp_helpers.sanitizer.checks.slow import SlowChecker
from ddp_helpers.sanitizer.checks.start import StartChecker
from ddp_helpers.sanitizer.checks.summands import SummandChecker
from ddp_helpers.sanitizer.checks.unchanged import UnchangedChecker
from ddp_helpers.sanitizer.checks.unwrapped import UnwrappedChecker
from ddp_helpers.sanitizer.checks.weights import WeightsChecker
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.ddp_calls import DdpCalls
from ddp_helpers.sanitizer.watch.local_gradients import LocalGradients
from ddp_helpers.sanitizer.watch.order import Order
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry


@dataclass(frozen=True)
class Parts:
    """Everything that watches one process."""

    session: Session
    events: TrainingEvents
    passes: PassRecorder
    order: Order
    registry: Registry
    calls: CollectiveChecker
    ddp: DdpCalls
    weights: WeightsChecker
    gradients: GradientChecker
    loading: LoadingChecker
    lost: LostGradientChecker
    modes: ModeChecker
    sharded: ShardedChecker
    summands: SummandChecker
    unwrapped: UnwrappedChecker
    start: StartChecker
    peers: Peers
    epochs: EpochChecker
    shares: ShareChecker
    first_steps: FirstStepsChecker
    evaluations: EvaluationChecker
    slow: SlowChecker
    checkpoints: CheckpointChecker
    local: LocalGradients
    numbers: NumbersChecker
    unchanged: UnchangedChecker
    kept: KeptGradientChecker
    asynchronous: AsyncChecker
    leaks: LeakChecker


def make(session: Session) -> Parts:
    """The parts, which nobody tells of anything yet."""
    events, passes, order = TrainingEvents(session), PassRecorder(session), Order(session)
    registry, calls, peers = Registry(), CollectiveChecker(session), Peers(session)
    local = LocalGradients(session, registry)
    return Parts(
        session,
        events,
        passes,
        order,
        registry,
        calls,
        DdpCalls(session, events, calls.sequence, registry, passes),
        WeightsChecker(session, events, registry),
        GradientChecker(session, events, registry),
        LoadingChecker(session, registry),
        LostGradientChecker(session),
        ModeChecker(session, registry),
        ShardedChecker(session),
        SummandChecker(session),
        UnwrappedChecker(session, events, registry, passes),
        StartChecker(session),
        peers,
        EpochChecker(session, passes),
        ShareChecker(session, peers),
        FirstStepsChecker(session, passes, peers),
        EvaluationChecker(session),
        SlowChecker(session),
        CheckpointChecker(session, order),
        local,
        NumbersChecker(session, registry, local),
        UnchangedChecker(session, registry),
        KeptGradientChecker(session),
        AsyncChecker(session),
        LeakChecker(session),
    )
