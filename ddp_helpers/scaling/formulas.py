"""Formulas of the cost model: all-reduce, buckets, stragglers. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MIB = 2**20
NORMAL = NormalDist()
DEFAULT_CAP_MB, DEFAULT_FIRST_MB = 25.0, 1.0  # DistributedDataParallel's own


@dataclass(frozen=True)
class Linear:
    """A cost that is linear in the message: fixed + size * per_byte, in seconds."""

    fixed: np.ndarray
    per_byte: np.ndarray

    def __call__(self, size: float | np.ndarray) -> np.ndarray:
        return self.fixed + self.per_byte * size

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.fixed + other.fixed, self.per_byte + other.per_byte)


def ring(ranks: np.ndarray, latency: float, bandwidth: float) -> Linear:
    """Ring all-reduce: 2 (n - 1) messages of 1/n of the data; each rank sends 2 (n - 1)/n of it.

    No algorithm can send less. Source: P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", J. Parallel Distrib. Comput. 69 (2009).
    """
    n = np.asarray(ranks, dtype=float)
    return Linear(2 * (n - 1) * latency, 2 * (n - 1) / n / bandwidth)


def tree(ranks: np.ndarray, latency: float, bandwidth: float) -> Linear:
    """Reduce to one rank and broadcast back, each along a binomial tree of log2 n levels.

    2 ceil(log2 n) messages of all the data. Source: R. Thakur, R. Rabenseifner and W. Gropp,
    "Optimization of collective communication operations in MPICH", Int. J. High Perform. Comput.
    Appl. 19 (2005), on broadcast and reduce; the time to add is left out, as links are slower.
    """
    levels = np.ceil(np.log2(np.asarray(ranks, dtype=float)))
    return Linear(2 * levels * latency, 2 * levels / bandwidth)


def halving_doubling(ranks: np.ndarray, latency: float, bandwidth: float) -> Linear:
    """Reduce-scatter by halving, then all-gather by doubling: few messages and little data.

    2 log2 n messages, 2 (n - 1)/n of the data. If n is no power of two, the ranks over the next
    lower one hand their data to a neighbour before and get the sum after: two messages more of
    all the data. Source: R. Rabenseifner, "Optimization of collective reduction operations",
    ICCS 2004; Thakur et al. 2005.
    """
    n = np.asarray(ranks, dtype=float)
    levels = np.floor(np.log2(n))
    power = 2.0**levels
    extra = np.where(power < n, 2.0, 0.0)
    sent = 2 * (power - 1) / power + extra
    return Linear((2 * levels + extra) * latency, sent / bandwidth)


def double_tree(ranks: np.ndarray, latency: float, bandwidth: float) -> Linear:
    """Two binary trees at once, each for half of the data, in pieces that follow each other.

    As few messages in a row as a tree, yet no rank sends more than twice the data, as in a ring.
    Source: P. Sanders, J. Speck and J. Traeff, "Two-tree algorithms for full bandwidth broadcast,
    reduction and scan", Parallel Computing 35 (2009); in NCCL from 2.4 on (its release notes).
    """
    n = np.asarray(ranks, dtype=float)
    levels = np.ceil(np.log2(n))
    return Linear(2 * levels * latency, np.where(n > 1, 2.0, 0.0) / bandwidth)


ALL_REDUCE = {
    "ring": ring,
    "tree": tree,
    "double_tree": double_tree,
    "halving_doubling": halving_doubling,
}
CHOICES = {"best": tuple(ALL_REDUCE), "nccl": ("ring", "double_tree")}


def hierarchical(
    algorithm: str,
    ranks: np.ndarray,
    ranks_per_node: int,
    inside: tuple[float, float],
    between: tuple[float, float],
) -> Linear:
    """All-reduce over nodes: reduce-scatter inside, all-reduce between, all-gather inside.

    The first and last part together cost what a ring inside the node costs. Between nodes, each
    local rank reduces its own share with its peers, all at once through the node's network, so
    the whole message crosses it once as if a node were one rank. Source: H. Mikami et al.,
    "Massively distributed SGD", arXiv:1811.05233 (2018).

    Args:
        inside, between: (latency in s, bandwidth in bytes/s); between: of a whole node.
    """
    n = np.asarray(ranks, dtype=float)
    nodes = np.ceil(n / ranks_per_node)
    local = np.minimum(n, ranks_per_node)
    return ring(local, *inside) + ALL_REDUCE[algorithm](nodes, *between)


def buckets(
    size: float, cap_mb: float | np.ndarray | None, tensors: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How DDP cuts gradients of `size` bytes: (number, bytes of the first, bytes of each other).

    Buckets are taken as filled to their cap, and no more of them than parameter tensors. Source:
    S. Li et al., "PyTorch Distributed: experiences on accelerating data parallel training", VLDB
    13 (2020), section 3.2; in torch 2.13 a cap given by the user holds for the first one, too.
    """
    cap = np.asarray(DEFAULT_CAP_MB if cap_mb is None else cap_mb, dtype=float) * MIB
    first = np.minimum(DEFAULT_FIRST_MB * MIB if cap_mb is None else cap, size)
    most = np.inf if tensors is None else tensors
    number = np.minimum(1 + np.ceil((size - first) / cap), most)
    first = np.where(number == 1, size, np.minimum(first, size / number))
    others = np.where(number > 1, (size - first) / np.maximum(number - 1, 1), 0.0)
    return number, first, others


def communication_end(
    backward: np.ndarray, number: np.ndarray, first: np.ndarray, others: np.ndarray, cost: Linear
) -> np.ndarray:
    """Seconds from the start of the backward to the end of the last all-reduce.

    Buckets are ready one after the other as the backward goes on, in proportion to their bytes,
    and are reduced one at a time: the overlap of Li et al. 2020. The end is the latest, over the
    buckets i, of (i is ready) + (all-reduce of i and all later). With equal buckets that is
    linear in i but for the first one, so the first, second and last decide.

    Args:
        backward: seconds of the backward.
        number, first, others: of `buckets`.
        cost: of one all-reduce.
    """
    size = first + (number - 1) * others
    total = number * cost.fixed + size * cost.per_byte
    several = number > 1
    ready = np.where(several, (first + others) / size, 0.0)
    after = np.where(several, total - cost(first), 0.0)
    last = cost(np.where(several, others, first))
    ends = np.maximum(backward * (first / size) + total, backward * ready + after)
    return np.maximum(ends, backward + last)


def expected_slowest(ranks: np.ndarray) -> np.ndarray:
    """Expected maximum of n standard normal values: how far the slowest of n ranks is behind.

    Blom's approximation, the quantile at (n - 0.375)/(n + 0.25): 0 for one rank, 0.59 for 2, 3.84
    for 10,000 (exact: 0.56 and 3.85). Source: G. Blom, "Statistical estimates and
    transformed beta-variables" (1958); H. A. David and H. N. Nagaraja,
    "Order statistics" (2003), section 4.5.
    """
    each, places = np.unique(np.asarray(ranks), return_inverse=True)
    late = [NORMAL.inv_cdf((n - 0.375) / (n + 0.25)) for n in each.tolist()]
    return np.asarray(late)[places].reshape(np.shape(ranks))
