"""slurm.sbatch under a real Slurm: requeued, killed, warned, cancelled."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, missing_programs, slurm_cluster, wait_until
from starters import TEMPLATES, of_300_digits, run_script

from ddp_helpers import launch

FLAGS = ("--epochs", 5, "--save-every", 3, "--log-every", 1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := missing_programs():
        assert "CI" not in os.environ, f"no {missing}: .ci/run installs munge and slurm-wlm"
        pytest.skip(f"no {', '.join(missing)} here: apt install munge slurm-wlm")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(cluster: Cluster, name: str, seconds_per_step: float) -> tuple[str, Path]:
    """Submit the template from a folder of its own; returns the job's number and its log."""
    folder = cluster.folder / name
    folder.mkdir()
    shutil.copy(TEMPLATES / "slurm.sbatch", folder)
    of_300_digits(folder / "starter.py", seconds_per_step)
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    cores = "--cpus-per-task=1"  # two ranks on this machine, which may have no more than two
    command = ["sbatch", "--parsable", cores, "slurm.sbatch", "starter.py", *FLAGS]
    number = cluster.run(*command, cwd=folder, PATH=path)
    return number, folder / f"train-{number}.log"


def wait_for_text(log: Path, text: str, times: int = 1, seconds: float = 90) -> None:
    def seen() -> str:
        return log.read_text() if log.exists() else ""

    wait_until(lambda: seen().count(text) >= times, seconds, lambda: f"{text!r} in:\n{seen()}")


def newest(folder: Path) -> dict:
    return torch.load(folder / "run" / "newest.pt")


@pytest.mark.timeout(300)
def test_requeued_killed_and_warned_it_ends_with_the_weights_of_an_undisturbed_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    number, log = submit(cluster, "disturbed", 0.5)
    wait_for_text(log, "epoch 1 ")
    cluster.run("scontrol", "requeue", number)  # what happens when a job is preempted, too
    wait_for_text(log, "goes on in", times=1)
    assert "stopped and saved" in log.read_text()

    wait_for_text(log, "epoch 2 ")
    cluster.ranks()[1].kill()  # nothing can be saved: it goes on from what was saved before
    failed = cluster.wait_for_state(number, "FAILED")
    assert failed["ExitCode"] not in ("0:0", "75:0"), failed
    cluster.run("scontrol", "requeue", number)

    wait_for_text(log, "goes on in", times=2)
    cluster.run("scancel", "--signal=USR1", number)  # as Slurm does two minutes before the end
    wait_for_text(log, "is saved, the job goes back into the queue")
    done = cluster.wait_for_state(number, "COMPLETED")
    assert (done["Restarts"], done["ExitCode"]) == ("3", "0:0")

    started = re.findall(r"goes on in epoch \d+, after step (\d+)", log.read_text())
    assert len(started) == 3
    assert [*map(int, started)] == sorted(map(int, started))
    words = [str(of_300_digits(tmp_path / "starter.py")), *map(str, FLAGS)]
    launch(run_script, 2, args=(words, str(tmp_path)), echo=False, timeout=100)
    ours, theirs = newest(log.parent), newest(tmp_path)
    assert ours["at"]["step"] == theirs["at"]["step"] == 25
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster) -> None:
    number, log = submit(cluster, "cancelled", 0.5)
    wait_until((log.parent / "run" / "newest.pt").exists, 60, lambda: log.read_text())
    cluster.run("scancel", number)
    wait_for_text(log, "stopped and saved")
    wait_until(lambda: not cluster.run("squeue", "--noheader"), 30, cluster.logs)
    done = cluster.wait_for_state(number, "CANCELLED")
    assert done["Restarts"] == "0"
    assert not cluster.ranks()


