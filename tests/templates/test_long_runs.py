"""The templates for long runs: started each way, stopped, killed, damaged, and taken up again."""

import itertools
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from template_runner import (
    PLAIN,
    STOP_ITSELF,
    TEMPLATES,
    Finished,
    Runner,
    alone,
    copy,
    load_template,
    stop_at,
    torchrun,
)

pytestmark = pytest.mark.timeout(300)  # several starts each, on a machine that may be busy

TINY = ("--epochs", 1, "--limit", 65)
LAST = re.compile(r"accuracy (0\.\d{4}) \((\d+) of (\d+)\)  seconds \d+\.\d  ranks (\d)")


def newest(run: Finished) -> dict:
    return torch.load(sorted(run.folder.glob("checkpoint*.pt"))[-1])


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_it_trains_however_it_is_started(runner: Runner) -> None:
    script = TEMPLATES / "ddp_full.py"
    runs = runner.however_started(script, *TINY)
    for way, run in runs.items():
        assert run.code == 0, run.err
        _, _, seen, ranks = LAST.fullmatch(run.out.splitlines()[-1]).groups()
        assert (seen, ranks) == ("65", "1" if way.endswith("1") else "2")
        assert "Traceback" not in run.err
        assert not list(run.folder.glob("*.tmp"))
    load_template("ddp_full").build_model().load_state_dict(newest(runs["spawn"])["model"])
    assert same(newest(runs["spawn"])["model"], newest(runs["agent 2"])["model"])


# --- the same weights, however often it was stopped ---

SIZE = ("--epochs", 2, "--limit", 300, "--save-every", 2, "--batch-size-per-rank", 16)
RESUMED = [("ddp_full", ("--accumulate", 2, "--bf16"))]


@pytest.mark.parametrize(("step", "flags"), RESUMED)
def test_stopped_and_killed_it_ends_with_the_weights_of_an_undisturbed_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, step: str, flags: tuple
) -> None:
    undisturbed = runner.on_ranks(2, TEMPLATES / f"{step}.py", *SIZE, *flags)
    folder = copy(runner, step, *STOP_ITSELF)

    def run(at: int, by: int, way: str) -> Finished:
        stop_at(monkeypatch, at, by)
        script, given = folder / "mine.py", (*SIZE, *flags)
        if way == "ranks":
            return runner.on_ranks(2, script, *given, folder=folder)
        if way == "torchrun":
            return runner.run(*torchrun(2), script, *given, folder=folder)
        start = runner.run if step == "ddp_full" else runner.run_warm
        return start(script, "--world-size", 2, *given, folder=folder)

    warned = run(3, signal.SIGUSR1, "spawn")  # one rank hears it, all stop
    assert warned.code == os.EX_TEMPFAIL, warned.err
    assert "stopped and saved" in warned.out
    assert newest(warned)["step"] == 3
    stopped_at = 3
    if step == "ddp_full":  # nothing can be saved: it goes on from what was saved before
        killed = run(8, signal.SIGKILL, "torchrun")
        assert killed.code not in (0, os.EX_TEMPFAIL)
        assert "goes on from checkpoint-00000003.pt" in killed.out
        stopped_at = newest(killed)["step"]
        assert stopped_at == 6
    done = run(-1, 0, "ranks")
    assert f"goes on from checkpoint-{stopped_at:08}.pt" in done.out

    ours, theirs = newest(done), newest(undisturbed)
    assert same(ours["model"], theirs["model"])
    pairs = zip(ours["ranks"], theirs["ranks"], strict=True)
    assert all(same(mine["random"], other["random"]) for mine, other in pairs)
    lines = [run.out.splitlines()[-2].split("  seconds")[0] for run in (done, undisturbed)]
    assert lines[0] == lines[1], "the printed loss is of the whole epoch"
    assert len(list(folder.glob("checkpoint-*.pt"))) == 3, "--keep is 3"


def test_a_signal_to_the_launcher_reaches_the_ranks(runner: Runner) -> None:
    started = runner.start_warm(TEMPLATES / "ddp_full.py", "--epochs", 9999, "--limit", 300)
    started.wait_for("epoch 1")
    started.process.send_signal(signal.SIGUSR1)
    run = runner.finish(started, 30)
    assert run.code == os.EX_TEMPFAIL, run.err
    assert run.out.endswith("stopped and saved; the same command goes on from there\n")
    assert "Traceback" not in run.err


