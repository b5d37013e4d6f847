"""The states of the random generators: equal on two ranks? drawn from meanwhile?

Looking at a state never changes it.
"""

from __future__ import annotations

import hashlib
import random
import struct
import sys
from array import array
from collections.abc import Mapping

import torch

from ddp_helpers.sanitizer.compare.samples import tensor_raw

WORDS = 624  # numbers that a Mersenne Twister, which all three are, makes at a time
States = dict[str, tuple[str, str, int]]
Draws = dict[str, tuple[str, int, str]]


def random_states() -> States:
    """For each generator: a hash of its state, one of its block of numbers, its place in there."""
    found = {"torch": _torch_state(), "random": _python_state()}
    if (numpy := _numpy_state()) is not None:
        found["numpy"] = numpy
    return found


def device_states() -> States:
    """The same for torch's own generators only: those that layers draw from."""
    found = {"torch": _torch_state()}
    if torch.cuda.is_initialized():
        state = tensor_raw(torch.cuda.get_rng_state())  # seed and offset, which lie on the host
        # it counts threads' draws, not numbers: any step forward is many draws
        found["cuda"] = (_hash(state), "", int.from_bytes(state[8:16], "little") * WORDS)
    return found


def draws_between(before: States, after: States) -> Draws:
    """For each generator: the hash of its state before, at least how many were drawn since, and
    the hash of the block that it is in now."""
    return {
        name: (before[name][0], _drawn(before[name], after[name]), after[name][1])
        for name in before.keys() & after.keys()
    }


def _drawn(before: tuple[str, str, int], after: tuple[str, str, int]) -> int:
    if before[0] == after[0]:
        return 0
    if before[1] == after[1]:
        return max(1, after[2] - before[2])
    return max(1, WORDS - before[2] + after[2])  # a new block was made, or several


def same_draws(entries: Mapping[int, list[Draws]], least: list[int], enough: int = 2) -> list[str]:
    """The generators that all ranks drew the same numbers from, at several moments.

    Args:
        entries: by rank, what was drawn at each moment.
        least: for each moment, the draws below which one number decided for the whole batch,
            on purpose the same on all ranks: a random size, for instance.
        enough: at how many moments.
    """
    ranks = list(entries)
    first = entries[ranks[0]]
    count = {name: 0 for draws in first for name in draws}
    for moment, draws in enumerate(first):
        for name, (state, _, block) in draws.items():
            theirs = [
                entries[rank][moment].get(name) for rank in ranks if moment < len(entries[rank])
            ]
            # who ends in another block was seeded anew meanwhile, by each sample's number perhaps
            together = len(theirs) == len(ranks) and all(
                other is not None
                and (other[0], other[2]) == (state, block)
                and other[1] >= least[moment]
                for other in theirs
            )
            count[name] += together
    return sorted(name for name, times in count.items() if times >= enough)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _torch_state() -> tuple[str, str, int]:
    data = tensor_raw(torch.default_generator.get_state())
    # at::mt19937_data_pod: seed (8 bytes), left, seeded, next (8 bytes), the block
    _, left, _, _ = struct.unpack_from("<QiiQ", data)
    return _hash(data), _hash(data[24 : 24 + 8 * WORDS]), WORDS - left


def _python_state() -> tuple[str, str, int]:
    _, numbers, gauss = random.getstate()
    block, place = array("Q", numbers[:-1]).tobytes(), numbers[-1]
    return _hash(block + f"{place}{gauss}".encode()), _hash(block), place


def _numpy_state() -> tuple[str, str, int] | None:
    module = sys.modules.get("numpy.random")
    if module is None:
        return None
    state = module.get_state()
    if not isinstance(state, tuple):  # the reader put another generator in
        return None
    _, block, place, *gauss = state
    return _hash(block.tobytes() + f"{place}{gauss}".encode()), _hash(block.tobytes()), int(place)
