"""`python -m ddp_helpers sanitize COMMAND`: ways to start ranks, and how the command ends."""

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.usefixtures("no_process_left")
LIMIT = 90  # seconds
SANITIZE = [sys.executable, "-m", "ddp_helpers", "sanitize"]
NOTHING = "the sanitizer watched nothing"
UNLIKE = """
import sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.distributed import destroy_process_group, init_process_group

def main(rank, store):
    init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(3 + rank))
    print("not reached")
"""
SPAWN = """
if __name__ == "__main__":
    mp.start_processes(main, (sys.argv[1],), nprocs=2, start_method=sys.argv[2])
"""
UNEVEN = """
def main(rank, store):
    init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.utils.data.TensorDataset(torch.randn(8 + 8 * rank, 3))
    for (x,) in torch.utils.data.DataLoader(data, 4):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    for p in model.parameters():
        dist.all_reduce(p.data)
"""


@pytest.fixture
def sanitize(tmp_path):
    """Run a command under `sanitize` in an empty folder; it must leave no file behind."""
    # a short name: sockets of launch() lie in it
    temporary = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))

    def run(*words, **variables):
        own = {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
        done = subprocess.run(
            [*SANITIZE, *map(str, words)],
            env=os.environ | own | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert not list(temporary.glob("ddp-sanitize-*"))
        return done

    yield run
    shutil.rmtree(temporary)


@pytest.fixture
def script(tmp_path):
    def write(*parts, name="train.py"):
        path = tmp_path / name
        path.write_text("".join(map(textwrap.dedent, parts)))
        return path

    return write


# ---- ways to start ranks


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_ranks_of_mp_spawn_that_have_no_rank_variable(method, sanitize, script, tmp_path):
    path = script(UNLIKE, SPAWN)
    done = sanitize(sys.executable, path, tmp_path / "store", method)
    assert done.returncode == 1
    assert "[different-shape]" in done.stderr
    assert "not reached" not in done.stdout
    assert NOTHING not in done.stderr


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_what_is_found_at_the_end_of_a_rank_of_mp_spawn(method, sanitize, script, tmp_path):
    path = script(UNLIKE, UNEVEN, SPAWN)
    done = sanitize(sys.executable, path, tmp_path / "store", method)
    assert done.returncode == 1
    assert "[uneven-batch-counts]" in done.stderr


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_right_run_of_mp_spawn_is_watched(method, sanitize, script, tmp_path):
    right = UNLIKE.replace("3 + rank", "3").replace('print("not reached")', "step(rank)")
    step = """
def step(rank):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
"""
    done = sanitize(sys.executable, script(right, step, SPAWN), tmp_path / "store", method)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("sanitizer: watched 2 ranks, 1 step; nothing found\n") == 1
    assert NOTHING not in done.stderr


def test_a_kind_that_there_is_not(sanitize):
    done = sanitize("--ignore", "missing-dat", sys.executable, "train.py")
    assert done.returncode != 0
    assert "--ignore: there is no finding of the kind 'missing-dat'; did you mean" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_a_rank_of_mp_spawn_stays_its_own(sanitize, script, tmp_path):
    path = script(UNLIKE, UNEVEN + "    raise ValueError('my own')\n", SPAWN)
    done = sanitize(sys.executable, path, tmp_path / "store", "spawn")
    assert done.returncode == 1
    assert "ValueError: my own" in done.stderr
    assert "uneven" not in done.stderr


def test_processes_by_hand_and_a_group_from_a_device_mesh(sanitize, script, tmp_path):
    path = script("""
        import os, subprocess, sys
        if "RANK" not in os.environ:
            own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
            ranks = [
                subprocess.Popen([sys.executable, __file__], env=os.environ | own | {"RANK": rank})
                for rank in "01"
            ]
            sys.exit(max(rank.wait() for rank in ranks))
        import torch.distributed.device_mesh
        import torch, torch.distributed as dist
        torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        dist.all_reduce(torch.ones(3 + dist.get_rank()))
    """)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = sanitize(sys.executable, path, port)
    assert done.returncode == 1
    assert "[different-shape]" in done.stderr


def test_the_ranks_of_launch_are_watched_once(sanitize, script):
    path = script("""
        import torch, torch.distributed as dist
        from ddp_helpers import launch, process_group

        def train():
            with process_group():
                dist.all_reduce(torch.ones(3 + dist.get_rank()))

        if __name__ == "__main__":
            launch(train, 2)
    """)
    done = sanitize(sys.executable, path)
    assert done.returncode == 1
    assert done.stderr.count("[different-shape]") == 1
    assert "the sanitizer" not in done.stdout + done.stderr  # off, or watched nothing


def test_a_command_around_another_knows_what_that_watched(sanitize, script, tmp_path):
    alone = """
        import torch.distributed as dist
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    """
    done = sanitize(*SANITIZE, "--every", 3, sys.executable, script(alone))
    assert (done.returncode, done.stderr) == (0, "")


# ---- processes that are not ranks


def test_a_process_without_a_group_is_as_it_would_be(sanitize, script):
    path = script("""
        import inspect, sys
        import torch, torch.distributed as dist
        assert "ddp_helpers" not in sys.modules
        assert not [finder for finder in sys.meta_path if type(finder).__name__ == "Finder"]
        assert "backend" in inspect.signature(dist.init_process_group).parameters
    """)
    done = sanitize(sys.executable, path)
    assert done.returncode == 0, done.stderr
    assert f"{NOTHING}: torch was imported" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([sys.executable, "-E", "-c", "pass"], "no Python took it in"),
        ([sys.executable, "-I", "-c", "pass"], "no Python took it in"),
        ([sys.executable, "-S", "-c", "pass"], "no Python took it in"),
        (["env", "-i", sys.executable, "-c", "pass"], "no Python took it in"),
        (["true"], "no Python took it in"),
        ([sys.executable, "-c", "pass"], "no Python that took it in imported torch"),
    ],
)
def test_it_says_that_it_watched_nothing(words, reason, sanitize):
    done = sanitize(*words)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{NOTHING}: {reason}")


