"""A whole launch, with small processes in the place of ranks."""

import json
import os
import pickle
import select
import signal
import threading
import time
from dataclasses import astuple

import pytest
from small_ranks import Child, Speaker
from test_launched import Recorder, is_alive

from ddp_helpers.evidence.records import RankError
from ddp_helpers.ranks import supervisor, wire
from ddp_helpers.ranks.launched import Events
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.supervisor import Ending, Supervisor


class Stoppable(Recorder):
    """A view whose stop button is pressed after so many looks."""

    def __init__(self, after=10**9):
        super().__init__()
        self.looks_left = after

    def is_stop_asked(self):
        self.looks_left -= 1
        return self.looks_left < 0


class Launch:
    """Runs `main(speaker)` on each rank, and keeps what became of it."""

    def __init__(self, monkeypatch):
        self.children = []
        self.asked = None
        self.before = lambda: None
        monkeypatch.setattr(supervisor, "start_processes", self.start)

    def start(self, nprocs, address, start_method):
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.asked, self.address = (nprocs, start_method, blocked), address
        self.before()
        for number in range(nprocs):
            self.children.append(Child(lambda number=number: self.main(number, address)))
        return self.children

    def __call__(self, main, nprocs=2, timeout=30.0, view=None, speaks=True, **job):
        def speak(number, address):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            return main(Speaker(number, address) if speaks else None, number)

        self.main = speak
        job = Job(b"", nprocs, {}, "/", [], 1, **job)
        self.files_before = open_files()
        self.supervisor = Supervisor(job, "spawn", timeout, view)
        self.results = self.supervisor.run()
        return self.results, self.supervisor.ending


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def launch(monkeypatch):
    one = Launch(monkeypatch)
    yield one
    for child in one.children:
        child.end()


def test_ranks_that_return(launch):
    def main(rank, number):
        rank.prints(f"rank {number}\n")
        return rank.leaves(value=pickle.dumps(number * 10))

    view, before = Recorder(), time.monotonic()
    view.is_stop_asked = lambda: False
    results, ending = launch(main, view=view)
    assert ending is Ending.ALL_ENDED
    assert [result.value for result in results] == [0, 10]
    assert [result.output for result in results] == ["rank 0\n", "rank 1\n"]
    assert all(result.ok for result in results)
    assert 0 < launch.supervisor.seconds <= time.monotonic() - before
    assert launch.asked == (2, "spawn", True)
    names = [name for name, *_ in view.told]
    assert names[-1] == "close"
    assert names.count("close") == 1
    assert "tick" in names
    assert all(child.closed for child in launch.children)
    assert open_files() == launch.files_before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_ranks_last_calls_are_read_however_it_ended(launch):
    def main(rank, number):
        told = ["0 of 2", "float32 (5,)", None]
        calls = [[n, "all_reduce", "/tmp/c.py", n, "train", *told] for n in (3, 2)]
        os.pwrite(rank.files.last_call, json.dumps(calls).encode(), 0)
        return rank.leaves() if number else os._exit(3)

    results, _ = launch(main, names={"/tmp/c.py": "cell In[4]"})
    for result in results:
        call = result.last_call
        assert str(call) == "all_reduce (its call number 3) at cell In[4], line 3, in train"
        assert (call.group, call.tensors, call.peer) == ("0 of 2", "float32 (5,)", None)
        assert [each.number for each in call.before] == [2]


def test_each_rank_reads_the_job(launch):
    def main(rank, number):
        job = wire.read_job(rank.files.job)
        return rank.leaves(value=pickle.dumps((job.nprocs, job.argv, number)))

    results, _ = launch(main, nprocs=3)
    assert [result.value for result in results] == [(3, [], number) for number in range(3)]


def test_ranks_that_call_in_another_order_get_their_own_files(launch):
    def main(_, number):
        time.sleep(0.02 * (2 - number))
        rank = Speaker(number, launch.address)
        rank.prints(str(number))
        return rank.leaves(value=pickle.dumps(number))

    results, _ = launch(main, nprocs=3, speaks=False)
    assert [(r.value, r.output) for r in results] == [(n, f"{n}\n") for n in range(3)]


def test_one_that_fails_ends_the_others(launch, monkeypatch):
    looked = []
    monkeypatch.setattr(supervisor, "take_stacks", lambda ranks, *_: looked.append(len(ranks)))

    def main(rank, number):
        if number == 1:
            error = RankError("ValueError", "bad", "trace")
            return rank.leaves(error=error, exit_code=1)
        time.sleep(60)

    started = time.monotonic()
    results, ending = launch(main)
    took = time.monotonic() - started
    assert ending is Ending.FAILED
    assert looked == [1]
    assert (results[1].exit_code, results[1].error.message) == (1, "bad")
    assert (results[0].exit_code, results[0].returned) == (None, False)
    assert supervisor.GRACE_AFTER_FAILURE < took < 20
    assert not any(is_alive(child.pid) for child in launch.children)


