"""One checkpoint file: whole or not there, and clear when it is neither."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from ddp_helpers.checkpoints.file import CheckpointError, load_checkpoint, save_checkpoint, unwrap


@dataclass
class Record:
    loss: float


def state(value):
    return {"weight": torch.full((64,), float(value)), "epoch": value, "note": ["text", 1.5, None]}


def test_round_trip(tmp_path):
    path = tmp_path / "runs" / "a" / "model.pt"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    assert save_checkpoint(path, model=model, optimizer=optimizer, epoch=4) == path
    loaded = load_checkpoint(path)
    assert loaded["epoch"] == 4
    assert torch.equal(loaded["model"]["weight"], model.weight)
    fresh = torch.optim.Adam(nn.Linear(3, 2).parameters())
    fresh.load_state_dict(loaded["optimizer"])
    assert fresh.state_dict()["state"][0]["step"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pt"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_wrapped_model_is_saved_unwrapped(tmp_path):
    model = nn.Linear(3, 2)
    for wrapped in (DataParallel(model), torch.compile(model), DataParallel(DataParallel(model))):
        assert unwrap(wrapped) is model
        save_checkpoint(tmp_path / "m.pt", model=wrapped)
        assert list(load_checkpoint(tmp_path / "m.pt")["model"]) == ["weight", "bias"]
    assert unwrap(model) is model


def test_names_in_a_state_dict_are_never_changed(tmp_path):
    wrapped = DataParallel(nn.Linear(3, 2)).state_dict()
    save_checkpoint(tmp_path / "m.pt", model=wrapped)
    assert list(load_checkpoint(tmp_path / "m.pt")["model"]) == ["module.weight", "module.bias"]


def test_nothing_to_save_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to save: pass model="):
        save_checkpoint(tmp_path / "m.pt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*m\.pt.*save_checkpoint"):
        load_checkpoint(tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("part", [0, 1, 0.3, 0.6, 0.99])
def test_truncated_file_is_damaged(tmp_path, part):
    path = save_checkpoint(tmp_path / "m.pt", **state(1))
    content = path.read_bytes()
    path.write_bytes(content[: part if part == 1 else int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"m\.pt \([\d,]+ bytes\) is damaged.*older one"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"hello, I am no checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04"]
)
def test_another_kind_of_file_is_damaged(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"record": Record(1.0)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"holds more than tensors.*Record"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_tensor_alone_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"holds a Tensor: expected a dict"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("bad", [Record(1.0), lambda: 1], ids=["record", "lambda"])
def test_what_cannot_be_saved_or_loaded_leaves_the_old_file(tmp_path, bad):
    path = save_checkpoint(tmp_path / "m.pt", **state(1))
    with pytest.raises(CheckpointError, match=r"could not save .*m\.pt"):
        save_checkpoint(path, bad=bad)
    assert load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt"]


def test_a_folder_in_the_way_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="could not save"):
        save_checkpoint(tmp_path, **state(1))
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_leftovers_of_dead_runs_are_removed_and_others_are_not(tmp_path):
    path = tmp_path / "m.pt"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    dead = tmp_path / f".m.pt.{host}.{gone.pid}.tmp"
    alive = tmp_path / f".m.pt.{host}.{os.getppid()}.tmp"
    elsewhere = tmp_path / f".m.pt.not-{host}.{gone.pid}.tmp"
    for leftover in (dead, alive, elsewhere):
        leftover.touch()
    save_checkpoint(path, **state(1))
    assert set(tmp_path.iterdir()) == {path, alive, elsewhere}


def test_a_new_checkpoint_takes_the_name_and_does_not_touch_the_old_file(tmp_path):
    path = save_checkpoint(tmp_path / "m.pt", **state(1))
    old_content = path.read_bytes()
    with open(path, "rb") as old_file:
        save_checkpoint(path, **state(2))
        assert old_file.read() == old_content
    assert load_checkpoint(path)["epoch"] == 2


SAVE_FOR_EVER = """
import itertools, sys, torch
from ddp_helpers.checkpoints import save_checkpoint
for value in itertools.count(1):
    save_checkpoint(sys.argv[1], weight=torch.full((8_000_000,), float(value)), value=value)
    print(value, flush=True)
"""


def test_a_process_killed_while_saving_leaves_the_last_whole_file(tmp_path, no_process_left):
    path = tmp_path / "m.pt"
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()  # one whole file is there
        half_written = kill_while_saving(process, path)
    finally:
        process.kill()
        process.wait()
    finished = [1, *map(int, process.stdout.read().split())][-1]
    loaded = load_checkpoint(path)
    assert loaded["value"] in (finished, finished + 1)  # killed between the rename and the print
    assert loaded["weight"].unique().tolist() == [loaded["value"]]
    assert 0 < half_written < path.stat().st_size


def kill_while_saving(process, path: Path) -> int:
    """Kill the process when a part of the file is written; return how many bytes were."""
    whole, limit = path.stat().st_size, time.monotonic() + 30
    while time.monotonic() < limit:
        for temporary in path.parent.glob(".*.tmp"):
            try:
                if 0 < temporary.stat().st_size < whole:
                    os.kill(process.pid, signal.SIGSTOP)  # so that it is still half-written
                    size = temporary.stat().st_size
                    if 0 < size < whole:
                        os.kill(process.pid, signal.SIGKILL)
                        return size
                    os.kill(process.pid, signal.SIGCONT)
            except FileNotFoundError:
                os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("never saw a half-written file")
