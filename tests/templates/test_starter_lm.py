"""starter_lm.py: what starter.py promises, for a language model; and its text, tokens and FLOPs."""

import csv
import math
import os
import re
import runpy
import shutil
import signal
from array import array
from pathlib import Path

import pytest
import torch
from template_runner import TEMPLATES, Runner, torchrun
from test_starter import END_AT, TRACK, ends, newest, refused, same
from torch import nn

from ddp_helpers import LaunchError

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_process_left")]

STARTER = TEMPLATES / "starter_lm.py"
TEXT = TEMPLATES.parents[1] / "data" / "austen" / "pride_and_prejudice.txt"
SMALL = [
    ("CONTEXT = 128", "CONTEXT = 16"),
    ("= 4, 4, 128, 0.1", "= 2, 2, 32, 0.1"),
]
PLAIN = [("2, 2, 32, 0.1", "2, 2, 32, 0.0")]
FLAGS = ("--epochs", 2, "--log-every", 1, "--batch-size-per-rank", 8, "--write", 20)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """1,600 letters: 90 samples of 16 to train on, 10 to hold out; the last has one fewer."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes(TEXT.read_bytes()[:1600])
    return file


@pytest.fixture
def mine(runner: Runner, text: Path):
    """An edited copy of the starter."""

    def edit(*changes: tuple[str, str], data: Path = text) -> Path:
        source = STARTER.read_text().replace(TRACK, TRACK + END_AT)
        source = re.sub(r"^DATA = .*$", f"DATA = {str(data)!r}", source, flags=re.MULTILINE)
        for old, new in (*SMALL, *changes):
            assert old in source, old
            source = source.replace(old, new)
        runner.root.mkdir(exist_ok=True)
        file = runner.root / f"mine-{len(list(runner.root.glob('mine-*')))}.py"
        file.write_text(source)
        return file

    return edit


def logged(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "run" / "log.csv").open() as file:
        timed = ("tokens_per_second", "memory_gib", "mfu")
        return [tuple(row) for row in csv.reader(file) if row[2] not in timed]


def values(folder: Path, name: str) -> list[float]:
    with (folder / "run" / "log.csv").open() as file:
        return [float(row[3]) for row in csv.reader(file) if row[2] == name]


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "kill -9"])
@pytest.mark.parametrize(
    ("ranks", "flags"), [(2, ()), (3, ("--global-batch-size", 26, "--bf16"))], ids=["2", "3, bf16"]
)
def test_it_goes_on_to_the_same_bits(runner, mine, monkeypatch, ranks, flags, by: int) -> None:
    script, flags = mine(), (*FLAGS, "--save-every", 2, *flags)
    whole = runner.on_ranks(ranks, script, *flags)
    ends(monkeypatch, 5, by)
    folder = runner.root / "cut"
    with pytest.raises(LaunchError, match="75" if by == signal.SIGTERM else "SIGKILL"):
        runner.on_ranks(ranks, script, *flags, folder=folder)
    monkeypatch.delenv("END_AT")
    assert newest(folder)["at"]["step"] == (6 if by == signal.SIGTERM else 4)
    (tokens,) = (folder / "run").glob("tokens-*.bin")
    made = tokens.stat().st_mtime_ns
    again = runner.on_ranks(ranks, script, *flags, folder=folder)
    assert tokens.stat().st_mtime_ns == made, "made twice"
    assert same(newest(folder)["model"], newest(whole.folder)["model"])
    assert logged(folder) == logged(whole.folder)
    assert same(newest(folder, "best")["model"], newest(whole.folder, "best")["model"])
    assert written(again.out) == written(whole.out)
    assert not list((folder / "run").glob("*.tmp"))


def written(out: str) -> str:
    return re.split(r"^best held_out_loss .*\n", out, flags=re.MULTILINE)[1]


def test_any_number_of_ranks_trains_the_same_weights(runner, mine) -> None:
    script = mine(*PLAIN)
    flags = (*FLAGS, "--global-batch-size", 26, "--lr", 1e-3)
    alone, *others = (runner.on_ranks(ranks, script, *flags) for ranks in (1, 2, 3))
    for other in others:
        close(newest(alone.folder)["model"], newest(other.folder)["model"])
        assert len(logged(other.folder)) == len(logged(alone.folder)), "other steps"
        assert values(other.folder, "perplexity") == pytest.approx(
            values(alone.folder, "perplexity"), rel=1e-3
        )


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
    close(newest(whole.folder)["model"], newest(folder)["model"])


def samples(script: Path, held_out: bool) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """The script's names; and, cut by hand, all its samples: tokens, and each one's next."""
    starter = runpy.run_path(str(script))
    tokens = list(Path(starter["DATA"]).read_bytes())
    cut = len(tokens) * 9 // 10
    tokens = tokens[cut:] if held_out else tokens[:cut]
    begins = range(0, len(tokens) - 1, 16)
    x = [tokens[begin : min(begin + 16, len(tokens) - 1)] for begin in begins]
    y = [tokens[begin + 1 : begin + 17] for begin in begins]
    assert sum(map(len, y)) == len(tokens) - 1
    filled = [
        torch.tensor([row + [fill] * (16 - len(row)) for row in rows])
        for rows, fill in ((x, 0), (y, -100))
    ]
    return starter, *filled


def test_the_gradient_is_that_of_a_plain_loop(runner, mine) -> None:
    """Two ranks, uneven shares, a short last sample, accumulation: as torch says it in a line."""
    script = mine(*PLAIN, ("torch.optim.AdamW(", "Descent("), ("# ruff", DESCENT))
    flags = ("--epochs", 1, "--global-batch-size", 89, "--batch-size-per-rank", 8, "--lr", 0.5)
    flags = (*flags, "--warmup", 0, "--clip", "inf", "--weight-decay", 0, "--write", 0)
    run = runner.on_ranks(2, script, *flags)
    starter, x, y = samples(script, held_out=False)
    torch.manual_seed(0)
    model = starter["make_model"]()
    nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    for name, value in newest(run.folder)["model"].items():
        expected = model.get_parameter(name) - 0.5 * model.get_parameter(name).grad
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


DESCENT = """

