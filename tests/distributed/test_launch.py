"""launch() on real ranks: what comes back, and what a failure says."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch_age import without_greeting

from ddp_helpers import LaunchError, LaunchTimeoutError, launch, process_group, report
from ddp_helpers.diagnosis.failure_report import MOST_LINES
from ddp_helpers.group import torch_mends

pytestmark = pytest.mark.usefixtures("no_process_left")
BOTH = pytest.mark.parametrize("start_method", ["forkserver", "spawn"])


def fails(fn, nprocs=2, error=LaunchError, **options):
    """Launch fn, which must fail; the report and the result."""
    with pytest.raises(error) as caught:
        launch(fn, nprocs, **options)
    report = str(caught.value)
    assert len(report.splitlines()) <= MOST_LINES
    return report, caught.value.result


@BOTH
def test_values_output_and_environment(start_method):
    def who():
        with process_group() as pg:
            total = torch.tensor([pg.rank + 1.0])
            dist.all_reduce(total)
            print("rank", pg.rank)
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR".split()
        return total, [os.environ[name] for name in names]

    result = launch(who, 2, start_method=start_method)
    assert [value[1] for value in result.values] == [
        [str(rank), str(rank), "2", "2", "127.0.0.1"] for rank in range(2)
    ]
    assert all(torch.equal(value[0], torch.tensor([3.0])) for value in result.values)
    printed = [without_greeting(rank.output) for rank in result.ranks]
    assert printed == ["rank 0\n", "rank 1\n"]


def test_four_ranks_start_their_group_with_torch_alone():
    def plain():
        dist.init_process_group("gloo")
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, dist.get_rank())
        dist.barrier()
        dist.destroy_process_group()
        return everyone

    assert launch(plain, 4).values == [[0, 1, 2, 3]] * 4


def test_init_method_tcp_works_under_the_launcher():
    def meet(first, second):
        rank = int(os.environ["RANK"])
        dist.init_process_group("gloo", init_method=first, world_size=2, rank=rank)
        dist.barrier()
        dist.destroy_process_group()
        # on the same port a rank may still find the store that rank 0 is about to close
        with process_group(init_method=second, world_size=2, rank=rank) as pg:
            return pg.rank

    import socket

    with (
        socket.create_server(("localhost", 0)) as one,
        socket.create_server(("localhost", 0)) as other,
    ):
        urls = tuple(f"tcp://localhost:{probe.getsockname()[1]}" for probe in (one, other))
    assert launch(meet, 2, args=urls, timeout=30).values == [0, 1]


def test_a_group_can_start_again_and_again():
    def again():
        sums = []
        for turn in range(4):
            with process_group(timeout=30):
                x = torch.tensor([float(turn)])
                dist.all_reduce(x)
                sums.append(x.item())
        dist.init_process_group("gloo")  # plain torch too
        dist.barrier()
        dist.destroy_process_group()
        return sums

    for _ in range(3):
        assert launch(again, 2, timeout=60).values == [[0.0, 2.0, 4.0, 6.0]] * 2


def test_a_model_may_outlive_its_group():
    def train():
        dist.init_process_group("gloo")
        ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        ddp(torch.ones(1, 2)).sum().backward()
        dist.barrier()
        dist.destroy_process_group()
        return ddp.module.weight.grad.sum().item(), len(torch_mends._ended_groups)

    for _ in range(15):
        assert launch(train, 2, timeout=60).values == [(4.0, 1)] * 2
    assert not torch_mends._ended_groups  # the notebook never had one


def test_closures_lambdas_args_kwargs_env():
    base = 10
    assert launch(lambda a, b=0: base + a + b, 2, args=(1,), kwargs={"b": 2}).values == [13, 13]
    read = launch(lambda: os.environ["COLOUR"], 1, env={"COLOUR": "blue"})
    assert read.values == ["blue"]


def test_function_in_a_script(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(
        "import os, sys, helper_beside_it\n"
        "def main(x):\n    return x + helper_beside_it.one, os.path.basename(sys.argv[0])\n"
    )
    (tmp_path / "helper_beside_it.py").write_text("one = 1\n")
    assert launch(f"{script}:main", 2, args=(1,)).values == [(2, "training.py")] * 2


def test_a_script_without_a_main_guard_does_not_start_itself_again(tmp_path):
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from ddp_helpers import launch\n"
        "print('top')\n"
        "print(launch(lambda: 7, 2, start_method='spawn').values)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "top\n[7, 7]\n"), done.stderr


def test_launch_inside_a_rank_says_so(tmp_path):
    script = tmp_path / "recursive.py"
    script.write_text(
        f"from ddp_helpers import launch\ndef main():\n    return 1\nlaunch('{script}:main', 2)\n"
    )
    report, _ = fails(f"{script}:main")
    assert "inside a rank" in report
    assert "__main__" in report


@BOTH
def test_loader_workers_start_as_under_torchrun(start_method):
    def how():
        return torch.multiprocessing.get_start_method()

    plain = [sys.executable, "-c", "import torch.multiprocessing as m; print(m.get_start_method())"]
    as_python_has_it = subprocess.run(plain, capture_output=True, text=True).stdout.strip()
    assert launch(how, 2, start_method=start_method).values == [as_python_has_it] * 2


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 forks no workers by itself")
@BOTH
def test_loader_workers_are_forked_up_to_python_3_13(start_method):
    def load():
        class Squares(torch.utils.data.Dataset):  # local: only a forked worker can have it
            def __len__(self):
                return 6

            def __getitem__(self, index):
                return index**2

        loader = torch.utils.data.DataLoader(Squares(), batch_size=3, num_workers=2)
        return [batch.tolist() for batch in loader]

    assert launch(load, 2, start_method=start_method).values == [[[0, 1, 4], [9, 16, 25]]] * 2


def test_ranks_find_torch_loaded_already():
    def loaded():
        return {"torch.distributed", "torch._dynamo"} <= set(sys.modules)

    assert launch(loaded, 2).values == [True, True]


def test_small_slices_travel_alone_and_gradients_survive():
    def slices():
        big = torch.zeros(1_000_000)
        weight = torch.ones(3, requires_grad=True)
        return big[:2], weight, torch.nn.Parameter(torch.ones(2))

    small, weight, parameter = launch(slices, 1).values[0]
    assert small.untyped_storage().nbytes() == 8
    assert weight.requires_grad
    assert isinstance(parameter, torch.nn.Parameter)


def test_threads_are_shared_out():
    assert launch(torch.get_num_threads, 64 if os.cpu_count() > 64 else 8).values[0] >= 1
    assert launch(torch.get_num_threads, 2, threads_per_rank=3).values == [3, 3]
    from ddp_helpers.environment import usable_cpu_count

    assert launch(torch.get_num_threads, 1).values == [usable_cpu_count()]


def test_output_from_c_from_children_and_without_newline(capfd):
    def speak():
        libc = ctypes.CDLL(None)
        libc.puts(b"from C")
        subprocess.run(["echo", "from a child"], check=True)
        os.write(1, b"\xff\x00 binary\n")
        sys.stderr.write("to stderr\n")
        sys.stdout.write("no newline")

    output = launch(speak, 2)[1].output
    for text in ("from C\n", "from a child\n", "\ufffd\x00 binary\n", "to stderr\n", "no newline"):
        assert text in output
    assert "[rank 1] from C\n" in capfd.readouterr().out


def test_megabytes_of_output_arrive_whole():
    def shout():
        for number in range(20_000):
            print(f"{number:>100}")
        sys.stdout.write("x" * 3_000_000)

    output = launch(shout, 2, echo=False)[0].output
    assert len(output.replace("\n", "")) == 20_000 * 100 + 3_000_000
    assert output.splitlines()[19_999].strip() == "19999"


def test_a_rank_that_closes_its_output_still_returns():
    def shut():
        os.close(1)
        os.close(2)
        return 5

    def shut_python():
        sys.stdout.close()
        return 6

    assert launch(shut, 2).values == [5, 5]
    assert launch(shut_python, 2).values == [6, 6]


def test_the_rank_that_raised_is_the_cause():
    def train():
        with process_group() as pg:
            if pg.rank == 1:
                raise ValueError("bad label 11")
            dist.all_reduce(torch.ones(1))

    started = time.monotonic()
    report, result = fails(train)
    took = time.monotonic() - started
    lines = report.splitlines()
    assert lines[0] == "rank 1 failed: ValueError: bad label 11"
    assert "test_launch.py" in lines[1]
    assert lines[2].strip() == 'raise ValueError("bad label 11")'
    assert "Connection closed" not in report
    assert "bad label 11" in result[1].traceback
    assert "ddp_helpers/ranks/" not in result[1].traceback
    assert took < 30


def test_where_the_others_waited():
    def train():
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            time.sleep(0.3)
            raise KeyError("labels")
        dist.barrier()

    report, _ = fails(train)
    assert report.startswith("rank 1 failed: KeyError: 'labels'")
    assert "rank 0 waited in barrier" in report or "rank 0 then lost the connection" in report


class Awkward(Exception):
    """Can be neither pickled nor shown."""

    def __init__(self, a, b):
        self.lock = threading.Lock()

    def __str__(self):
        raise RuntimeError("no text")


def sleep_in_python():
    while True:
        time.sleep(0.01)


@BOTH
@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os._exit(0), "exit code 0"),
        (lambda: sys.exit(4), "called sys.exit(4)"),
        (lambda: sys.exit("no data"), "called sys.exit(no data)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: ctypes.string_at(0), "SIGSEGV"),
        (lambda: ctypes.CDLL(None).abort(), "SIGABRT"),
        (lambda: (_ for _ in ()).throw(Awkward(1, 2)), "failed: Awkward"),
    ],
    ids=[
        "_exit",
        "_exit 0",
        "sys.exit",
        "sys.exit text",
        "SIGKILL",
        "SIGSEGV",
        "SIGABRT",
        "awkward",
    ],
)
def test_every_way_to_end_is_named(end, text, start_method):
    def train():
        if os.environ["RANK"] == "1":
            end()
        time.sleep(60)

    started = time.monotonic()
    report, result = fails(train, start_method=start_method)
    assert text in report.splitlines()[0]
    assert report.startswith("rank 1 ")
    assert result[0].exit_code is None
    assert re.search("rank 0 was (at|still starting)", report)
    assert time.monotonic() - started < 30


def test_a_rank_that_vanishes_without_a_word_is_no_success():
    report, _ = fails(lambda: os._exit(0))
    assert report.startswith("ranks 0 and 1 ended with exit code 0 before")


def test_exit_zero_is_a_normal_end():
    assert launch(lambda: sys.exit(0), 2).values == [None, None]


def test_a_value_that_cannot_travel():
    report, _ = fails(lambda: threading.Lock())
    assert "can't leave its rank" in report
    assert "state_dict" in report


def test_an_argument_that_cannot_travel():
    with pytest.raises(TypeError, match=r"argument 0 \(lock\) can't travel"):
        launch(lambda lock: 1, 2, args=(threading.Lock(),))
    guard = threading.Lock()
    with pytest.raises(TypeError, match="variable `guard`"):
        launch(lambda: guard, 2)


def test_a_rank_that_never_joins_is_reported_with_both_lines():
    def train():
        dist.init_process_group("gloo")
        if dist.get_rank() == 0:
            dist.all_reduce(torch.ones(1))
        else:
            sleep_in_python()

    started = time.monotonic()
    report, result = fails(train, error=LaunchTimeoutError, timeout=4)
    assert time.monotonic() - started < 4 + 10
    assert "did not end within 4 s" in report
    assert "rank 0 waited in all_reduce" in report
    assert "dist.all_reduce(torch.ones(1))" in report
    assert "rank 1 was at" in report
    assert "in sleep_in_python" in report
    assert [rank.ok for rank in result.ranks] == [False, False]


def test_the_last_collective_of_a_rank_that_is_elsewhere():
    def train():
        with process_group() as pg:
            dist.broadcast(torch.ones(1), src=0)
            dist.all_reduce(torch.ones(1))
            if pg.rank == 1:
                time.sleep(60)
            dist.all_reduce(torch.ones(1))

    report, result = fails(train, error=LaunchTimeoutError, timeout=3)
    assert re.search(
        r"its last collective was all_reduce \(its call number 2\) at .*, in train", report
    )
    assert result[1].last_call.frame.line == train.__code__.co_firstlineno + 3
    assert result[0].last_call.number == 3


def test_a_paused_rank_is_called_so():
    def train():
        with process_group() as pg:
            if pg.rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            dist.all_reduce(torch.ones(1))

    report, result = fails(train, error=LaunchTimeoutError, timeout=3)
    assert "rank 1 was paused from outside (SIGSTOP" in report
    assert result[1].stopped
    assert not result[0].stopped


COLD = """
from ddp_helpers import LaunchTimeoutError, launch
from ddp_helpers.ranks import fork_server
fork_server.LONGEST_START = 0.05
try:
    launch(int, 2)
