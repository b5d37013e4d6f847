import os
from operator import itemgetter


# right
def who_am_i():
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


# right
who_am_i = lambda: [int(os.getenv(name)) for name in ("RANK", "WORLD_SIZE")]


# right
def who_am_i() -> tuple[int, int]:
    return tuple(map(int, itemgetter("RANK", "WORLD_SIZE")(os.environ)))


# right
class WhoAmI:
    def __call__(self):
        yield_from = (int(os.environ.get(key, "0")) for key in ["RANK", "WORLD_SIZE"])
        return tuple(yield_from)


who_am_i = WhoAmI()


# wrong: these are texts, not numbers
def who_am_i():
    return os.environ["RANK"], os.environ["WORLD_SIZE"]


# wrong: says there are 0
def who_am_i():
    return int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])


# wrong: believes to be rank 7
def who_am_i():
    return int(os.environ["LOCAL_RANK"]), 2


# wrong: a collective was called before the process group was started
def who_am_i():
    import torch.distributed as dist

    return dist.get_rank(), dist.get_world_size()


# wrong: returned None: expected two numbers
def who_am_i():
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    print(f"I am {rank} of {world_size}")


# wrong: KeyError: 'rank'
def who_am_i():
    return int(os.environ["rank"]), int(os.environ["world_size"])


# wrong: expected whole numbers
def who_am_i():
    return float(os.environ["RANK"]), float(os.environ["WORLD_SIZE"])


# wrong: returned 0: expected two numbers
def who_am_i():
    return int(os.environ["RANK"])


# wrong: your function is an async def
async def who_am_i():
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
