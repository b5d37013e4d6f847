"""Puts the checks together, and states in one place in which order they are told.

No constructor registers a callback or patches torch: both happen here, from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from ddp_helpers.evidence.records import Watched
from ddp_helpers.sanitizer.checks.ddp_compare import DdpComparison
from ddp_helpers.sanitizer.checks.numbers import is_finite
from ddp_helpers.sanitizer.parts import Parts, make
from ddp_helpers.sanitizer.talk.session import Session

P = ParamSpec("P")


def watch(session: Session) -> Parts:
    """Begin to watch this process."""
    parts = make(session)
    put_patches(parts)
    connect(parts)
    return parts


def put_patches(parts: Parts) -> None:
    """Stand in for torch's functions; where two parts take one, the later is called first."""
    p = parts
    puts: list[Callable[[], None]] = []
    _fill(
        p.session,
        puts,
        # first, so that it is called last and gets what the call returns
        ("asynchronous calls", p.asynchronous.put_patches),
        ("collectives", p.calls.put_patches),
        ("DDP's communication", p.events.put_patches),
        ("loading", p.loading.put_patches),
        ("unwrapped models", p.unwrapped.put_patches),
        ("data", p.passes.put_patches),
        ("shuffles", p.epochs.put_patches),
        ("workers", p.first_steps.workers.put_patches),
        # of a sum that ends an evaluation its cause is told, before ranks are compared
        ("evaluation", p.evaluations.put_patches),
        ("clipping", p.sharded.put_patches),
        # counts a collective as come to before the comparison of it may end the run
        ("order", p.order.put_patches),
        ("checkpoints", p.checkpoints.put_patches),
    )
    for put in puts:
        put()


def connect(parts: Parts) -> None:
    """Fill all lists of callbacks, in the order in which they are called."""
    session, passes, sequence = parts.session, parts.passes, parts.calls.sequence
    session.looked_at = lambda: Watched(
        steps=session.step, passes=passes.trained, calls=sequence.made
    )
    _connect_session(parts)
    _connect_events(parts)
    _connect_passes(parts)
    _connect_calls(parts)


def _connect_session(parts: Parts) -> None:
    p, session = parts, parts.session
    session.on_fault |= {
        "collectives": p.calls.sequence.give_up,
        "DDP's communication": p.calls.sequence.give_up,
        "weights": p.weights.give_up,
    }
    # not guarded: also a check that is out of action must forget
    session.on_group += [
        p.calls.forget_all,
        p.registry.forget_all,
        p.weights.forget,
        p.unwrapped.ledger.forget_all,
        p.passes.forget_all,
        p.peers.forget,
        p.epochs.forget,
        p.shares.exchange.forget_all,
        p.shares.forget,
        p.first_steps.exchange.forget_all,
        p.first_steps.restart,
        p.evaluations.forget,
        p.slow.forget,
        p.order.reset,
        p.modes.forget,
        p.checkpoints.forget,
        p.local.forget,
        p.numbers.forget,
        p.unchanged.forget,
        p.kept.forget,
        p.asynchronous.forget,
        p.leaks.forget,
    ]
    # may end the run, so all the others have begun anew
    _fill(session, session.on_group, ("the start", p.start.look))
    _fill(
        session,
        session.at_end,
        # it asks for the pass that is still open
        ("first steps", p.first_steps.at_end),
        ("DDP's communication", p.ddp.at_end),
        # the cause of a missing rank's call comes before what its absence leads to
        ("collectives", p.calls.sequence.look_at_pending),
        ("collectives", p.calls.at_end),
        ("weights", p.weights.at_end),
        ("unwrapped models", p.unwrapped.at_end),
        # this ends open passes, whose shares are left then
        ("data", p.passes.close_all),
        ("shares", p.shares.leave),
        ("speed", p.slow.at_end),
        ("unchanged weights", p.unchanged.at_end),
        ("asynchronous calls", p.asynchronous.at_end),
        ("leaks", p.leaks.at_end),
    )
    _fill(
        session,
        session.at_last,
        ("step", p.weights.ledger.finish),
        ("pass", p.weights.ends.finish),
        ("loose", p.unwrapped.ledger.finish),
        ("shares", p.shares.exchange.finish),
        ("first-steps", p.first_steps.exchange.finish),
        ("evaluation", p.evaluations.decide),
        ("speed", p.slow.at_last),
        ("leaks", p.leaks.at_last),
        # then tell_notes_once(), which needs all notes
    )