def test_a_view_that_breaks_leaves_no_rank_and_no_file(launch):
    def main(rank, number):
        while True:
            rank.prints("on and on\n")

    class Broken(Recorder):
        def output(self, *_):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        launch(main, view=Broken())
    assert not any(is_alive(child.pid) for child in launch.children)
    assert open_files() == launch.files_before


def test_another_failure_within_the_grace_is_heard(launch):
    def main(rank, number):
        time.sleep(0.03 * number)
        return rank.leaves(error=RankError("E", str(number), ""), exit_code=1)

    results, ending = launch(main)
    assert ending is Ending.ALL_ENDED  # both came to an end of their own
    assert [result.error.message for result in results] == ["0", "1"]


def test_one_that_dies_at_once(launch):
    def main(rank, number):
        if number == 0:
            os._exit(3)
        _rank = Speaker(number, launch.address)
        time.sleep(60)

    results, ending = launch(main, speaks=False)
    assert ending is Ending.FAILED
    assert [result.exit_code for result in results] == [3, None]


def test_one_that_is_gone_before_its_files_come(launch):
    def main(_, number):
        os.setsid()
        wire.call(launch.address, number).close()
        os._exit(5)

    results, _ = launch(main, nprocs=1, speaks=False)
    assert [result.exit_code for result in results] == [5]
    assert open_files() == launch.files_before


def test_the_limit(launch, monkeypatch):
    looked = []
    monkeypatch.setattr(supervisor, "take_stacks", lambda ranks, *_: looked.append(len(ranks)))
    started = time.monotonic()
    results, ending = launch(lambda *_: time.sleep(60), timeout=0.15)
    assert ending is Ending.TIMED_OUT
    assert 0.15 < time.monotonic() - started < 20
    assert looked == [2]
    assert [result.exit_code for result in results] == [None, None]


def test_at_the_limit_one_that_has_returned_is_not_late(launch):
    def main(rank, number):
        rank.leaves(value=pickle.dumps(1))
        time.sleep(60)

    results, ending = launch(main, timeout=0.15)
    assert ending is Ending.ALL_ENDED
    assert [result.value for result in results] == [1, 1]
    assert [result.exit_code for result in results] == [0, 0]