class Descent(torch.optim.SGD):
    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, lr)


# ruff"""


@pytest.mark.parametrize("size", [1600, 300])
def test_each_held_out_token_counts_once_and_may_be_too_few_for_the_ranks(
    runner, mine, tmp_path, size: int
) -> None:
    """10 samples, or 2, on three ranks."""
    few = tmp_path / "few.txt"
    few.write_bytes(TEXT.read_bytes()[:size])
    script = mine(data=few)
    run = runner.on_ranks(3, script, *FLAGS, "--epochs", 1)
    starter, x, y = samples(script, held_out=True)
    assert len(x) == (10 if size == 1600 else 2)
    model = starter["make_model"]()
    model.load_state_dict(newest(run.folder)["model"])
    with torch.no_grad():
        found = nn.functional.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten()).item()
    assert values(run.folder, "held_out_loss") == [pytest.approx(found, rel=1e-4)]
    assert values(run.folder, "perplexity") == [pytest.approx(math.exp(found), rel=1e-3)]


def test_no_token_sees_a_later_one_and_the_last_sees_the_first(mine) -> None:
    starter = runpy.run_path(str(mine()))
    torch.manual_seed(0)
    model = starter["make_model"]().eval()
    one = torch.randint(256, (1, 16))
    late, early = one.clone(), one.clone()
    late[0, 10:] = (late[0, 10:] + 1) % 256
    early[0, 0] = (early[0, 0] + 1) % 256
    a, b, c = (model(tokens) for tokens in (one, late, early))
    assert torch.allclose(a[:, :10], b[:, :10], atol=1e-6)
    assert not torch.allclose(a[:, 10:], b[:, 10:], atol=1e-4)
    assert not torch.allclose(a[:, 15], c[:, 15], atol=1e-6)


def test_it_learns_and_only_matrices_decay(runner, mine) -> None:
    run = runner.on_ranks(2, mine(), *FLAGS, "--epochs", 8, "--lr", 0.01)
    losses = values(run.folder, "held_out_loss")
    assert losses[-1] < losses[0] - 0.5, losses
    saved = newest(run.folder)
    decays = [group["weight_decay"] for group in saved["optimizer"]["param_groups"]]
    assert decays == [0.0, 0.1]
    sizes = [
        {saved["optimizer"]["state"][number]["exp_avg"].dim() for number in group["params"]}
        for group in saved["optimizer"]["param_groups"]
    ]
    assert sizes == [{1}, {2}]
    assert run.out.count("best held_out_loss") == 1, "written by one rank"
    assert len(written(run.out)) > 10


