"""The templates, started as a learner starts them."""

import os
import re
import signal
import time

import pytest
import torch
from template_runner import STEPS, TEMPLATES, Finished, Runner, load_template, torchrun

from ddp_helpers.environment.facts import free_port

SIZE = ("--epochs", 2, "--limit", 999)  # 999 on 2 ranks: a padded evaluation would count 1,000
WAYS = {
    "single_process": [TEMPLATES / "single_process.py", "--batch-size", 32],
    "data_parallel": [TEMPLATES / "data_parallel.py", "--batch-size", 32],
    "ddp_minimal 2": [TEMPLATES / "ddp_minimal.py", "--world-size", 2, "--batch-size-per-rank", 16],
    "ddp_safe 2": [TEMPLATES / "ddp_safe.py", "--world-size", 2, "--batch-size-per-rank", 16],
    "ddp_spawn 1": [TEMPLATES / "ddp_spawn.py", "--world-size", 1, "--batch-size-per-rank", 32],
    "ddp_spawn 2": [TEMPLATES / "ddp_spawn.py", "--world-size", 2, "--batch-size-per-rank", 16],
    "ddp_torchrun 1": [*torchrun(1), TEMPLATES / "ddp_torchrun.py", "--batch-size-per-rank", 32],
    "ddp_torchrun 2": [*torchrun(2), TEMPLATES / "ddp_torchrun.py", "--batch-size-per-rank", 16],
}
LAST = re.compile(r"accuracy (0\.\d{4}) \((\d+) of (\d+)\)  seconds \d+\.\d  ranks (\d)")


# one process, mp.spawn and torchrun are each started for real once
WARM = ("data_parallel", "ddp_minimal 2", "ddp_safe 2", "ddp_spawn 1")
UNDER_AGENT = ("ddp_torchrun 1",)


@pytest.fixture(scope="session")
def trained(session_runner: Runner):
    """Each way trains once; whoever asks again gets what it left."""
    done: dict[str, Finished] = {}

    def start(way: str) -> Finished:
        if way in WARM:
            return session_runner.run_warm(*WAYS[way], *SIZE)
        if way in UNDER_AGENT:
            script, *flags = WAYS[way][len(torchrun(1)) :]
            return session_runner.under_agent(1, script, *flags, *SIZE)
        return session_runner.run(*WAYS[way], *SIZE)

    def train(way: str) -> Finished:
        if way not in done:
            done[way] = start(way)
        return done[way]

    return train


