"""Have the missing rank named, instead of waiting for ever."""

import time
from datetime import timedelta

import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
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
    if dist.get_rank() == missing:
        time.sleep(2.5)
        return "", 0.0
    started = time.monotonic()
    text = answer(0.5)
    return str(text), time.monotonic() - started


def check(ranks):
    text = ranks.run(on_rank, 3, None)[0][0]
    if text != "all here":
        raise NotYet(f"all ranks came, but rank 0 returned {text[:60]!r}")
    text, seconds = ranks.run(on_rank, 3, 2)[0]
    if seconds > 2:
        raise NotYet(f"rank 2 slept, and rank 0 waited {seconds:.1f} s for it: 0.5 s were allowed")
    if "rank 2" not in text.lower():
        raise NotYet(f"rank 2 slept, but what rank 0 returned does not name it: {text[:60]!r}")
    if "rank 1" in text.lower():
        raise NotYet(f"rank 1 was there, and yet you name it: {text[:60]!r}")


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
    Wrong(not_caught, "is_anybody_missing failed on 3 ranks"),
)
ALSO_RIGHT = (over_the_store,)
STARTER_SAYS = "rank 2 slept, and rank 0 waited"
