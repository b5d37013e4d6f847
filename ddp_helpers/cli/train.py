"""`python -m ddp_helpers train`: the shortest real run there is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_helpers import launch, process_group
from ddp_helpers.cli.options import add_nprocs
from ddp_helpers.ranks.conclusion import finished
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.training.records import EpochRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_nprocs(parser)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/demo", help="folder for the checkpoint and figure")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for the whole run")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from ddp_helpers import plots  # matplotlib takes a while to load

    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} can't be made ({error}): name another folder, --out ...") from None
    checkpoint = str((folder / "checkpoint.pt").resolve())
    result = launch(
        _train_on_this_rank,
        options.nprocs,
        kwargs={"epochs": options.epochs, "seed": options.seed, "checkpoint_path": checkpoint},
        timeout=options.timeout,
    )
    records = finished(result).values[0]
    last = records[-1]
    figure = folder / "training.png"
    plots.save(plots.plot_training(records), figure, alt="Loss and accuracy of each epoch")
    told = (
        f"accuracy {last.test_accuracy:.2%} on the held-out digits after {len(records)} "
        f"epoch{'s' * (len(records) != 1)}, "
        f"{last.world_size} ranks, {result.seconds:.1f} s\nfigure: {figure}"
    )
    print(shown(told))
    return 0


def _train_on_this_rank(epochs: int, seed: int, checkpoint_path: str) -> list[EpochRecord]:
    from ddp_helpers.training import train_mnist_5k

    with process_group() as pg:
        return train_mnist_5k(
            epochs=epochs, seed=seed, checkpoint_path=checkpoint_path, device=pg.device
        )
