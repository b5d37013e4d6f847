"""What the command `sanitize` finds in scripts that know nothing of it, and `with sanitize()`."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from ddp_helpers.sanitizer.checks import weights

pytestmark = pytest.mark.usefixtures("no_process_left")
LIMIT = 90  # seconds
SANITIZE = ["-m", "ddp_helpers", "sanitize", sys.executable]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HEAD = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

def train(advance, epochs=2):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 3), torch.randn(32, 1))
    sampler = DistributedSampler(data)
    ddp = DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for epoch in range(epochs):
        if advance:
            sampler.set_epoch(epoch)
        for x, y in DataLoader(data, 4, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.mse_loss(ddp(x), y).backward()
            optimizer.step()

dist.init_process_group("gloo")
"""


def run(tmp_path, body, head=HEAD, command=SANITIZE):
    script = tmp_path / "train.py"
    script.write_text(head + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, *command, *TORCHRUN, str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_a_right_script_stays_silent(tmp_path):
    done = run(tmp_path, "train(True)\ndist.destroy_process_group()\nprint('done')")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
    assert [line for line in done.stderr.splitlines() if "sanitizer" in line] == [
        "sanitizer: watched 2 ranks, 8 steps, 2 passes over the data; nothing found"
    ]


PADDED = """
    def evaluate():
        data = TensorDataset(torch.randn(31, 3))
        count = torch.zeros(1)
        loader = DataLoader(data, 4, sampler=DistributedSampler(data, shuffle=False))
        for (x,) in loader:COMMENT
            count += len(x)
        dist.all_reduce(count)

    evaluate()
    train(ADVANCE)
    evaluate()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("advance", [True, False])
@pytest.mark.parametrize("how", ["option", "comment"])
def test_an_accepted_finding_leaves_the_rest_watched(how, advance, tmp_path):
    comment = "  # ddp: ignore[padded-evaluation]" if how == "comment" else ""
    options = ["--ignore", "padded-evaluation"] if how == "option" else []
    body = PADDED.replace("COMMENT", comment).replace("ADVANCE", str(advance))
    done = run(tmp_path, body, command=[*SANITIZE[:3], *options, sys.executable])
    assert "[padded-evaluation]" not in done.stderr
    if advance:
        assert done.returncode == 0, done.stderr
        assert (
            "8 steps, 2 passes over the data; nothing else found; accepted: padded" in done.stderr
        )
    else:
        assert done.returncode != 0
        assert "[epoch-not-advanced]" in done.stderr
    if not options:
        without = run(tmp_path, PADDED.replace("COMMENT", "").replace("ADVANCE", "True"))
        assert "[padded-evaluation]" in without.stderr


def test_a_run_without_a_step_says_so(tmp_path):
    done = run(tmp_path, "dist.barrier()\ndist.destroy_process_group()\n")
    assert done.returncode == 0, done.stderr
    line = "sanitizer: watched 2 ranks, no optimizer step, 1 collective; nothing found\n"
    assert done.stderr.count(line) == 1
    done = run(tmp_path, "dist.destroy_process_group()\n")
    assert done.stderr.count("sanitizer: watched nothing: 2 ranks took no optimizer step") == 1


def test_a_note_of_another_rank_counts(tmp_path):
    body = """
        if dist.get_rank() == 1:
            torch.set_num_threads(64)
        train(True)
        dist.destroy_process_group()
    """
    done = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert "2 passes over the data; found: too-many-threads\n" in done.stderr


def test_a_finding_raises_in_the_rank(tmp_path):
    started = time.monotonic()
    done = run(tmp_path, "train(False)\nprint('not reached')")
    assert done.returncode != 0
    assert "[epoch-not-advanced]" in done.stderr
    assert "set_epoch(epoch)" in done.stderr
    assert "not reached" not in done.stdout
    assert time.monotonic() - started < LIMIT / 2


def test_off_without_the_command(tmp_path):
    body = """
        import sys
        train(False)
        dist.destroy_process_group()
        count = sum(name.split(".")[0] == "ddp_helpers" for name in sys.modules)
        print(f"{count} modules")  # one text, so that the ranks' lines do not mix
    """
    done = run(tmp_path, body, command=())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 modules") == 2


UNEVEN = """
    rank = dist.get_rank()
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.randn(8 + 8 * rank, 3))
    for (x,) in DataLoader(data, 4):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    for p in model.parameters():
        dist.all_reduce(p.data)
"""


@pytest.mark.parametrize("end", ["", "dist.destroy_process_group()"])
def test_what_is_found_at_the_end_makes_the_script_fail(end, tmp_path):
    done = run(tmp_path, textwrap.dedent(UNEVEN) + end)
    assert done.returncode != 0
    assert "[uneven-batch-counts]" in done.stderr


def test_notes_are_told_once(tmp_path):
    body = "torch.set_num_threads(64)\ntrain(True)\ndist.destroy_process_group()"
    done = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[too-many-threads]") == 1


def test_an_error_of_the_script_stays_its_own(tmp_path):
    done = run(tmp_path, "train(True, 1)\nraise ValueError('my own')")
    assert done.returncode != 0
    assert "ValueError: my own" in done.stderr
    assert "sanitizer" not in done.stderr.replace("ddp_helpers/sanitizer", "")


def test_a_world_of_one_under_a_launcher_of_two(tmp_path):
    head = HEAD.replace('"gloo")', '"gloo", store=dist.HashStore(), rank=0, world_size=1)')
    done = run(tmp_path, "train(True)", head=head)
    assert done.returncode != 0
    assert "[smaller-world]" in done.stderr


def test_loader_workers_and_other_programs_are_not_watched(tmp_path):
    body = f"""
        import subprocess, sys

        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                watched = {weights.__name__!r} in sys.modules
                return torch.tensor([float(index + int(watched) * 100)])

        if __name__ == "__main__":
            dist.init_process_group("gloo")
            for context in ("spawn", "forkserver"):
                loader = DataLoader(Data(), 4, num_workers=1, multiprocessing_context=context)
                print(context, max(float(batch.max()) for batch in loader))
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
    """
    done = run(tmp_path, body, head=HEAD.replace('dist.init_process_group("gloo")', ""))
    assert done.returncode == 0, done.stderr
    assert "spawn 7.0" in done.stdout
    assert "forkserver 7.0" in done.stdout


@pytest.mark.parametrize(("before", "advance"), [(True, False), (False, True)])
def test_a_with_block_before_or_after_the_start(before, advance, tmp_path):
    start = 'dist.init_process_group("gloo")'
    head = HEAD.replace(start, "from ddp_helpers.sanitizer import sanitize")
    first, second = ("", f"    {start}") if before else (start, "")
    body = f"{first}\nwith sanitize():\n{second}\n    train({advance})\nprint('done')\n"
    # under the command, too, the block adds nothing
    done = run(tmp_path, body, head=head, command=SANITIZE if advance else ())
    assert (done.returncode == 0) == advance, done.stderr
    assert ("[epoch-not-advanced]" in done.stderr) != advance