def weights(run: Finished) -> dict[str, torch.Tensor]:
    return torch.load(run.folder / "checkpoint.pt")["model"]


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_prints_and_saves(trained, way: str) -> None:
    run = trained(way)
    assert run.code == 0, run.err
    *epochs, last = [line for line in run.out.splitlines() if not line.startswith("note:")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1", "epoch 2"], run.out
    accuracy, right, seen, ranks = LAST.fullmatch(last).groups()
    assert int(seen) == 999
    assert float(accuracy) == pytest.approx(int(right) / 999, abs=1e-4)
    assert ranks == (way[-1] if way[-1].isdigit() else "1")
    assert "Traceback" not in run.err
    assert not list(run.folder.glob("*.tmp")), "a half-written checkpoint stayed"


@pytest.mark.parametrize("way", WAYS)
def test_the_checkpoint_is_of_the_plain_model_and_gives_the_printed_count(trained, way) -> None:
    template = load_template("single_process")
    model = template.build_model()
    model.load_state_dict(weights(trained(way)))
    _, held_out = template.load_data(template.find_data(None), 999)
    with torch.no_grad():
        answers = model.eval()(held_out.tensors[0]).argmax(dim=1)
    right = (answers == held_out.tensors[1]).sum().item()
    printed = LAST.fullmatch(trained(way).out.splitlines()[-1])
    assert abs(right - int(printed[2])) <= 1  # a near tie may round the other way


def test_all_reach_the_same_kind_of_accuracy(trained) -> None:
    reached = {way: float(LAST.search(trained(way).out)[1]) for way in WAYS}
    assert min(reached.values()) > 0.6, reached
    assert max(reached.values()) - min(reached.values()) < 0.15, reached


@pytest.mark.parametrize("way", ["data_parallel", "ddp_spawn 1", "ddp_torchrun 1"])
def test_one_rank_is_the_single_process_to_the_last_bit(trained, way: str) -> None:
    if torch.cuda.device_count():
        pytest.skip("convolutions on a GPU differ from run to run")
    theirs, ours = weights(trained(way)), weights(trained("single_process"))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_each_way_trains_the_same_weights_on_two_ranks(trained) -> None:
    if torch.cuda.device_count():
        pytest.skip("convolutions on a GPU differ from run to run")
    spawned = weights(trained("ddp_spawn 2"))
    for way in ("ddp_minimal 2", "ddp_safe 2", "ddp_torchrun 2"):
        others = weights(trained(way))
        assert all(torch.equal(spawned[name], others[name]) for name in spawned), way
    alone = weights(trained("single_process"))
    assert not all(torch.equal(spawned[name], alone[name]) for name in spawned)


PROBE = """        model.train()
        first = sum(p.sum().item() for p in model.parameters())
        draw = torch.initial_seed()
        line = f"rank {rank} seed {draw} weights {first!r} order {list(sampler)}"
        open(f"probe-{rank}-{epoch}.txt", "w").write(line)
"""


def test_ranks_start_equal_draw_differently_and_share_each_epoch_anew(runner: Runner) -> None:
    folder = runner.root / "probe"
    folder.mkdir(parents=True)
    source = (TEMPLATES / "ddp_spawn.py").read_text()
    (folder / "probe.py").write_text(source.replace("        model.train()\n", PROBE))
    flags = ("--world-size", 2, "--limit", 20, "--epochs", 2)
    assert runner.run_warm(folder / "probe.py", *flags, folder=folder).code == 0
    pattern = re.compile(r"rank (\d) seed (\d+) weights (\S+) order \[(.*)\]")
    seen = {
        (rank, epoch): pattern.fullmatch((folder / f"probe-{rank}-{epoch}.txt").read_text())
        for rank in (0, 1)
        for epoch in (1, 2)
    }
    assert seen[0, 1][3] == seen[1, 1][3], "other first weights on each rank"
    assert seen[0, 2][3] == seen[1, 2][3], "the weights drifted apart"
    assert seen[0, 1][2] != seen[1, 1][2], "the same random draws on each rank"
    assert seen[0, 1][4] != seen[0, 2][4], "the same order in each epoch"
    shares = [{int(i) for i in seen[rank, 1][4].split(", ")} for rank in (0, 1)]
    assert shares[0] | shares[1] == set(range(20))
    assert not shares[0] & shares[1]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_while_saving_leaves_the_old_checkpoint(step, tmp_path, monkeypatch) -> None:
    template = load_template(step)
    model, path = template.build_model(), tmp_path / "checkpoint.pt"
    template.save_checkpoint(path, model, 1)

    def crash(_content, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(template.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        template.save_checkpoint(path, model, 2)
    monkeypatch.undo()
    assert torch.load(path)["epoch"] == 1


@pytest.mark.parametrize("step", ["single_process", "data_parallel", "ddp_minimal", "ddp_slurm"])
def test_a_copy_alone_in_an_empty_folder_runs(runner: Runner, step: str) -> None:
    folder = runner.root / "alone"
    folder.mkdir(parents=True)
    (folder / f"{step}.py").write_text((TEMPLATES / f"{step}.py").read_text())
    size = ("--epochs", 1, "--limit", 640)
    if step == "ddp_slurm":
        run = runner.under_agent(2, folder / f"{step}.py", *size, folder=folder)
    else:
        start = runner.run if step == "single_process" else runner.run_warm
        run = start(f"{step}.py", *size, folder=folder)
    assert run.code == 0, run.err
    assert run.out.count("note: no data/mnist_5k here") == 1
    accuracy = float(LAST.search(run.out)[1])
    assert accuracy > 0.3, "the generated patterns cannot be learned"  # guessing gives 0.1
    assert (folder / "checkpoint.pt").is_file()


def test_spawn_joins_two_machines_at_a_tcp_url(runner: Runner) -> None:
    size = ("--world-size", 2, "--nprocs", 1, "--epochs", 1, "--limit", 64)
    url = ("--dist-url", f"tcp://localhost:{free_port()}")
    script = TEMPLATES / "ddp_spawn.py"
    runs = [runner.start_warm(script, *size, *url, "--rank", rank) for rank in (0, 1)]
    first, second = [runner.finish(run) for run in runs]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.splitlines()[-1].endswith("ranks 2")
    assert "epoch" not in second.out
    assert not (second.folder / "checkpoint.pt").exists()


def test_torchrun_template_starts_by_hand_too(runner: Runner) -> None:
    size = ("--world-size", 2, "--epochs", 1, "--limit", 64)
    url = ("--dist-url", f"tcp://localhost:{free_port()}")
    script = TEMPLATES / "ddp_torchrun.py"
    runs = [runner.start_warm(script, *size, *url, "--rank", rank) for rank in (0, 1)]
    first, second = [runner.finish(run) for run in runs]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.splitlines()[-1].endswith("ranks 2")
    assert not (second.folder / "checkpoint.pt").exists()


def test_srun_tells_each_rank_who_it_is(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"STEP_ID": 0, "STEP_NODELIST": "localhost", "STEP_TASKS_PER_NODE": 2, "NTASKS": 2}
    told |= {"JOB_ID": free_port()}
    started = []
    for rank in (0, 1):
        of_rank = told | {"PROCID": rank, "LOCALID": rank}
        for name, value in of_rank.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        script = TEMPLATES / "ddp_slurm.py"
        started.append(runner.start_warm(script, "--epochs", 1, "--limit", 64))
    first, second = [runner.finish(run) for run in started]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.splitlines()[-1].endswith("ranks 2")
    assert second.out == ""


def test_a_tcp_url_works_under_torchrun(runner: Runner) -> None:
    script, url = TEMPLATES / "ddp_torchrun.py", f"tcp://localhost:{free_port()}"
    run = runner.under_agent(2, script, "--dist-url", url, "--epochs", 1, "--limit", 64)
    assert run.code == 0, run.err
    assert run.out.splitlines()[-1].endswith("ranks 2")


@pytest.mark.parametrize("step", ["ddp_spawn", "ddp_torchrun"])
def test_a_rank_that_fails_ends_all_and_is_named(runner: Runner, step: str) -> None:
    folder = runner.root / "boom"
    folder.mkdir(parents=True)
    source = (TEMPLATES / f"{step}.py").read_text()
    boom = '            loss.backward()\n            assert rank == 0 or sums[1] < 99, "boom"\n'
    (folder / "boom.py").write_text(source.replace("            loss.backward()\n", boom))
    starter, size = (torchrun(2), []) if step == "ddp_torchrun" else ([], ["--world-size", 2])
    run = runner.run(*starter, "boom.py", *size, "--limit", 400, "--epochs", 99, folder=folder)
    assert run.code != 0
    assert "AssertionError: boom" in run.err


INTERRUPTED = {
    "single_process": [TEMPLATES / "single_process.py"],
    "ddp_spawn": [TEMPLATES / "ddp_spawn.py", "--world-size", 2],
    "ddp_torchrun": [*torchrun(2), TEMPLATES / "ddp_torchrun.py"],
}


@pytest.mark.parametrize(
    ("step", "sent", "to_all", "warm"),
    [
        ("single_process", signal.SIGINT, True, True),
        ("ddp_spawn", signal.SIGINT, True, False),  # Ctrl-C: the terminal signals the whole group
        ("ddp_spawn", signal.SIGINT, False, True),
        ("ddp_spawn", signal.SIGKILL, False, False),
        ("ddp_torchrun", signal.SIGINT, True, False),
        ("ddp_torchrun", signal.SIGKILL, False, False),
    ],
)
def test_a_signal_in_mid_run_leaves_no_orphan(runner: Runner, step, sent, to_all, warm) -> None:
    start = runner.start_warm if warm else runner.start
    started = start(*INTERRUPTED[step], "--epochs", 1000, "--limit", 300)
    started.wait_for("epoch 1")
    assert len(started.left()) >= (1 if step == "single_process" else 3)
    if to_all:
        os.killpg(started.process.pid, sent)
    else:
        started.process.send_signal(sent)
    assert started.process.wait(8) != 0
    started.wait_until_none_left(15)


def test_a_parent_killed_while_its_ranks_start_leaves_no_orphan(runner: Runner) -> None:
    started = runner.start(TEMPLATES / "ddp_spawn.py", "--epochs", 1000, "--limit", 300)
    limit = time.monotonic() + 30
    while len(started.left()) < 4 and time.monotonic() < limit:  # it, a tracker, two ranks
        time.sleep(0.05)
    started.process.kill()
    assert started.process.wait(8) == -signal.SIGKILL
    started.wait_until_none_left(90)  # the ranks are importing torch, and then see it
    assert "epoch" not in (started.folder / "out.txt").read_text()
