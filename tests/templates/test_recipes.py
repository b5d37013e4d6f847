"""Each recipe, applied to starter.py and run on two ranks, does what its text says."""

import ast
import csv
import re
import runpy
from pathlib import Path

import pytest
import torch
from template_runner import TEMPLATES, Finished, Runner
from torch import nn

from ddp_helpers.recipes import recipes

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_process_left")]

STARTER = (TEMPLATES / "starter.py").read_text()
FLAGS = ("--epochs", 2, "--log-every", 1, "--batch-size-per-rank", 8)
RECIPES = recipes()


@pytest.fixture
def with_recipe(runner: Runner, tmp_path: Path):
    """starter.py with a recipe, and small data in two classes of which one is rare."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 7, 7, generator=draws).kron(torch.ones(1, 4, 4))
    y = (torch.rand(92, generator=draws) < 0.1).long()
    x = (255 * patterns[y] * torch.rand(92, 28, 28, generator=draws)).to(torch.uint8)
    torch.save([x[:72], y[:72], x[72:], y[72:]], tmp_path / "data.pt")

    def write(name: str | None, *changes: tuple[str, str]) -> Path:
        text = RECIPES[name].apply(STARTER) if name else STARTER
        text = re.sub(r"^DATA = .*$", f"DATA = {str(tmp_path / 'data.pt')!r}", text, flags=re.M)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        runner.root.mkdir(exist_ok=True)
        file = runner.root / f"{name}.py"
        file.write_text(text)
        return file

    return write


def newest(run: Finished, name: str = "newest") -> dict:
    return torch.load(run.folder / "run" / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_a_small_difference_with_a_text(name: str) -> None:
    recipe = RECIPES[name]
    added = [line for line in recipe.difference(STARTER).splitlines() if line.startswith("+")]
    assert 2 <= len(added) <= 50
    ast.parse(recipe.apply(STARTER))
    assert len(recipe.text.split()) > 50
    assert len(recipe.title) < 80


def test_a_recipe_says_where_a_changed_file_has_no_place_for_it() -> None:
    changed = STARTER.replace("torch.randperm", "torch.arange")
    with pytest.raises(
        ValueError, match=r"recipe balanced: expected once in the file, found 0 tim"
    ):
        RECIPES["balanced"].apply(changed)


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ("fine_tuning", "tensorboard")])
def test_it_trains_and_goes_on(runner, with_recipe, name: str) -> None:
    script = with_recipe(name)
    run = runner.on_ranks(2, script, *FLAGS)
    again = runner.on_ranks(2, script, *FLAGS, "--epochs", 3, folder=run.folder)
    assert "goes on in epoch 2" in again.out
    assert newest(again)["at"]["epoch"] == 3
    losses = [
        float(row[3])
        for row in csv.reader((run.folder / "run/log.csv").open())
        if row[2] == "train_loss"
    ]
    assert len(losses) == 3
    assert name == "gan" or losses[-1] < losses[0]


NO_DROPOUT = ("nn.Dropout(0.2), ", "")


DESCENT = (
    ("torch.optim.AdamW(", "Descent("),
    (
        "# ruff",
        """

class Descent(torch.optim.SGD):
    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, lr)


# ruff""",
    ),
)  # what it steps is the gradient


def test_all_features_are_compared_and_the_gradient_is_that_of_one_process(
    runner, with_recipe
) -> None:
    """One step of 72. A plain gather would lose most of the gradient."""
    flags = ("--epochs", 1, "--global-batch-size", 72, "--lr", 1, "--warmup", 0, "--clip", "inf")
    script = with_recipe("contrastive", NO_DROPOUT, *DESCENT)
    alone = newest(runner.on_ranks(1, script, *flags, "--batch-size-per-rank", 72))
    both = newest(runner.on_ranks(2, script, *flags, "--batch-size-per-rank", 36))
    lost = ("torch.cat(all_gather(second))", "torch.cat(all_gather(second.detach()))")
    script = with_recipe("contrastive", NO_DROPOUT, *DESCENT, lost)
    wrong = newest(runner.on_ranks(2, script, *flags, "--batch-size-per-rank", 36))
    for name, value in alone["model"].items():
        torch.testing.assert_close(both["model"][name], value, atol=1e-5, rtol=1e-4)
    name = "0.weight"
    assert (wrong["model"][name] - alone["model"][name]).abs().max() > 1e-3


def test_both_networks_of_a_gan_get_their_own_gradient(with_recipe) -> None:
    starter = runpy.run_path(str(with_recipe("gan")))
    torch.manual_seed(0)
    model = starter["make_model"]()
    real = torch.rand(8, 1, 28, 28)
    torch.manual_seed(1)
    starter["loss"](model, (real, None))[0].backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    made = model.make(torch.randn(8, 32))
    wrong = nn.functional.softplus
    (wrong(-model.judge(real)) + wrong(model.judge(made.detach()))).sum().backward()
    judged = {name: each.grad.clone() for name, each in model.judge.named_parameters()}
    wrong(-model.judge(made)).sum().backward()
    for name, gradient in judged.items():
        torch.testing.assert_close(found[f"judge.{name}"], gradient)
    for name, each in model.make.named_parameters():
        torch.testing.assert_close(found[f"make.{name}"], each.grad)


