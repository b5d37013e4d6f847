"""The language models: their data, that they look back only, and that they learn and go on."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch
from template_runner import (
    STOP_ITSELF,
    TEMPLATES,
    Finished,
    Runner,
    alone,
    copy,
    load_template,
    stop_at,
)

DATA = TEMPLATES.parents[1] / "data"
TEXT = DATA / "austen" / "pride_and_prejudice.txt"
pytestmark = pytest.mark.timeout(300)


def test_the_text_is_the_one_that_the_readme_names() -> None:
    assert hashlib.sha256(TEXT.read_bytes()).hexdigest() in (DATA / "README.md").read_text()


def test_each_answer_is_the_next_letter_and_nothing_held_out_is_trained_on() -> None:
    letters, train, held_out = load_template("lm").load_data(TEXT, None)
    text = TEXT.read_text()

    def read(numbers: torch.Tensor) -> str:
        return "".join(letters[number] for number in numbers.flatten())

    x, y = train.tensors
    assert text.startswith(read(x))
    assert text[1:].startswith(read(y))
    assert len(x) + len(held_out) == pytest.approx(len(text) / 64, abs=3)
    assert read(held_out.tensors[0]) in text[len(x) * 64 :]


def test_no_letter_sees_a_later_one() -> None:
    template = load_template("lm")
    torch.manual_seed(0)
    model = template.GPT(70, 32, 2, 4)
    model.eval()
    one = torch.randint(70, (1, 64))
    other = one.clone()
    other[0, 40:] = (other[0, 40:] + 1) % 70
    a, b = model(one), model(other)
    assert a.shape == (1, 64, 70)
    assert torch.allclose(a[:, :40], b[:, :40], atol=1e-6)
    assert not torch.allclose(a[:, 40:], b[:, 40:], atol=1e-3)
    other = one.clone()
    other[0, 0] = (other[0, 0] + 1) % 70
    assert not torch.allclose(model(other)[:, 63], a[:, 63], atol=1e-6), "sees one letter only"


def test_it_learns_however_it_is_started(runner: Runner) -> None:
    size = ("--epochs", 2, "--limit", 65, "--batch-size-per-rank", 4, "--warmup", 1, "--lr", 0.01)
    script = TEMPLATES / "lm.py"
    runs = runner.however_started(script, *size)
    for run in runs.values():
        assert run.code == 0, run.err
        losses = [float(loss) for loss in re.findall(r"loss (\S+)", run.out)]
        assert losses[1] < losses[0] - 0.2, losses
        right, seen = map(int, re.findall(r"\((\d+) of (\d+)\)", run.out)[-1])
        assert seen == 65 * 64
        assert right > 0.1 * seen
    written = runs["spawn"].out.split("ranks 2\n")[1]
    assert len(written.rstrip("\n")) >= 250
    results = [newest(runs[way]) for way in ("spawn", "agent 2")]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def newest(run: Finished) -> dict[str, torch.Tensor]:
    return torch.load(sorted(run.folder.glob("checkpoint-*.pt"))[-1])["model"]


def test_stopped_it_ends_with_the_weights_of_an_undisturbed_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ("--epochs", 1, "--limit", 65, "--batch-size-per-rank", 8)
    undisturbed = runner.on_ranks(2, TEMPLATES / "lm.py", *size)
    folder = copy(runner, "lm", *STOP_ITSELF)
    (folder / "data" / "austen").symlink_to(TEXT.parent)
    stop_at(monkeypatch, 3)
    warned = runner.run_warm(folder / "mine.py", "--world-size", 2, *size, folder=folder)
    assert warned.code == os.EX_TEMPFAIL, warned.err
    stop_at(monkeypatch, -1)
    done = runner.on_ranks(2, folder / "mine.py", *size, folder=folder)
    ours, theirs = newest(done), newest(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_text_is_refused_in_a_run_that_goes_on(runner: Runner) -> None:
    folder = copy(runner, "lm")

    size = ("--limit", 65, "--epochs")
    runner.on_ranks(1, folder / "mine.py", *size, 1, "--data", TEXT, folder=folder)
    other = folder / "other.txt"
    other.write_text(TEXT.read_text().replace("Bennet", "Bonnet"))
    command = alone(runner, folder / "mine.py")
    again = runner.run_warm(*command, *size, 2, "--data", other, folder=folder)
    assert again.code == 1
    assert again.err.startswith("error: --data is ")


@pytest.mark.parametrize("content", [None, "too short"])
def test_a_text_that_cannot_be_used(runner: Runner, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "text.txt"
    if content:
        file.write_text(content)
    run = runner.run(TEMPLATES / "lm.py", "--data", file)
    assert run.code == 1
    assert run.err == f"error: --data {file}: give a text file of more than 1280 letters\n"