def test_of_other_machines_it_claims_nothing(sanitize):
    said = "the sanitizer watched nothing on this machine; of ranks on others it can't tell"
    assert sanitize("true", SLURM_JOB_NUM_NODES="2").stderr.startswith(said)
    assert sanitize("echo", "srun").stderr.startswith(said)


def test_the_readers_own_sitecustomize_runs(sanitize, script, tmp_path):
    own = script("import sys\nsys.mine = 'mine'\n", name="sitecustomize.py")
    say = "import sys, sitecustomize; print(sys.mine, sitecustomize.__file__)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = sanitize(sys.executable, "-c", say, PYTHONPATH=path)
    assert done.stdout.split() == ["mine", str(own)]
    script("raise ValueError('mine')\n", name="sitecustomize.py")
    done = sanitize(sys.executable, "-c", "print('goes on')", PYTHONPATH=path)
    assert done.stdout == "goes on\n"
    assert "ValueError: mine" in done.stderr


# ---- where it can't watch


def test_a_fault_of_ours_is_told_once_and_the_ranks_go_on(sanitize, script, tmp_path):
    """Here the ranks' Python has another ddp_helpers."""
    other = tmp_path / "other" / "ddp_helpers"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    path = script(f"import sys\nsys.path.insert(0, {str(other.parent)!r})\n", UNLIKE, SPAWN)
    equal = path.read_text().replace("3 + rank", "3").replace("not reached", "done")
    path.write_text(equal)
    done = sanitize(sys.executable, path, tmp_path / "store", "spawn")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
    assert done.stderr.count("the sanitizer is off in") == 1
    assert f"here ddp_helpers is {other}/__init__.py" in done.stderr
    assert f"{NOTHING}: it was off, see above" in done.stderr