def _connect_events(parts: Parts) -> None:
    """DDP's calls come first at each moment: they make sure that all ranks are there."""
    p, events, session = parts, parts.events, parts.session
    ddp, order = "DDP's communication", "order"
    _fill(session, events.before_wrap, (ddp, p.ddp.wrapping))
    _fill(
        session,
        events.after_wrap,
        (ddp, p.ddp.wrapped),
        ("groups", p.peers.wrapped),
        ("local gradients", p.local.wrapped),
        ("speed", p.slow.wrapped),
        (order, p.order.wrapped),
    )
    _fill(
        session,
        events.before_forward,
        (ddp, p.ddp.forward_begins),
        ("first steps", p.first_steps.forward),
        ("speed", p.slow.forward),
        (order, p.order.forward),
    )
    _fill(
        session,
        events.after_forward,
        (ddp, p.ddp.forward_ends),
        ("first steps", p.first_steps.forward_ended),
    )
    _fill(
        session,
        events.before_backward,
        (ddp, p.ddp.backward_begins),  # finds the models that the others ask about
        ("unused parameters", p.gradients.backward_begins),
        ("lost gradients", p.lost.backward_begins),
        ("summands", p.summands.backward_begins),
        ("modes", p.modes.backward_begins),
        ("local gradients", p.local.backward_begins),
        ("kept gradients", p.kept.backward_begins),
        ("data", p.passes.went_back),
    )
    _fill(
        session,
        events.after_backward,
        (ddp, p.ddp.backward_ends),
        ("unused parameters", p.gradients.backward_ends),
        ("unwrapped models", p.unwrapped.went_back),
        ("sharded parameters", p.sharded.went_back),
        ("local gradients", p.local.went_back),
        ("kept gradients", p.kept.went_back),
        ("unchanged weights", p.unchanged.went_back),
        (order, p.order.went_back),
    )
    _fill(
        session,
        events.before_step,
        ("weights", p.weights.step_begins),  # before the step, as its gradients are the cause
        ("accumulation", p.gradients.accumulation),
        ("late parameters", p.gradients.late_parameters),
        ("unwrapped models", p.unwrapped.step_begins),
        ("sharded parameters", p.sharded.step_begins),
        ("asynchronous calls", p.asynchronous.step_begins),
        ("numbers", p.numbers.step_begins),
        ("kept gradients", p.kept.step_begins),
        ("shuffles", p.epochs.stepping),
        ("speed", p.slow.stepping),
    )
    _fill(
        session,
        events.after_step,
        (ddp, p.ddp.stepped),  # counts the step, under whose number the weights are kept
        ("weights", p.weights.step_ends),
        ("unchanged weights", p.unchanged.step_ends),
        ("kept gradients", p.kept.step_ends),
        ("lost gradients", p.lost.step_ends),
        ("summands", p.summands.step_ends),
        ("unwrapped models", p.unwrapped.step_ends),
        ("data", p.passes.stepped),
        ("first steps", p.first_steps.stepped),
    )
    _fill(session, events.after_join, (ddp, p.ddp.joined))


def _connect_passes(parts: Parts) -> None:
    p, passes, session = parts, parts.passes, parts.session
    p.shares.are_together = p.leaks.are_together = p.unwrapped.are_together
    _fill(session, passes.on_start, ("shares", p.shares.next_begins))
    _fill(
        session,
        passes.on_begin,
        ("first steps", p.first_steps.arm),
        ("speed", p.slow.pass_begins),
    )
    _fill(session, passes.after_index, ("first steps", p.first_steps.index_drawn))
    _fill(
        session,
        passes.on_batch,
        ("first steps", p.first_steps.delivered),
        ("evaluation", p.evaluations.delivered),
    )
    _fill(
        session,
        passes.on_end,
        ("weights", p.weights.pass_ends),  # weights that differ are the cause of much else
        ("unchanged weights", p.unchanged.pass_ends),
        ("shuffles", p.epochs.ended),
        ("shares", p.shares.ended),
        ("leaks", p.leaks.ended),
    )


def _connect_calls(parts: Parts) -> None:
    p, calls, session = parts, parts.calls, parts.session
    calls.joining = lambda: p.events.joining > 0
    _fill(
        session,
        calls.listeners,
        ("lost gradients", p.lost.call_begins),
        ("summands", p.summands.call_begins),
        ("unwrapped models", p.unwrapped.call_begins),
        ("weights", p.weights.call_begins),
    )
    calls.sequence.doing = p.ddp.doing
    comparison = DdpComparison(session, session.guarded("weights", p.weights.before_backward))
    comparison.modes = session.guarded("modes", p.modes.compare)
    comparison.numbers = session.guarded("numbers", p.numbers.compare)
    p.ddp.finite = session.guarded("numbers", is_finite)
    p.ddp.norms = session.guarded("local gradients", p.local.norms)
    calls.explain.append(comparison.compare)
    calls.explain_ddp = comparison.explain_end
    calls.sequence.explain_end = calls.explain_end


def _fill(
    session: Session,
    callbacks: list[Callable[P, None]],
    *entries: tuple[str, Callable[P, None]],
) -> None:
    """Add callbacks, each with the name of the check that a fault of it puts out of action."""
    callbacks += [session.guarded(check, call) for check, call in entries]
