"""What launch() refuses, and what it hands to the supervisor; no rank starts here."""

import inspect
import multiprocessing.util
import os
import re
import socket
import sys
import tempfile
import time
import types
from datetime import timedelta

import cloudpickle
import pytest
from torch.distributed import TCPStore

from ddp_helpers.evidence.records import Finding, LaunchResult, RankError, RankResult, Watched
from ddp_helpers.ranks import (
    LaunchError,
    LaunchStopped,
    LaunchTimeoutError,
    fork_server,
    launch,
    launcher,
    messages,
    readiness,
    starting,
)
from ddp_helpers.ranks.supervisor import Ending
from ddp_helpers.ranks.view import PanelView, TextView
from ddp_helpers.sanitizer import Options


def fn():
    return 1


class Supervised:
    """In the supervisor's place: keeps what it is given, and ends as a test says."""

    def __init__(self):
        self.ending = Ending.ALL_ENDED
        self.results = [RankResult(0, "a", exit_code=0), RankResult(1, "b", exit_code=0)]
        self.during = self.during_warm_up = lambda: None
        self.seconds = 2.5
        self.quit_by = None

    def __call__(self, job, start_method, timeout, view):
        self.job, self.start_method, self.timeout, self.view = job, start_method, timeout, view
        return self

    def run(self):
        self.steps.append("run")
        self.during()
        return self.results


@pytest.fixture
def supervised(monkeypatch):
    one = Supervised()
    one.steps = []
    monkeypatch.setattr(launcher, "Supervisor", one)
    # a real server may run here, which other tests have started under other variables
    monkeypatch.setattr(starting.fork_server, "is_stale", lambda: one.is_stale)
    monkeypatch.setattr(starting.fork_server, "end", lambda: one.steps.append("end"))
    for name in ("tidy_up", "warm_up", "start_resource_tracker"):
        monkeypatch.setattr(starting.fork_server, name, lambda name=name: one.steps.append(name))

    def wait(seconds):
        one.steps.append(("wait", seconds))
        one.during_warm_up()
        return one.is_ready

    one.is_ready, one.is_stale = True, False
    monkeypatch.setattr(starting.fork_server, "wait_until_ready", wait)
    monkeypatch.delenv(messages.INSIDE_A_RANK, raising=False)
    monkeypatch.delenv("DDP_HELPERS_SANITIZE_EVERY", raising=False)
    return one


# ---- what comes back


def test_results_in_rank_order(supervised):
    result = launch(fn, 2)
    assert result.values == ["a", "b"]
    assert (result.seconds, result.start_method) == (2.5, "forkserver")
    assert supervised.steps == ["tidy_up", "warm_up", ("wait", 120.0), "run"]
    assert supervised.start_method == "forkserver"
    assert supervised.timeout == 600.0
    assert isinstance(supervised.view, TextView)


def test_a_server_that_loaded_torch_under_other_variables_is_replaced(supervised):
    supervised.is_stale = True
    launch(fn, 2)
    assert supervised.steps == ["tidy_up", "end", "warm_up", ("wait", 120.0), "run"]


def test_spawn_needs_no_fork_server(supervised):
    assert launch(fn, 2, start_method="spawn", timeout=7).start_method == "spawn"
    assert supervised.steps == ["tidy_up", "start_resource_tracker", "run"]
    assert (supervised.start_method, supervised.timeout) == ("spawn", 7)


def test_a_fork_server_that_is_not_ready_in_time(supervised):
    supervised.is_ready = False
    with pytest.raises(LaunchTimeoutError) as caught:
        launch(fn, 2)
    assert str(caught.value) == (
        "no rank has started: after 120 s the fork server still loads torch; the machine or its "
        "disk is very busy: launch again"
    )
    assert len(caught.value.result) == 0
    assert "run" not in supervised.steps


def fails(supervised, ending, error=LaunchError, **rank):
    supervised.ending = ending
    supervised.results = [RankResult(0, "a", exit_code=0), RankResult(1, **rank)]
    with pytest.raises(error) as caught:
        launch(fn, 2, timeout=30)
    assert type(caught.value) is error
    assert caught.value.__suppress_context__
    assert caught.value.result.ranks == tuple(supervised.results)
    assert caught.value.result.seconds == 2.5
    return caught.value