def test_a_rank_that_is_not_watched_is_not_waited_for(sanitize, script):
    path = script("""
        import os, subprocess, sys
        if "RANK" not in os.environ:
            own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
            words = [[sys.executable, __file__], [sys.executable, "-E", __file__]]
            ranks = [
                subprocess.Popen(words[rank], env=os.environ | own | {"RANK": str(rank)})
                for rank in range(2)
            ]
            sys.exit(max(rank.wait() for rank in ranks))
        import torch, torch.distributed as dist
        if not sys.flags.ignore_environment:
            from ddp_helpers.sanitizer.talk import meeting
            meeting.PATIENCE = 1
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
        model(torch.ones(2, 3)).sum().backward()
        dist.destroy_process_group()
        print("done", flush=True)
    """)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = sanitize(sys.executable, path, port)
    assert (done.returncode, done.stdout) == (0, "done\ndone\n"), done.stderr
    assert done.stderr.startswith("the sanitizer is off: rank 1 is not watched; start all ranks")
    assert done.stderr.count("\n") == 1


def test_a_python_without_ddp_helpers_borrows_it(sanitize, script):
    path = script("""
        import importlib.util, os, sys
        import torch.distributed as dist
        has = lambda entry: os.path.isdir(os.path.join(entry, "ddp_helpers"))
        sys.path[:] = [entry for entry in sys.path if not has(entry)]
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
        assert importlib.util.find_spec("ddp_helpers") is None
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        print(sys.modules["ddp_helpers"].__file__)
    """)
    done = sanitize(sys.executable, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ddp_helpers/__init__.py\n")
    assert done.stderr == ""


# ---- how the command ends


IS_WHOLE = 'test "$*" = "--every -- -x"'


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        ([*"--every 2 sh -c".split(), IS_WHOLE, *"sh --every -- -x".split()], 0, ""),
        (["--", "sh", "-c", "exit 3"], 3, ""),
        (["no-such-command"], 127, "error: no-such-command: No such file"),
        (["/"], 126, "error: /: Permission denied"),
        (["train.py", "--lr", "1"], 2, "sanitize torchrun --nproc-per-node 2 train.py`"),
        ([], 2, "no command to watch"),
        (["--every", "0", "true"], 2, "--every=0"),
    ],
)
def test_exit_codes(words, code, said, sanitize):
    done = sanitize(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def until_it_says(process, text):
    line = process.stdout.readline()
    assert text in line
    return line


WAITS = """
import os, subprocess, time
left = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL)
try:
    print("waits", os.getpgrp() == os.getpid(), left.pid, flush=True)
    time.sleep(100)
except KeyboardInterrupt:
    time.sleep(0.5)  # a second one would interrupt this
    print("cleaned up", flush=True)
    raise
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_passed_on_and_nothing_is_left(number, code, script):
    words = [*SANITIZE, sys.executable, str(script(WAITS))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        left = int(until_it_says(process, "waits").split()[-1])
        process.send_signal(number)
        assert process.wait(LIMIT) == code
        assert not psutil.pid_exists(left)
        assert ("cleaned up" in process.stdout.read()) == (number == signal.SIGINT)


def test_a_stop_button_that_signals_the_whole_group_counts_once(script):
    words = [*SANITIZE, sys.executable, str(script(WAITS))]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until_it_says(process, "waits True")  # in a group of its own
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert "cleaned up" in process.stdout.read()


def test_ctrl_c_in_a_terminal_counts_once(script):
    path = str(script(WAITS))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*SANITIZE, sys.executable, path])
    said = b""
    while b"waits" not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    said = os.read(terminal, 4096)
    os.close(terminal)
    assert b"cleaned up" in said


def test_if_it_is_killed_the_command_ends(script):
    words = [*SANITIZE, "sh", "-c", "echo waits; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        until_it_says(process, "waits")
        process.kill()
        assert process.stdout.read() == ""  # its end: nobody has it open any more
