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
from warm_python import WarmPython

TEMPLATES = Path(__file__).parents[2] / "ddp_helpers" / "templates"
DATA = TEMPLATES.parents[1] / "data" / "mnist_5k"
FLAGS = ("--epochs", 5, "--limit", 300, "--save-every", 3, "--data", DATA)
SLOW = "            stopping = "


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
    text = (TEMPLATES / "ddp_full.py").read_text()
    assert SLOW in text
    slow = f"            time.sleep({seconds_per_step})\n{SLOW}"
    (folder / "ddp_full.py").write_text(text.replace(SLOW, slow))
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    command = ["sbatch", "--parsable", "slurm.sbatch", "ddp_full.py", *FLAGS]
    number = cluster.run(*command, cwd=folder, PATH=path)
    return number, folder / f"train-{number}.log"


def wait_for_text(log: Path, text: str, times: int = 1, seconds: float = 90) -> None:
    def seen() -> str:
        return log.read_text() if log.exists() else ""

    wait_until(lambda: seen().count(text) >= times, seconds, lambda: f"{text!r} in:\n{seen()}")


def newest(folder: Path) -> dict:
    return torch.load(sorted(folder.glob("checkpoint-*.pt"))[-1])


@pytest.mark.timeout(300)
def test_requeued_killed_and_warned_it_ends_with_the_weights_of_an_undisturbed_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    number, log = submit(cluster, "disturbed", 0.5)
    wait_for_text(log, "epoch 1 ")
    cluster.run("scontrol", "requeue", number)  # what happens when a job is preempted, too
    wait_for_text(log, "goes on from", times=1)
    assert "stopped and saved" in log.read_text()

    wait_for_text(log, "epoch 2 ")
    cluster.ranks()[1].kill()  # nothing can be saved: it goes on from what was saved before
    failed = cluster.wait_for_state(number, "FAILED")
    assert failed["ExitCode"] not in ("0:0", "75:0"), failed
    cluster.run("scontrol", "requeue", number)

    wait_for_text(log, "goes on from", times=2)
    cluster.run("scancel", "--signal=USR1", number)  # as Slurm does two minutes before the end
    wait_for_text(log, "is saved, the job goes back into the queue")
    done = cluster.wait_for_state(number, "COMPLETED")
    assert (done["Restarts"], done["ExitCode"]) == ("3", "0:0")

    started = re.findall(r"goes on from checkpoint-(\d+)\.pt", log.read_text())
    assert len(started) == 3
    assert [*map(int, started)] == sorted(map(int, started))
    words = (TEMPLATES / "ddp_full.py", "--world-size", 2, *FLAGS)
    alone = WarmPython(words, cwd=tmp_path, env=os.environ, stdout=tmp_path / "out.txt")
    assert alone.wait(100) == 0, (tmp_path / "out.txt").read_text()
    ours, theirs = newest(log.parent), newest(tmp_path)
    assert ours["step"] == theirs["step"] == 25
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster) -> None:
    number, log = submit(cluster, "cancelled", 0.5)
    wait_until(lambda: list(log.parent.glob("checkpoint-*.pt")), 60, lambda: log.read_text())
    cluster.run("scancel", number)
    wait_for_text(log, "stopped and saved")
    wait_until(lambda: not cluster.run("squeue", "--noheader"), 30, cluster.logs)
    done = cluster.wait_for_state(number, "CANCELLED")
    assert done["Restarts"] == "0"
    assert not cluster.ranks()


EVERY_ONE = (
    *("ddp_slurm", "ddp_anywhere", "ddp_restart", "ddp_exact", "ddp_checkpoint", "ddp_resume"),
    *("ddp_accumulate", "ddp_full"),
)
# The first as typed; the others in children of two ranks that have torch already: they find what
# srun tells, and importing torch 22 times is no proof of anything.
BATCH = """#!/bin/bash
#SBATCH --ntasks-per-node=2
#SBATCH --output=all.log
mkdir {first} && cd {first} || exit
srun python {templates}/{first}.py --epochs 1 --limit 200 && echo "{first} is done"
cd ..
srun python in_turn.py {rest}
"""
IN_TURN = """
import os, pathlib, runpy, sys, time, traceback
import torch._dynamo

def run(step):
    os.makedirs(step, exist_ok=True)
    os.chdir(step)
    sys.argv = [f"{templates}/{{step}}.py", "--epochs", "1", "--limit", "200"]
    runpy.run_path(sys.argv[0], run_name="__main__")

for step in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(step)
            code = 0
        except SystemExit as end:
            code = 1 if end.code else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, step
    # the next one meets at the same port: not before both have left it
    pathlib.Path(f"{{step}}/left-by-{{os.environ['SLURM_PROCID']}}").touch()
    while len(list(pathlib.Path(step).glob("left-by-*"))) < 2:
        time.sleep(0.02)
    if os.environ["SLURM_PROCID"] == "0":
        print(step, "is done", flush=True)
"""


@pytest.mark.timeout(300)
def test_srun_starts_every_template_from_ddp_slurm_on(cluster: Cluster) -> None:
    folder = cluster.folder / "all"
    folder.mkdir()
    first, *rest = EVERY_ONE
    script = BATCH.format(first=first, rest=" ".join(rest), templates=TEMPLATES)
    (folder / "all.sbatch").write_text(script)
    (folder / "in_turn.py").write_text(IN_TURN.format(templates=TEMPLATES))
    path = os.pathsep.join((str(Path(sys.executable).parent), cluster.environment["PATH"]))
    cluster.run("sbatch", "all.sbatch", cwd=folder, PATH=path)
    wait_for_text(folder / "all.log", f"{EVERY_ONE[-1]} is done", seconds=280)
    log = (folder / "all.log").read_text()
    assert re.findall(r"(\w+) is done", log) == [*EVERY_ONE], log
    assert log.count("ranks 2") == len(EVERY_ONE), log


HEIRS = {
    "starter_fsdp": (("range(4)", "range(2)"),),
    "starter_lm": (("= 4, 4, 128, 0.1", "= 2, 2, 32, 0.1"),),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HEIRS)
def test_srun_starts_a_starter(cluster: Cluster, name: str) -> None:
    folder = cluster.folder / name
    folder.mkdir()
    x, y = torch.randint(256, (90, 28, 28), dtype=torch.uint8), torch.randint(10, (90,))
    torch.save({"train": (x[:60], y[:60]), "held_out": (x[60:], y[60:])}, folder / "digits.pt")
    text = TEMPLATES.parents[1] / "data" / "austen" / "pride_and_prejudice.txt"
    (folder / "text.txt").write_text(text.read_text()[:9000])
    data = "text.txt" if name == "starter_lm" else "digits.pt"
    code = (TEMPLATES / f"{name}.py").read_text()
    for old, new in HEIRS[name]:
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
