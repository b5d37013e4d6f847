"""A wrong flag gives one clear line, soon, and leaves nothing behind."""

import socket

import pytest
from template_runner import STEPS, TEMPLATES, Finished, Runner, torchrun

SECONDS = 30  # measured: 0.1 to 4 s on two free cores; a busy machine needs more


def one_line(run: Finished, *words: str) -> None:
    """Only `error: ...` on stderr, which holds all `words`; nothing on stdout."""
    assert run.code not in (0, None)
    assert run.out == ""
    assert run.err.count("\n") == 1, run.err
    assert run.err.startswith("error: "), run.err
    for word in words:
        assert word in run.err, run.err
    assert run.seconds < SECONDS


COMMON = [
    (["--epochs", 0], ["--epochs", "0 found", "1 or more"]),
    (["--limit", -5], ["--limit", "-5 found", "1 or more"]),
    (["--lr", -1], ["--lr is -1.0", "above 0"]),
    (["--lr", "nan"], ["--lr is nan", "above 0"]),
    (["--seed", "x"], ["--seed", "'x'", "int", "--help"]),
    (["--data", "nowhere"], ["--data nowhere", "train-images-idx3-ubyte.gz", "give"]),
    (["--checkpoint", "nowhere/a.pt"], ["--checkpoint nowhere/a.pt", "give"]),
    (["--checkpoint", "."], ["--checkpoint .", "give"]),
    (["--epoch", 1], ["unrecognized arguments: --epoch 1", "--help"]),
]


@pytest.mark.parametrize(("flags", "words"), COMMON, ids=lambda value: str(value[0]))
@pytest.mark.parametrize("step", ["single_process", "data_parallel", "ddp_minimal", "ddp_spawn"])
def test_a_wrong_flag(runner: Runner, step: str, flags: list, words: list[str]) -> None:
    one_line(runner.run(TEMPLATES / f"{step}.py", *flags), *words)


@pytest.mark.parametrize("step", STEPS)
def test_a_negative_batch_size(runner: Runner, step: str) -> None:
    flag = "--batch-size-per-rank" if step.startswith("ddp") else "--batch-size"
    run = runner.run(TEMPLATES / f"{step}.py", flag, -4)
    one_line(run, flag, "-4 found", "1 or more")


@pytest.mark.parametrize("step", STEPS[2:])
def test_the_batch_size_of_one_process_is_not_taken_for_that_of_a_rank(runner, step) -> None:
    one_line(runner.run(TEMPLATES / f"{step}.py", "--batch-size", 64), "--batch-size 64")


GROUP = [
    (["--dist-backend", "mpi"], ["--dist-backend", "'mpi'", "'nccl', 'gloo'"]),
    (["--world-size", 0], ["--world-size", "0 found", "1 or more"]),
    (["--world-size", 2, "--rank", 2], ["--rank is 2", "--world-size 2"]),
    (["--world-size", 2, "--rank", -1], ["--rank is -1", "0 or more"]),
]
SPAWN_ONLY = [
    (["--world-size", 2, "--nprocs", 3], ["--nprocs 3", "--world-size 2", "larger"]),
    (["--rank", 9999], ["--rank 9999", "--world-size"]),
    (["--world-size", 2, "--nprocs", 1], ["--nprocs 1 of 2", "--dist-url tcp://HOST:PORT"]),
    (["--world-size", 999, "--dist-backend", "nccl"], ["nccl", "GPUs found", "gloo"]),
    (["--dist-url", "carrier-pigeon"], ["--dist-url carrier-pigeon", "tcp://HOST:PORT"]),
    (["--dist-url", "tcp://localhost"], ["--dist-url tcp://localhost", "tcp://HOST:PORT"]),
    (["--dist-url", "tcp://localhost:99999"], ["--dist-url tcp://localhost:99999", "65535"]),
    (["--dist-url", f"file://{__file__}"], ["--dist-url file://", "a new file"]),
    (["--dist-url", "tcp://no.such.invalid:23456"], ["no.such.invalid", "host"]),
]


@pytest.mark.parametrize(
    ("flags", "words"), GROUP + SPAWN_ONLY, ids=lambda v: " ".join(map(str, v))
)
def test_a_group_that_cannot_be(runner: Runner, flags: list, words: list[str]) -> None:
    one_line(runner.run(TEMPLATES / "ddp_spawn.py", *flags), *words)


def test_a_backend_that_cannot_work_is_refused_before_the_ranks_start(runner: Runner) -> None:
    flags = ("--world-size", 999, "--dist-backend", "nccl")
    one_line(runner.run(TEMPLATES / "ddp_safe.py", *flags), "nccl", "GPUs found", "gloo")


def test_a_busy_port(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://localhost:{server.getsockname()[1]}"
        run = runner.run(TEMPLATES / "ddp_spawn.py", "--dist-url", url)
    one_line(run, url, "Address already in use", "another port")


def test_the_torchrun_template_without_torchrun_gives_the_line_to_type(runner: Runner) -> None:
    run = runner.run(TEMPLATES / "ddp_torchrun.py")
    one_line(run, "RANK is not set", "torchrun --standalone --nproc_per_node=2", "ddp_torchrun.py")


def test_the_torchrun_template_needs_a_meeting_place(runner: Runner) -> None:
    run = runner.run(TEMPLATES / "ddp_torchrun.py", "--rank", 0, "--world-size", 2)
    one_line(run, "MASTER_ADDR", "--dist-url tcp://HOST:PORT")


def under_torchrun(run: Finished, *words: str) -> None:
    """The line comes before all that torchrun adds, and is repeated in torchrun's report."""
    assert run.code not in (0, None)
    lines = [line for line in run.err.splitlines() if line and "OMP_NUM" not in line]
    first, *rest = [line for line in lines if set(line) != {"*"}]
    assert first.startswith("error: "), run.err
    for word in words:
        assert word in first, run.err
    assert not any(line.startswith("error: ") for line in rest), "said twice"
    assert f"traceback : {first}" in run.err
    assert run.seconds < SECONDS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dist-backend", "mpi"], ["'mpi'", "'nccl', 'gloo'"]),
        (["--rank", 1], ["--rank is 1", "RANK=0", "leave --rank out"]),
        (["--world-size", 3], ["--world-size is 3", "WORLD_SIZE=2", "leave --world-size out"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_wrong_flag_under_torchrun(runner: Runner, flags: list, words: list[str]) -> None:
    under_torchrun(runner.run(*torchrun(2), TEMPLATES / "ddp_torchrun.py", *flags), *words)


def test_a_busy_port_under_torchrun(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://localhost:{server.getsockname()[1]}"
        run = runner.run(*torchrun(2), TEMPLATES / "ddp_torchrun.py", "--dist-url", url)
    under_torchrun(run, url, "Address already in use", "another port")
