"""Training, evaluation and checkpoints on real ranks."""

import os
import pickle
import time
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from ddp_helpers.checkpoints.file import CheckpointError, load_checkpoint, save_checkpoint
from ddp_helpers.data import make_eval_loader, make_train_loader
from ddp_helpers.model import MLP
from ddp_helpers.training import evaluate, fit, train_mnist_5k, train_one_epoch

pytestmark = pytest.mark.usefixtures("no_process_left", "one_thread")
SIZES = range(1, 21)


def run_ranks(function, world_size: int, folder: Path, limit: float = 90) -> list:
    """Run `function(rank, world_size, folder)` on gloo ranks; return the values in rank order."""
    mp.get_context("forkserver").set_forkserver_preload(["torch"])
    context = mp.start_processes(
        enter, (function, world_size, folder), world_size, join=False, start_method="forkserver"
    )
    ends = time.monotonic() + limit
    try:
        while not context.join(timeout=0.2):
            assert time.monotonic() < ends, f"{world_size} ranks still run after {limit} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return [pickle.loads((folder / f"value{rank}").read_bytes()) for rank in range(world_size)]


def enter(rank, function, world_size, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=30),
    )
    try:
        with open(folder / f"output{rank}", "w") as output, redirect_stdout(output):
            value = function(rank, world_size, folder)
        (folder / f"value{rank}").write_bytes(pickle.dumps(value))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def digits(n):
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return TensorDataset(torch.randn(n, 4, generator=generator), labels)


def small_model():
    torch.manual_seed(1)
    return MLP(4, 8, 3).double()


# ---- what the ranks do; world_size 1 runs right here, without a process group


def evaluate_sizes(rank, world_size, folder=None):
    model = small_model().float()
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    results = []
    for n in SIZES:
        loader = make_eval_loader(digits(n), 3, rank=rank, world_size=world_size)
        results.append(evaluate(wrapped, loader, device="cpu"))
    return results


def fit_in_double(rank, world_size, folder):
    """Records, the checkpoint as this rank loads it right after, and whether it is the model."""
    model = small_model()
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    inputs, labels = digits(48).tensors
    data = TensorDataset(inputs.double(), labels)
    records = fit(
        wrapped,
        make_train_loader(data, 12 // world_size, rank=rank, world_size=world_size),
        make_eval_loader(data, 5, rank=rank, world_size=world_size),
        torch.optim.SGD(model.parameters(), lr=0.1),
        epochs=3,
        device="cpu",
        checkpoint_path=folder / "fit.pt",
    )
    saved = load_checkpoint(folder / "fit.pt")["model"]
    return records, saved, all(torch.equal(saved[k], v) for k, v in model.state_dict().items())


class State:
    """Knows how often it was asked to save itself."""

    def __init__(self, rank):
        self.rank, self.asked = rank, 0

    def state_dict(self):
        self.asked += 1
        return {"rank": self.rank}


def make_mistakes(rank, world_size, folder):
    """The texts of four errors, each due on every rank, and how long they took."""
    (folder / "a_file").touch()
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = make_train_loader(digits(8), 2, rank=rank, world_size=world_size)
    mistakes = {
        "no folder": lambda: save_checkpoint(folder / "a_file" / "m.pt", epoch=1),
        "no plain value": lambda: save_checkpoint(folder / "m.pt", function=os.getpid),
        "odd batch": lambda: train_mnist_5k(epochs=1, global_batch_size=63),
        "bare": lambda: train_one_epoch(model, loader, optimizer, device="cpu", epoch=0),
    }
    texts, started = {}, time.monotonic()
    for name, mistake in mistakes.items():
        try:
            mistake()
        except (CheckpointError, ValueError) as error:
            texts[name] = str(error)
    seconds = time.monotonic() - started
    state = State(rank)
    save_checkpoint(folder / "after.pt", state=state)
    return texts, seconds, load_checkpoint(folder / "after.pt"), state.asked


def two_ranks_do_all(rank, world_size, folder):
    """One start for all: starting ranks takes longer than what they do."""
    return {
        "evaluate": evaluate_sizes(rank, world_size),
        "fit": fit_in_double(rank, world_size, folder),
        "mistakes": make_mistakes(rank, world_size, folder),
        "digits": train_mnist_5k(epochs=4, checkpoint_path=folder / "digits.pt"),
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    return run_ranks(two_ranks_do_all, 2, folder), folder


# ---- evaluation


@pytest.fixture(scope="module")
def expected():
    """Loss, right answers and count for each size, from one forward over the whole data."""
    results, model = [], small_model().float()
    for n in SIZES:
        inputs, labels = digits(n).tensors
        with torch.no_grad():
            logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, labels).item()
        results.append((loss, (logits.argmax(1) == labels).sum().item(), n))
    return results


def check_metrics(values, expected):
    assert all(value == values[0] for value in values)
    for metrics, (loss, correct, n) in zip(values[0], expected, strict=True):
        assert (metrics.correct, metrics.samples) == (correct, n)
        assert metrics.loss == pytest.approx(loss, abs=1e-6)


def test_evaluate_alone(expected):
    check_metrics([evaluate_sizes(0, 1)], expected)


def test_evaluate_on_two_ranks(two_ranks, expected):
    check_metrics([value["evaluate"] for value in two_ranks[0]], expected)


def test_evaluate_on_three_ranks(tmp_path, expected):
    check_metrics(run_ranks(evaluate_sizes, 3, tmp_path), expected)


# ---- training


def test_two_ranks_follow_one_and_save_what_they_have(two_ranks, tmp_path):
    one, one_saved, _ = fit_in_double(0, 1, tmp_path)
    (two, two_saved, same0), (also_two, _, same1) = (value["fit"] for value in two_ranks[0])
    for mine, theirs in zip(one, two, strict=True):
        assert theirs.train_loss == pytest.approx(mine.train_loss, abs=1e-12)
        assert theirs.test_loss == pytest.approx(mine.test_loss, abs=1e-12)
        assert (mine.world_size, theirs.world_size) == (1, 2)
    for name, value in one_saved.items():
        torch.testing.assert_close(two_saved[name], value, rtol=0, atol=1e-12)
    assert two == also_two
    assert same0
    assert same1


def test_two_ranks_learn_the_digits(two_ranks):
    (first, second), folder = [value["digits"] for value in two_ranks[0]], two_ranks[1]
    assert first == second
    assert first[-1].test_accuracy >= 0.95
    saved = load_checkpoint(folder / "digits.pt")
    assert saved["epoch"] == 4
    assert not [name for name in saved["model"] if name.startswith("module.")]


def test_only_rank_0_prints(two_ranks):
    outputs = [(two_ranks[1] / f"output{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [line[:9] for line in outputs[0]] == [f"epoch {n}/4" for n in (1, 2, 3, 4)]
    assert all("(2 ranks)" in line for line in outputs[0])
    assert not outputs[1]


# ---- errors


def test_a_mistake_fails_on_every_rank_and_none_waits(two_ranks):
    (texts, seconds, loaded, asked), other = (value["mistakes"] for value in two_ranks[0])
    assert "could not save" in texts["no folder"]
    assert "holds more than tensors" in texts["no plain value"]
    assert "global_batch_size=63 can't be shared equally by 2 ranks" in texts["odd batch"]
    assert "the model is bare, but 2 ranks are training" in texts["bare"]
    assert seconds < 10
    assert loaded == {"state": {"rank": 0}}
    assert other[0] == texts
    assert other[2] == loaded
    assert (asked, other[3]) == (1, 0)  # only rank 0 writes
