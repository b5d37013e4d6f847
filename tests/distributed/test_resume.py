"""Kill a rank anywhere; what goes on from the last checkpoint ends with the same bits.

Each rank writes a journal: a line for each optimizer step with the samples it saw and its loss.
A resumed run writes over the lines that it repeats, so at the end the journals of a run that was
killed and one that was not must be equal, line by line.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from torch_age import of_the_run, without_greeting

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.checkpoints.file import CheckpointError
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.checkpoints.random_state import SeededSamples
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader
from ddp_helpers.training import fit
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.schedule import warm_up

pytestmark = pytest.mark.usefixtures("no_process_left")
SAMPLES, GLOBAL_BATCH, EPOCHS, SAVE_EVERY = 33, 8, 4, 2  # a last batch of one sample
STEPS = 5 * EPOCHS
RECORDED = ("epoch", "train_loss", "test_loss", "test_accuracy", "world_size")


class Noisy(Dataset):
    """Each sample is drawn anew, as an augmentation would; the last value is its index."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(SAMPLES, 6, generator=generator).to(dtype)
        self.labels = torch.randint(0, 3, (SAMPLES,), generator=generator)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(6).to(self.inputs.dtype) + random.random() / 10
        return torch.cat([self.inputs[index] + noise, torch.tensor([float(index)])]), int(
            self.labels[index]
        )


class Net(nn.Module):
    """Draws for dropout, has buffers, and lists its layers in no useful order."""

    def __init__(self, dropout, norm, seen):
        super().__init__()
        self.out, self.norm = nn.Linear(13, 3), norm
        self.first, self.second = nn.Linear(6, 21), nn.Linear(21, 13)
        self.dropout, self.seen = nn.Dropout(dropout), seen
        self.register_buffer("mean", torch.zeros(13))

    def forward(self, inputs):
        hidden = torch.relu(self.second(torch.relu(self.first(inputs[:, :6]))))
        if self.training:
            self.seen += inputs[:, 6].int().tolist()
        if self.training and self.norm and len(inputs) > 0:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return self.out(self.dropout(hidden - self.mean.clone()))


def run(
    folder, kill=None, *, double=False, dropout=0.2, seeded=False, workers=0, norm=True, end=EPOCHS
):
    """Train on this rank, from the newest checkpoint if there is one; the final weights."""
    folder = Path(folder)
    with process_group() as pg:
        seen, journal = [], folder / f"journal-{pg.rank}of{pg.world_size}"
        torch.manual_seed(0)
        model = Net(dropout, norm, seen).to(torch.float64 if double else torch.float32)
        wrapped = DistributedDataParallel(model) if pg.world_size > 1 else model
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        torch.manual_seed(pg.rank)
        random.seed(pg.rank)
        data = Noisy(torch.float64 if double else torch.float32)
        ranks = {"rank": pg.rank, "world_size": pg.world_size}
        loader = make_resumable_loader(
            SeededSamples(data) if seeded else data,
            GLOBAL_BATCH,
            accumulation_steps=2,
            num_workers=workers,
            **ranks,
        )
        if kill is not None and kill["rank"] == pg.rank:
            arm(kill, model, optimizer)

        def note(step, _, loss):
            sampler = loader.batch_sampler
            mine = len(range(pg.rank, sampler.samples_in(step - 1), pg.world_size))
            first = len(seen) - mine  # before: the forward that settles DDP's buckets
            line = [sampler.epoch, step, seen[first:], loss.item().hex()]
            with open(journal, "a") as file:
                file.write(json.dumps(line) + "\n")
            seen.clear()

        records = fit(
            wrapped,
            loader,
            make_eval_loader(SeededSamples(data, seed=9), 5, **ranks),
            optimizer,
            epochs=end,
            device="cpu",
            progress=note,
            accumulation_steps=2,
            max_grad_norm=0.5,
            scheduler=warm_up(optimizer, 4, total_steps=40),
            early_stop=EarlyStop(100),
            checkpoints=CheckpointFolder(folder / "checkpoints"),
            save_every=SAVE_EVERY,
        )
        kept = [[getattr(record, name) for name in RECORDED] for record in records]
        return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "records": kept}


