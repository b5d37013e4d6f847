"""starter.py after the edits that its owners make first: each promise, with each of them."""

import csv
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from template_runner import TEMPLATES, Runner, torchrun
from torch import nn

from ddp_helpers import LaunchError

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_process_left")]

STARTER = TEMPLATES / "starter.py"
# the run ends itself where a test asks for it, from the owner's own function
TRACK = '''    """On rank 0, with each line of log.csv: tell TensorBoard or W&B here."""
'''
END_AT = """    import os

    if step == int(os.environ.get("END_AT", -1)) and "lr" in values:
        os.kill(os.getpid(), int(os.environ["END_BY"]))
"""
# without draws and dropout all ranks together are one process
PLAIN = [("(x, y, most=2)", "(x, y, most=0)"), ("nn.Dropout(0.2), ", "")]
FLAGS = ("--epochs", 2, "--log-every", 1, "--batch-size-per-rank", 8)

DICTS = [
    (
        "return self.x[index, None].float().div(255).roll(shift, dims=(1, 2)), int(self.y[index])",
        "x = self.x[index, None].float().div(255).roll(shift, dims=(1, 2))\n"
        '        return {"views": [x], "label": {"y": int(self.y[index])}}',
    ),
    ("x, y = batch\n", 'x, y = batch["views"][0], batch["label"]["y"]\n'),
]
OTHER_DRAWS = [
    (
        "        shift = ",
        "        import random\n\n        import numpy\n\n"
        "        gain = random.random() + numpy.random.rand()\n        shift = ",
    ),
    (".div(255).roll(", ".mul(gain).div(255).roll("),
]
WEIGHTED = [  # what to divide by is no number of samples
    (
        'cross_entropy(model(x).float(), y, reduction="sum"), len(y)',
        'cross_entropy(model(x).float(), y, WEIGHTS, reduction="sum"), WEIGHTS[y].sum()',
    ),
    ("BETTER =", "WEIGHTS = torch.arange(1.0, 11)\nBETTER ="),
]
EDITS: dict[str, tuple[list, tuple]] = {
    "as it is": ([], ()),
    "one worker": ([], ("--workers", 1)),
    "two workers": (OTHER_DRAWS, ("--workers", 2)),
    "a dict batch": (DICTS, ()),
    "BatchNorm": (
        [("16, 3, padding=1), nn.ReLU()", "16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()")],
        (),
    ),
    "weights": (WEIGHTED, ()),
    "accumulation": ([], ("--global-batch-size", 24)),
    "bfloat16": ([], ("--bf16",)),
    "no batch size that divides": ([], ("--global-batch-size", 13)),
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """70 samples to train on and 21 to hold out."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 7, 7, generator=draws).kron(torch.ones(1, 4, 4))
    y = torch.randint(10, (91,), generator=draws)
    x = (255 * patterns[y] * torch.rand(91, 28, 28, generator=draws)).to(torch.uint8)
    file = tmp_path_factory.mktemp("digits") / "digits.pt"
    torch.save([x[:70], y[:70], x[70:], y[70:]], file)
    return file


@pytest.fixture
def mine(runner: Runner, digits: Path):
    """An edited copy of the starter."""

    def edit(*changes: tuple[str, str]) -> Path:
        text = STARTER.read_text().replace(TRACK, TRACK + END_AT)
        text = re.sub(r"^DATA = .*$", f"DATA = {str(digits)!r}", text, flags=re.MULTILINE)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        runner.root.mkdir(exist_ok=True)
        file = runner.root / f"mine-{len(list(runner.root.glob('mine-*')))}.py"
        file.write_text(text)
        return file

    return edit


def newest(folder: Path, name: str = "newest") -> dict:
    return torch.load(folder / "run" / f"{name}.pt", weights_only=True)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def logged(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "run" / "log.csv").open() as file:
        timed = ("samples_per_second", "memory_gib")
        return [tuple(row) for row in csv.reader(file) if row[2] not in timed]


def ends(monkeypatch, step: int, by: int) -> None:
    monkeypatch.setenv("END_AT", str(step))
    monkeypatch.setenv("END_BY", str(int(by)))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "kill -9"])
@pytest.mark.parametrize("edit", EDITS)
def test_it_goes_on_to_the_same_bits(runner, mine, monkeypatch, edit: str, by: int) -> None:
    changes, flags = EDITS[edit]
    script = mine(*changes)
    flags = (*FLAGS, "--save-every", 2, *flags)
    whole = runner.on_ranks(2, script, *flags)
    ends(monkeypatch, 5, by)  # in the middle of the first or the second epoch
    folder = runner.root / "cut"
    with pytest.raises(LaunchError, match="75" if by == signal.SIGTERM else "SIGKILL"):
        runner.on_ranks(2, script, *flags, folder=folder)
    monkeypatch.delenv("END_AT")
    at = newest(folder)["at"]["step"]
    assert at == (6 if by == signal.SIGTERM else 4)
    workers = ("--workers", 1) if "--workers" not in flags else ("--workers", 0)
    runner.on_ranks(2, script, *flags, *workers, folder=folder)  # any number of workers
    assert same(newest(folder)["model"], newest(whole.folder)["model"])
    assert logged(folder) == logged(whole.folder)
    ours, theirs = newest(folder, "best"), newest(whole.folder, "best")
    assert same(ours["model"], theirs["model"])
    assert ours["at"]["best_epoch"] == theirs["at"]["best_epoch"]


@pytest.mark.parametrize("edit", ["as it is", "a dict batch", "weights", "accumulation"])
def test_any_number_of_ranks_trains_the_same_weights(runner, mine, edit: str) -> None:
    changes, flags = EDITS[edit]
    script = mine(*PLAIN, *changes)
    flags = (*FLAGS, "--global-batch-size", 24, *flags, "--lr", 1e-3)
    alone, *others = (runner.on_ranks(ranks, script, *flags) for ranks in (1, 2, 3))
    ours = newest(alone.folder)["model"]
    for other in others:
        theirs = newest(other.folder)["model"]
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], atol=2e-4, rtol=1e-3)
    counts = [len(logged(run.folder)) for run in (alone, *others)]
    assert len(set(counts)) == 1, "other steps"


def test_the_gradient_is_that_of_a_plain_loop(runner, mine) -> None:
    """Two ranks, uneven shares, weights, accumulation: the same as torch says it in four lines."""
    script = mine(*PLAIN, *WEIGHTED, ("torch.optim.AdamW(", "Descent("), ("# ruff", DESCENT))
    flags = ("--epochs", 1, "--global-batch-size", 70, "--batch-size-per-rank", 8, "--lr", 0.5)
    run = runner.on_ranks(2, script, *flags, "--warmup", 0, "--clip", "inf")
    data = torch.load(re.search("DATA = '(.*)'", script.read_text())[1])
    torch.manual_seed(0)
    starter = runpy.run_path(str(script))
    model = starter["make_model"]()
    x, y, _, _ = data
    weights = torch.arange(1.0, 11)
    nn.functional.cross_entropy(model(x[:, None] / 255), y, weights).backward()
    for name, value in newest(run.folder)["model"].items():
        expected = model.get_parameter(name) - 0.5 * model.get_parameter(name).grad
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


DESCENT = """

class Descent(torch.optim.SGD):
    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, lr)