def test_rare_classes_come_as_often_as_common_ones(runner, with_recipe) -> None:
    note = (
        "        shift = ",
        "        open(f'drawn-{torch.distributed.get_rank()}.txt', 'a').write("
        "f'{int(self.y[index])}\\n' * (self.most > 0))\n        shift = ",
    )
    shares = {}
    for name in (None, "balanced"):
        run = runner.on_ranks(2, with_recipe(name, note), *FLAGS, "--epochs", 6)
        drawn = [(run.folder / f"drawn-{rank}.txt").read_text().split() for rank in (0, 1)]
        assert len(drawn[0]) == len(drawn[1]) == 36 * 6
        shares[name] = sum(map(int, drawn[0] + drawn[1])) / (72 * 6)
    assert shares[None] < 0.2
    assert 0.4 < shares["balanced"] < 0.6


def test_the_average_is_what_is_kept_and_it_goes_on(runner, with_recipe) -> None:
    script = with_recipe("ema")
    run = runner.on_ranks(2, script, *FLAGS)
    average = newest(run)["average"]
    assert not torch.equal(average["module.0.weight"], newest(run)["model"]["0.weight"])
    assert any(
        torch.equal(value, average["module.0.weight"])
        for value in [newest(run, "best")["model"]["0.weight"], average["module.0.weight"]]
    )
    whole = runner.on_ranks(2, script, *FLAGS, "--epochs", 3, "--decay-steps", 8)
    first = runner.on_ranks(2, script, *FLAGS, "--epochs", 1, "--decay-steps", 8)
    runner.on_ranks(2, script, *FLAGS, "--epochs", 3, folder=first.folder)
    for name, value in newest(whole)["average"].items():
        assert torch.equal(newest(first)["average"][name], value), name


def test_only_the_new_layer_learns_from_a_file(runner, with_recipe, tmp_path) -> None:
    before = runner.on_ranks(2, with_recipe(None), *FLAGS)
    pretrained = before.folder / "run" / "best.pt"
    script = with_recipe("fine_tuning", ('"pretrained.pt"', repr(str(pretrained))))
    tuned = newest(runner.on_ranks(2, script, *FLAGS))
    old = torch.load(pretrained, weights_only=True)["model"]
    changed = {name for name in old if not torch.equal(old[name], tuned["model"][name])}
    assert changed == {"7.weight", "7.bias"} or changed == {"8.weight", "8.bias"}, changed
    assert len(tuned["optimizer"]["state"]) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_sample_is_answered_once_in_order(runner, with_recipe, ranks: int) -> None:
    script = with_recipe("predict")
    run = runner.on_ranks(1, script, *FLAGS)
    runner.on_ranks(ranks, script, *FLAGS, "--predict", "answers.pt", folder=run.folder)
    starter = runpy.run_path(str(script))
    model = starter["make_model"]()
    model.load_state_dict(newest(run, "best")["model"])
    _, _, x, _ = torch.load(starter["DATA"])
    with torch.no_grad():
        expected = model.eval()(x[:, None] / 255)
    torch.testing.assert_close(torch.load(run.folder / "answers.pt"), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_each_sample_once_an_epoch(runner, with_recipe, workers: int) -> None:
    note = (
        "                yield self.samples[index]\n",
        "                open(f'drawn-{dist.get_rank()}.txt', 'a').write(f'{index}\\n')\n"
        "                yield self.samples[index]\n",
    )
    script = with_recipe("stream", note)
    size = ("--global-batch-size", 24, "--batch-size-per-rank", 12)
    run = runner.on_ranks(2, script, *size, "--epochs", 1, "--workers", workers)
    drawn = [(run.folder / f"drawn-{rank}.txt").read_text().split() for rank in (0, 1)]
    ours, theirs = (set(map(int, each)) for each in drawn)
    assert not ours & theirs
    if not workers:  # workers load ahead
        assert sorted(map(int, drawn[0] + drawn[1])) == list(range(72))


def test_the_averages_are_shared_out_and_a_continued_run_is_the_same(runner, with_recipe) -> None:
    size = (
        "        return 0\n\n\n@record",
        "        states = self.optimizer.optim.state.values()\n"
        "        held = sum(value.numel() for state in states for value in state.values())\n"
        "        open(f'held-{self.rank}.txt', 'w').write(str(held))\n"
        "        return 0\n\n\n@record",
    )
    script = with_recipe("zero", size)
    whole = runner.on_ranks(2, script, *FLAGS, "--decay-steps", 9)
    first = runner.on_ranks(2, script, *FLAGS, "--epochs", 1, "--decay-steps", 9)
    runner.on_ranks(2, script, *FLAGS, folder=first.folder)
    for name, value in newest(whole)["model"].items():
        assert torch.equal(newest(first)["model"][name], value), name
    held = [int((whole.folder / f"held-{rank}.txt").read_text()) for rank in (0, 1)]
    weights = sum(value.numel() for value in newest(whole)["model"].values())
    assert sum(held) < 2 * weights + 100
    assert min(held) > 0


def test_the_curves_are_those_of_the_log(runner, with_recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runner.on_ranks(2, with_recipe("tensorboard"), *FLAGS)
    curves = EventAccumulator(str(run.folder / "run" / "tensorboard"))
    curves.Reload()
    log = [row for row in csv.reader((run.folder / "run/log.csv").open()) if row[2] == "lr"]
    drawn = [(point.step, point.value) for point in curves.Scalars("lr")]
    assert [step for step, _ in drawn] == [int(row[0]) for row in log]
    assert [value for _, value in drawn] == pytest.approx([float(row[3]) for row in log], rel=1e-4)
