import re
import time
from datetime import timedelta

import torch.distributed as dist


# right
def is_anybody_missing(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        return " and ".join(f"rank {number}" for number in re.findall(r"(\d+) failed", str(error)))
    return "all here"


# right
def is_anybody_missing(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds), wait_all_ranks=True)
    except Exception as error:
        return str(error)
    else:
        return "all here"


# right
def is_anybody_missing(seconds):
    """Each leaves a sign in the store."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"sign/{dist.get_rank()}", "I am here")
    names, missing = [f"sign/{rank}" for rank in range(dist.get_world_size())], []
    end = time.monotonic() + seconds
    for rank, name in enumerate(names):
        try:
            store.wait([name], timedelta(seconds=max(0.01, end - time.monotonic())))
        except dist.DistStoreError:
            missing.append(f"Rank {rank}")
    return f"missing: {', '.join(missing)}" if missing else "all here"


# wrong: rank 1 slept, but what rank 0 returned does not name it: 'rank 2'
def is_anybody_missing(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return "rank 2"
    return "all here"


# wrong: does not name it: 'somebody is missing'
def is_anybody_missing(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return "somebody is missing"
    return "all here"


# wrong: is_anybody_missing failed in a run of 3 ranks
def is_anybody_missing(seconds):
    dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    return "all here"


# wrong: rank 2 slept, and rank 0 waited for it
def is_anybody_missing(seconds):
    """Waits as long as it takes."""
    here = [None] * dist.get_world_size()
    dist.all_gather_object(here, dist.get_rank())
    missing = set(range(dist.get_world_size())) - set(here)
    return f"rank {missing.pop()}" if missing else "all here"


# wrong: does not name it: 'all here'
def is_anybody_missing(seconds):
    return "all here"


# wrong: all ranks came, but rank 0 returned 'True'
def is_anybody_missing(seconds):
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        return error
    return True


# wrong: rank 1 was there, and yet you name it
def is_anybody_missing(seconds):
    """Names all that might be."""
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return " or ".join(f"rank {rank}" for rank in range(1, dist.get_world_size()))
    return "all here"


# wrong: but rank 0 returned
def is_anybody_missing(seconds):
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    store.set(f"here{dist.get_rank()}", "1")
    if dist.get_rank() == 0:
        for r in range(dist.get_world_size()):
            if not store.check([f"here{r}"]):
                return f"rank {r}"
    return "all here"
