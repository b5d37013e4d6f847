"""starter_fsdp.py: what starter.py promises, where no rank holds the whole model."""

import ast
import json
import os
import re
import runpy
import shutil
import signal
from pathlib import Path

import pytest
import torch
from template_runner import TEMPLATES, Runner, torchrun
from test_starter import (
    DICTS,
    END_AT,
    TRACK,
    WEIGHTED,
    digits,  # noqa: F401 (a fixture)
    ends,
    logged,
    refused,
    same,
)
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_age import needs_torch

from ddp_helpers import LaunchError

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("no_process_left"),
    needs_torch(2, 7, "before, fully_shard does not work on a CPU"),
]

STARTER = TEMPLATES / "starter_fsdp.py"
PLAIN = [("(x, y, most=2)", "(x, y, most=0)"), (", nn.Dropout(0.1)", "")]
FLAGS = ("--epochs", 2, "--log-every", 1, "--batch-size-per-rank", 8)
TIED = [  # one weight, used twice; and one that the owner fills
    (
        "        self.layers = nn.Sequential(",
        "        self.gain = nn.Parameter(torch.empty(width))\n"
        "        self.layers = nn.Sequential(",
    ),
    ("return x + self.layers(x)", "return x + self.gain * self.layers(x)"),
    (
        "    return nn.Sequential(*layers, nn.Linear(128, 10))",
        "    layers += [nn.Linear(128, 10, bias=False), nn.Linear(10, 10), nn.Linear(10, 10)]\n"
        "    layers[-1].weight = layers[-2].weight\n    return nn.Sequential(*layers)",
    ),
    (
        "    module.reset_parameters()\n",
        "    if isinstance(module, Block):\n        nn.init.ones_(module.gain)\n"
        "    else:\n        module.reset_parameters()\n",
    ),
]
BATCH_NORM = [("[nn.LayerNorm(width), ", "[nn.BatchNorm1d(width), ")]
EDITS: dict[str, tuple[list, tuple]] = {
    "as it is": ([], ()),
    "shared weights, a dict, bfloat16": ([*TIED, *DICTS], ("--recompute", "--bf16")),
    "BatchNorm, weights": ([*BATCH_NORM, *WEIGHTED], ("--global-batch-size", 26)),
}


@pytest.fixture
def mine(runner: Runner, request: pytest.FixtureRequest):
    """An edited copy of the starter."""
    data = str(request.getfixturevalue("digits"))

    def edit(*changes: tuple[str, str]) -> Path:
        text = STARTER.read_text().replace(TRACK, TRACK + END_AT)
        text = re.sub(r"^DATA = .*$", f"DATA = {data!r}", text, flags=re.MULTILINE)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        runner.root.mkdir(exist_ok=True)
        file = runner.root / f"mine-{len(list(runner.root.glob('mine-*')))}.py"
        file.write_text(text)
        return file

    return edit


def weights(folder: Path, name: str = "newest") -> dict[str, torch.Tensor]:
    """The whole model of a checkpoint, as the docstring says."""
    whole = folder / f"whole-{name}.pt"
    dcp_to_torch_save(folder / "run" / name, whole)
    return torch.load(whole)["model"]


def at(folder: Path, name: str = "newest") -> dict:
    return json.loads((folder / "run" / name / "at.json").read_text())["at"]


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("edit", EDITS)
def test_it_goes_on_to_the_same_bits(runner, mine, monkeypatch, edit: str) -> None:
    changes, flags = EDITS[edit]
    script = mine(*changes)
    flags = (*FLAGS, "--save-every", 2, *flags)
    whole = runner.on_ranks(2, script, *flags)
    for by in (signal.SIGTERM, signal.SIGKILL) if edit == "as it is" else (signal.SIGTERM,):
        ends(monkeypatch, 5, by)  # in the middle of the first or the second epoch
        folder = runner.root / f"cut-{by}"
        with pytest.raises(LaunchError, match="75" if by == signal.SIGTERM else "SIGKILL"):
            runner.on_ranks(2, script, *flags, folder=folder)
        monkeypatch.delenv("END_AT")
        assert at(folder)["step"] in ((6,) if by == signal.SIGTERM else (2, 4))
        runner.on_ranks(2, script, *flags, folder=folder)
        assert same(weights(folder), weights(whole.folder))
        assert logged(folder) == logged(whole.folder)
        assert same(weights(folder, "best"), weights(whole.folder, "best"))
        assert at(folder, "best")["best_epoch"] == at(whole.folder, "best")["best_epoch"]
        assert not list((folder / "run").glob("*.tmp"))


