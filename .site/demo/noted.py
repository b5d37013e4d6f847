"""`stuck.train` under torchrun, with a note of each exchange: when a rank called, and came back."""

import functools
import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))

import stuck


def note(**what) -> None:
    """A line for what happened now, in this rank's file."""
    what |= {"at": time.monotonic(), "rank": int(os.environ["RANK"])}
    with (Path(os.environ["DEMO_NOTES"]) / f"{what['rank']}.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


def noting(call):
    """The same call, with a note before it and one after it."""

    @functools.wraps(call)
    def noted(*args, **kwargs):
        note(name=call.__name__, done=False)
        result = call(*args, **kwargs)
        note(name=call.__name__, done=True)
        return result

    return noted


def train():
    """Run it."""
    dist.all_reduce, dist.barrier = noting(dist.all_reduce), noting(dist.barrier)
    stuck.train()


if __name__ == "__main__":
    train()
