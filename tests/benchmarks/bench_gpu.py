"""What precision and torch.compile are worth on this machine's GPU, under nccl and DDP.

    python tests/benchmarks/bench_gpu.py              7 rounds
    python tests/benchmarks/bench_gpu.py --rounds 3

The GPT of starter_lm.py, larger, and a deep CNN train on random data with a rank for each GPU.
The ways take turns in one process, so a GPU that slows down slows all of them; a table shows
medians over the rounds, and the ratio to plain float32 with TF32 off, taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import time

import torch
from bench_launch import REPOSITORY, print_table
from torch import nn

from ddp_helpers import launch, process_group

WAYS = ("fp32", "tf32", "bf16", "bf16, compile(DDP(model))", "bf16, DDP(compile(model))")
BATCH, STEPS, WARM_UP = {"GPT": 32, "CNN": 128}, 10, 10


def gpt() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """85 million weights; 512 letters a sample."""
    path = REPOSITORY / "ddp_helpers" / "templates" / "starter_lm.py"
    spec = importlib.util.spec_from_file_location("starter_lm", path)
    lm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lm)
    lm.TOKENS, lm.CONTEXT, lm.LAYERS, lm.HEADS, lm.WIDTH = 80, 512, 12, 12, 768
    letters = torch.randint(0, 80, (BATCH["GPT"], 513))
    return lm.make_model(), letters[:, :-1], letters[:, 1:]


def cnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """12 convolutions with batch norm on images [3, 64, 64], 256 channels wide."""
    layers: list[nn.Module] = [nn.Conv2d(3, 256, 3, padding=1)]
    for place in range(11):
        layers += [nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1)]
        layers += [nn.MaxPool2d(2)] if place in (3, 7) else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
    images = torch.randn(BATCH["CNN"], 3, 64, 64)
    return nn.Sequential(*layers), images, torch.randint(0, 10, (BATCH["CNN"],))


MODELS = {"GPT": gpt, "CNN": cnn}


def steps_of(name: str, way: str, device: torch.device):
    """A function that trains STEPS steps and returns samples a second of this rank."""
    torch.manual_seed(0)
    model, x, y = MODELS[name]()
    x, y = x.to(device), y.to(device)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    inner = torch.compile(model) if "DDP(compile" in way else model
    forward = nn.parallel.DistributedDataParallel(inner, device_ids=[device.index])
    forward = torch.compile(forward) if "compile(DDP" in way else forward

    def train(steps: int = STEPS) -> float:
        torch.backends.cuda.matmul.allow_tf32 = way == "tf32"
        torch.backends.cudnn.allow_tf32 = way == "tf32"
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            low = torch.autocast("cuda", torch.bfloat16)
            with low if "bf16" in way else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(forward(x).flatten(0, -2), y.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        return steps * len(x) / (time.perf_counter() - start)

    train(WARM_UP)  # compiles, and lets DDP order its buckets
    return train


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Samples a second of one rank, by model and way."""
    with process_group("nccl") as pg:
        found = {}
        for name in MODELS:
            ways = {way: steps_of(name, way, pg.device) for way in WAYS}
            speeds = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, train in ways.items():
                    speeds[way].append(train())
            found[name] = speeds
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    gpus = torch.cuda.device_count()
    if not gpus:
        parser.error("no GPU found: this measures one")
    print(f"{gpus} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, nccl, DDP")
    for name, speeds in launch(measure, gpus, args=(rounds,), timeout=900).values[0].items():
        rows = []
        for way, values in speeds.items():
            ratios = [mine / base for mine, base in zip(values, speeds["fp32"], strict=True)]
            middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            rows.append([way, f"{statistics.median(values):,.0f}", middle])
        print_table(name, ["", "samples/s a rank", "over fp32"], rows)


if __name__ == "__main__":
    main()