def test_any_number_of_ranks_trains_the_same_weights(runner, mine) -> None:
    """No number of samples in a step that divides: pieces of 1, where rank 0 has one more."""
    script = mine(*PLAIN, *TIED, *WEIGHTED)
    flags = (*FLAGS, "--global-batch-size", 13, "--batch-size-per-rank", 1, "--lr", 1e-3)
    alone, *others = (runner.on_ranks(ranks, script, *flags) for ranks in (1, 2, 3))
    for other in others:
        close(weights(alone.folder), weights(other.folder))
        assert len(logged(other.folder)) == len(logged(alone.folder)), "other steps"


@pytest.mark.parametrize("after", [1, 3])
def test_it_goes_on_with_another_number_of_ranks(runner, mine, monkeypatch, after: int) -> None:
    script = mine(*PLAIN)
    flags = (*FLAGS, "--save-every", 2, "--lr", 1e-3)
    whole = runner.on_ranks(2, script, *flags)
    ends(monkeypatch, 3, signal.SIGTERM)
    folder = runner.root / "cut"
    with pytest.raises(LaunchError):
        runner.on_ranks(2, script, *flags, folder=folder)
    monkeypatch.delenv("END_AT")
    run = runner.on_ranks(after, script, *flags, folder=folder)
    assert f"note: {after} ranks, 2 before: each step has the same samples" in run.out
    assert at(folder)["step"] == at(whole.folder)["step"]
    close(weights(whole.folder), weights(folder))


def test_the_gradient_and_the_first_weights_are_those_of_a_plain_loop(runner, mine) -> None:
    """Two ranks, uneven shares, weights, accumulation: the same as torch says it in four lines."""
    script = mine(*PLAIN, *WEIGHTED, ("torch.optim.AdamW(", "Descent("), ("# ruff", DESCENT))
    flags = ("--epochs", 1, "--global-batch-size", 70, "--batch-size-per-rank", 8, "--lr", 0.5)
    run = runner.on_ranks(2, script, *flags, "--warmup", 0, "--clip", "inf", "--recompute")
    starter = runpy.run_path(str(script))
    train_set, _ = starter["make_datasets"]()
    with torch.device("meta"):
        model = starter["make_model"]()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for part in (*starter["blocks"](model), model[6], model[1]):
        layers = [layer for layer in part.modules() if hasattr(layer, "reset_parameters")]
        [layer.reset_parameters() for layer in reversed(layers)]
    x, y = train_set.x, train_set.y
    nn.functional.cross_entropy(model(x[:, None] / 255), y, torch.arange(1.0, 11)).backward()
    for name, value in weights(run.folder).items():
        expected = model.get_parameter(name) - 0.5 * model.get_parameter(name).grad
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


DESCENT = """

class Descent(torch.optim.SGD):
    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, lr)


# ruff"""


def test_no_rank_ever_holds_the_whole_model(runner, mine) -> None:
    """16 blocks of 8 MiB on two ranks: the peak of making, of going on, and of each file."""
    script = mine(
        ("(128) for _ in range(4)", "(512) for _ in range(16)"),
        ("28 * 28, 128", "28 * 28, 512"),
        ("nn.Linear(128, 10)", "nn.Linear(512, 10)"),
        (
            "        self.model = self.make_shards()\n",
            "        fully_shard(nn.Linear(2, 2))  # what it imports is no model\n"
            "        was = used()\n        self.model = self.make_shards()\n"
            "        print('made with', used() - was, flush=True)\n",
        ),
        (
            "            states = self.states()\n            try:\n",
            "            was = used()\n            states = self.states()\n            try:\n",
        ),
        (
            "            sd.set_state_dict(self.model, self.optimizer, **parts)\n",
            "            sd.set_state_dict(self.model, self.optimizer, **parts)\n"
            "            print('read with', used() - was, flush=True)\n",
        ),
        ("# ruff", USED),
    )
    folder = runner.root / "large"
    flags = ("--epochs", 1, "--batch-size-per-rank", 35)
    runner.on_ranks(2, script, *flags, folder=folder)
    files = {file.name: file.stat().st_size for file in (folder / "run/newest").glob("*.distcp")}
    run = runner.on_ranks(2, script, *flags, folder=folder)
    peaks = re.findall(r"(made|read) with (\d+)", run.out)
    assert [what for what, _ in peaks].count("read") == 2, run.out
    model = 16 * 8 * 2**20
    for what, size in peaks:  # Adam keeps two more of each share; and it is read beside
        assert int(size) < (0.9 if what == "made" else 1.8) * model, peaks
    assert len(files) == 2
    assert max(files.values()) < 1.1 * min(files.values()), files