except LaunchTimeoutError as error:
    print(error)
fork_server.LONGEST_START = 60
print(launch(int, 2, timeout=10).values)
"""


def test_a_limit_holds_while_the_fork_server_still_loads():
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, timeout=90)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "no rank has started: after 0.05 s the fork server still loads torch"
    )
    assert lines[1:] == ["[0, 0]"]
    assert done.stderr == ""


KILLED_SERVER = """
import os, signal, time
from multiprocessing import forkserver
from ddp_helpers import launch
launch(int, 1)
pid, address = forkserver._forkserver._forkserver_pid, forkserver._forkserver._forkserver_address
os.kill(pid, signal.SIGKILL)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(launch(int, 2, start_method="spawn").values, os.path.exists(f"/proc/{pid}"))
assert not os.path.exists(address)
print(launch(int, 2).values, forkserver._forkserver._forkserver_pid != pid)
"""


def test_a_killed_fork_server_is_buried_and_replaced():
    code = [sys.executable, "-c", KILLED_SERVER]
    done = subprocess.run(code, capture_output=True, text=True, timeout=90)
    assert done.stdout.splitlines() == ["[0, 0] False", "[0, 0] True"]
    assert done.stderr == ""


def test_a_rank_that_waits_for_one_that_never_came_is_not_left_to_the_limit():
    def train():
        if os.environ["RANK"] == "0":
            dist.init_process_group("gloo")

    started = time.monotonic()
    report, result = fails(train, timeout=100)
    assert time.monotonic() - started < 50
    assert "rank 1 finished while rank 0 still waited for it" in report
    assert "rank 0 waited in init_process_group" in report
    assert [rank.ok for rank in result.ranks] == [False, True]


def test_a_rank_may_go_on_alone_for_as_long_as_it_likes():
    def train():
        with process_group() as pg:
            pass
        if pg.rank == 0:
            time.sleep(2)
            print("still here")

    assert without_greeting(launch(train, 2)[0].output) == "still here\n"


def test_one_rank_finished_while_the_other_still_waits():
    def train():
        dist.init_process_group("gloo")
        dist.barrier()
        if dist.get_rank() == 0:
            dist.all_reduce(torch.ones(1))

    report, _ = fails(train, timeout=30)
    assert "rank 1 finished while rank 0 still waited for it" in report
    assert "if rank == 0" in report


def test_mismatched_shapes_are_explained():
    def train():
        dist.init_process_group("gloo")
        dist.all_reduce(torch.ones(3 if dist.get_rank() else 5))
        dist.barrier()

    report, _ = fails(train, timeout=30)
    assert "all_reduce got different tensors: float32 (5,) on rank 0, float32 (3,) on" in report


def test_an_interrupt_ends_all_ranks_and_the_next_launch_works():
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        launch(sleep_in_python, 2, timeout=60)
    assert launch(lambda: 1, 2).values == [1, 1]


CROSSED = """
import sys, torch, torch.distributed as dist
from ddp_helpers import launch
def crossed():
    dist.init_process_group("gloo")
    print("here", flush=True)
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    dist.barrier()
if __name__ == "__main__":
    launch(crossed, 2)
