"""The ladder, each rung started as a learner starts it, from a copy that `new` made."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from template_runner import LADDER, TEMPLATES, Finished, Runner, load_template, torchrun
from torch_age import without_greeting

from ddp_helpers import launch
from ddp_helpers.cli import main as command
from ddp_helpers.data import data_root
from ddp_helpers.environment.facts import free_port

TRAINED_ON, HELD_OUT = 320, 99  # 99 on 2 ranks: a padded evaluation would count 100
SIZE = ("--epochs", 2)
HALF = ("--batch-size-per-rank", 16)
LINE = re.compile(r"epoch (\d): (\d+) of (\d+) right(?:, ranks (\d))?")


@pytest.fixture(scope="session")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of each rung, made by `new` in a folder with few digits in it."""
    folder = tmp_path_factory.mktemp("my course 课程")
    tensors = torch.load(data_root() / "mnist_5k/mnist_5k.pt", weights_only=True)
    sizes = (TRAINED_ON, TRAINED_ON, HELD_OUT, HELD_OUT)
    (folder / "mnist_5k").mkdir()
    few = [tensor[:size].clone() for tensor, size in zip(tensors, sizes, strict=True)]
    torch.save(few, folder / "mnist_5k" / "mnist_5k.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDP_HELPERS_DATA", str(folder))
        for step in LADDER:
            assert command(["new", str(folder / f"{step}.py"), "--template", step]) == 0
    return folder


def changed(runner: Runner, script: Path, *changes: tuple[str, str]) -> Path:
    """A copy of a rung with some lines replaced."""
    text = script.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder = runner.root / f"changed-{len(list(runner.root.glob('changed-*')))}"
    folder.mkdir(parents=True)
    (folder / script.name).write_text(text)
    return folder / script.name


# one process, mp.spawn and torchrun are each started for real once; the others have torch already
WAYS: dict[str, Callable[[Runner, Path], Finished]] = {
    "single_process": lambda runner, at: runner.run(at / "single_process.py", *SIZE),
    "data_parallel": lambda runner, at: runner.run_warm(at / "data_parallel.py", *SIZE),
    "ddp_one_rank": lambda runner, at: runner.run_warm(at / "ddp_one_rank.py", *SIZE),
    "ddp_spawn 1": lambda runner, at: runner.run_warm(
        at / "ddp_spawn.py", *SIZE, "--world-size", 1
    ),
    "ddp_spawn 2": lambda runner, at: runner.run(at / "ddp_spawn.py", *SIZE, *HALF),
    "ddp_torchrun 1": lambda runner, at: runner.run_warm(at / "ddp_torchrun.py", *SIZE),
    "ddp_torchrun 2": lambda runner, at: runner.run(
        *torchrun(2), at / "ddp_torchrun.py", *SIZE, *HALF
    ),
    "ddp_resume 1": lambda runner, at: runner.run_warm(at / "ddp_resume.py", *SIZE),
}


@pytest.fixture(scope="session")
def trained(session_runner: Runner, ladder: Path) -> Callable[[str], Finished]:
    """Each way trains once; whoever asks again gets what it left."""
    done: dict[str, Finished] = {}

    def train(way: str) -> Finished:
        if way not in done:
            done[way] = WAYS[way](session_runner, ladder)
        return done[way]

    return train


def weights(run: Finished) -> dict[str, torch.Tensor]:
    """What a run saved; of ddp_resume's checkpoint, the model."""
    (file,) = run.folder.glob("*.pt")
    saved = torch.load(file, weights_only=True)
    return saved.get("model", saved)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_prints_and_saves(trained, way: str) -> None:
    run = trained(way)
    assert run.code == 0, run.err
    found = [LINE.fullmatch(line).groups() for line in run.out.splitlines()]
    ranks = None if way in ("single_process", "data_parallel") else way.split()[-1]
    ranks = "1" if way == "ddp_one_rank" else ranks
    assert [(epoch, seen, of) for epoch, _, seen, of in found] == [
        ("1", str(HELD_OUT), ranks),
        ("2", str(HELD_OUT), ranks),
    ]
    assert int(found[-1][1]) > 0.4 * HELD_OUT, "nothing learned"
    assert "Traceback" not in run.err
    assert len([*run.folder.iterdir()]) == 3, "more than the weights and what it printed"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_the_plain_model_and_gives_the_printed_count(trained, ladder, way) -> None:
    model = load_template("single_process").build_model()
    model.load_state_dict(weights(trained(way)))
    _, _, x, y = torch.load(ladder / "mnist_5k/mnist_5k.pt", weights_only=True)
    with torch.no_grad():
        right = (model.eval()(x[:, None] / 255).argmax(dim=1) == y).sum().item()
    printed = LINE.fullmatch(trained(way).out.splitlines()[-1])
    assert abs(right - int(printed[2])) <= 1  # a near tie may round the other way


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="convolutions on a GPU differ from run to run"
)
@pytest.mark.parametrize("way", [way for way in WAYS if not way.endswith("2")][1:])
def test_one_rank_is_the_single_process_to_the_last_bit(trained, way: str) -> None:
    assert same(weights(trained(way)), weights(trained("single_process")))


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="convolutions on a GPU differ from run to run"
)
def test_spawn_and_torchrun_train_the_same_weights_on_two_ranks(trained) -> None:
    two = weights(trained("ddp_spawn 2"))
    assert same(two, weights(trained("ddp_torchrun 2")))
    assert not same(two, weights(trained("single_process"))), "the ranks have the same dropout"