STARTERS: dict[str, tuple] = {
    "starter": (),
    "starter_fsdp": (("range(4)", "range(2)"),),
    "starter_lm": (("= 4, 4, 128, 0.1", "= 2, 2, 32, 0.1"),),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", STARTERS)
def test_srun_starts_a_starter(cluster: Cluster, name: str) -> None:
    folder = cluster.folder / name
    folder.mkdir()
    x, y = torch.randint(256, (90, 28, 28), dtype=torch.uint8), torch.randint(10, (90,))
    torch.save([x[:60], y[:60], x[60:], y[60:]], folder / "digits.pt")
    text = TEMPLATES.parents[1] / "data" / "austen" / "pride_and_prejudice.txt"
    (folder / "text.txt").write_text(text.read_text()[:9000])
    data = "text.txt" if name == "starter_lm" else "digits.pt"
    code = (TEMPLATES / f"{name}.py").read_text()
    for old, new in STARTERS[name]:
        assert old in code
        code = code.replace(old, new)
    code = re.sub("^DATA = .*$", f"DATA = {data!r}", code, flags=re.MULTILINE)
    (folder / "mine.py").write_text(code)
    batch = "#!/bin/bash\n#SBATCH --ntasks-per-node=2\n#SBATCH --output=out.log\n"
    batch += "srun python mine.py --epochs 1 --log-every 1 && echo all done\n"
    (folder / "mine.sbatch").write_text(batch)
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    cluster.run("sbatch", "mine.sbatch", cwd=folder, PATH=path)
    wait_for_text(folder / "out.log", "all done", seconds=200)
    assert (folder / "out.log").read_text().count("best ") == 1, "two runs of one rank each"


UNLIKE = """
import os, sys
import torch, torch.distributed as dist

rank = int(os.environ["SLURM_PROCID"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
dist.all_reduce(torch.ones(3 + rank))
"""


def test_ranks_of_srun_are_watched(cluster: Cluster) -> None:
    folder = cluster.folder / "watched"
    folder.mkdir()
    (folder / "train.py").write_text(UNLIKE)
    words = "-m ddp_helpers sanitize srun -n 2 --cpus-per-task 1".split()
    words = [sys.executable, *words, sys.executable, "train.py", str(folder / "store")]
    done = subprocess.run(
        words, cwd=folder, env=cluster.environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode != 0
    assert "[different-shape]" in done.stderr
    assert "watched nothing" not in done.stderr


ALONE = """#!/bin/bash
#SBATCH --ntasks-per-node=2
#SBATCH --output=alone.log
start="from ddp_helpers import process_group as group; group(timeout=60).__enter__()"
python -c "$start"
srun python -c "$start; print('it starts')"
echo "the end"
"""


@pytest.mark.timeout(300)
def test_a_batch_script_without_srun_is_told_so_at_once(cluster: Cluster) -> None:
    folder = cluster.folder / "alone"
    folder.mkdir()
    (folder / "alone.sbatch").write_text(ALONE)
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    cluster.run("sbatch", "alone.sbatch", cwd=folder, PATH=path)
    wait_for_text(folder / "alone.log", "the end", seconds=200)
    log = (folder / "alone.log").read_text()
    assert "ValueError: SLURM_NTASKS=2, but this process runs in the batch script itself" in log
    assert log.count("it starts") == 2, log


STEPS = """#!/bin/bash
#SBATCH --ntasks-per-node=2
#SBATCH --output=steps.log
srun --overlap --ntasks 2 python meet.py &
srun --overlap --ntasks 2 python meet.py &
wait
echo "the end"
"""
MEET = """
import os
import time
import torch, torch.distributed as dist
from ddp_helpers import process_group
from ddp_helpers.evidence.cores import ranks_on_these_cores
from ddp_helpers.group import devices

# each task sees one GPU, which is the same for both
devices.visible_gpus, devices.has_nccl = lambda: ("A",), lambda: True
with process_group(timeout=60) as pg:
    total = torch.tensor(float(pg.rank + 1 + 10 * int(os.environ["SLURM_STEP_ID"])))
    dist.all_reduce(total)
    time.sleep(2)  # the other step is still there
    step = os.environ["SLURM_STEP_ID"]
    shared = ranks_on_these_cores()  # this Slurm binds no task
    print(f"step {step}: {pg.backend} {total:g} of {pg.local_world_size} on {shared}", flush=True)
"""


@pytest.mark.timeout(300)
def test_steps_of_one_job_meet_each_for_itself_and_agree(cluster: Cluster) -> None:
    folder = cluster.folder / "steps"
    folder.mkdir()
    (folder / "steps.sbatch").write_text(STEPS)
    (folder / "meet.py").write_text(MEET)
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    cluster.run("sbatch", "steps.sbatch", cwd=folder, PATH=path)
    wait_for_text(folder / "steps.log", "the end", seconds=200)
    log = (folder / "steps.log").read_text()
    for step in (0, 1):
        assert log.count(f"step {step}: gloo {3 + 20 * step} of 2 on 2") == 2, log
    assert log.count("note: 2 ranks, but this machine has 1 GPU: all ranks take gloo on") == 2, log
