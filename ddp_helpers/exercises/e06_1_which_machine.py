"""From a rank to its machine, and back."""

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, plain

EXERCISE = Exercise(
    title="Which machine, which GPU?",
    name="place",
    task="Machines have `per_node` GPUs each and one rank for each GPU; torchrun counts through "
    "the first machine, then the second. Return (node_rank, local_rank) of a rank.",
    hints=(
        "With 4 a machine: ranks 0 to 3 are on machine 0. Where is rank 6?",
        "A division, and what is left of it.",
        "divmod(rank, per_node).",
    ),
    lesson="RANK = GROUP_RANK * LOCAL_WORLD_SIZE + LOCAL_RANK: torchrun's own arithmetic.",
    minutes=4,
)
QUESTIONS = [(rank, per_node) for per_node in (1, 2, 3, 8) for rank in (0, 1, 5, 8, 23)]


def starter(rank, per_node):
    return 0, rank  # right for one machine only


def solution(rank, per_node):
    return rank // per_node, rank % per_node


def on_rank(answer):
    return [plain(answer(rank, per_node)) for rank, per_node in QUESTIONS]


def check(ranks):
    values = ranks.run(on_rank, 1, group=False)[0]
    for (rank, per_node), value in zip(QUESTIONS, values, strict=True):
        where = f"rank {rank} with {per_node} a machine"
        if not isinstance(value, list) or len(value) != 2:
            raise NotYet(f"{where}: {value!r}, expected two numbers")
        if not are_numbers(value, int):
            raise NotYet(f"{where}: {value!r}, expected whole numbers")
        node, local = value
        if not 0 <= local < per_node:
            raise NotYet(
                f"{where}: local_rank {local} does not exist, they are 0 to {per_node - 1}"
            )
        if node * per_node + local != rank:
            raise NotYet(f"{where}: machine {node}, GPU {local} is the place of another rank")


def swapped(rank, per_node):
    return rank % per_node, rank // per_node


def round_robin(rank, per_node):
    return rank % per_node, rank % per_node


def true_division(rank, per_node):
    return rank / per_node, rank % per_node


def only_node(rank, per_node):
    return rank // per_node


def by_counting(rank, per_node):
    node = 0
    while rank >= per_node:
        node, rank = node + 1, rank - per_node
    return [node, rank]


WRONG = (
    Wrong(swapped, "rank 1 with 1 a machine: local_rank 1 does not exist"),
    Wrong(round_robin, "is the place of another rank"),
    Wrong(true_division, "expected whole numbers"),
    Wrong(only_node, "expected two numbers"),
)
ALSO_RIGHT = (by_counting,)
STARTER_SAYS = "rank 1 with 1 a machine: local_rank 1 does not exist"