def arm(kill, model, optimizer):
    """Have this process end itself with SIGKILL at the n-th time it comes to a place."""
    left = [kill["after"]]

    def strike(*_):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    if kill["place"] == "forward":
        model.second.register_forward_hook(lambda *_: strike())
    elif kill["place"] == "backward":  # some gradients of this step are there, others are not
        model.second.weight.register_hook(lambda gradient: strike())
    elif kill["place"] == "optimizer":
        optimizer.register_step_pre_hook(strike)
    else:  # in a save: with half a file, with a whole one, or just after its name has changed
        patch_save(kill["place"], strike)


def patch_save(place, strike):
    save, replace = torch.save, os.replace

    def half_a_file(state, file, **options):
        save(state, file, **options)
        if str(getattr(file, "name", "")).endswith(".tmp"):
            file.truncate(file.tell() // 2)
            file.flush()
            strike()
            file.seek(0)
            save(state, file)

    def renamed(*names):
        replace(*names)
        strike()

    if place == "half a file":
        torch.save = half_a_file
    elif place == "before the rename":
        os.replace = lambda *names: (strike(), replace(*names))
    else:
        os.replace = renamed


def journals(folder, world_size):
    """For each rank the last line of each step."""
    ranks = []
    for rank in range(world_size):
        lines = (folder / f"journal-{rank}of{world_size}").read_text().splitlines()
        steps = {(epoch, step): rest for epoch, step, *rest in map(json.loads, lines)}
        ranks.append(dict(sorted(steps.items())))
    return ranks


def equal(mine, theirs):
    """Equal to the last bit, through dicts, lists and tensors."""
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(equal(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list | tuple):
        pairs = zip(mine, theirs, strict=True)
        return len(mine) == len(theirs) and all(equal(*pair) for pair in pairs)
    return mine == theirs


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """By world size: what each rank of an undisturbed run returned, and its journal."""
    known = {}

    def get(world_size):
        if world_size not in known:
            folder = tmp_path_factory.mktemp(f"whole{world_size}")
            values = launch(run, world_size, args=(folder,), threads_per_rank=1).values
            known[world_size] = values, journals(folder, world_size)
        return known[world_size]

    return get


# ---- twenty kills


def random_kill(number):
    """A world size, a rank and a place; saves happen on rank 0 only."""
    dice = random.Random(number)
    world_size = dice.choice([2, 2, 3, 4])
    places = ["forward", "backward", "optimizer"]
    saving = ["half a file", "before the rename", "after the rename"]
    place = (places + saving)[number % 6]
    rank = 0 if place in saving else dice.randrange(world_size)
    most = {"forward": 2 * STEPS - 4, "backward": 2 * STEPS - 4, "optimizer": STEPS}
    return world_size, {
        "rank": rank,
        "place": place,
        "after": dice.randrange(most.get(place, STEPS // SAVE_EVERY + EPOCHS)),
    }


@pytest.mark.parametrize("number", range(20))
def test_killed_anywhere_it_ends_with_the_same_bits(number, never_stopped, tmp_path):
    world_size, kill = random_kill(number)
    options = {"threads_per_rank": 1, "echo": False}
    with pytest.raises(LaunchError) as caught:
        launch(run, world_size, args=(tmp_path, kill), **options)
    assert caught.value.result[kill["rank"]].exit_code == -signal.SIGKILL, kill
    result = launch(run, world_size, args=(tmp_path,), **options)
    values, journal = never_stopped(world_size)
    assert journals(tmp_path, world_size) == journal, kill
    assert equal(result.values, values), kill
    assert len(journal[0]) == STEPS
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    best, *last = left  # the last K, the best one, and nothing half-written
    assert len(last) == 3, left
    assert best.startswith("best-checkpoint-"), left


def test_killed_again_and_again(never_stopped, tmp_path):
    options = {"threads_per_rank": 1, "echo": False}
    for after in (5, 7, 9, 11):
        kill = {"rank": after % 2, "place": "optimizer", "after": after // 2}
        with pytest.raises(LaunchError):
            launch(run, 2, args=(tmp_path, kill), **options)
    result = launch(run, 2, args=(tmp_path,), **options)
    values, journal = never_stopped(2)
    assert journals(tmp_path, 2) == journal
    assert equal(result.values, values)


# ---- another number of ranks


def global_order(folder, world_size):
    """The set of samples of each step, all ranks together."""
    ranks = journals(folder, world_size)
    return {step: sorted(i for rank in ranks for i in rank[step][0]) for step in ranks[0]}


@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 3), (1, 4), (2, 1)])
def test_saved_on_some_ranks_resumed_on_others(before, after, tmp_path):
    settings = {"double": True, "dropout": 0.0, "seeded": True}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    options = {"threads_per_rank": 1, "kwargs": settings | {"norm": False}, "echo": False}
    undisturbed = launch(run, before, args=(whole,), **options).values[0]
    kill = {
        "rank": 0,
        "place": "optimizer",
        "after": 8,
    }  # the last save: after step 8, 3 of epoch 2
    with pytest.raises(LaunchError):
        launch(run, before, args=(parts, kill), **options)
    result = launch(run, after, args=(parts,), **options)
    assert f"saved on {before} ranks, resumed on {after}" in result[0].output
    assert not without_greeting(result[after - 1].output) or after == 1
    resumed = result.values[0]
    order = global_order(whole, before)
    new = global_order(parts, after)
    assert new == {step: order[step] for step in order if step >= (1, 4)}
    for name, value in undisturbed["weights"].items():
        assert (resumed["weights"][name] - value).abs().max() < 1e-9, name
    for mine, theirs in zip(resumed["records"], undisturbed["records"], strict=True):
        assert mine[1:4] == pytest.approx(theirs[1:4], abs=1e-9)


# ---- damage


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_passed_over(how, never_stopped, tmp_path):
    options = {"threads_per_rank": 1, "echo": False}
    launch(run, 2, args=(tmp_path,), kwargs={"end": 2}, **options)
    older, newest = CheckpointFolder(tmp_path / "checkpoints").paths()[1::-1]
    content = bytearray(newest.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[how])
    result = launch(run, 2, args=(tmp_path,), **options)
    problem = "is empty" if how == "empty" else "is damaged"
    assert f"checkpoint {newest.name} {problem}" in result[0].output
    assert f"going back to {older.name}" in result[0].output
    assert f"resumed from {older.name}: epoch 2, step 5" in result[0].output
    assert not without_greeting(result[1].output)
    values, journal = never_stopped(2)
    assert journals(tmp_path, 2) == journal
    assert equal(result.values, values)


def test_no_whole_checkpoint_is_an_error_on_all_ranks_and_never_a_new_start(tmp_path):
    def load():
        with process_group():
            try:
                return CheckpointFolder(tmp_path).load_newest()
            except CheckpointError as error:
                return str(error)

    assert launch(load, 2).values == [None, None]
    CheckpointFolder(tmp_path).save(step=1).write_bytes(b"")
    for _ in range(2):
        first, second = launch(load, 2).values
        assert first == second
        assert "no whole checkpoint in" in first


# ---- workers, and the sanitizer


def test_workers_that_draw_ahead_change_nothing(tmp_path):
    settings = {"seeded": True, "dropout": 0.0}
    folders = [tmp_path / name for name in ("none", "two")]
    for folder in folders:
        folder.mkdir()
    options = {"threads_per_rank": 1, "echo": False}
    none = launch(run, 2, args=(folders[0],), kwargs=settings, **options)
    kill = {"rank": 1, "place": "optimizer", "after": 8}
    settings["workers"] = 1
    with pytest.raises(LaunchError):
        launch(run, 2, args=(folders[1], kill), kwargs=settings, **options)
    two = launch(run, 2, args=(folders[1],), kwargs=settings, **options)
    assert journals(folders[1], 2) == journals(folders[0], 2)
    assert equal([v["weights"] for v in two.values], [v["weights"] for v in none.values])


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_sanitizer_finds_nothing(world_size, never_stopped, tmp_path):
    options = {"threads_per_rank": 1, "echo": False, "sanitize": True}
    first = launch(run, world_size, args=(tmp_path,), kwargs={"end": 2}, **options)
    rest = launch(run, world_size, args=(tmp_path,), **options)
    assert of_the_run([*first.findings, *rest.findings]) == []
    assert equal(rest.values, never_stopped(world_size)[0])