# ruff"""


def test_ranks_and_epochs_draw_differently_and_share_each_epoch_anew(runner, mine) -> None:
    note = (
        "        shift = ",
        "        open(f'drawn-{torch.distributed.get_rank()}.txt', 'a').write("
        "f'{index} {torch.initial_seed()} {self.most}\\n')\n        shift = ",
    )
    run = runner.on_ranks(2, mine(note), *FLAGS)
    rows = [
        [line.split() for line in (run.folder / f"drawn-{rank}.txt").read_text().splitlines()]
        for rank in (0, 1)
    ]
    trained = [[row for row in each if row[2] == "2"] for each in rows]
    epochs = [[each[:35], each[35:]] for each in trained]
    for epoch in (0, 1):
        shares = [{int(row[0]) for row in rank[epoch]} for rank in epochs]
        assert shares[0] | shares[1] == set(range(70))
        assert not shares[0] & shares[1]
    seeds = [row[1] for each in trained for row in each]
    assert len(set(seeds)) == len(seeds) == 140, "the same draws again"
    assert [row[0] for row in trained[0][:35]] != [row[0] for row in trained[0][35:]]
    held_out = [[row[1] for row in each if row[2] == "0"][1:] for each in rows]  # after a look
    assert all(each[: len(each) // 2] == each[len(each) // 2 :] for each in held_out)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_it_goes_on_with_another_number_of_ranks(runner, mine, monkeypatch, before, after) -> None:
    script = mine(*PLAIN)
    flags = (*FLAGS, "--save-every", 2, "--lr", 1e-3)
    whole = runner.on_ranks(before, script, *flags)
    ends(monkeypatch, 3, signal.SIGTERM)
    folder = runner.root / "cut"
    with pytest.raises(LaunchError):
        runner.on_ranks(before, script, *flags, folder=folder)
    monkeypatch.delenv("END_AT")
    run = runner.on_ranks(after, script, *flags, folder=folder)
    assert f"note: {after} ranks, {before} before: each step has the same samples" in run.out
    assert newest(folder)["at"]["step"] == newest(whole.folder)["at"]["step"]
    for name, value in newest(whole.folder)["model"].items():
        torch.testing.assert_close(newest(folder)["model"][name], value, atol=2e-4, rtol=1e-3)


def test_more_epochs_do_not_lift_a_rate_that_has_fallen(runner, mine) -> None:
    script = mine()
    folder = runner.root / "more"
    runner.on_ranks(1, script, *FLAGS, folder=folder)
    runner.on_ranks(1, script, *FLAGS, "--epochs", 3, folder=folder)
    rates = [float(row[3]) for row in logged(folder) if row[2] == "lr"]
    epochs = [row[1] for row in logged(folder) if row[2] == "accuracy"]
    assert epochs == ["1", "2", "3"]
    assert rates[-1] == pytest.approx(0.01 * 2e-3)
    assert max(rates[-5:]) < 2e-4


def test_other_data_of_the_same_shape_in_a_folder_that_has_a_run_is_noted(runner, mine) -> None:
    folder = runner.root / "data"
    first = runner.on_ranks(2, mine(), *FLAGS, folder=folder)
    again = runner.on_ranks(2, mine(), *FLAGS, "--epochs", 3, folder=folder)
    other = mine(("Shifted(held_out_x,", "Shifted(255 - held_out_x,"))
    last = runner.on_ranks(2, other, *FLAGS, "--epochs", 4, folder=folder)
    note = "note: the first held-out sample is not that of before"
    assert [note in run.out for run in (first, again, last)] == [False, False, True], last.out


def test_the_best_is_kept_and_a_run_that_gets_worse_ends(runner, mine) -> None:
    count = [  # each epoch counts fewer of the right answers
        (
            '{"accuracy": ((model(x).argmax(dim=1) == y).sum(), len(y))}',
            '{"accuracy": ((model(x).argmax(dim=1) == y).sum() + 9 - EPOCH[0], len(y))}',
        ),
        ("BETTER = (", "EPOCH = [0]\nBETTER = ("),
        ("found = self.at, self.evaluate()", "found = self.at, self.evaluate(EPOCH)"),
        ("def evaluate(self)", "def evaluate(self, count)"),
        ("        sums = {}", "        sums = {}\n        count[0] += 1"),
    ]
    run = runner.on_ranks(2, mine(*count), *FLAGS, "--epochs", 9, "--patience", 2, "--lr", 1e-9)
    epochs = [row for row in logged(run.folder) if row[2] == "accuracy"]
    assert len(epochs) == 3, "it went on"
    assert newest(run.folder, "best")["at"]["best_epoch"] == 1
    assert "in epoch 1" in run.out.splitlines()[-1]


def test_a_held_out_set_smaller_than_the_ranks_counts_each_sample_once(runner, mine) -> None:
    script = mine(("(held_out_x, held_out_y", "(held_out_x[:2], held_out_y[:2]"))
    run = runner.on_ranks(3, script, *FLAGS)
    accuracies = {row[3] for row in logged(run.folder) if row[2] == "accuracy"}
    assert accuracies <= {"0", "0.5", "1"}


def test_each_rank_evaluates_the_weights_and_statistics_that_are_saved(runner, mine) -> None:
    changes, flags = EDITS["BatchNorm"]
    script = mine(*changes)
    run = runner.on_ranks(2, script, *FLAGS, *flags)
    starter = runpy.run_path(str(script))
    model = starter["make_model"]()
    model.load_state_dict(newest(run.folder)["model"])
    *_, x, y = torch.load(starter["DATA"])
    with torch.no_grad():
        found = nn.functional.cross_entropy(model.eval()(x[:, None] / 255), y)
    told = [float(row[3]) for row in logged(run.folder) if row[2] == "held_out_loss"]
    assert told[-1] == pytest.approx(found.item(), rel=1e-4)


# ---- what goes wrong


def refused(
    runner, script: Path, *flags: object, ranks: int = 2, folder: Path | None = None
) -> str:
    """What a run that ends with an error says."""
    with pytest.raises(LaunchError) as caught:
        runner.on_ranks(ranks, script, *FLAGS, *flags, folder=folder)
    return str(caught.value)


NAN = (
    "    x, y = batch\n    return nn",
    "    x, y = batch\n"
    "    if torch.distributed.get_rank() == 1 and model.training:\n"
    "        x = x + BAD.pop() if BAD else x\n"
    "    return nn",
)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(runner, mine, value) -> None:
    script = mine(NAN, ("BETTER = (", f"BAD = [float({value!r}), 0.0, 0.0, 0.0, 0.0]\nBETTER = ("))
    folder = runner.root / "nan"
    told = refused(runner, script, "--save-every", 1, folder=folder)
    assert "the loss of rank 1 is not finite in epoch 1, at step 4" in told
    assert newest(folder)["at"]["step"] == 3
    assert all(value.isfinite().all() for value in newest(folder)["model"].values())


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(runner, mine) -> None:
    script = mine(
        ("y = batch\n    return nn", "y = batch\n    model = Root(model)\n    return nn"),
        (
            "# ruff",
            "\n\nclass Root:\n    def __init__(self, model):\n        self.model = model\n\n"
            "    def __call__(self, x):\n        found = self.model(x)\n"
            "        return found + (found * 0).abs().sqrt()\n\n\n# ruff",
        ),
    )
    folder = runner.root / "nan"
    assert "the gradient is not finite in epoch 1, at step 1" in refused(
        runner, script, folder=folder
    )
    assert not (folder / "run" / "newest.pt").exists()


def test_a_sample_that_raises_on_one_rank_is_told_with_its_line(runner, mine) -> None:
    bad = (
        "        shift = ",
        "        assert index != 33, 'sample 33 is broken'\n        shift = ",
    )
    for workers in (0, 1):
        told = refused(runner, mine(bad), "--workers", workers)
        assert "sample 33 is broken" in told
        assert "in __getitem__" in told


FULL = (
    "def make_model() -> nn.Module:\n",
    "def make_model() -> nn.Module:\n    import resource\n\n"
    "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n",
)


def test_a_full_disk_leaves_the_last_checkpoint(runner, mine) -> None:
    folder = runner.root / "full"
    runner.on_ranks(2, mine(), *FLAGS, folder=folder)
    before = newest(folder)
    told = refused(runner, mine(FULL), "--epochs", 3, folder=folder)
    assert "could not save newest.pt: [Errno 27] File too large; the last stays" in told
    assert same(newest(folder)["model"], before["model"])
    assert not list((folder / "run").glob("*.tmp"))


def test_a_folder_that_cannot_be_written_to(runner, mine) -> None:
    assert "error: [Errno 20] Not a directory: 'mine/run'" in refused(
        runner, mine(), "--run-folder", "/dev/null/run"
    ).replace("/dev/null", "mine")


def test_two_runs_at_once(runner, mine) -> None:
    script = mine(("        shift = ", "        import time; time.sleep(0.05)\n        shift = "))
    first = runner.start_warm(script, *FLAGS)
    first.wait_for("step 1")
    told = refused(runner, script, ranks=1, folder=first.folder)
    assert "error: run is in use by another run: give another" in told
    run = runner.finish(first)
    assert run.code == 0, run.err


@pytest.mark.parametrize("damage", ["cut", "a flipped bit", "empty", "foreign", "another model"])
def test_a_checkpoint_that_cannot_be_used_is_left_alone(runner, mine, damage: str) -> None:
    folder = runner.root / "damaged"
    script = mine()
    runner.on_ranks(1, script, *FLAGS, folder=folder)
    file = folder / "run" / "newest.pt"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        torch.save({"state_dict": {}}, file)
    else:
        script = mine(("(1, 16, ", "(1, 17, "), ("(16, 32, ", "(17, 32, "))  # layers, not paths
    left = file.read_bytes()
    told = refused(runner, script, folder=folder)
    if damage == "another model":
        assert "newest.pt is of another model" in told
    else:
        assert "can't read run/newest.pt" in told
        assert "mv run/previous.pt run/newest.pt" in told
    assert file.read_bytes() == left
    file.write_bytes(b"") if damage == "another model" else None
    os.replace(folder / "run" / "previous.pt", file)
    assert "goes on in epoch 1" in runner.on_ranks(1, mine(), *FLAGS, folder=folder).out


def test_killed_between_two_renames_it_goes_on_from_the_previous_one(runner, mine) -> None:
    folder = runner.root / "between"
    runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    os.replace(folder / "run" / "newest.pt", folder / "run" / "newest.pt.tmp")
    run = runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    assert "goes on in epoch 1" in run.out
    assert newest(folder)["at"]["epoch"] == 2


def test_too_few_samples_for_the_ranks(runner, mine) -> None:
    told = refused(runner, mine(), "--global-batch-size", 1)
    assert "error: 1 samples in a step, expected 1 or more for each rank" in told


def test_an_object_that_could_not_be_read_again_is_refused_when_it_is_saved(runner, mine) -> None:
    script = mine(('{**states, "at": self.at}', '{**states, "at": self.at, "args": self.args}'))
    told = refused(runner, script)
    assert "could not save newest.pt: Unsupported global: GLOBAL argparse.Namespace" in told


def test_it_is_silent_under_the_sanitizer(runner, mine) -> None:
    for changes, flags in EDITS.values():
        run = runner.on_ranks(2, mine(*changes), *FLAGS, *flags, sanitize=True)
        assert "sanitizer" not in run.out + run.err


# ---- however it is started


def test_torchrun_stops_it_with_its_loader_workers_and_it_goes_on(runner, mine) -> None:
    script = mine(("        shift = ", "        import time; time.sleep(0.02)\n        shift = "))
    flags = (*FLAGS, "--epochs", 3, "--workers", 2)
    started = runner.start(*torchrun(2), script, *flags)
    started.wait_for("step 3")
    os.kill(started.process.pid, signal.SIGTERM)
    run = runner.finish(started)
    assert "stopped and saved; the same command goes on" in run.out, run.err
    assert "killed by signal" not in run.err
    step = newest(run.folder)["at"]["step"]
    assert step < 12
    again = runner.run(*torchrun(2), script, *flags, folder=run.folder)
    assert again.code == 0, again.err
    assert f"after step {step}" in again.out


def test_it_needs_no_numpy(runner, mine) -> None:
    """torch does not install it, and some calls of torch.distributed take it for granted."""
    script = mine()
    without = script.with_name("without.py")
    without.write_text(
        "import runpy, sys\n\n"
        "sys.modules['numpy'] = None\n"
        f"sys.argv[0] = {str(script)!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    run = runner.run(*torchrun(2), without, *FLAGS, "--epochs", 1)
    assert run.code == 0, run.err
    again = runner.run(*torchrun(2), without, *FLAGS, folder=run.folder)
    assert "goes on in epoch 1" in again.out, again.err


def test_kill_9_of_a_rank_leaves_no_process(runner, mine) -> None:
    script = mine(("        shift = ", "        import time; time.sleep(0.02)\n        shift = "))
    started = runner.start(*torchrun(2), script, *FLAGS, "--workers", 2)
    started.wait_for("step 2")
    os.kill(started.process.pid, signal.SIGKILL)
    started.wait_until_none_left(15)


def test_plain_python_and_the_commands_start_it(runner, mine) -> None:
    script = mine()
    alone = runner.run(script, *FLAGS)
    assert alone.code == 0, alone.err
    assert "best accuracy" in alone.out
    for command in ("run", "bench"):
        few = ("--steps", 5, "--rounds", 2, "--no-advice") if command == "bench" else ()
        words = [sys.executable, "-m", "ddp_helpers", command, f"{script}:main", "-n", 2, *few]
        run = runner.run(*words, "--", *FLAGS, "--epochs", 4, "--run-folder", "{folder}")
        assert run.code == 0, run.out + run.err


def test_the_owner_edits_the_first_60_lines() -> None:
    lines = STARTER.read_text().splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("# ruff"))
    assert end <= 60
    below = "\n".join(lines[end:])
    assert not re.search(r"cross_entropy|Conv2d|accuracy|mnist", below)
