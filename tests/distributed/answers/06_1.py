import torch

# right
place = divmod


# right
def place(rank, per_node):
    return rank // per_node, rank % per_node


# right
def place(rank, per_node):
    rank = torch.tensor(rank)
    return rank.div(per_node, rounding_mode="floor"), rank.remainder(per_node)


# right
place = lambda rank, per_node: [int(rank / per_node), rank - per_node * int(rank / per_node)]


# right
def place(rank, per_node):
    import numpy as np

    return tuple(np.unravel_index(rank, (rank + 1, per_node)))


# wrong: local_rank 1 does not exist
def place(rank, per_node):
    return rank % per_node, rank // per_node


# wrong: [0.0, 0], expected whole numbers
def place(rank, per_node):
    return rank / per_node, rank % per_node


# wrong: local_rank 4 does not exist
def place(rank, per_node):
    return (0, rank) if rank < per_node else (1, rank - per_node)


# wrong: is the place of another rank
def place(rank, per_node):
    return round(rank / per_node), rank % per_node


# wrong: expected two numbers
def place(rank, per_node):
    return f"machine {rank // per_node}, GPU {rank % per_node}"


# wrong: is the place of another rank
def place(rank, per_node):
    import os

    return int(os.environ["GROUP_RANK"]), int(os.environ["LOCAL_RANK"])


# wrong: is the place of another rank
def place(rank, per_node):
    return (rank - 1) // per_node, (rank - 1) % per_node
