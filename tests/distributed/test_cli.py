"""The commands, as a reader types them."""

import ast
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import torch

from ddp_helpers.data import data_root
from ddp_helpers.recipes import recipes
from ddp_helpers.templates import TAKE_IF, template_files

pytestmark = pytest.mark.usefixtures("no_process_left")


def command(*words, cwd=None, seconds=110, **variables):
    return subprocess.run(
        [sys.executable, "-m", "ddp_helpers", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        check=False,
        env=os.environ | {name: str(value) for name, value in variables.items()},
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


def test_run_accepts_findings_of_a_kind(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed as dist\nfrom ddp_helpers import process_group\n"
        "def main():\n"
        "    with process_group('gloo') as pg:\n"
        "        operation = dist.ReduceOp.MAX if pg.rank else dist.ReduceOp.SUM\n"
        "        dist.all_reduce(torch.ones(1), op=operation)\n"
    )
    words = ["run", f"{script}:main", "-n", 2, "--sanitize"]
    stopped = command(*words)
    assert stopped.returncode == 1
    assert "[different-reduce-op]" in stopped.stderr
    done = command(*words, "--ignore", "different-reduce-op,steps-differ")
    assert done.returncode == 0, done.stderr
    assert "accepted: different-reduce-op (1 time)" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "nothing.py:main"], "no file nothing.py"),
        (["run", "nothing"], "script.py:function"),
        (
            ["run", "nothing.py:main", "--sanitize", "--ignore", "step-differ"],
            "did you mean 'steps-differ'",
        ),
        (["run", "nothing.py:main", "--ignore", "steps-differ"], "nothing is watched without"),
        (["run", "nothing.py:main", "--sanitize", "-1"], "--sanitize"),
        (["train", "-n", "0"], "nprocs=0"),
    ],
)
def test_mistakes_get_one_line(words, text, tmp_path):
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_new_writes_where_the_data_lies_into_the_copy(tmp_path):
    """Also where the path needs quotes, and where its letters are not English."""
    root = tmp_path / 'it\'s my "data" 数据'
    folder = root / "mnist_5k"
    folder.mkdir(parents=True)
    shutil.copy(data_root() / "mnist_5k/mnist_5k.pt", folder)
    words = ("new", "mine.py", "--template", "single_process")
    done = command(*words, cwd=tmp_path, DDP_HELPERS_DATA=root)
    assert done.returncode == 0, done.stderr
    assert "--data" not in done.stdout
    ran = subprocess.run(
        [sys.executable, "mine.py", "--epochs", "0"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    (line,) = (text for text in (tmp_path / "mine.py").read_text().splitlines() if "DATA =" in text)
    assert str(root) in ast.literal_eval(line.removeprefix("DATA = Path(").removesuffix(")"))


def test_new_says_what_it_does_not_find(tmp_path):
    done = command("new", "mine.py", cwd=tmp_path, DDP_HELPERS_DATA=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no " + str(tmp_path / "mnist_5k/mnist_5k.pt") in done.stdout
    done = command("new", "no/such/mine.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "no folder no/such here" in done.stderr


def test_new_copies_a_template_once(tmp_path):
    done = command("new", "mine.py", "--template", "ddp_spawn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    compile((tmp_path / "mine.py").read_text(), "mine.py", "exec")
    (tmp_path / "mine.py").write_text("changed")
    done = command("new", "mine.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (tmp_path / "mine.py").read_text() == "changed"


def test_new_lists_each_template_and_recipe_with_when_to_take_it(tmp_path):
    done = command("new", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (*template_files(), *recipes()):
        assert re.search(rf"^  {name} +\S+ \S+", done.stdout, re.MULTILINE), name
    assert {*TAKE_IF} == {*template_files()}
    done = command("new", cwd=tmp_path)
    assert done.returncode == 2
    assert "which file? `new train.py` writes one" in done.stderr


def test_new_without_a_terminal_takes_the_starter_and_leaves_no_marks(tmp_path):
    done = command("new", "mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine.py is yours: starter.py" in done.stdout
    assert "class Batches" in (tmp_path / "mine.py").read_text()
    for name, file in template_files().items():
        copied = f"{name}{file.suffix}"
        assert command("new", copied, "--template", name, cwd=tmp_path).returncode == 0
        text = (tmp_path / copied).read_text()
        assert "NEW" not in text, copied
        if file.suffix == ".py":
            before = ast.unparse(ast.parse(file.read_text()).body[1:][-1])
            assert ast.unparse(ast.parse(text).body[1:][-1]) == before


def test_new_asks_whoever_sits_at_a_terminal(tmp_path):
    controller, terminal = pty.openpty()
    words = [sys.executable, "-m", "ddp_helpers", "new", "mine.py"]
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, cwd=tmp_path)
    os.close(terminal)
    for answer in (b"99\n", b"ddp_spawn\n"):
        os.write(controller, answer)
    assert process.wait(60) == 0
    told = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "99 found, expected a name or a number from 1 to" in told
    assert "mp.spawn" in (tmp_path / "mine.py").read_text()


def test_new_asks_nobody_for_the_template_of_a_recipe(tmp_path):
    controller, terminal = pty.openpty()
    words = [sys.executable, "-m", "ddp_helpers", "new", "mine.py", "--recipe", "ema"]
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, cwd=tmp_path)
    os.close(terminal)
    assert process.wait(60) == 0
    told = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "which one?" not in told
    assert "AveragedModel" in (tmp_path / "mine.py").read_text()


def test_new_puts_recipes_in_that_go_together(tmp_path):
    done = command("new", "mine.py", "--recipe", "ema", "balanced", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "mine.py").read_text()
    assert "AveragedModel" in text
    assert "multinomial" in text
    done = command("new", "no.py", "--template", "ddp_spawn", "--recipe", "ema", cwd=tmp_path)
    assert done.returncode == 2
    assert "--recipe is for starter.py, --template is ddp_spawn" in done.stderr


def test_diagnose_finds_the_error_in_torchruns_log_dir(tmp_path):
    """With --redirects the console tells only that a rank failed; the folder tells why."""
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1:\n"
        "    raise RuntimeError('reading s3://b/k failed: Connection reset by peer')\n"
        "dist.all_reduce(torch.ones(1))\n"
    )
    logs = tmp_path / "logs"
    launcher = "--standalone --nproc-per-node 2 --redirects 3 --log-dir".split()
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launcher, str(logs), str(script)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 1
    (tmp_path / "console.log").write_text(ran.stdout + ran.stderr)
    console = command("diagnose", tmp_path / "console.log").stdout
    assert "rank 1 failed first, with exit code 1" in console
    assert "[error-is-elsewhere]" in console
    told = command("diagnose", logs).stdout
    assert "first error: RuntimeError: reading s3://b/k failed" in told
    assert told.splitlines()[1].startswith("  rank 1, ")
    assert f"at {script}, line 4" in told
    assert "peer-gone" not in told


def test_a_ranks_own_error_is_told_and_not_the_loss_that_it_speaks_of(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed as dist\nfrom ddp_helpers import process_group\n"
        "def main():\n"
        "    with process_group('gloo') as pg:\n"
        "        if pg.rank == 1:\n"
        "            raise RuntimeError('reading s3://b/k failed: Connection reset by peer')\n"
        "        dist.all_reduce(torch.ones(1))\n"
    )
    told = command("run", f"{script}:main", "-n", 2).stderr.splitlines()
    assert (
        told[0] == "rank 1 failed: RuntimeError: reading s3://b/k failed: Connection reset by peer"
    )
    assert "rank 0 then lost the connection" in told
