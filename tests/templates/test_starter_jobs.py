"""Three jobs made from starter.py: only the owner's part is theirs."""

import csv
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from template_runner import TEMPLATES, Runner

from ddp_helpers import LaunchError

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_process_left")]

JOBS = Path(__file__).parent / "jobs"
KILL = """    import os

    if step == int(os.environ.get("END_AT", -1)):
        os.kill(os.getpid(), 9)
"""


def pictures(folder: Path) -> Path:
    """Three classes that differ in colour and stripes, 60 and 21 of them."""
    draws = np.random.default_rng(0)
    for part, each in (("train", 20), ("held_out", 7)):
        for number, name in enumerate(("ash", "birch", "cedar")):
            (folder / part / name).mkdir(parents=True)
            for index in range(each):
                pixels = draws.integers(0, 90, (32, 32, 3))
                pixels[:: 2 + number, :, number] += 150
                file = folder / part / name / f"{index}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


def texts(folder: Path) -> Path:
    """200 pairs: the answer is the question turned round."""
    draws = random.Random(0)
    words = [
        "".join(draws.choices("abcDEF ", k=draws.randint(3, 12))).strip() or "a" for _ in range(200)
    ]
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    return folder / "pairs.tsv"


DATA = {"image_folder": pictures, "text_pairs": texts, "regression": lambda folder: folder}
FLAGS = {
    "image_folder": ("--epochs", 6, "--workers", 1, "--lr", 0.01),
    "text_pairs": ("--epochs", 15, "--lr", 0.02),
    "regression": ("--epochs", 60, "--patience", 3, "--lr", 0.01, "--global-batch-size", 64),
}
REACHED = {"image_folder": (0.8, 1), "text_pairs": (0.25, 1), "regression": (0, 0.6)}


@pytest.fixture(params=JOBS.glob("*.py"), ids=lambda file: file.stem)
def job(request, runner: Runner, tmp_path):
    owners, name = request.param.read_text(), request.param.stem
    data = repr(str(DATA[name](tmp_path)))
    owners = re.sub(r'^DATA = "[^"]*"', lambda _: f"DATA = {data}", owners, flags=re.MULTILINE)
    rest = STARTER[STARTER.index("# ruff: noqa") :]
    file = runner.root / "mine.py"
    runner.root.mkdir()
    assert owners.rstrip().endswith("pass")
    assert len(owners.splitlines()) <= 60
    file.write_text(owners.rstrip().removesuffix("    pass") + KILL + "\n\n" + rest)
    return name, file


STARTER = (TEMPLATES / "starter.py").read_text()


def rows(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "run" / "log.csv").open()))


def test_it_learns_keeps_the_best_and_goes_on_exactly(runner, job, monkeypatch) -> None:
    name, file = job
    flags = (*FLAGS[name], "--batch-size-per-rank", 16, "--save-every", 3, "--log-every", 1)
    whole = runner.on_ranks(2, file, *flags)
    best = re.search(r"best (\w+) (\S+) in epoch (\d+)", whole.out)
    least, most = REACHED[name]
    assert least <= float(best[2]) <= most
    told = {row[1]: float(row[3]) for row in rows(whole.folder) if row[2] == best[1]}
    assert told[best[3]] == (min if name == "regression" else max)(told.values())
    if name == "regression":
        assert len(told) == min(60, int(best[3]) + 3), "early stop"
    folder = runner.root / "cut"
    monkeypatch.setenv("END_AT", "5")
    with pytest.raises(LaunchError, match="SIGKILL|killed"):
        runner.on_ranks(2, file, *flags, folder=folder)
    monkeypatch.setenv("END_AT", "-1")
    runner.on_ranks(2, file, *flags, folder=folder)
    ours, theirs = (torch.load(each / "run" / "newest.pt") for each in (folder, whole.folder))
    assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in theirs["model"])