def test_a_rank_that_failed(supervised):
    bad = RankError("ValueError", "bad label", "trace")
    supervised.results = [RankResult(0, exit_code=1, error=bad)]
    with pytest.raises(LaunchError, match="^rank 0 failed: ValueError: bad label") as caught:
        launch(fn, 1)
    assert caught.value._render_traceback_() == [f"LaunchError: {caught.value}"]


def test_the_limit(supervised):
    error = fails(supervised, Ending.TIMED_OUT, LaunchTimeoutError)
    assert "did not end within 30 s" in str(error)
    assert error._render_traceback_() == [f"LaunchTimeoutError: {error}"]


def test_stranded(supervised):
    error = fails(supervised, Ending.STRANDED, exit_code=None)
    assert str(error).startswith("a rank waited for others that had already ended\n")


def test_the_limit_counts_only_if_it_came(supervised):
    error = fails(supervised, Ending.ALL_ENDED, exit_code=3)
    assert "within 30 s" not in str(error)
    assert "exit code 3" in str(error)


def test_the_stop_button(supervised):
    error = fails(supervised, Ending.STOPPED, LaunchStopped, exit_code=None)
    assert isinstance(error, KeyboardInterrupt)
    assert str(error).splitlines() == [
        "stopped after 2.5 s, and all ranks have ended",
        "rank 0 had finished",
        "rank 1 was still starting",
    ]
    assert error._render_traceback_() == [f"LaunchStopped: {error}"]


def test_ctrl_c(supervised):
    error = fails(supervised, Ending.INTERRUPTED, KeyboardInterrupt, exit_code=None)
    assert type(error) is KeyboardInterrupt  # of another class Python would not end by SIGINT
    assert str(error).startswith("stopped after 2.5 s, and all ranks have ended\nrank 0 had")
    assert error._render_traceback_() == [f"KeyboardInterrupt: {error}"]
    assert error.result[0].ok


class Stopped:
    """Ctrl-C comes while this is written for the ranks."""

    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("while_it", ["packs", "warms up"])
def test_ctrl_c_before_a_rank_has_started(supervised, while_it):
    def stop():
        raise KeyboardInterrupt

    if while_it == "warms up":
        supervised.during_warm_up = stop
    with pytest.raises(KeyboardInterrupt, match="stopped before a rank had started") as caught:
        launch(print, 2, args=(Stopped() if while_it == "packs" else 1,))
    assert type(caught.value) is KeyboardInterrupt
    assert caught.value._render_traceback_() == [f"KeyboardInterrupt: {caught.value}"]
    assert caught.value.result.ranks == ()
    assert "run" not in supervised.steps


@pytest.mark.parametrize("echo", [True, False])
def test_what_the_sanitizer_noted(supervised, capsys, echo):
    note = Finding("slow", "a cause", "an advice", serious=False)
    supervised.results = [RankResult(0, exit_code=0, findings=(note,))]
    launch(fn, 1, echo=echo)
    printed = capsys.readouterr().out
    assert printed == (f"sanitizer, a note: {note}\n" if echo else "")
    supervised.results = [
        RankResult(0, exit_code=0, findings=(), watched=Watched(2, 6, 2, 9)),
        RankResult(1, exit_code=0, findings=(note,)),
    ]
    launch(fn, 2, echo=echo)
    printed = capsys.readouterr().out
    line = "sanitizer: watched 2 ranks, 6 steps, 2 passes over the data; found: slow\n"
    assert printed == (f"sanitizer, a note: {note}\n{line}" if echo else "")


# ---- the job


