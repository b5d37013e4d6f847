"""fsdp.py: started each way, equal to DDP, and taken up again from a whole folder."""

import re
from pathlib import Path

import pytest
import torch
from template_runner import (
    PLAIN,
    STOP_ITSELF,
    TEMPLATES,
    Finished,
    Runner,
    copy,
    stop_at,
    torchrun,
)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_age import needs_torch

pytestmark = [
    pytest.mark.timeout(300),
    needs_torch(2, 7, "before, fully_shard does not work on a CPU"),
]


def newest(folder: Path) -> Path:
    return sorted(folder.glob("checkpoint-????????"))[-1]


def weights(run: Finished) -> dict[str, torch.Tensor]:
    """The weights of the newest folder, as the docstring says."""
    dcp_to_torch_save(newest(run.folder), run.folder / "whole.pt")
    return torch.load(run.folder / "whole.pt")["model"]


def test_it_trains_however_it_is_started_and_evaluates_uneven_shares(runner: Runner) -> None:
    """65 held-out images in batches of 32: rank 0 has one batch more than rank 1."""
    folder = copy(runner, "fsdp", ("batch_size=500", "batch_size=32"))
    size = ("--epochs", 1, "--limit", 65)
    script = folder / "mine.py"
    runs = runner.however_started(script, *size)
    for way in runs:
        assert runs[way].code == 0, runs[way].err
        assert "of 65)" in runs[way].out.splitlines()[-1]
        assert "Traceback" not in runs[way].err
    accuracies = {re.search("accuracy (.*?) ", runs[way].out)[1] for way in ("spawn", "agent 2")}
    assert len(accuracies) == 1


def test_its_weights_are_those_of_ddp(runner: Runner) -> None:
    size = ("--epochs", 1, "--limit", 316, "--lr", 0.05, "--accumulate", 3)
    size = (*size, "--batch-size-per-rank", 8, "--clip", 1.0)
    runs = []
    for step in ("ddp_full", "fsdp"):
        folder = copy(runner, step, *PLAIN)
        runs.append(runner.on_ranks(2, folder / "mine.py", *size, folder=folder))
    ddp, found = torch.load(newest_file(runs[0].folder))["model"], weights(runs[1])
    assert ddp.keys() == found.keys()
    assert all(torch.allclose(ddp[name], found[name], atol=1e-5) for name in ddp)


def newest_file(folder: Path) -> Path:
    return sorted(folder.glob("checkpoint-*.pt"))[-1]


def test_stopped_and_damaged_it_ends_with_the_same_weights(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("--epochs", 2, "--limit", 150, "--save-every", 2, "--batch-size-per-rank", 16)
    undisturbed = runner.on_ranks(2, TEMPLATES / "fsdp.py", *size)
    folder = copy(runner, "fsdp", *STOP_ITSELF)

    stop_at(monkeypatch, 3)
    warned = runner.run(*torchrun(2), folder / "mine.py", *size, folder=folder)
    assert "stopped and saved" in warned.out
    assert newest(folder).name == "checkpoint-00000003"
    share = newest(folder) / "__1_0.distcp"
    raw = bytearray(share.read_bytes())
    raw[len(raw) // 2] ^= 1
    share.write_bytes(raw)
    stop_at(monkeypatch, -1)
    done = runner.on_ranks(2, folder / "mine.py", *size, folder=folder)
    assert "checkpoint-00000003 is damaged (wrong checksum of a share)" in done.out
    assert "goes on from checkpoint-00000002" in done.out
    ours, theirs = weights(done), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rests = [torch.load(newest(one.folder) / "rest.pt") for one in (done, undisturbed)]
    assert [rest["schedule"]["last_epoch"] for rest in rests] == [10, 10]
    assert len(list(folder.glob("checkpoint-????????"))) == 3, "--keep is 3"