# without draws, and with an optimizer that does not blow up the least difference
PLAIN = (("nn.Dropout(0.2)", "nn.Identity()"), ("torch.optim.Adam(", "torch.optim.SGD("))


def test_two_ranks_take_the_gradient_of_all_samples(runner: Runner, ladder: Path) -> None:
    runs = [
        runner.run_warm(changed(runner, ladder / f"{step}.py", *PLAIN), *SIZE, "--lr", 0.1, *flags)
        for step, flags in (("single_process", ()), ("ddp_spawn", HALF))
    ]
    alone, shared = map(weights, runs)
    assert all(torch.allclose(alone[n], shared[n], atol=1e-5) for n in alone)
    torch.manual_seed(0)
    first = load_template("single_process").build_model().state_dict()
    assert not any(torch.allclose(alone[n], first[n], atol=1e-3) for n in alone), "none learned"


PROBE = """        model.train()
        first = sum(p.sum().item() for p in model.parameters())
        line = f"{torch.initial_seed()}|{first!r}|{list(sampler)}"
        open(f"probe-{rank}-{epoch}.txt", "w").write(line)
"""


def test_ranks_start_equal_draw_differently_and_share_each_epoch_anew(runner, ladder) -> None:
    script = changed(runner, ladder / "ddp_spawn.py", ("        model.train()\n", PROBE))
    assert runner.run_warm(script, *SIZE, folder=script.parent).code == 0
    seeds, sums, orders = {}, {}, {}
    for rank in (0, 1):
        for epoch in (0, 1):
            words = (script.parent / f"probe-{rank}-{epoch}.txt").read_text().split("|")
            seeds[rank, epoch], sums[rank, epoch], orders[rank, epoch] = words
    assert len({*seeds.values()}) == 4, "the same dropout twice"
    assert sums[0, 0] == sums[1, 0], "other first weights on each rank"
    assert sums[0, 1] == sums[1, 1], "the weights drifted apart"
    assert orders[0, 0] != orders[0, 1], "the same order in each epoch"
    shares = [{*map(int, orders[rank, 0].strip("[]").split(", "))} for rank in (0, 1)]
    assert shares[0] | shares[1] == set(range(TRAINED_ON))
    assert not shares[0] & shares[1]


# ---- however it is started


@pytest.mark.parametrize(("step", "ranks"), [("ddp_torchrun", 2), ("ddp_spawn", 1)])
def test_launch_starts_main_without_arguments(ladder, tmp_path, monkeypatch, step, ranks) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["a notebook"])
    result = launch(f"{ladder / step}.py:main", ranks, timeout=100)
    lines = without_greeting(result[0].output).splitlines()
    assert [LINE.fullmatch(line)[1] for line in lines] == ["1", "2", "3"]
    assert (tmp_path / "weights.pt").is_file()


def test_the_file_in_the_repository_finds_its_data(runner: Runner) -> None:
    run = runner.run_warm(TEMPLATES / "single_process.py", "--epochs", 0)
    assert run.code == 0, run.err