def test_one_that_returned_and_does_not_end(launch, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_AFTER_OUTCOME", 0.1)

    def main(rank, number):
        rank.leaves(value=pickle.dumps(1))
        if number:
            time.sleep(60)

    started = time.monotonic()
    results, ending = launch(main)
    assert ending is Ending.ALL_ENDED
    assert 0.1 < time.monotonic() - started < 20
    assert all(result.ok for result in results)


def test_one_that_returned_may_take_its_time_to_end(launch):
    def main(rank, number):
        rank.leaves(value=pickle.dumps(1))
        time.sleep(0.1)
        rank.prints("the end")

    results, _ = launch(main)
    assert [result.output for result in results] == ["the end\n"] * 2


def test_the_stop_button(launch):
    view = Stoppable(after=2)
    started = time.monotonic()
    results, ending = launch(lambda *_: time.sleep(60), view=view)
    assert ending is Ending.STOPPED
    assert time.monotonic() - started < 20
    assert [result.exit_code for result in results] == [None, None]
    ticks = [name for name, *_ in view.told].count("tick")
    assert ticks == 3


def test_the_view_is_told_the_time_while_nothing_happens(launch):
    view = Stoppable(after=3)
    started = time.monotonic()
    launch(lambda *_: time.sleep(60), view=view)
    # a few looks a second, and no spin: the first two may come early, with the ranks' calls
    assert time.monotonic() - started > 1 / supervisor.PER_SECOND


def test_ranks_that_wait_for_one_that_has_ended(launch, monkeypatch):
    class Look:
        def __init__(self):
            self.asked = 0

        def is_so(self, ranks, job, events):
            self.asked += 1
            return any(rank.ended for rank in ranks) and job.nprocs == 2

    monkeypatch.setattr(supervisor, "StrandedLook", Look)

    def main(rank, number):
        if number:
            return rank.leaves()
        time.sleep(60)

    results, ending = launch(main)
    assert ending is Ending.STRANDED
    assert [result.returned for result in results] == [False, True]


def test_while_stacks_are_taken_the_view_is_silent(launch, monkeypatch):
    shown = []
    monkeypatch.setattr(
        supervisor, "take_stacks", lambda ranks, *_: shown.extend(r.view.shown for r in ranks)
    )
    view = Stoppable()
    launch(lambda *_: time.sleep(60), timeout=0.1, view=view)
    assert shown == [None, None]
    assert ("end", (0, "ended"), {}) in view.told  # and afterwards it hears again


def test_a_ctrl_c_ends_them_all(launch, monkeypatch):
    looked = []
    monkeypatch.setattr(supervisor, "take_stacks", lambda ranks, *_: looked.append(len(ranks)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        results, ending = launch(lambda *_: time.sleep(60), view=Stoppable())
        assert ending is Ending.INTERRUPTED
        assert looked == [2]  # and it was asked where they stand
        assert [result.exit_code for result in results] == [None, None]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert not any(is_alive(child.pid) for child in launch.children)
    assert open_files() == launch.files_before


def test_who_presses_ctrl_c_again_does_not_wait_for_stacks(launch, monkeypatch):
    told = []

    def take(ranks, job, events, patience, is_enough):
        told.append(is_enough())
        signal.raise_signal(signal.SIGINT)
        told.append(is_enough())

    monkeypatch.setattr(supervisor, "take_stacks", take)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        _, ending = launch(lambda *_: time.sleep(60), view=Stoppable())
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert ending is Ending.INTERRUPTED
    assert told == [False, True]


def test_an_error_of_the_view_ends_them_all(launch):
    class Broken(Recorder):
        def tick(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(lambda *_: time.sleep(60), view=Broken())
    assert not any(is_alive(child.pid) for child in launch.children)
    assert launch.supervisor.ending is Ending.FAILED
    assert launch.supervisor.seconds > 0


def test_a_start_that_fails_leaves_nothing_open(launch):
    def fails():
        raise RuntimeError("no fork server")

    launch.before = fails
    with pytest.raises(RuntimeError, match="no fork server"):
        launch(lambda *_: 0)
    assert open_files() == launch.files_before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_one_that_ended_well_while_the_others_are_killed_keeps_its_code(launch):
    """Its exit code may be under way when the launcher kills what still runs."""
    ready, go = os.pipe(), os.pipe()

    def main(rank, number):
        if number:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(6)
        time.sleep(60)

    class Late(Stoppable):
        def is_stop_asked(self):
            if not select.select([ready[0]], [], [], 0)[0]:
                return False
            os.write(go[1], b"x")
            os.waitid(os.P_PID, launch.children[1].pid, os.WEXITED | os.WNOWAIT)
            return True

    results, ending = launch(main, view=Late())
    assert ending is Ending.STOPPED
    assert [result.exit_code for result in results] == [None, 6]
    for file in (*ready, *go):
        os.close(file)


def test_a_killed_spawned_ranks_folder_is_removed(launch, tmp_path):
    name = str(tmp_path / "pymp-x")

    def main(rank, number):
        os.mkdir(f"{name}{number}")
        open(f"{name}{number}/socket", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

    launch(main, temporary=name, own_temporary=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_no_rank_needed_is_not_missed(launch, tmp_path):
    name = str(tmp_path / "pymp-x")
    results, _ = launch(lambda rank, _: rank.leaves(), temporary=name, own_temporary=True)
    assert all(result.ok for result in results)


def test_files_have_names_that_lsof_shows(launch):
    def main(rank, number):
        names = [os.readlink(f"/proc/self/fd/{file}") for file in astuple(rank.files)]
        return rank.leaves(value=pickle.dumps(names))

    results, _ = launch(main, nprocs=1)
    assert results[0].value[2:] == [
        f"/memfd:ddp_helpers-{name} (deleted)" for name in ("job", "outcome", "stacks", "last-call")
    ]


@pytest.fixture
def waits(monkeypatch):
    """How long the launcher means to wait, each time."""
    seen, pump = [], Events.pump

    def note(events, seconds):
        seen.append(seconds)
        pump(events, seconds)

    monkeypatch.setattr(Events, "pump", note)
    return seen


def test_while_nothing_happens_it_waits_for_the_next_redraw(launch, waits):
    launch(lambda *_: time.sleep(60), view=Stoppable(after=4))
    assert 0.09 < max(waits) <= 1 / supervisor.PER_SECOND + supervisor.JUST_AFTER


def test_after_a_failure_it_waits_for_the_grace_without_a_spin(launch, waits, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_AFTER_FAILURE", 0.08)

    def main(rank, number):
        if number:
            return rank.leaves(error=RankError("E", "", ""), exit_code=1)
        time.sleep(60)

    _, ending = launch(main)
    assert ending is Ending.FAILED
    assert any(0 < seconds < 0.085 for seconds in waits)
    assert len(waits) < 60


def test_a_shared_folder_stays(launch, tmp_path):
    launch(lambda rank, number: rank.leaves(), temporary=str(tmp_path))
    assert tmp_path.exists()


@pytest.mark.parametrize("counts", [(3, 4), (3, 3)])
def test_memory_that_ran_out_meanwhile(launch, monkeypatch, counts):
    counts = list(counts)
    expected = counts[1] > counts[0]
    monkeypatch.setattr(supervisor, "count_memory_kills", lambda: counts.pop(0))
    results, _ = launch(lambda *_: os.kill(os.getpid(), signal.SIGKILL), nprocs=1)
    assert results[0].out_of_memory is expected
