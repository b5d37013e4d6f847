"""Ask the environment who you are, as every rank does first."""

import os

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, plain

EXERCISE = Exercise(
    title="Who am I?",
    name="who_am_i",
    task="Return this process's rank and the number of ranks, as two whole numbers. No group is "
    "running yet, so torch can't be asked: both come from environment variables.",
    hints=(
        "A launcher tells each process who it is before its first line runs. Look at the table in "
        "notebook 01.",
        "os.environ holds texts. Which two of its names do you need, and what turns a text into a "
        "number?",
        'The rank is int(os.environ["RANK"]).',
    ),
    lesson="torchrun sets the same variables, so this function works there too.",
    minutes=3,
)


def starter():
    rank, world_size = 0, 1  # one line to change
    return rank, world_size


def solution():
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def on_rank(answer):
    # as on a machine that is one of several: there a rank has two numbers
    os.environ |= {"LOCAL_RANK": "7", "LOCAL_WORLD_SIZE": "8"}
    value = plain(answer())
    if not isinstance(value, list) or len(value) != 2:
        raise NotYet(f"rank {os.environ['RANK']} returned {value!r}: expected two numbers")
    return value


def check(ranks):
    for nprocs in (2, 5):
        values = ranks.run(on_rank, nprocs, group=False)
        for rank, value in enumerate(values):
            if any(isinstance(part, str) for part in value):
                raise NotYet(f"rank {rank} returned {value}: these are texts, not numbers")
            if not are_numbers(value, int):
                raise NotYet(f"rank {rank} returned {value}: expected whole numbers, as from int()")
            if value == [7, 8]:
                raise NotYet(
                    f"rank {rank} gives its number on its own machine, and how many are there; "
                    "expected those among the ranks of all machines"
                )
            if value[1] != nprocs:
                raise NotYet(f"with {nprocs} ranks, rank {rank} says there are {value[1]}")
            if value[0] != rank:
                raise NotYet(f"with {nprocs} ranks, rank {rank} believes to be rank {value[0]}")


def texts():
    return os.environ["RANK"], os.environ["WORLD_SIZE"]


def counts_from_one():
    return int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"])


def swapped():
    return int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


def first_only():
    return int(os.environ["RANK"])


def with_get():
    here = dict(os.environ)
    return [int(here.get(name, "0")) for name in ("RANK", "WORLD_SIZE")]


def of_this_machine():
    return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])


WRONG = (
    Wrong(texts, "these are texts"),
    Wrong(counts_from_one, "believes to be rank 1"),
    Wrong(swapped, "says there are 0"),
    Wrong(first_only, "expected two numbers"),
    Wrong(of_this_machine, "its number on its own machine"),
)
ALSO_RIGHT = (with_get,)
STARTER_SAYS = "rank 0 says there are 1"
