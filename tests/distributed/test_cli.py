"""The commands, as a reader types them."""

import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.usefixtures("no_process_left")


def command(*words, cwd=None, seconds=110):
    return subprocess.run(
        [sys.executable, "-m", "ddp_helpers", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        check=False,
    )


def test_check_prints_json_and_text():
    done = command("check", "--json")
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    assert "Linux" in command("check").stdout


def test_train_reaches_95_percent_and_saves_a_figure(tmp_path):
    done = command("train", "-n", 2, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    last = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
    assert float(last.split()[1].rstrip("%")) >= 95
    assert "2 ranks" in last
    assert (tmp_path / "demo" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "model" in torch.load(tmp_path / "demo" / "checkpoint.pt", weights_only=True)


def test_run_gives_the_script_its_own_arguments(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "def main():\n    print(sys.argv[1:], os.environ['RANK'], os.environ['WORLD_SIZE'])\n"
        "def broken():\n    raise ValueError('lr')\n"
    )
    done = command("run", f"{script}:main", "-n", 3, "--", "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines == [f"[rank {r}] ['--lr', '0.1'] {r} 3" for r in range(3)]

    done = command("run", f"{script}:broken", "-n", 2)
    assert done.returncode == 1
    assert done.stderr.startswith("ranks 0 and 1 failed: ValueError: lr\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "nothing.py:main"], "no file nothing.py"),
        (["run", "nothing"], "script.py:function"),
        (["train", "-n", "0"], "nprocs=0"),
    ],
)
def test_mistakes_get_one_line(words, text, tmp_path):
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_new_copies_a_template_once(tmp_path):
    done = command("new", "mine.py", "--template", "ddp_spawn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    compile((tmp_path / "mine.py").read_text(), "mine.py", "exec")
    (tmp_path / "mine.py").write_text("changed")
    done = command("new", "mine.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (tmp_path / "mine.py").read_text() == "changed"