def test_a_signal_to_torchrun_gives_the_ranks_time_to_save(runner: Runner) -> None:
    script = TEMPLATES / "ddp_full.py"
    started = runner.start(*torchrun(2), script, "--epochs", 9999, "--limit", 300)
    started.wait_for("epoch 1")
    started.process.terminate()
    run = runner.finish(started, 30)
    assert run.code == 1, "torchrun has no other code"
    assert "stopped and saved" in run.out


def test_a_run_that_is_done_says_so_and_other_settings_are_refused(runner: Runner) -> None:
    folder = copy(runner, "ddp_full")

    def run(*flags: object) -> Finished:
        return runner.on_ranks(1, folder / "mine.py", "--limit", 65, *flags, folder=folder)

    before = newest(run("--epochs", 1))
    again = run("--epochs", 1)
    assert again.code == 0, again.err
    assert "note: that was all" in again.out
    command = alone(runner, folder / "mine.py")
    other = runner.run_warm(*command, "--limit", 65, "--epochs", 2, "--seed", 5, folder=folder)
    assert other.code == 1
    error = "error: --seed is 5, the checkpoint has 0: give that, or another --checkpoint"
    assert other.err.splitlines() == [error]
    more = run("--epochs", 2)
    assert "epoch 2" in more.out
    assert "epoch 1" not in more.out
    assert newest(more)["step"] == 2 * before["step"]


def test_other_ranks_than_the_checkpoint_has_are_refused_once(runner: Runner) -> None:
    folder = copy(runner, "ddp_full")
    runner.on_ranks(1, folder / "mine.py", *TINY, folder=folder)
    flags = ("--world-size", 2, *TINY, "--epochs", 2)
    two = runner.run_warm(folder / "mine.py", *flags, folder=folder)
    assert two.code == 1
    assert [line for line in two.err.splitlines() if "error: " in line] == [
        "error: --world-size is 2, the checkpoint has 1: give that, or another --checkpoint"
    ]


# --- checkpoints ---

SAVING = ("ddp_full",)


def saved(template, path: Path, steps: range, keep: int = 3) -> None:
    for step in steps:
        template.save_checkpoint(path, {"step": step, "model": torch.full((99,), step)}, keep)


@pytest.mark.parametrize("step", SAVING)
def test_the_last_ones_are_kept(tmp_path: Path, step: str) -> None:
    template, path = load_template(step), tmp_path / "check[1].pt"
    saved(template, path, range(8, 14), keep=2)
    names = ["check[1]-00000012.pt", "check[1]-00000013.pt"]
    assert sorted(os.listdir(tmp_path)) == names
    assert template.load_checkpoint(path)["step"] == 13


