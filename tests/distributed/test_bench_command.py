"""`python -m ddp_helpers bench` on scripts that know nothing of it."""

import re
import subprocess
import sys

import pytest

from ddp_helpers import LaunchError, launch
from ddp_helpers.bench.records import Change, Job
from ddp_helpers.bench.step_meter import measure_on_this_rank
from ddp_helpers.timeline.records import BACKWARD, DATA, OPTIMIZER

pytestmark = pytest.mark.usefixtures("no_process_left")

SCRIPT = """
import sys, time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def data():
    return TensorDataset(torch.randn(512, 256), torch.randint(10, (512,)))


def main(epochs=40):
    dist.init_process_group("gloo")
    try:
        loader = DataLoader(data(), 8, sampler=DistributedSampler(data()))
        layers = [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        ddp = DistributedDataParallel(nn.Sequential(*layers))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
        for epoch in range(epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(ddp(inputs), labels).backward()
                optimizer.step()
            ddp.eval()
            ddp(inputs)  # an evaluation is no step
            ddp.train()
    finally:
        print("cleaned up")
        dist.destroy_process_group()


class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(0.010)
        return super().__getitem__(index)


def slow_disk():
    return nn.Linear(256, 10), Slow(*data().tensors)


def few_steps():
    main(epochs=0)


def broken():
    raise RuntimeError("no such file: photos.tar")


def no_dataset():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    return path


def measure(script, function="main", nprocs=2, **options):
    job = Job(f"{script}:{function}", **{"steps": 5, "profile": False} | options)
    return launch(measure_on_this_rank, nprocs, args=(job,), timeout=100, echo=False)


def command(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "ddp_helpers", "bench", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=115,
        cwd=cwd,
        check=False,
    )


def test_a_function_is_measured_and_ended(script):
    result = measure(script, profile=True)
    for rank, measured in enumerate(result.values):
        assert measured.rank == rank
        assert measured.samples == 8
        assert 0 < measured.seconds < 10
        assert len(measured.timeline.steps) == 3
        seconds = measured.timeline.seconds()
        assert all(seconds[kind] > 0 for kind in (BACKWARD, OPTIMIZER, DATA))
        assert all(step.all_reduces for step in measured.timeline.steps)  # perhaps all hidden
        assert "cleaned up" in result[rank].output  # its own `finally` ran


def test_changes_reach_ddp_and_the_loader(script):
    bigger = measure(script, change=Change(batch_factor=4)).values
    assert [measured.samples for measured in bigger] == [32, 32]
    assert all(measured.unused == () for measured in bigger)

    whole = measure(script, profile=True).values[0]
    change = Change(bucket_cap_mb=0.005, compress=True)
    small = measure(script, profile=True, change=change).values[0]
    rarely = measure(script, profile=True, change=Change(accumulate=4)).values[0]
    many, few = ([len(step.all_reduces) for step in m.timeline.steps] for m in (small, whole))
    assert min(many) > max(few)
    size = [sum(c.size for c in m.timeline.steps[0].all_reduces) for m in (whole, small)]
    assert size[0] == 2 * size[1] == 4 * (256 * 256 + 256 + 2560 + 10)
    assert sum(bool(step.all_reduces) for step in rarely.timeline.steps) <= 1


def test_changes_are_gone_afterwards_and_say_if_they_had_no_occasion():
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader

    from ddp_helpers.bench.trial_changes import applied

    before = DistributedDataParallel.__init__, DataLoader.__init__
    change = Change(batch_factor=2, compress=True, threads_per_rank=1)
    with applied(change) as occasions:
        assert DataLoader([1, 2, 3, 4], 2).batch_size == 4
    assert change.parts - occasions == {"compress"}  # no DDP was made
    assert (DistributedDataParallel.__init__, DataLoader.__init__) == before


def test_too_few_steps_and_errors_of_the_function(script):
    with pytest.raises(LaunchError, match=r"0 training steps, bench needs 9"):
        measure(script, "few_steps")
    with pytest.raises(LaunchError, match=r"photos.tar"):
        measure(script, "broken")
    with pytest.raises(LaunchError, match=r"no_dataset\(\) returned Linear, expected \(model"):
        measure(script, "no_dataset", is_model=True, nprocs=1)


def test_the_command_prints_table_verdict_and_measured_advice(script, tmp_path):
    words = ("-n", "1,2", "--model", "--steps", 4, "--rounds", 1, "--batch-size", 8)
    done = command(f"{script}:slow_disk", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" +[12] +\d", line)]
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][2:4] == ["1.00", "100%"]
    assert float(rows[1][2]) == pytest.approx(float(rows[1][1]) / float(rows[0][1]), abs=0.01)
    assert "2 ranks: data-bound: " in done.stdout  # 8 x 10 ms of waiting
    advice = re.findall(r"([\d.]+) -> +([\d.]+) +([\d.]+) times  DataLoader", done.stdout)
    assert len(advice) == 2
    for before, after, gain in advice:
        assert float(gain) == pytest.approx(float(after) / float(before), abs=0.02)
    assert (tmp_path / "runs/bench/scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing.py:main"], "there is no file nothing.py"),
        (["nothing"], "path/script.py:function"),
        (["mine.py:main", "-n", "two"], "such as 1,2,4"),
        (["mine.py:main", "--steps", "0"], "--steps 0"),
        (["mine.py:main", "--out", "x.gif"], ".png or .svg"),
    ],
)
def test_mistakes_are_named_before_anything_runs(words, text, script, tmp_path):
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