def test_the_mfu_is_told_where_the_peak_is_known(runner, mine) -> None:
    script = mine()
    run = runner.on_ranks(2, script, *FLAGS, "--peak-tflops", 0.01)
    assert not values(runner.on_ranks(2, script, *FLAGS).folder, "mfu")
    starter = runpy.run_path(str(script))
    # by hand: 2 layers of (3 + 1 + 8) 32 x 32 and their biases and norms; the last norm; tokens
    weights = 2 * (12 * 32**2 + 3 * 32 + 32 + 128 + 32 + 4 * 32) + 2 * 32 + 256 * 32
    flops = 6 * weights + 12 * 2 * 32 * 16
    assert starter["flops_per_token"](starter["make_model"]()) == flops
    for speed, mfu in zip(
        values(run.folder, "tokens_per_second"), values(run.folder, "mfu"), strict=True
    ):
        assert mfu == pytest.approx(speed * flops / (2 * 0.01e12), rel=1e-4)
    assert "  mfu 0." in run.out


def test_a_file_of_tokens_is_taken_as_it_is(runner, mine, text: Path) -> None:
    tokens = text.with_suffix(".bin")
    with tokens.open("wb") as stream:
        array("H", list(text.read_bytes())).tofile(stream)
    tokens.chmod(0o444)
    ours, theirs = (runner.on_ranks(2, mine(data=data), *FLAGS) for data in (tokens, text))
    assert same(newest(ours.folder)["model"], newest(theirs.folder)["model"])
    assert not list((ours.folder / "run").glob("tokens*"))


def test_the_best_is_kept(runner, mine) -> None:
    """Each epoch's held-out loss is higher."""
    worse = [
        ('return {"held_out_loss": mean,', 'return {"held_out_loss": mean + EPOCH.pop(0),'),
        ("BETTER = (", "EPOCH = [*range(9)]\nBETTER = ("),
    ]
    run = runner.on_ranks(2, mine(*worse), *FLAGS, "--epochs", 9, "--patience", 2, "--lr", 1e-9)
    assert len(values(run.folder, "held_out_loss")) == 3, "it went on"
    assert newest(run.folder, "best")["at"]["best_epoch"] == 1
    assert re.search("^best held_out_loss .* in epoch 1$", run.out, re.MULTILINE)


# ---- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(runner, mine) -> None:
    bad = (
        "    scores = model(x).float().flatten(0, 1)\n",
        "    scores = model(x).float().flatten(0, 1)\n"
        "    if torch.distributed.get_rank() == 1 and model.training:\n"
        "        scores = scores + BAD.pop() if BAD else scores\n",
    )
    script = mine(bad, ("BETTER = (", "BAD = [float('nan'), 0.0, 0.0, 0.0]\nBETTER = ("))
    folder = runner.root / "nan"
    told = refused(runner, script, "--save-every", 1, folder=folder)
    assert "the loss of rank 1 is not finite in epoch 1, at step 4" in told
    assert newest(folder)["at"]["step"] == 3


def test_a_full_disk_leaves_the_last_checkpoint(runner, mine) -> None:
    folder = runner.root / "full"
    runner.on_ranks(2, mine(), *FLAGS, folder=folder)
    before = newest(folder)
    full = (
        "    return GPT()\n",
        "    import resource\n\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n    return GPT()\n",
    )
    told = refused(runner, mine(full), "--epochs", 3, folder=folder)
    assert "could not save newest.pt: [Errno 27] File too large; the last stays" in told
    assert same(newest(folder)["model"], before["model"])
    assert not list((folder / "run").glob("*.tmp"))


