# ruff: noqa: PT012
"""Ctrl-C is noted, and happens where it is let in."""

import signal
import subprocess
import sys
import threading

import pytest

from ddp_helpers.ranks.interrupts import HeldInterrupts, interrupts_blocked


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def same_handler_afterwards():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_nothing_happens_until_it_is_let_in():
    done = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        press()
        done.append("the work goes on")
        held.deliver()
        done.append("never")
    assert done == ["the work goes on"]


def test_at_the_end_of_the_block_it_happens():
    with pytest.raises(KeyboardInterrupt), HeldInterrupts():
        press()


def test_an_error_on_its_way_is_not_replaced():
    with pytest.raises(ValueError, match="planned"), HeldInterrupts():
        press()
        raise ValueError("planned")


def test_the_second_one_does_not_break_the_clean_up_of_the_first():
    cleaned = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        try:
            press()
            held.deliver()
        finally:
            press()
            cleaned.append(True)
    assert cleaned == [True]


def test_who_presses_three_times_is_let_in_at_once():
    with pytest.raises(KeyboardInterrupt), HeldInterrupts():
        press()
        press()
        press()
        pytest.fail("the third one was held back, too")


def test_a_handler_of_the_readers_own_is_called():
    calls = []
    signal.signal(signal.SIGINT, lambda *args: calls.append(args[0]))
    with HeldInterrupts() as held:
        press()
        assert calls == []
        held.deliver()
    assert calls == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_another_thread_there_is_nothing_to_hold():
    def hold():
        with HeldInterrupts() as held:
            handlers.append(signal.getsignal(signal.SIGINT))
            held.deliver()
        handlers.append(signal.getsignal(signal.SIGINT))

    handlers = []
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] * 2


def test_where_it_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with HeldInterrupts() as held:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # so ranks inherit it, too
        press()
        held.deliver()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_where_it_kills_it_still_kills():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with HeldInterrupts():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_DFL


def test_one_that_was_let_in_does_not_come_again():
    calls = []
    signal.signal(signal.SIGINT, lambda *args: calls.append(args))
    with HeldInterrupts() as held:
        press()
        held.deliver()
        held.deliver()
    assert [number for number, _ in calls] == [signal.SIGINT]
    assert calls[0][1] is not None  # where it struck
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_child_started_meanwhile_does_not_hear_it():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with interrupts_blocked():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
