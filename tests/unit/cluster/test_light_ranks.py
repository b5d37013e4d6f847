"""Ranks that share one torch: what they are told, and that one failure ends all."""

import re
import socket
import subprocess
import sys
import time

import pytest

from ddp_helpers.cluster import light_ranks

pytestmark = pytest.mark.usefixtures("no_process_left")
WITHOUT_TORCH = (
    "import sys; from ddp_helpers.cluster import light_ranks; "
    "light_ranks._load_torch = lambda: None; sys.exit(light_ranks.main())"
)
FLAGS = ("--nnodes=1", "--node-rank=0", "--nproc-per-node=2", "--master-addr=127.0.0.1")


def run(command, script, *flags, folder):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "script.py").write_text(script)
    words = [sys.executable, *command, *(flags or FLAGS), f"--master-port={port}"]
    return subprocess.run(
        [*words, folder / "script.py", "--mine=1"], capture_output=True, text=True, timeout=60
    )


def test_ranks_meet_and_share_what_the_parent_has_loaded(tmp_path):
    (tmp_path / "beside.py").write_text("FOUND = True")
    script = """
import os, sys, torch, torch.distributed as dist
from beside import FOUND
private = [line.split()[1] for line in open("/proc/self/smaps_rollup") if "Private_Dirty" in line]
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
told = [*(os.environ[name] for name in names), int(total), sys.argv[1], private[0]]
os.write(1, (" ".join(map(str, told)) + "\\n").encode())  # at once: two write into one pipe
"""
    done = run(["-m", "ddp_helpers.cluster.light_ranks"], script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.rsplit(" ", 1)[0] for line in lines] == [
        "0 0 0 2 2 2 --mine=1",
        "1 1 0 2 2 2 --mine=1",
    ]
    # of the hundred MiB and more that torch takes in a process of its own
    assert all(int(line.rsplit(" ", 1)[1]) < 60 * 1024 for line in lines), lines


def test_ranks_of_the_second_host_are_counted_on(tmp_path):
    script = """
import os
told = f"{os.environ['RANK']} {os.environ['WORLD_SIZE']}"
os.write(1, f"{told}\\n".encode())  # at once: two ranks write into one pipe
"""
    flags = ("--nnodes=2", "--node-rank=1", "--nproc-per-node=2", "--master-addr=there")
    done = run(["-c", WITHOUT_TORCH], script, *flags, folder=tmp_path)
    assert sorted(done.stdout.splitlines()) == ["2 4", "3 4"]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        ("raise ValueError('image 4711')", 1, "ValueError: image 4711"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no data')", 1, "no data"),
        ("os.kill(os.getpid(), 9)", 137, ""),
    ],
)
def test_one_failure_ends_all(ends, code, says, tmp_path):
    script = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {ends}\ntime.sleep(50)"
    begin = time.monotonic()
    done = run(["-c", WITHOUT_TORCH], script, folder=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--nnodes=2", "--node-rank=2", "--nproc-per-node=1"), "--node-rank=2: expected 0 to 1"),
        (("--nnodes=1", "--node-rank=0", "--nproc-per-node=0"), "expected 1 or more"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, says, capsys):
    with pytest.raises(SystemExit):
        light_ranks.main([*flags, "--master-addr=a", "--master-port=1", "x.py"])
    assert re.search(says, capsys.readouterr().err)
