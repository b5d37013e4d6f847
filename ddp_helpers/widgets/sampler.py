"""Which index goes to which rank, as `DistributedSampler` deals them.

The rules are those of torch 2.13, torch/utils/data/distributed.py: shuffle with seed + epoch, make
the length a multiple of the ranks (repeat from the front, or cut the end), then deal in turn. The
shuffle is torch's own, number by number.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import FILLS, GREY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene, WordsLook
from ddp_helpers.widgets.controls import Slider, Tick

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

MOST_SAMPLES = 36
MOST_NAMED = 8  # numbers of samples in a sentence
TAG = 22  # pixels of a rank's name below a sample
LEFT, ROOM, NARROWEST, WIDEST, ROW = 76, 616, 17, 34, 30  # pixels


@dataclass(frozen=True)
class Deal:
    """What each rank gets in one epoch."""

    shares: tuple[tuple[int, ...], ...]
    """For each rank its indices, in the order of use."""
    padding: int
    """The last turns of this many ranks, counted from the last rank, are repeats."""
    left_out: tuple[int, ...]
    """Indices that nobody gets (drop_last)."""

    def is_padding(self, rank: int, turn: int) -> bool:
        """True for a sample that is there only to give all ranks equally many."""
        ranks = len(self.shares)
        return turn * ranks + rank >= len(self.shares[0]) * ranks - self.padding


def order(samples: int, *, shuffle: bool, epoch: int, seed: int = 0) -> list[int]:
    """The order of the whole dataset in an epoch, before it is dealt.

    `epoch` is what the sampler was told: it stays 0 if nobody calls set_epoch.
    """
    indices = list(range(samples))
    if shuffle:
        generator = torch_generator(seed + epoch)
        for at in range(samples - 1):
            other = at + generator.getrandbits(32) % (samples - at)
            indices[at], indices[other] = indices[other], indices[at]
    return indices


def torch_generator(seed: int) -> random.Random:
    """Its `getrandbits(32)` gives the numbers of `torch.Generator().manual_seed(seed)`, on the CPU.

    Both are the Mersenne Twister; torch starts it as M. Matsumoto and T. Nishimura do with one
    number (mt19937ar.c, init_genrand), Python with a list of them. So no torch is needed here, and
    the picture moves in a browser, too.
    """
    state = [seed % 2**32]
    for at in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + at) % 2**32)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


def deal(indices: list[int], ranks: int, *, drop_last: bool) -> Deal:
    """Give the indices out in turn, equally many to each rank.

    Raises:
        ValueError: drop_last leaves nothing for a rank.
    """
    each = len(indices) // ranks if drop_last else math.ceil(len(indices) / ranks)
    if each == 0:
        raise ValueError(
            f"drop_last with {len(indices)} samples for {ranks} ranks leaves no sample: use fewer "
            "ranks, more samples, or drop_last off"
        )
    total = each * ranks
    padding = max(0, total - len(indices))
    repeats = -(-total // len(indices))
    used = (indices * repeats)[:total]
    shares = tuple(tuple(used[rank::ranks]) for rank in range(ranks))
    return Deal(shares, padding, tuple(sorted(indices[total:])))


def draw(
    samples: int,
    ranks: int,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    set_epoch: bool,
    epoch: int,
) -> Picture:
    """The deal of one epoch, rank by rank and sample by sample."""
    from ddp_helpers.widgets.base import Picture

    indices = order(samples, shuffle=shuffle, epoch=epoch if set_epoch else 0)
    before = order(samples, shuffle=shuffle, epoch=epoch - 1 if set_epoch else 0)
    dealt = deal(indices, ranks, drop_last=drop_last)
    words = in_words(dealt, batch_size, epoch, same=epoch > 0 and indices == before)
    return Picture(_scene(dealt, samples, batch_size, epoch), words)


def in_words(dealt: Deal, batch_size: int, epoch: int, *, same: bool) -> str:
    """What the picture shows, as sentences."""
    each, ranks = len(dealt.shares[0]), len(dealt.shares)
    batches = math.ceil(each / batch_size)
    text = [f"Epoch {epoch}: each of {ranks} ranks gets {each} samples, in {batches} batches."]
    if each % batch_size:
        text.append(f"The last batch has {each % batch_size}.")
    text.append(_used(dealt))
    if epoch:
        text.append(
            f"The same order as in epoch {epoch - 1}."
            if same
            else f"Another order than in epoch {epoch - 1}."
        )
    return " ".join(text)


def _used(dealt: Deal) -> str:
    if dealt.padding:
        twice = [index for index, uses in _uses(dealt).items() if uses > 1]
        return f"Padding: {dealt.padding}. Used more than once: {_some(sorted(twice))}."
    if dealt.left_out:
        return f"Left out: {_some(list(dealt.left_out))}."
    return "Each sample is used exactly once."


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:MOST_NAMED])) + (
        ", ..." if len(numbers) > MOST_NAMED else ""
    )


def _uses(dealt: Deal) -> Counter[int]:
    return Counter(index for share in dealt.shares for index in share)


def _scene(dealt: Deal, samples: int, batch_size: int, epoch: int) -> Scene:
    """Ranks are names with a stroke of their colour; samples are numbered boxes in it."""
    ranks, each = len(dealt.shares), len(dealt.shares[0])
    owners = _owners(dealt)
    most = max(len(_names(who)) for who in owners.values())
    scene = Scene(PAGE, 138 + ROW * ranks + TAG * most)
    scene.text(LEFT, 12, f"What each rank gets in epoch {epoch}, in this order", **_HEAD)
    # a gap after each batch, and narrower boxes where one row would be too long
    gaps = math.ceil(each / batch_size) - 1
    gap = min(8, (ROOM - NARROWEST * each) / gaps) if gaps else 0
    cell = min(WIDEST, (ROOM - gap * gaps) / each)
    for rank, share in enumerate(dealt.shares):
        top = 28 + ROW * rank
        _rank(scene, LEFT - 62, top + 2, 54, f"rank {rank}", rank)
        for turn, index in enumerate(share):
            left = LEFT + cell * turn + gap * (turn // batch_size)
            _sample(scene, left, top, rank, index, dealt.is_padding(rank, turn), cell)
    note = f"a box is a sample, its number the index; gaps: batches of {batch_size} per rank"
    scene.text(LEFT, 36 + ROW * ranks, note, **_NOTE)
    _dataset(scene, owners, samples, 62 + ROW * ranks)
    note = "striped, with a thick frame: used more than once; ✗: left out"
    scene.text(LEFT, 126 + ROW * ranks + TAG * most, note, **_NOTE)
    return scene


def _owners(dealt: Deal) -> dict[int, list[int]]:
    """For each sample that is used the ranks that use it, in the order of use."""
    owners: dict[int, list[int]] = {}
    for turn, rank in itertools.product(range(len(dealt.shares[0])), range(len(dealt.shares))):
        owners.setdefault(dealt.shares[rank][turn], []).append(rank)
    return owners


def _names(who: list[int]) -> list[str]:
    """What stands below a sample: two ranks have room, of more only how many."""
    return [f"r{rank}" for rank in who] if len(who) < 3 else [f"{len(who)}x"]


def _dataset(scene: Scene, owners: dict[int, list[int]], samples: int, top: float) -> None:
    """The dataset in its own order: who uses which sample."""
    cell = min(WIDEST, ROOM / samples)
    scene.text(LEFT, top + 10, "The dataset, and below each sample the rank that uses it", **_HEAD)
    for index in range(samples):
        left = LEFT + cell * index
        who = owners.get(index, [])
        _sample(scene, left, top + 24, who[0] if who else None, index, len(who) > 1, cell)
        if not who:
            scene.text(left + cell / 2 - 1, top + 61, "✗", size=16, color=VERMILLION)
            continue
        for at, name in enumerate(_names(who)):
            rank = who[at] if len(who) < 3 else None
            _rank(scene, left, top + 52 + TAG * at, cell - 2, name, rank)


def _rank(scene: Scene, left: float, top: float, wide: float, name: str, rank: int | None) -> None:
    """A rank's name under a stroke of its colour."""
    fill = "#ffffff" if rank is None else FILLS[rank % len(FILLS)]
    scene.box(left, top, wide, 4, fill=fill, line=0.5)
    scene.text(left + wide / 2, top + 13, name)


