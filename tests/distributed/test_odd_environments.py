"""Shells and machines that are not as they should be: a run works, or says what to mend."""

import json
import os
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("no_process_left")

PYTHON = shlex.quote(sys.executable)
SCRIPT = '''
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from ddp_helpers import launch, process_group

def train():
    """A step of a loader with a worker, which needs a socket of its own."""
    with process_group() as pg:
        model = DistributedDataParallel(torch.nn.Linear(4, 1))
        for batch in DataLoader(torch.ones(4, 4), num_workers=1):
            model(batch).sum().backward()
        print("r\N{LATIN SMALL LETTER A WITH DIAERESIS}nk \N{CJK UNIFIED IDEOGRAPH-6392}", pg.rank)
        return pg.rank

if __name__ == "__main__":
    print("values", launch(train, 2, start_method=sys.argv[1], timeout=100).values)
'''
# what a former job, another login or a strange administrator has left in the shell
ODD = {
    "HOME": None,
    "XDG_CONFIG_HOME": "/nonexistent",
    "XDG_CACHE_HOME": "/dev/null/x",
    "XDG_RUNTIME_DIR": "/nonexistent",
    "TORCHINDUCTOR_CACHE_DIR": "/nonexistent",
    **{f"{name}_proxy": "http://10.255.255.1:3128" for name in ("http", "https", "ALL")},
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None},
    **{"PYTHONWARNINGS": "error", "PYTHONSAFEPATH": "1", "PYTHONOPTIMIZE": "2"},
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"},
    **{"MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500", "GROUP_RANK": "1"},
    **{"TORCHELASTIC_RUN_ID": "old", "TORCHELASTIC_ERROR_FILE": "/nonexistent/error.json"},
    **{"SLURM_JOB_ID": "77", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3"},
    **{"SLURM_JOB_NODELIST": "node[01-04]", "SLURM_TASKS_PER_NODE": "4(x2)"},
    **{"OMP_NUM_THREADS": "abc", "CUDA_VISIBLE_DEVICES": "", "NCCL_SOCKET_IFNAME": "eth9"},
    **{"TZ": "Nowhere/Else", "LANG": "xx_YY.KOI8", "TERM": "none", "COLUMNS": "abc"},
}
# no IPv6, no name of its own, no localhost; little shared memory; a folder that can't be written
ODD_MACHINE = """
set -e
ip link set lo up
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
hostname nowhere
mount --bind /dev/null /etc/hosts
mount -t tmpfs -o size=64m tmpfs /dev/shm
mkdir -p read-only
mount -t tmpfs -o ro tmpfs read-only
cd read-only
umask 077
trap '' INT CHLD
"""


def shell(text, cwd, **changes):
    """Run these lines of bash; a variable that is None is unset."""
    env = {**os.environ, **changes}
    return subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=110,
        cwd=cwd,
        env={name: value for name, value in env.items() if value is not None},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def in_namespaces(text, cwd, **changes):
    """The same on a machine of its own as far as mounts, network and name go."""
    unshare = "unshare --user --map-root-user --mount --net --uts"
    if shell(f"{unshare} true", cwd).returncode:
        pytest.skip("this machine gives no namespaces")
    return shell(f"{unshare} bash -c {shlex.quote(text)}", cwd, **changes)


def row_of_check(name, run, before, cwd, **changes):
    """A row of `check --json`, after these words."""
    done = run(f"{before} {PYTHON} -m ddp_helpers check --json", cwd, **changes)
    rows = json.loads(done.stdout)["checks"]
    return next(row for row in rows if row["name"] == name)


@pytest.fixture
def script(tmp_path):
    """A script whose path has spaces and Chinese letters."""
    path = tmp_path / "\u6211\u7684 \u8bfe\u7a0b" / "\u8bad\u7ec3 it.py"
    path.parent.mkdir()
    path.write_text(SCRIPT, encoding="utf-8")
    return path


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_ranks_run_in_a_shell_and_on_a_machine_where_all_is_odd(start_method, script, tmp_path):
    long = tmp_path / ("t" * 150) / "\u4e34\u65f6"
    long.mkdir(parents=True)
    core = min(os.sched_getaffinity(0))
    command = f"exec taskset -c {core} {PYTHON} {shlex.quote(str(script))} {start_method} <&-"
    done = in_namespaces(ODD_MACHINE + command, tmp_path, TMPDIR=str(long), **ODD)
    lines = sorted(done.stdout.splitlines())
    letters = r"r\xe4nk \u6392"
    assert lines == [f"[rank {r}] {letters} {r}" for r in range(2)] + ["values [0, 1]"], done.stderr
    assert not list(long.iterdir())


