"""Have the missing rank named, instead of waiting for ever."""

import re
import time
from datetime import timedelta

import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import Gate
from ddp_helpers.torch_private import DEFAULT_STORE

EXERCISE = Exercise(
    title="Who is missing?",
    name="is_anybody_missing",
    task="All ranks that are well call this function; one may sleep for long. Within `seconds`, "
    "rank 0 must know: return a text there that names the missing rank, as in `rank 2`, or the "
    'text "all here". On the other ranks return anything. The function must not raise.',
    hints=(
        "An ordinary barrier waits, and names nobody. There is one that notes who has come.",
        "dist.monitored_barrier(timeout=timedelta(seconds=...)): the error's text names the rank.",
        "try: monitored_barrier; except RuntimeError as error: return str(error).",
    ),
    lesson="Put it in front of the line that you suspect; rank 0 tells who has not come.",
    minutes=8,
)
ALLOWED = 0.5  # seconds


def starter(seconds):
    dist.barrier()
    return "all here"


def solution(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        return str(error)
    return "all here"


def on_rank(answer, missing):
    knows = Gate("rank 0 knows")
    if dist.get_rank() == missing:
        if not knows.wait():
            raise NotYet(
                f"rank {missing} slept, and rank 0 waited for it: {ALLOWED} s were allowed"
            )
        return ""
    if missing is None and dist.get_rank() == 2:
        time.sleep(ALLOWED / 5)  # a little late is not missing
    text = answer(ALLOWED)
    if dist.get_rank() == 0:
        knows.reached()
    return str(text)


def check(ranks):
    text = ranks.run(on_rank, 3, None)[0]
    if text != "all here":
        raise NotYet(f"all ranks came, but rank 0 returned {text[:60]!r}")
    for missing in (2, 1):
        text = ranks.run(on_rank, 3, missing)[0]
        named = set(map(int, re.findall(r"ranks? (\d+)", text.lower()))) - {0}
        if missing not in named:
            raise NotYet(
                f"rank {missing} slept, but what rank 0 returned does not name it: {text[:60]!r}"
            )
        if named != {missing}:
            raise NotYet(f"rank {3 - missing} was there, and yet you name it: {text[:60]!r}")


def guesses(seconds):
    solution(seconds)
    return "rank 2 is missing"


def names_nobody(seconds):
    said = solution(seconds)
    return said if said == "all here" else "somebody is missing"


def names_all(seconds):
    said = solution(seconds)
    return said if said == "all here" else "rank 1 or rank 2"


def not_caught(seconds):
    dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    return "all here"


def over_the_store(seconds):
    store = DEFAULT_STORE.get()()
    store.set(f"here {dist.get_rank()}", "yes")
    limit = time.monotonic() + seconds
    missing = list(range(dist.get_world_size()))
    while missing and time.monotonic() < limit:
        missing = [rank for rank in missing if not store.check([f"here {rank}"])]
        time.sleep(0.02)
    return f"missing: rank {missing[0]}" if missing else "all here"


WRONG = (
    Wrong(guesses, "all ranks came, but rank 0 returned"),
    Wrong(names_nobody, "does not name it"),
    Wrong(names_all, "rank 1 was there"),
    Wrong(not_caught, "is_anybody_missing failed in a run of 3 ranks"),
)
ALSO_RIGHT = (over_the_store,)
STARTER_SAYS = "rank 2 slept, and rank 0 waited"