def test_two_runs_at_once(runner, mine) -> None:
    script = mine(("    x, y = batch\n", "    import time; time.sleep(0.3)\n    x, y = batch\n"))
    first = runner.start_warm(script, *FLAGS)
    first.wait_for("step 1")
    told = refused(runner, script, ranks=1, folder=first.folder)
    assert "error: run is in use by another run: give another" in told
    os.kill(first.process.pid, signal.SIGTERM)  # it is well, and need not go on
    assert runner.finish(first).code == os.EX_TEMPFAIL


@pytest.mark.parametrize("damage", ["a flipped bit", "another model"])
def test_a_checkpoint_that_cannot_be_used_is_left_alone(runner, mine, damage: str) -> None:
    folder, script = runner.root / "damaged", mine()
    runner.on_ranks(1, script, *FLAGS, folder=folder)
    file = folder / "run" / "newest.pt"
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        script = mine(("= 2, 2, 32", "= 3, 2, 32"))
    told = refused(runner, script, folder=folder)
    words = "can't read run/newest.pt" if damage == "a flipped bit" else "is of another model"
    assert words in told
    assert file.read_bytes() == content
    shutil.move(folder / "run" / "previous.pt", file)
    assert "goes on in epoch 1" in runner.on_ranks(1, mine(), *FLAGS, folder=folder).out


def test_killed_between_two_renames_it_goes_on_from_the_previous_one(runner, mine) -> None:
    folder = runner.root / "between"
    runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    os.replace(folder / "run" / "newest.pt", folder / "run" / "newest.pt.tmp")
    run = runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    assert "goes on in epoch 1" in run.out
    assert newest(folder)["at"]["epoch"] == 2


def test_another_text_is_refused_in_a_run_that_goes_on(runner, mine, tmp_path, text) -> None:
    folder, other = runner.root / "other", tmp_path / "other.txt"
    runner.on_ranks(1, mine(), *FLAGS, folder=folder)
    other.write_text(text.read_text().replace("Bennet", "Bonnet"))
    told = refused(runner, mine(data=other), ranks=1, folder=folder)
    assert re.search(r"error: data 1600-\w{8} found, 1600-\w{8} in run/newest.pt", told)


@pytest.mark.parametrize(
    ("content", "change", "words"),
    [
        (b"too short", [], "error: 1 samples and 0 held out, 16 in a step"),
        (b"", [], "error: 0 samples and 0 held out, 16 in a step"),
        (None, [], "text.txt: let DATA name a text, or a .bin of its tokens"),
        (
            b"a line\n" * 99,
            [("TOKENS = 256", "TOKENS = 99")],
            "encode() gave 110, expected 0 to 98",
        ),
    ],
)
def test_a_text_that_cannot_be_used(runner, mine, tmp_path, content, change, words) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    assert words in refused(runner, mine(*change, data=file))


def test_a_token_that_the_model_does_not_know(runner, mine, tmp_path) -> None:
    file = tmp_path / "tokens.bin"
    with file.open("wb") as stream:
        array("H", [7, 300] * 500).tofile(stream)
    assert f"error: token 300 in {file}, expected 0 to 255" in refused(runner, mine(data=file))


def test_it_is_silent_under_the_sanitizer(runner, mine) -> None:
    for flags in ((), ("--bf16", "--global-batch-size", 26)):
        run = runner.on_ranks(2, mine(), *FLAGS, *flags, sanitize=True)
        assert "sanitizer" not in run.out + run.err


def test_torchrun_stops_it_and_it_goes_on(runner, mine) -> None:
    script = mine(("    x, y = batch\n", "    import time; time.sleep(0.2)\n    x, y = batch\n"))
    flags = (*FLAGS, "--epochs", 3)
    started = runner.start(*torchrun(2), script, *flags)
    started.wait_for("step 3")
    os.kill(started.process.pid, signal.SIGTERM)
    run = runner.finish(started)
    assert "stopped and saved; the same command goes on" in run.out, run.err
    step = newest(run.folder)["at"]["step"]
    assert step < 12
    again = runner.on_ranks(2, mine(), *flags, folder=run.folder)
    assert f"after step {step}" in again.out


def test_the_owner_edits_the_first_lines() -> None:
    lines = STARTER.read_text().splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("# ruff"))
    assert end <= 106
    below = "\n".join(lines[end:])
    assert not re.search(r"cross_entropy|Linear|LAYERS|austen", below)
