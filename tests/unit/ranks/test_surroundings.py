"""What one process takes over from another; in children, because it can't be undone."""

import os
import resource
import signal
import sys

from small_ranks import Child

from ddp_helpers.ranks import surroundings
from ddp_helpers.ranks.surroundings import look, take_over


def in_a_child(check):
    """Run it there; the text that it returns, or the error that it raised."""
    reader, writer = os.pipe()

    def main():
        try:
            text = repr(check())
        except BaseException as error:
            text = f"raised {error!r}"
        os.write(writer, text.encode())

    child = Child(main)
    os.close(writer)
    with open(reader) as pipe:
        told = pipe.read()
    child.end()
    return told


def test_a_process_that_takes_over_its_own_stays_as_it_is():
    before = look()

    def check():
        take_over(before)
        return look() == before

    assert in_a_child(check) == "True"


def change_all(tmp_path):
    os.umask(0o27)
    sys.path.insert(0, str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 3, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.nice(3)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_everything_that_has_changed_since_is_taken_over(tmp_path):
    def check():
        old = os.fork()
        if old == 0:  # it is as the process was before
            signal.sigwait([signal.SIGUSR1])
            with open(tmp_path / "wanted", "rb") as file:
                import pickle

                wanted = pickle.load(file)
            take_over(wanted)
            os._exit(0 if look() == wanted else 9)
        import pickle

        change_all(tmp_path)
        wanted = look()
        assert wanted.path[0] == str(tmp_path)
        assert wanted.umask == 0o27
        assert wanted.limits[resource.RLIMIT_CORE] == (0, 0)
        assert len(wanted.cpus) == 1
        assert signal.SIGHUP in wanted.ignored
        (tmp_path / "wanted").write_bytes(pickle.dumps(wanted))
        os.kill(old, signal.SIGUSR1)
        return os.waitstatus_to_exitcode(os.waitpid(old, 0)[1])

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        assert in_a_child(check) == "0"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_a_signal_is_no_longer_ignored():
    before = look()
    assert not before.ignored & {signal.SIGHUP, signal.SIGINT}

    def check():
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        take_over(before)
        return [signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE)] == [
            signal.SIG_DFL,
            signal.default_int_handler,
            signal.SIG_IGN,
        ]

    assert in_a_child(check) == "True"


def test_a_handler_of_the_programs_own_stays():
    before = look()
    number = signal.SIGRTMIN + 5

    def check():
        signal.signal(number, signal.SIG_IGN)  # as a rank does before it listens to this one
        take_over(before)
        return signal.getsignal(number) is signal.SIG_IGN

    assert in_a_child(check) == "True"


def test_an_empty_entry_is_the_folder_that_it_means(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    assert look().path == (str(tmp_path), "/elsewhere")


def test_a_limit_that_may_not_be_raised_is_no_error():
    wanted = look()
    number = resource.RLIMIT_CORE
    wanted.limits[number] = (5, 2)  # the system refuses that from anybody

    def check():
        take_over(wanted)
        return "went on"

    assert in_a_child(check) == "'went on'"


def test_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(surroundings, "_told_by_the_system", dict)
    seen = look()
    assert (seen.umask, seen.ignored) == (None, frozenset())
