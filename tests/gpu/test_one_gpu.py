"""What only a GPU can show: nccl with one rank, two gloo ranks that share the GPU, real errors.

    python -m pytest -m gpu

All of it needs one GPU and no more; without one it is skipped.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader
from ddp_helpers.environment import check_environment
from ddp_helpers.model import MLP
from ddp_helpers.timeline import record_timeline
from ddp_helpers.training import fit, train_mnist_5k

sys.path.insert(0, str(Path(__file__).parents[1] / "templates"))
from template_runner import TEMPLATES, Runner, torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("no_process_left"),
]
SHARED = {"threads_per_rank": 1, "timeout": 90}


@pytest.fixture
def runner(tmp_path):
    runner = Runner(tmp_path)
    yield runner
    runner.end()


def samples(n):
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (n,), generator=generator))


def train(device_name, precision="fp32", compile_it=False, folder=None, epochs=4):
    """Weights after each step of a small fit, of this rank; on the CPU or on GPU 0."""
    torch.backends.cuda.matmul.allow_tf32 = False
    backend = "nccl" if device_name == "nccl" else "gloo"
    with process_group(backend) as pg:
        device = torch.device("cpu" if device_name == "cpu" else "cuda:0")
        torch.manual_seed(1)
        model = MLP(4, 8, 3).to(device)
        model = model.double() if precision == "fp32" else model
        data = samples(37)
        if precision != "fp32":
            data = TensorDataset(data.tensors[0].float(), data.tensors[1])
        wrapped = DistributedDataParallel(model)
        if compile_it:
            wrapped = torch.compile(wrapped)
        ranks = {"rank": pg.rank, "world_size": pg.world_size}
        seen = []
        records = fit(
            wrapped,
            make_resumable_loader(data, 8, accumulation_steps=2, **ranks),
            make_eval_loader(data, 7, **ranks),
            torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
            epochs=epochs,
            device=device,
            progress=lambda *_: seen.append(
                torch.cat([p.detach().flatten().cpu() for p in model.parameters()])
            ),
            accumulation_steps=2,
            precision=precision,
            max_grad_norm=0.5,
            checkpoints=None if folder is None else CheckpointFolder(folder),
        )
        return torch.stack(seen), records[-1].train_loss


# ---- the process group


def who_am_i():
    with process_group() as pg:
        mine = torch.full((3,), float(pg.rank + 1), device=pg.device)
        dist.all_reduce(mine)
        return pg.backend, str(pg.device), mine.tolist(), torch.cuda.current_device()


def test_one_rank_takes_nccl_and_its_gpu():
    result = launch(who_am_i, 1, **SHARED)
    assert result.values == [("nccl", "cuda:0", [1.0, 1.0, 1.0], 0)]


def test_more_ranks_than_gpus_take_gloo():
    ranks = torch.cuda.device_count() + 1
    backends = [value[0] for value in launch(who_am_i, ranks, **SHARED).values]
    assert backends == ["gloo"] * ranks


def nccl_by_force():
    with process_group("nccl"):
        pass


def test_nccl_with_too_few_gpus_is_refused_at_once():
    ranks = torch.cuda.device_count() + 1
    with pytest.raises(LaunchError, match=f"nccl.*with {ranks} ranks, but this machine has"):
        launch(nccl_by_force, ranks, **SHARED)


def all_collectives_on(backend):
    with process_group(backend) as pg:
        x = torch.arange(4.0, device="cuda:0") + 10 * pg.rank
        dist.broadcast(first := x.clone(), src=0)
        dist.all_reduce(total := x.clone())
        everyone = [torch.zeros_like(x) for _ in range(pg.world_size)]
        dist.all_gather(everyone, x)
        dist.barrier()
        return first, total, torch.stack(everyone)


def test_gloo_ranks_share_a_gpu_and_tensors_come_back_on_the_cpu():
    values = launch(all_collectives_on, 2, args=("gloo",), **SHARED).values
    for first, total, everyone in values:
        assert not first.is_cuda
        assert first.tolist() == [0, 1, 2, 3]
        assert total.tolist() == [10, 12, 14, 16]
        assert everyone.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_the_notebook_process_never_starts_cuda():
    code = (
        "import torch; from ddp_helpers import check_environment, launch;"
        "launch(len, 1, args=((),)); check_environment(); print(torch.cuda.is_initialized())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "False", run.stdout + run.stderr


def test_the_check_sees_the_gpu():
    assert torch.cuda.get_device_name(0) in str(check_environment())


# ---- training


@pytest.mark.parametrize(("where", "ranks"), [("nccl", 1), ("cuda", 1), ("cuda", 2), ("cuda", 3)])
def test_ranks_on_the_gpu_follow_one_rank_on_the_cpu(where, ranks):
    truth, _ = launch(train, 1, args=("cpu",), **SHARED).values[0]
    for found, _ in launch(train, ranks, args=(where,), **SHARED).values:
        assert (found - truth).abs().max() < 1e-9
    assert (truth[-1] - truth[0]).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("where", "ranks"), [("nccl", 1), ("cuda", 2)])
def test_mixed_precision_trains(where, ranks, precision):
    _, plain = launch(train, 1, args=("cpu",), **SHARED).values[0]
    for _, loss in launch(train, ranks, args=(where, precision), **SHARED).values:
        assert loss == pytest.approx(plain, abs=0.05)


def test_compiled_training_follows_the_plain_one():
    plain, _ = launch(train, 1, args=("nccl",), **SHARED).values[0]
    compiled, _ = launch(train, 1, args=("nccl", "fp32", True), timeout=110).values[0]
    assert (plain - compiled).abs().max() < 1e-9


def test_a_run_that_goes_on_has_the_same_bits(tmp_path):
    whole, _ = launch(train, 2, args=("cuda", "fp16"), **SHARED).values[0]
    folder = tmp_path / "checkpoints"
    launch(train, 2, args=("cuda", "fp16", False, folder, 2), **SHARED)
    rest, _ = launch(train, 2, args=("cuda", "fp16", False, folder, 4), **SHARED).values[0]
    assert torch.equal(rest[-1], whole[-1])


def test_the_sanitizer_is_silent_on_right_training():
    for where, ranks in (("nccl", 1), ("cuda", 2)):
        assert launch(train, ranks, args=(where,), sanitize=True, **SHARED).findings == []


def digits():
    with process_group():
        return train_mnist_5k(epochs=2)[-1].test_accuracy


def test_the_digits_are_learned_under_nccl():
    assert launch(digits, 1, **SHARED).values[0] > 0.9


def test_data_parallel_gives_what_the_module_gives():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 2).cuda(), torch.randn(7, 5, device="cuda")
    assert torch.equal(nn.DataParallel(model)(x), model(x))


def timed_steps():
    with process_group() as pg:
        device = torch.device("cuda:0")
        model = DistributedDataParallel(
            nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).to(device)
        )
        with record_timeline(steps=3) as timeline:
            while not timeline.finished:
                model(torch.randn(64, 512, device=device)).sum().backward()
                model.zero_grad()
                timeline.step()
        assert pg.world_size
        return timeline.result()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_timeline_sees_the_gpu_at_work(ranks):
    for line in launch(timed_steps, ranks, **SHARED).values:
        assert line.device == "cuda:0"
        assert len(line.steps) == 3
        assert all(step.seconds > 0 for step in line.steps)


# ---- real errors


def both_on_gpu_0():
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    dist.all_reduce(torch.ones(1, device="cuda:0"))


def out_of_memory():
    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


def wrong_label():
    nn.functional.cross_entropy(torch.randn(4, 3, device="cuda"), torch.tensor([0, 1, 2, 9]).cuda())
    torch.cuda.synchronize()


def no_such_gpu():
    torch.ones(1, device=f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize(
    ("fault", "ranks", "cause"),
    [
        (both_on_gpu_0, 2, "use the same GPU"),
        (out_of_memory, 1, "a GPU ran out of memory"),
        (wrong_label, 1, "a check inside a GPU kernel failed"),
        (no_such_gpu, 1, "a rank asked for a GPU that is not there"),
    ],
)
def test_a_real_error_is_explained(fault, ranks, cause):
    with pytest.raises(LaunchError) as caught:
        launch(fault, ranks, **SHARED)
    assert cause in str(caught.value), str(caught.value)


def hangs_in_nccl():
    with process_group() as pg:
        torch.cuda._sleep(1 << 62)
        dist.all_reduce(torch.ones(1, device=pg.device))
        torch.cuda.synchronize()


def test_a_gpu_that_never_answers_ends_at_the_limit():
    with pytest.raises(LaunchError, match="10 s"):
        launch(hangs_in_nccl, 1, timeout=10)
    assert launch(who_am_i, 1, **SHARED).values[0][2] == [1, 1, 1]


# ---- templates


SMALL = ("--limit", 640)
TEMPLATE_RUNS = {
    "single_process": [TEMPLATES / "single_process.py"],
    "data_parallel": [TEMPLATES / "data_parallel.py"],
    "ddp_one_rank": [TEMPLATES / "ddp_one_rank.py"],
    "ddp_spawn": [TEMPLATES / "ddp_spawn.py"],
    "ddp_spawn shared": [TEMPLATES / "ddp_spawn.py", "--world-size", 2],
    "ddp_torchrun": [*torchrun(1), TEMPLATES / "ddp_torchrun.py"],
    "ddp_torchrun shared": [*torchrun(2), TEMPLATES / "ddp_torchrun.py"],
    "ddp_resume": [*torchrun(1), TEMPLATES / "ddp_resume.py"],
}


@pytest.mark.parametrize("way", TEMPLATE_RUNS)
def test_a_template_trains_on_the_gpu(runner, way):
    run = runner.run(*TEMPLATE_RUNS[way], "--epochs", 2)
    assert run.code == 0, run.err
    assert "Traceback" not in run.err
    if way not in ("single_process", "data_parallel"):
        assert f"ranks {2 if 'shared' in way else 1}" in run.out, run.out


STARTERS = {
    "starter": ("--bf16", "--compile"),
    "starter_fsdp": ("--bf16", "--recompute", "--global-batch-size", 48),
    "starter_lm": ("--bf16", "--compile", "--peak-tflops", 1000),
}


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_trains_on_the_gpu_and_goes_on(runner, tmp_path, name):
    x, y = torch.randint(256, (300, 28, 28), dtype=torch.uint8), torch.randint(10, (300,))
    torch.save([x[:200], y[:200], x[200:], y[200:]], tmp_path / "x.pt")
    text = TEMPLATES.parents[1] / "data" / "austen" / "pride_and_prejudice.txt"
    data = str(text if name == "starter_lm" else tmp_path / "x.pt")
    code = (TEMPLATES / f"{name}.py").read_text()
    script = tmp_path / f"{name}.py"
    script.write_text(re.sub("^DATA = .*$", f"DATA = {data!r}", code, flags=re.MULTILINE))
    for epochs in (1, 2):
        words = (*torchrun(1), script, "--epochs", epochs, "--log-every", 1, *STARTERS[name])
        run = runner.run(*words, "--run-folder", tmp_path / "run")
        assert run.code == 0, run.err
        assert "note:" not in run.out, run.out
    assert "goes on in epoch 1" in run.out
    assert ("  mfu 0." in run.out) == (name == "starter_lm")


def test_the_ladder_resumes_on_a_gpu(runner):
    line = (*torchrun(1), TEMPLATES / "ddp_resume.py", "--epochs")
    first = runner.run(*line, 1)
    more = runner.run(*line, 2, folder=first.folder)
    assert more.code == 0, more.err
    assert [text[:7] for text in more.out.splitlines()] == ["goes on", "epoch 2"]