"""


@pytest.mark.parametrize("way", ["script", "command"])
def test_ctrl_c_says_where_each_rank_stood(tmp_path, way):
    script = tmp_path / "crossed.py"
    script.write_text(CROSSED)
    command = [script] if way == "script" else ["-m", "ddp_helpers", "run", f"{script}:crossed"]
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        said = 0
        while said < 2:  # gloo in torch 2.8 greets, too
            line = launcher.stdout.readline()
            assert line, "it ended"
            said += line.endswith("here\n")
        time.sleep(1)  # for the ranks to come to their lines
        launcher.send_signal(signal.SIGINT)
        _, errors = launcher.communicate(timeout=60)
    # by the signal itself: a loop of the shell ends, too
    assert launcher.returncode == (-signal.SIGINT if way == "script" else 130)
    assert f"rank 0 waited in all_reduce at {script}, line 8, in crossed" in errors
    assert f"rank 1 waited in barrier at {script}, line 9, in crossed" in errors
    assert errors.count("ddp_helpers/ranks/") == (1 if way == "script" else 0), errors


def test_children_of_a_rank_end_with_it():
    def start_children():
        return subprocess.Popen(["sleep", "300"]).pid

    pids = launch(start_children, 2).values
    limit = time.monotonic() + 2
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


@BOTH
def test_ranks_die_with_a_killed_launcher(tmp_path, start_method):
    script = tmp_path / "doomed.py"
    script.write_text(
        "import os, time\nfrom ddp_helpers import launch\n"
        "def stay():\n"
        "    open(f'{os.getpid()}.pid', 'w').close()\n"
        "    while True: pass\n"
        f"launch(stay, 2, start_method='{start_method}')\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    limit = time.monotonic() + 60
    while len(pids := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert len(pids) == 2
    pids = [int(pid.stem) for pid in pids]
    limit = time.monotonic() + 3
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))
    while (left := list(tmp_path.glob("pymp-*"))) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not left


def test_a_killed_spawned_rank_with_loader_workers_leaves_no_folder(tmp_path, monkeypatch):
    def load():
        data = torch.utils.data.TensorDataset(torch.zeros(8, 1))
        loader = torch.utils.data.DataLoader(data, num_workers=1)
        for _ in loader:
            folders = list(Path(tempfile.gettempdir()).glob("pymp-*"))
            assert folders  # or this test shows nothing
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the ranks' and, as tempfile asks anew, ours
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(LaunchError, match="SIGKILL"):
        launch(load, 2, start_method="spawn", echo=False, timeout=60)
    assert not list(tmp_path.glob("pymp-*"))


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_two_launches_at_once_from_threads():
    values = {}

    def run(name):
        def meet():
            with process_group() as pg:
                total = torch.ones(1)
                dist.all_reduce(total)
                return pg.rank, total.item()

        values[name] = launch(meet, 2, echo=False).values

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert values == {i: [(0, 2.0), (1, 2.0)] for i in range(4)}


class Recorder:
    """A view that keeps what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))