def test_a_copy_alone_says_which_file_it_misses(runner: Runner, tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text((TEMPLATES / "single_process.py").read_text())
    run = runner.run_warm(script)
    assert run.code == 1
    assert "FileNotFoundError" in run.err
    assert "mnist_5k.pt" in run.err


def test_spawn_joins_two_machines_at_a_tcp_url(runner: Runner, ladder: Path) -> None:
    flags = ("--world-size", 2, "--nprocs", 1, "--dist-url", f"tcp://localhost:{free_port()}")
    flags = (*flags, "--dist-backend", "gloo", *SIZE)
    runs = [runner.start_warm(ladder / "ddp_spawn.py", *flags, "--rank", rank) for rank in (0, 1)]
    first, second = [runner.finish(run) for run in runs]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.splitlines()[-1].endswith("ranks 2")
    assert second.out == ""
    assert not (second.folder / "weights.pt").exists()


# ---- errors, signals, and what is left


BOOM = ("            loss.backward()\n", '            assert rank == 0, "boom"\n')


@pytest.mark.parametrize("step", ["ddp_spawn", "ddp_torchrun"])
def test_a_rank_that_fails_ends_all_and_is_named(runner: Runner, ladder: Path, step: str) -> None:
    script = changed(runner, ladder / f"{step}.py", (BOOM[0], BOOM[1] + BOOM[0]))
    if step == "ddp_spawn":
        run = runner.run_warm(script)
        report = run.err
    else:
        run = runner.run(*torchrun(2), script)
        report = run.err.partition("Root Cause")[2]
    assert run.code != 0
    assert "AssertionError: boom" in report
    assert "To enable traceback" not in run.err


@pytest.mark.parametrize(
    ("step", "sent", "to_all"),
    [
        ("single_process", signal.SIGINT, True),
        ("ddp_spawn", signal.SIGINT, True),  # Ctrl-C: the terminal signals the whole group
        ("ddp_spawn", signal.SIGINT, False),
        ("ddp_spawn", signal.SIGKILL, False),
        ("ddp_torchrun", signal.SIGINT, True),
    ],
)
def test_a_signal_in_mid_run_leaves_nothing(
    runner: Runner, ladder: Path, tmp_path: Path, monkeypatch, step, sent, to_all
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    starter = torchrun(2) if step == "ddp_torchrun" else []
    start = runner.start_warm if step == "single_process" else runner.start
    started = start(*starter, ladder / f"{step}.py", "--epochs", 100_000)
    started.wait_for("epoch 1:")
    assert len(started.left()) >= (1 if step == "single_process" else 3)
    if to_all:
        os.killpg(started.process.pid, sent)
    else:
        started.process.send_signal(sent)
    assert started.end_within(40) != 0
    started.wait_until_none_left(15)
    if step == "ddp_spawn" and sent == signal.SIGINT:
        assert not list(temporary.glob("*/meet")), "the place where the ranks met"


# ---- ddp_resume


DIES_WHILE_SAVING = (
    "        torch.save(saved |",
    '        if epoch == 1 and not os.path.exists("again"):\n'
    '            open(f"{args.checkpoint}.tmp", "wb").write(b"half")\n'
    "            os.kill(os.getpid(), 9)\n"
    "        torch.save(saved |",
)


def test_killed_while_it_saves_the_same_command_goes_on(runner, ladder, trained) -> None:
    script = changed(runner, ladder / "ddp_resume.py", DIES_WHILE_SAVING)
    line = (*torchrun(2), script, *SIZE, *HALF)
    killed = runner.run(*line, folder=script.parent)
    assert killed.code == 1
    assert "Signal 9 (SIGKILL)" in killed.err
    assert torch.load(script.parent / "checkpoint.pt", weights_only=True)["epoch"] == 1

    (script.parent / "again").touch()
    done = runner.run(*line, folder=script.parent)
    assert done.code == 0, done.err
    assert [text.partition(":")[0] for text in done.out.splitlines()] == [
        "goes on after epoch 1",
        "epoch 2",
    ]
    assert not (script.parent / "checkpoint.pt.tmp").exists()
    if not torch.cuda.is_available():
        assert same(weights(done), weights(trained("ddp_torchrun 2"))), "as if never killed"

    over = runner.run_warm(script, *SIZE, folder=script.parent)
    assert (over.code, over.out) == (0, "goes on after epoch 2\n"), over.err
    more = runner.run_warm(script, "--epochs", 3, folder=script.parent)  # on one rank now
    assert LINE.fullmatch(more.out.splitlines()[-1])[4] == "1", more.err
    saved = torch.load(script.parent / "checkpoint.pt", weights_only=True)
    steps = saved["optimizer"]["state"][0]["step"].item()
    assert steps == 3 * TRAINED_ON / 32, "Adam's averages did not go on"