def test_training_in_that_shell_writes_its_figure(tmp_path):
    folder = tmp_path / "\u6211\u7684 \u8bfe\u7a0b"
    words = f"-m ddp_helpers train --epochs 1 --out {shlex.quote(str(folder))}"
    done = in_namespaces(f"{ODD_MACHINE}exec {PYTHON} {words}", tmp_path, **ODD)
    assert done.returncode == 0, done.stderr
    assert (folder / "training.png").exists()
    done = in_namespaces(f"{ODD_MACHINE}exec {PYTHON} -m ddp_helpers train", tmp_path)
    assert "runs/demo can't be made" in done.stderr
    assert "--out" in done.stderr


# root enters any folder, unless it gives that right away
WITHOUT_RIGHTS = "" if os.geteuid() else "exec setpriv --bounding-set=-all --inh-caps=-all"
LAUNCH = f'{PYTHON} -c "import ddp_helpers; ddp_helpers.launch(print, 2)"'


@pytest.mark.parametrize(
    ("before", "found", "way_out", "row"),
    [
        ("ulimit -n 30;", "`ulimit -n` is 30", "`ulimit -n 4096`", "Open files"),
        ("ulimit -v 500000;", "`ulimit -v` is 500000 KiB", "`ulimit -v unlimited`", "PyTorch"),
        ("ulimit -f 100;", "`ulimit -f` is 100 KiB", "`ulimit -f unlimited`", "PyTorch"),
        (
            f"mkdir -p x; chmod 700 x; cd x; chmod 0 .; {WITHOUT_RIGHTS}",
            "can't be entered",
            "`cd`",
            "PyTorch",
        ),
        ("mkdir gone; cd gone; rmdir ../gone;", "folder has been deleted", "`cd`", "PyTorch"),
        (
            "export TORCH_DISTRIBUTED_DEBUG=yes;",
            "TORCH_DISTRIBUTED_DEBUG='yes'",
            "`unset TORCH_DISTRIBUTED_DEBUG`",
            "PyTorch",
        ),
    ],
)
def test_what_no_rank_can_start_with_is_named(before, found, way_out, row, tmp_path):
    done = shell(f"{before} {LAUNCH}", tmp_path)
    last = done.stderr.splitlines()[-1]
    assert found in last
    assert way_out in last
    assert row_of_check(row, shell, before, tmp_path)["status"] == "fail"


def test_loopback_that_is_down_is_named(tmp_path):
    done = in_namespaces(LAUNCH, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert "loopback (127.0.0.1)" in last
    assert "`sudo ip link set lo up`" in last
    assert row_of_check("Loopback", in_namespaces, "", tmp_path)["status"] == "fail"


def test_a_run_without_standard_files_does_its_work(script, tmp_path):
    code = "import sys, pathlib; sys.path.insert(0, '.'); import it, ddp_helpers; "
    code += "pathlib.Path('left').write_text(str(ddp_helpers.launch(it.train, 2).values))"
    (tmp_path / "it.py").write_text(SCRIPT, encoding="utf-8")
    done = shell(f"{PYTHON} -c {shlex.quote(code)} <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "left").read_text() == "[0, 1]"


def test_output_that_nobody_takes_ends_the_run_in_one_line_or_none(tmp_path):
    (tmp_path / "talk.py").write_text(
        "import time\ndef talk():\n"
        "    while True:\n        print('on and on')\n        time.sleep(0.01)\n"
    )
    run = f"{PYTHON} -m ddp_helpers run talk.py:talk -n 2 --timeout 60"
    full = shell(f"{run} > /dev/full", tmp_path)
    assert full.returncode == 2
    assert full.stderr.startswith("error: [Errno 28] the standard output can't be written")
    assert len(full.stderr.splitlines()) == 1
    left = shell(f"{run} | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (left.returncode, left.stdout.count("\n"), left.stderr) == (141, 1, "")
