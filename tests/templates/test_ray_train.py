"""ray_train.py under a real Ray: the weights of mp.spawn, even after a kill."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from template_runner import TEMPLATES, Finished, Runner

from ddp_helpers.data import data_root

pytestmark = pytest.mark.timeout(300)
REQUIREMENTS = Path(__file__).with_name("ray_requirements.txt")
SIZE = ("--epochs", 2, "--world-size", 2)
# Ray gives each of its own processes 15 to 30 s to start. On a busy machine that is too little,
# and the first cannot be changed: let them go before others, where the system allows it.
FIRST = ["sh", "-c", '(echo -12 > /proc/self/autogroup) 2>/dev/null; exec "$@"', "sh"]
PATIENCE = {
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
}
KILL_ONCE = (
    "        model.train()\n",
    "        model.train()\n"
    "        if rank == 1 and epoch == 1 and not os.path.exists(os.environ['KILLED']):\n"
    "            Path(os.environ['KILLED']).touch()\n"
    "            os.kill(os.getpid(), 9)\n",
)
FAIL = (
    "        model.train()\n",
    "        model.train()\n        assert rank == 0, 'no image 4711'\n",
)


@pytest.fixture(scope="session")
def ray_folder(pytestconfig: pytest.Config) -> Path:
    """Ray and what it needs, installed once and kept in pytest's cache."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = pytestconfig.cache.mkdir("ray") / key
    if not folder.exists():
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        # --no-deps: all that is not in constraints.txt is pinned, so torch stays as it is
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", unfinished, "-r", REQUIREMENTS], check=True, timeout=280)
        try:
            unfinished.rename(folder)
        except OSError:  # another pytest was first
            shutil.rmtree(unfinished)
    return folder


@pytest.fixture
def home(runner: Runner, ray_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    """An empty home folder; the templates that start from now on find Ray."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ray_folder))
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    for name, value in PATIENCE.items():
        monkeypatch.setenv(name, value)
    return home


def ray_files() -> set[str]:
    """What Ray or the templates keep in /tmp while they run."""
    names = {path.name for path in Path("/tmp").iterdir()}
    return {name for name in names if name == "ray" or name.startswith("ray-")}


def left_nothing(run: Finished, home: Path, before: set[str], *kept: str) -> None:
    ours = {"mine.py", "out.txt", "err.txt", "__pycache__"}
    assert {path.name for path in run.folder.iterdir()} - ours == set(kept)
    assert list(home.rglob("*")) == [], "something was written into the home folder"
    assert ray_files() - before == set()


def copy(runner: Runner, step: str, *changes: tuple[str, str]) -> Path:
    """The folder of a copy with some lines replaced, which finds the course's data."""
    text = (TEMPLATES / f"{step}.py").read_text()
    data = data_root() / "mnist_5k" / "mnist_5k.pt"
    course = 'Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"'
    for old, new in ((course, f"Path({str(data)!r})"), *changes):
        assert old in text
        text = text.replace(old, new)
    folder = runner.root / step
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(text)
    return folder


def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_spawn(runner, home) -> None:
    before = ray_files()
    folder = copy(runner, "ray_train", KILL_ONCE)
    run = runner.finish(
        runner.start(*FIRST, sys.executable, "mine.py", *SIZE, "--max-failures", 1, folder=folder),
        200,
    )
    assert run.code == 0, run.err
    assert Path(os.environ["KILLED"]).exists()
    *_, last = run.out.splitlines()
    assert re.fullmatch(r"done: epoch 2: \d+ of 1000 right, ranks 2", last)
    left_nothing(run, home, before, "checkpoint.pt")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 2

    spawned = runner.run_warm("mine.py", *SIZE, folder=copy(runner, "ddp_spawn"))
    assert spawned.code == 0, spawned.err
    theirs = torch.load(spawned.folder / "weights.pt", weights_only=True)
    assert last.removeprefix("done: ") == spawned.out.splitlines()[-1]
    for name, value in saved["model"].items():
        assert torch.equal(value, theirs[name]), name


def test_a_worker_that_fails_ends_all_and_is_named(runner, home) -> None:
    before = ray_files()
    folder = copy(runner, "ray_train", FAIL)
    run = runner.finish(runner.start(*FIRST, sys.executable, "mine.py", *SIZE, folder=folder), 200)
    assert run.code != 0
    assert "AssertionError: no image 4711" in run.err
    left_nothing(run, home, before)


WITHOUT_RAY = (
    "import runpy, sys; sys.argv.pop(0); sys.modules['ray'] = None; "
    "runpy.run_path(sys.argv[0], {}, '__main__')"
)


def test_one_clear_line_without_ray(runner: Runner) -> None:
    run = runner.run(sys.executable, "-c", WITHOUT_RAY, TEMPLATES / "ray_train.py")
    assert run.code == 1
    assert run.out == ""
    assert run.err.startswith("error: "), run.err
    assert run.err.count("\n") == 1, run.err
    assert 'pip install "ray[train]"' in run.err


def test_it_trains_by_the_loop_of_the_ladder() -> None:
    ours, theirs = ((TEMPLATES / f"{step}.py").read_text() for step in ("ray_train", "ddp_spawn"))
    loop = theirs[theirs.index("        sampler.set_epoch") : theirs.index("        if rank > 0")]
    data = theirs[theirs.index("    x, y, held") : theirs.index("    torch.manual_seed(0)")]
    assert loop in ours
    assert data in ours
    assert len(ours.splitlines()) <= 200