def _sample(
    scene: Scene, left: float, top: float, rank: int | None, index: int, twice: bool, cell: float
) -> None:
    """A box with the sample's number; white if no rank uses it."""
    fill = "#ffffff" if rank is None else FILLS[rank % len(FILLS)]
    edge, line = (VERMILLION, 3.0) if twice else (GREY, 1.0)
    scene.box(left, top, cell - 2, ROW - 6, fill=fill, edge=edge, line=line, hatch=twice)
    if twice:  # a number needs a ground of its own on stripes
        wide = min(cell - 5, 4 + 7 * len(str(index)))
        middle = left + cell / 2 - 1
        scene.box(middle - wide / 2, top + 4, wide, ROW - 14, fill="#ffffff", line=0.0)
    scene.text(left + cell / 2 - 1, top + ROW / 2 - 3, index, color="#000000")


_HEAD: WordsLook = {"anchor": "start", "bold": True, "size": 13}
_NOTE: WordsLook = {"anchor": "start"}


def explorable(
    samples: int = 22,
    ranks: int = 4,
    batch_size: int = 3,
    shuffle: bool = True,
    drop_last: bool = False,
    set_epoch: bool = True,
    epoch: int = 0,
) -> Explorable:
    """Move the dataset, the ranks and the epoch, and see who gets which index."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "samples": Slider("samples", samples, 1, MOST_SAMPLES),
        "ranks": Slider("ranks", ranks, 1, 6),
        "batch_size": Slider("batch size per rank", batch_size, 1, 10),
        "epoch": Slider("epoch", epoch, 0, 5),
        "shuffle": Tick("shuffle", shuffle),
        "drop_last": Tick("drop_last", drop_last),
        "set_epoch": Tick("call set_epoch", set_epoch),
    }
    return Explorable("DistributedSampler: which index goes where?", controls, draw)