USED = """
def used():
    \"\"\"The most memory since this was last asked.\"\"\"
    import re

    most = int(re.search("VmHWM:(.*)kB", open("/proc/self/status").read())[1]) * 1024
    open("/proc/self/clear_refs", "w").write("5")
    return most


# ruff"""


def test_a_held_out_set_smaller_than_the_ranks_counts_each_sample_once(runner, mine) -> None:
    script = mine(("(held_out_x, held_out_y", "(held_out_x[:2], held_out_y[:2]"))
    run = runner.on_ranks(3, script, *FLAGS, "--epochs", 1)
    accuracies = {row[3] for row in logged(run.folder) if row[2] == "accuracy"}
    assert accuracies <= {"0", "0.5", "1"}
    found = plain_loss(run.folder, script, 2)
    told = [float(row[3]) for row in logged(run.folder) if row[2] == "held_out_loss"]
    assert told[-1] == pytest.approx(found, rel=1e-4)


def test_each_rank_evaluates_the_weights_and_statistics_that_are_saved(runner, mine) -> None:
    """21 samples in batches of 8: rank 0 has one batch more."""
    script = mine(*BATCH_NORM)
    run = runner.on_ranks(2, script, *FLAGS)
    told = [float(row[3]) for row in logged(run.folder) if row[2] == "held_out_loss"]
    assert told[-1] == pytest.approx(plain_loss(run.folder, script, 21), rel=1e-4)


def plain_loss(folder: Path, script: Path, samples: int) -> float:
    """Of the held-out samples, by the saved weights in one process."""
    starter = runpy.run_path(str(script))
    model = starter["make_model"]()
    model.load_state_dict(weights(folder))
    _, held_out = starter["make_datasets"]()
    x, y = held_out.x[:samples], held_out.y[:samples]
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(x[:, None] / 255), y).item()


def test_the_best_is_kept(runner, mine) -> None:
    """Each epoch counts fewer of the right answers."""
    count = [
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
    assert len([row for row in logged(run.folder) if row[2] == "accuracy"]) == 3, "it went on"
    assert at(run.folder, "best")["best_epoch"] == 1
    assert "in epoch 1" in run.out.splitlines()[-1]


# ---- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(runner, mine) -> None:
    bad = (
        "    x, y = batch\n    return nn",
        "    x, y = batch\n"
        "    if torch.distributed.get_rank() == 1 and model.training:\n"
        "        x = x + BAD.pop() if BAD else x\n"
        "    return nn",
    )
    script = mine(bad, ("BETTER = (", "BAD = [float('nan'), 0.0, 0.0, 0.0, 0.0]\nBETTER = ("))
    folder = runner.root / "nan"
    told = refused(runner, script, "--save-every", 1, folder=folder)
    assert "the loss of rank 1 is not finite in epoch 1, at step 4" in told
    assert at(folder)["step"] == 3
    assert all(value.isfinite().all() for value in weights(folder).values())


FULL = (
    "def make_model() -> nn.Module:\n",
    "def make_model() -> nn.Module:\n    import resource\n\n"
    "    if torch.distributed.get_rank() == 1:\n"
    "        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n",
)


def test_a_full_disk_leaves_the_last_checkpoint(runner, mine) -> None:
    folder = runner.root / "full"
    runner.on_ranks(2, mine(), *FLAGS, folder=folder)
    before = weights(folder)
    told = refused(runner, mine(FULL), "--epochs", 3, folder=folder)
    assert "error: could not save newest: [Errno 27] File too large; the last stays" in told
    assert same(weights(folder), before)
    assert not list((folder / "run").glob("*.tmp"))


def test_two_runs_at_once(runner, mine) -> None:
    script = mine(("        shift = ", "        import time; time.sleep(0.1)\n        shift = "))
    first = runner.start_warm(script, *FLAGS)
    first.wait_for("step 1")
    told = refused(runner, script, ranks=1, folder=first.folder)
    assert "error: run is in use by another run: give another" in told
    os.kill(first.process.pid, signal.SIGTERM)  # it is well, and need not go on
    assert runner.finish(first).code == os.EX_TEMPFAIL


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_checkpoint_that_cannot_be_used_is_left_alone(runner, mine) -> None:
    whole, script = runner.root / "whole", mine()
    runner.on_ranks(2, script, *FLAGS, folder=whole)

    def flip(share: Path) -> None:
        content = bytearray(share.read_bytes())
        content[len(content) // 2] ^= 1
        share.write_bytes(content)

    damages = {
        "wrong checksum of __1_0.distcp": flip,
        "wrong checksum of __1_0.distcp: ": lambda share: os.truncate(share, 99),
        "No such file or directory: 'run/newest/__1_0.distcp'": Path.unlink,
        "No such file or directory: 'run/newest/at.json'": lambda share: share.with_name(
            "at.json"
        ).unlink(),
        "is of another model: only one of them has model.5.": lambda share: None,
    }
    for number, (words, damage) in enumerate(damages.items()):
        folder = runner.root / f"damaged-{number}"
        shutil.copytree(whole, folder)
        newest = folder / "run" / "newest"
        damage(newest / "__1_0.distcp")
        left = contents(newest)
        another = mine(("in range(4)", "in range(3)"))
        told = refused(runner, another if "another" in words else script, folder=folder)
        assert words in told
        assert "another" in words or "error: can't read run/newest: " in told
        assert "another" in words or "mv run/newest run/damaged; mv run/previous run/new" in told
        assert contents(newest) == left
    newest.rename(folder / "run" / "damaged")
    (folder / "run" / "previous").rename(newest)
    assert "goes on in epoch 1" in runner.on_ranks(1, script, *FLAGS, folder=folder).out


def test_killed_between_two_renames_it_goes_on_from_the_previous_one(runner, mine) -> None:
    folder = runner.root / "between"
    runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    shutil.move(folder / "run" / "newest", folder / "run" / "newest.tmp")
    run = runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    assert "goes on in epoch 1" in run.out
    assert at(folder)["epoch"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("    module.reset_parameters()\n", "    pass\n"), "gave no values to LayerNorm.weight"),
        (
            (
                "    return nn.Sequential(*layers, nn.Linear(128, 10))",
                "    layers[2].layers[1].weight = layers[3].layers[1].weight\n"
                "    return nn.Sequential(*layers, nn.Linear(128, 10))",
            ),
            "two of blocks() share Linear.weight: let one, or none, have both",
        ),
    ],
)
def test_a_model_that_cannot_be_made_in_parts(runner, mine, change, words: str) -> None:
    assert words in refused(runner, mine(change), ranks=1)