def test_ranks_report_how_far_they_are():
    def train():
        for step in range(1, 1001):
            report(step=step, total=1000, loss=1 / step)
        report(step=1000, total=1000, loss=float("nan"))

    view = Recorder()
    launch(train, 2, live=view)
    for rank in range(2):
        reports = [told for name, args, told in view.told if name == "report" and args == (rank,)]
        assert reports[0] == {"step": 1, "total": 1000, "loss": 1.0}
        assert reports[-1] == {"step": 1000, "total": 1000, "loss": "nan"}
        assert len(reports) < 100  # most are left out, so as not to slow the rank
        assert ("end", (rank, "done"), {}) in view.told
    assert report(step=1) is None  # outside of a launch it does nothing


def test_a_rank_draws_its_own_numbers():
    import random

    import numpy

    def draw():
        return numpy.random.rand(), random.random(), torch.rand(1).item(), torch.initial_seed()

    first, second = launch(draw, 2).values
    assert all(ours != theirs for ours, theirs in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"nprocs": 0}, "nprocs=0"),
        ({"nprocs": 2.0}, "nprocs=2.0"),
        ({"timeout": 0}, "timeout=0"),
        ({"threads_per_rank": 0}, "threads_per_rank=0"),
        ({"start_method": "fork"}, "forkserver"),
        ({"fn": "nothing.py:main"}, "no file nothing.py"),
        ({"fn": f"{__file__}:nothing"}, "no function nothing"),
        ({"fn": "script"}, "script.py:function"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    options = {"fn": time.time, "nprocs": 2} | arguments
    with pytest.raises(ValueError, match=text):
        launch(options.pop("fn"), **options)
    with pytest.raises(TypeError, match="fn=3"):
        launch(3)


def test_a_kernel_that_launched_shuts_down_in_order(tmp_path):
    from jupyter_client import KernelManager

    manager = KernelManager()
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    code = (
        "import atexit\nfrom ddp_helpers import launch\n"
        "atexit.register(lambda: open('bye', 'w').close())\n"
        "launch(lambda: 1, 2)"
    )
    reply = client.execute_interactive(code, timeout=60, output_hook=lambda message: None)
    client.stop_channels()
    manager.shutdown_kernel()
    assert reply["content"]["status"] == "ok"
    assert (tmp_path / "bye").exists()  # it was asked, not killed
