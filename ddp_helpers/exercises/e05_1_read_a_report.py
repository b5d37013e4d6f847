"""Read a failure report: who failed, and who only waited?"""

import builtins
import random

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.group.lifetime import process_group
from ddp_helpers.ranks.conclusion import LaunchError
from ddp_helpers.ranks.launcher import launch

EXERCISE = Exercise(
    title="Read a failure report",
    name="first_cause",
    task="Write a function that reads the text of a run that failed, and returns the number of "
    "the rank that is the cause. Each line begins with the rank, like `[rank 2] text`; lines of "
    "ranks are mixed. Ranks that only lost their connection are no cause. See such a text with "
    "`from ddp_helpers.exercises.e05_1_read_a_report import example; print(example())`.",
    hints=(
        "Read an example: which error has nothing to do with a connection?",
        "Only lines with an error matter, and of these only those that don't speak of a peer.",
        "Skip lines with 'Connection' or 'peer'; of the first other line with 'Error:', take the "
        "number behind '[rank '.",
    ),
    lesson="`python -m ddp_helpers diagnose FILE` does this for any log.",
    minutes=15,
)
ERRORS = (
    ("ValueError", "image 4711 can't be read"),
    ("KeyError", "'learning_rate'"),
    ("FileNotFoundError", "no such file: train.bin"),
    ("RuntimeError", "the loss is nan in step 7"),
)


def starter(text):
    for line in text.splitlines():
        if "Error" in line:
            return int(line[len("[rank ") :].split("]")[0])


def solution(text):
    for line in text.splitlines():
        if "Error: " in line and "Connection" not in line and "peer" not in line:
            return int(line.removeprefix("[rank ").partition("]")[0])


def fails(culprit, kind, message):
    """What each rank runs: one fails, the others lose it and say so first."""
    import time
    import traceback

    with process_group("gloo") as pg:
        try:
            dist.barrier()
            if pg.rank == culprit:
                raise getattr(builtins, kind)(message)
            dist.all_reduce(torch.ones(1))
        except Exception as error:
            print("step 7 of 100: no Error seen so far, loss 0.31")
            traceback.print_exc()
            if pg.rank == culprit:
                dist.destroy_process_group()
                time.sleep(0.3)
            raise RuntimeError("training ends") from error


def example(culprit=None, nprocs=3, place=None, error=None):
    """The text of a run that really fails.

    Args:
        culprit: the rank that fails by itself; drawn if none is named.
        place: of the culprit's lines, first, last or mixed with others'; drawn if none is named.
        error: one of ERRORS; drawn if none is given.
    """
    place = place or random.choice(("first", "last", "mixed"))
    culprit = random.randrange(nprocs) if culprit is None else culprit
    kind, message = error or random.choice(ERRORS[:2])
    try:
        launch(fails, nprocs, args=(culprit, kind, message), echo=False, timeout=20)
    except LaunchError as error:
        said = {rank.rank: rank.output.splitlines() for rank in error.result.ranks}
    order = _order(said, culprit, place)
    text = "\n".join(f"[rank {rank}] {said[rank].pop(0)}" for rank in order)
    return text.replace(__file__, "train.py")


def _order(said, culprit, place):
    """Which rank speaks, line by line."""
    turns = [rank for rank, lines in said.items() for _ in lines]
    if place == "mixed":
        random.shuffle(turns)
        return turns
    return sorted(
        turns, key=lambda rank: (rank != culprit) if place == "first" else rank == culprit
    )


def on_rank(answer, texts):
    return [answer(text) for text in texts]


def check(ranks):
    culprits = (2, 0, 1)
    places = ("last", "first", "mixed")
    errors = [*random.sample(ERRORS[:-1], 2), ERRORS[-1]]  # of the kind of a lost connection's
    texts = [
        example(culprit, place=place, error=error)
        for culprit, place, error in zip(culprits, places, errors, strict=True)
    ]
    got = ranks.run(on_rank, 1, texts, group=False)[0]
    for text, wanted, found in zip(texts, culprits, got, strict=True):
        if found is None:
            raise NotYet("for one of the texts your function returns None")
        if not isinstance(found, int):
            raise NotYet(f"your function returns {found!r}: a whole number is asked for")
        if found != wanted:
            said = [line for line in text.splitlines() if line.startswith(f"[rank {found}]")]
            errors = "\n".join(line[:140] for line in said if "Error" in line)
            raise NotYet(
                f"you name rank {found}, but it is not the cause. Of errors it says:\n{errors}"
            )


def last_error(text):
    lines = [line for line in text.splitlines() if "Error:" in line and "peer" in line]
    return int(lines[-1][6])


def rank_of_the_last_line(text):
    return int(text.splitlines()[-1][6])


def as_text(text):
    return str(solution(text))


def always_none(text):
    return None


def always_rank_1(text):
    return 1


def with_a_pattern(text):
    import re

    found = re.findall(r"^\[rank (\d+)\] (\w+Error: .*)$", text, re.M)
    own = [int(rank) for rank, said in found if not re.search(r"onnection|peer|training", said)]
    return own[0]


WRONG = (
    Wrong(last_error, "it is not the cause. Of errors it says"),
    Wrong(rank_of_the_last_line, "it is not the cause. Of errors it says:"),
    Wrong(as_text, "a whole number is asked for"),
    Wrong(always_none, "returns None"),
)
ALSO_RIGHT = (with_a_pattern,)
STARTER_SAYS = "it is not the cause. Of errors it says"