@pytest.mark.parametrize("step", SAVING)
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "text"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, capsys, step: str, how: str) -> None:
    template, path = load_template(step), tmp_path / "checkpoint.pt"
    saved(template, path, range(3))
    file = tmp_path / "checkpoint-00000002.pt"
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(torch.full((9,), 2).numpy().tobytes()))] ^= 1
    bad = {"flipped": raw, "cut": raw[: len(raw) // 2], "empty": b"", "text": b"no checkpoint"}
    file.write_bytes(bad[how])
    assert template.load_checkpoint(path)["step"] == 1
    assert "checkpoint-00000002.pt is damaged" in capsys.readouterr().out
    saved(template, path, range(2, 3), keep=1)
    assert template.load_checkpoint(path)["step"] == 2


def test_torch_alone_does_not_see_a_flipped_bit(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(torch.full((99,), 2), file)
    raw = bytearray(file.read_bytes())
    raw[raw.index(bytes(torch.full((9,), 2).numpy().tobytes()))] ^= 1
    file.write_bytes(raw)
    assert torch.load(file)[0] == 3, "torch sees it now: the templates need no check of their own"


@pytest.mark.parametrize("step", SAVING)
def test_a_crash_while_saving_leaves_the_old_ones(tmp_path, monkeypatch, step: str) -> None:
    template, path = load_template(step), tmp_path / "checkpoint.pt"
    saved(template, path, range(1, 2))

    def crash(_content, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(template.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        saved(template, path, range(2, 3))
    monkeypatch.undo()
    assert template.load_checkpoint(path)["step"] == 1


# --- what ddp_full.py adds ---


def test_accumulated_batches_are_the_large_batch(runner: Runner) -> None:
    """316 samples: the last step of the epoch has 2 * (8 + 6) of them instead of 48."""
    folder = copy(runner, "ddp_full", *PLAIN)
    flags = ("--batch-size-per-rank", 8, "--accumulate", 3, "--lr", 0.05, "--clip", "inf")
    size = ("--epochs", 1, "--limit", 316)
    run = runner.on_ranks(2, folder / "mine.py", *flags, *size, folder=folder)
    ours = newest(run)["model"]

    template = load_template("ddp_full")
    train_set, _ = template.load_data(TEMPLATES.parents[1] / "data" / "mnist_5k", 316)
    torch.manual_seed(0)
    model = template.build_model().eval()  # no dropout
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    sampler = torch.utils.data.DistributedSampler(train_set, num_replicas=1, rank=0, seed=0)
    sampler.set_epoch(1)
    steps = torch.tensor(list(sampler)).split(48)
    for step, indices in enumerate(steps):
        x, y = train_set[indices]
        optimizer = torch.optim.SGD(model.parameters(), 0.05 * template.lr_factor(step, 20, 7))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert [len(indices) for indices in steps] == [48] * 6 + [28]
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, ours[name], atol=1e-6), name
        assert (weight - first[name]).abs().max() > 1e-4, "nothing learned, so nothing compared"


def test_no_step_moves_the_weights_further_than_the_clipped_gradient(runner: Runner) -> None:
    folder = copy(runner, "ddp_full", *PLAIN)
    flags = ("--warmup", 1, "--lr", 1, "--clip", 0.001, "--batch-size-per-rank", 65)
    run = runner.on_ranks(1, folder / "mine.py", *TINY, *flags, folder=folder)
    torch.manual_seed(0)
    before, after = load_template("ddp_full").build_model().state_dict(), newest(run)["model"]
    length = sum((after[n] - before[n]).square().sum() for n in before).sqrt().item()
    assert length == pytest.approx(0.001, rel=0.01)


def test_it_ends_when_the_accuracy_no_longer_rises(runner: Runner) -> None:
    folder = copy(runner, "ddp_full")
    flags = ("--lr", 1e-12, "--patience", 2, "--limit", 65, "--epochs", 50)
    run = runner.on_ranks(2, folder / "mine.py", *flags, folder=folder)
    assert [line for line in run.out.splitlines() if "epoch" in line][-1].startswith("epoch 3 ")
    assert LAST.fullmatch(run.out.splitlines()[-1])


def test_the_learning_rate_warms_up_and_falls() -> None:
    factor = load_template("ddp_full").lr_factor
    factors = [factor(step, 4, 20) for step in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)
    assert factor(7, 9, 3) == pytest.approx(8 / 9), "a warm-up longer than the run"


@pytest.mark.parametrize(
    ("history", "patience", "expected"),
    [
        ([], 1, False),
        ([5], 1, False),
        ([5, 5], 1, True),
        ([5, 6], 1, False),
        ([9, 5, 6], 3, False),
        ([9, 5, 6, 7], 3, True),
        ([9, 1, 1, 1], None, False),
    ],
)
def test_when_it_is_no_better(history: list[int], patience: int | None, expected: bool) -> None:
    assert load_template("ddp_full").no_better(history, patience) is expected


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here: apt install g++")
def test_compiled_it_learns_the_same(runner: Runner) -> None:
    size = ("--limit", 64, "--epochs", 1, "--accumulate", 2)
    script = copy(runner, "ddp_full", *PLAIN) / "mine.py"
    compiled = runner.run_warm(*alone(runner, script), *size, "--compile")
    assert compiled.code == 0, compiled.err
    plain = runner.on_ranks(1, script, *size)
    ours, theirs = newest(compiled)["model"], newest(plain)["model"]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clip", 0], ["--clip is 0.0", "above 0"]),
        (["--accumulate", 0], ["--accumulate", "0 found", "1 or more"]),
        (["--rank", 0], ["--rank is 0", "--world-size is not set"]),
        (["--dist-backend", "nccl", "--world-size", 99], ["nccl", "GPUs found", "give gloo"]),
    ],
    ids=lambda value: str(value[0]),
)
def test_a_wrong_flag(runner: Runner, flags: list, words: list[str]) -> None:
    run = runner.run(TEMPLATES / "ddp_full.py", *flags)
    assert run.code not in (0, None)
    assert len([line for line in run.err.splitlines() if line.startswith("error: ")]) == 1
    assert all(word in run.err for word in words), run.err