def test_too_few_samples_for_the_ranks(runner, mine) -> None:
    told = refused(runner, mine(), "--global-batch-size", 1)
    assert "error: 1 samples in a step, expected 1 or more for each rank" in told


def test_it_is_silent_under_the_sanitizer(runner, mine) -> None:
    for changes, flags in EDITS.values():
        run = runner.on_ranks(2, mine(*changes), *FLAGS, *flags, sanitize=True)
        assert "sanitizer" not in run.out + run.err


def test_torchrun_stops_it_and_it_goes_on(runner, mine) -> None:
    script = mine(("        shift = ", "        import time; time.sleep(0.02)\n        shift = "))
    flags = (*FLAGS, "--epochs", 3)
    started = runner.start(*torchrun(2), script, *flags)
    started.wait_for("step 3")
    os.kill(started.process.pid, signal.SIGTERM)
    run = runner.finish(started)
    assert "stopped and saved; the same command goes on" in run.out, run.err
    step = at(run.folder)["step"]
    assert step < 12
    again = runner.on_ranks(2, script, *flags, folder=run.folder)
    assert f"after step {step}" in again.out


def test_the_owner_edits_the_first_85_lines() -> None:
    lines = STARTER.read_text().splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("# ruff"))
    assert end <= 87
    below = "\n".join(lines[end:])
    assert not re.search(r"cross_entropy|GELU|accuracy|mnist", below)


ALL = ("starter", "starter_fsdp", "starter_lm")
SHARED = dict.fromkeys(("ask_slurm", "join_ranks", "on_rank_0", "seed_draws", "lr_factor"), ALL)
SHARED |= dict.fromkeys(("Shifted", "make_datasets", "to", "Drawn", "start_worker"), ALL[:2])
SHARED |= dict.fromkeys(("Batches", "RunFolder", "short"), ("starter", "starter_lm"))


@pytest.mark.parametrize("name", SHARED)
def test_what_the_starters_share_is_the_same_in_each(name: str) -> None:
    found = set()
    for file in SHARED[name]:
        text = (TEMPLATES / f"{file}.py").read_text()
        (node,) = (node for node in ast.parse(text).body if getattr(node, "name", "") == name)
        found.add(ast.get_source_segment(text, node))
    assert len(found) == 1