def test_the_job(supervised, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--fast"])
    monkeypatch.setenv("COLOUR", "red")
    launch(pow, 3, args=[2], kwargs={"exp": 5}, env={"COLOUR": "blue", "SIZE": "1"})
    job = supervised.job
    assert cloudpickle.loads(job.function) == (pow, (2,), {"exp": 5})
    assert (job.nprocs, job.cwd, job.argv) == (3, str(tmp_path), ["train.py", "--fast"])
    assert (job.sources, job.names, job.sanitize) == ({}, {}, 0)
    assert (job.env["COLOUR"], job.env["SIZE"]) == ("blue", "1")
    assert job.env["PATH"] == os.environ["PATH"]


def test_the_environment_is_torchruns(supervised, monkeypatch):
    expected = {
        "MASTER_ADDR": "127.0.0.1",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "OMP_NUM_THREADS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "PYTHONUNBUFFERED": "1",
        "DDP_HELPERS_INSIDE_A_RANK": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name in expected:  # who runs the tests may have set some of them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    launch(fn, 2, threads_per_rank=3)
    env = supervised.job.env
    port = env["MASTER_PORT"]
    assert 1024 <= int(port) <= 65535
    expected["TORCHELASTIC_RUN_ID"] = f"launch-{port}"
    assert {name: env.get(name) for name in expected} == expected
    assert supervised.job.threads == 3


def test_the_readers_network_card_stands(supervised, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    launch(fn, 2)
    assert supervised.job.env["GLOO_SOCKET_IFNAME"] == "eth7"


def test_without_a_loopback_none_is_named(supervised, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    exists = os.path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda path: path != "/sys/class/net/lo" and exists(path)
    )
    launch(fn, 2)
    assert "GLOO_SOCKET_IFNAME" not in supervised.job.env


@pytest.mark.parametrize(("cpus", "nprocs", "threads"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_cores_are_shared_out(supervised, monkeypatch, cpus, nprocs, threads):
    monkeypatch.setattr(starting, "usable_cpu_count", lambda: cpus)
    launch(fn, nprocs)
    assert supervised.job.threads == threads
    assert supervised.job.env["OMP_NUM_THREADS"] == str(threads)


def test_the_default_number_of_ranks(supervised, monkeypatch):
    monkeypatch.setattr(launcher, "default_nprocs", lambda: 5)
    launch(fn)
    assert supervised.job.nprocs == 5


def test_ranks_meet_in_a_store_of_this_process(supervised):
    def meet():
        port = int(supervised.job.env["MASTER_PORT"])
        mine = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
        mine.set("key", "value")
        supervised.met = mine.get("key")
        # on this machine only
        with socket.socket() as outside, socket.socket() as inside:
            supervised.outside = outside.connect_ex(("127.0.0.2", port))
            supervised.inside = inside.connect_ex(("127.0.0.1", port))

    supervised.during = meet
    launch(fn, 2)
    assert supervised.met == b"value"
    assert supervised.outside != 0
    assert supervised.inside == 0
    port = int(supervised.job.env["MASTER_PORT"])
    limit = time.monotonic() + 10
    while True:  # and it ends with the launch
        with socket.socket() as late:
            if late.connect_ex(("127.0.0.1", port)):
                break
        assert time.monotonic() < limit


def test_the_folders_for_sockets(supervised, monkeypatch, tmp_path):
    launch(fn, 2)
    assert supervised.job.temporary == multiprocessing.util.get_temp_dir()
    assert not supervised.job.own_temporary
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launch(fn, 2, start_method="spawn")
    assert re.fullmatch(rf"{tmp_path}/pymp-[0-9a-f]{{8}}", supervised.job.temporary)
    assert supervised.job.own_temporary
    first = supervised.job.temporary
    launch(fn, 2, start_method="spawn")
    assert supervised.job.temporary != first


def test_too_few_open_files_are_named(supervised, monkeypatch):
    monkeypatch.setattr(readiness, "open_files", lambda: (100, 5000))
    monkeypatch.setattr(readiness, "files_needed", lambda nprocs: 100 * nprocs)
    launch(fn, 1)
    with pytest.raises(OSError, match=r"`ulimit -n` is 100, .* needs 200 .*`ulimit -n 4096`"):
        launch(fn, 2)
    with pytest.raises(OSError, match=r"`ulimit -n 6000`"):
        launch(fn, 60)


def test_too_few_processes_are_named(supervised, monkeypatch):
    needed = readiness.TASKS + 2 * readiness.TASKS_PER_RANK
    monkeypatch.setattr(readiness, "tasks", lambda: (20 + needed, 20))
    launch(fn, 2)
    monkeypatch.setattr(readiness, "tasks", lambda: (20 + needed, 21))
    with pytest.raises(OSError, match=rf"`ulimit -u` is {20 + needed}, and 21 .* need {needed}"):
        launch(fn, 2)


def test_loopback_that_does_not_connect_is_named(supervised, monkeypatch):
    def down():
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(readiness, "loopback", down)
    readiness.check_loopback.cache_clear()  # in this process it has connected
    with pytest.raises(OSError, match=r"127.0.0.1.*unreachable.*`sudo ip link set lo up`"):
        launch(fn, 2)


# ---- in a notebook


@pytest.fixture
def kernel(monkeypatch):
    shell = types.SimpleNamespace(
        kernel=types.SimpleNamespace(),
        compile=types.SimpleNamespace(
            format_code_name=lambda name: ("Cell", "In[4]") if name == "cell.py" else None
        ),
    )
    import IPython
    import IPython.display

    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", lambda *args, **options: None)
    return shell


def test_cells_travel_and_the_kernels_flags_do_not(supervised, kernel, monkeypatch):
    import linecache

    monkeypatch.setitem(linecache.cache, "cell.py", (3, None, ["a\n", "b"], "cell.py"))
    launch(fn, 2)
    assert supervised.job.argv == [""]
    assert supervised.job.sources == {"cell.py": "a\nb"}
    assert supervised.job.names == {"cell.py": "cell In[4]"}


def test_panels_in_a_notebook(supervised, kernel):
    launch(fn, 2, live=True)
    assert isinstance(supervised.view, PanelView)
    assert len(supervised.view._panels) == 2


def test_views(supervised):
    launch(fn, 2, live=True, echo=False)
    assert isinstance(supervised.view, TextView)
    launch(fn, 2, echo=False)
    assert supervised.view is None
    own = TextView()
    launch(fn, 2, live=own, echo=False)
    assert supervised.view is own


def test_a_kernel_warms_up(supervised, kernel, monkeypatch):
    fork_server.warm_up_in_a_kernel()
    assert supervised.steps == ["warm_up"]
    monkeypatch.setenv(messages.INSIDE_A_RANK, "1")
    fork_server.warm_up_in_a_kernel()
    assert supervised.steps == ["warm_up"]


def test_a_kernel_does_not_warm_up_if_asked_not_to(supervised, kernel, monkeypatch):
    monkeypatch.setenv(fork_server.WARM_UP, "0")
    fork_server.warm_up_in_a_kernel()
    assert supervised.steps == []


def test_a_script_does_not_warm_up(supervised, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    fork_server.warm_up_in_a_kernel()
    assert supervised.steps == []


# ---- what is refused


async def later():
    pass


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"nprocs": 0}, ValueError, "nprocs=0: expected a whole number, at least 1"),
        ({"nprocs": 2.0}, ValueError, "nprocs=2.0: expected a whole number, at least 1"),
        ({"nprocs": True}, ValueError, "nprocs=True: expected a whole number, at least 1"),
        ({"timeout": 0}, ValueError, "timeout=0: expected more than 0 seconds"),
        (
            {"timeout": float("nan")},
            ValueError,
            "timeout=nan: expected more than 0 seconds",
        ),
        (
            {"threads_per_rank": 0},
            ValueError,
            "threads_per_rank=0: expected a whole number, at least 1",
        ),
        (
            {"start_method": "fork"},
            ValueError,
            'start_method="fork": threads and CUDA do not survive it; expected "forkserver" or '
            '"spawn"',
        ),
        (
            {"start_method": "thread"},
            ValueError,
            'start_method="thread"; expected "forkserver" or "spawn"',
        ),
        (
            {"fn": 3},
            TypeError,
            "fn=3: expected a function, or a text like 'script.py:main'; pass the function itself, "
            "without calling it: launch(train), not launch(train())",
        ),
        (
            {"args": "abc"},
            TypeError,
            "args='abc': expected a tuple; one of a single value has a comma: args=('abc',)",
        ),
        ({"fn": later}, TypeError, "later is an async function: pass a plain function"),
        ({"env": {"A": 1}}, TypeError, "env['A']=1: expected a text"),
        (
            {"sanitize": -1},
            ValueError,
            "sanitize=-1: expected True, False, a number n to look at each n-th step, "
            "or ddp_helpers.sanitizer.Options(...)",
        ),
        (
            {"sanitize": "yes"},
            ValueError,
            "sanitize='yes': expected True, False, a number n to look at each n-th step, "
            "or ddp_helpers.sanitizer.Options(...)",
        ),
    ],
)
def test_wrong_arguments(supervised, options, kind, text):
    arguments = {"fn": fn, "nprocs": 2} | options
    with pytest.raises(kind) as caught:
        launch(arguments.pop("fn"), **arguments)
    assert str(caught.value) == text
    assert "run" not in supervised.steps


@pytest.mark.parametrize("options", [{"nprocs": 1}, {"timeout": 0.5}, {"threads_per_rank": 1}])
def test_the_least_that_is_accepted(supervised, options):
    launch(fn, **{"nprocs": 2} | options)
    assert "run" in supervised.steps


def test_inside_a_rank(supervised, monkeypatch):
    monkeypatch.setenv("DDP_HELPERS_INSIDE_A_RANK", "1")
    with pytest.raises(RuntimeError) as caught:
        launch(fn, 2)
    assert str(caught.value) == (
        "launch() was called inside a rank: call it from the notebook, or in a script under "
        '`if __name__ == "__main__":`'
    )


@pytest.mark.parametrize(
    ("given", "variable", "every"),
    [
        (False, None, 0),
        (True, None, 1),
        (7, None, 7),
        (False, "3", 3),
        (2, "3", 2),
    ],
)
def test_the_sanitizer_by_argument_or_command(supervised, monkeypatch, given, variable, every):
    if variable is not None:
        monkeypatch.setenv("DDP_HELPERS_SANITIZE_EVERY", variable)
    launch(fn, 2, sanitize=given)
    assert supervised.job.sanitize == every
    assert supervised.job.ignore == ()


def test_what_is_accepted_by_argument_and_command(supervised, monkeypatch):
    launch(fn, 2, sanitize=Options(3, ["padded-evaluation"]))
    assert (supervised.job.sanitize, supervised.job.ignore) == (3, ("padded-evaluation",))
    monkeypatch.setenv("DDP_HELPERS_SANITIZE_IGNORE", "steps-differ,tiny-buckets")
    launch(fn, 2, sanitize=True)
    assert supervised.job.ignore == ("steps-differ", "tiny-buckets")


# ---- scripts


SCRIPT = """
import os.path as paths, json
from math import sqrt as root
main = assigned = other = lambda: 1
def train(): pass
class Trainer:
    def step(self): pass
# no UTF-16: é
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "empty.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["train", "step", "main", "other", "root", "paths", "json"])
def test_a_function_of_a_script(supervised, script, name):
    launch(f"a.py:{name}", 2)
    assert cloudpickle.loads(supervised.job.function) == (f"a.py:{name}", (), {})


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("a.py", '"a.py": expected path/script.py:function'),
        (":main", '":main": expected path/script.py:function'),
        ("a.py:", '"a.py:": expected path/script.py:function'),
        ("a.py:f()", '"a.py:f()": expected path/script.py:function'),
        ("b.py:main", '"b.py:main": there is no file b.py in {}'),
        ("a.py:sqrt", '"a.py:sqrt": a.py defines no function sqrt; it has: train, step'),
        ("empty.py:main", '"empty.py:main": empty.py defines no function main; it has: none'),
    ],
)
def test_what_is_no_function_of_a_script(supervised, script, target, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        launch(target, 2)
    assert str(caught.value) == text.format(script)


def test_a_script_in_a_folder_with_a_colon(supervised, script):
    (script / "run:2").mkdir()
    (script / "a.py").rename(script / "run:2" / "a.py")
    launch("run:2/a.py:main", 2)
    assert "run" in supervised.steps


def test_a_script_that_is_no_python(supervised, script):
    (script / "empty.py").write_text("def main(:\n")
    with pytest.raises(SyntaxError) as caught:
        launch("empty.py:main", 2)
    assert caught.value.filename == "empty.py"


def test_type_checkers_know_every_option():
    taken = inspect.signature(launch).parameters
    assert set(taken) - {"fn", "nprocs"} == set(launcher.Options.__annotations__)


def test_a_result_says_how_it_went():
    result = LaunchResult((RankResult(0, 1, exit_code=0),), 1.234)
    assert repr(result) == "LaunchResult(1 ranks, ok, 1.23 s)"
