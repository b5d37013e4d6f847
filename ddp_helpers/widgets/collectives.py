"""One collective on real ranks: what each rank has before and after, and the bytes it sent.

The bytes are those that the kernel counts on the rank's own TCP connections (TCP_INFO,
linux/tcp.h) during the call and the barrier after it, so gloo's own few
bytes a message are in them.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import FILLS, GREY
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice, Slider

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

OPS = (
    *("broadcast", "all_reduce", "reduce", "all_gather"),
    *("gather", "scatter", "reduce_scatter", "all_to_all"),
)
CUT_IN_PARTS = ("scatter", "reduce_scatter", "all_to_all")
BYTES_SENT, BYTES_AGAIN = 200, 208  # offsets of tcpi_bytes_sent and _retrans, since Linux 4.19
CELL, ROW, BETWEEN = 29, 34, 46  # pixels; between before and after


@dataclass(frozen=True)
class Moved:
    """What one rank had, has, and sent."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    """Empty where the call gives this rank no answer."""
    sent: int | None
    """Bytes on its TCP connections during the call; None if the kernel does not count them."""


def numbers(op: str, rank: int, ranks: int, count: int) -> list[float]:
    """What a rank starts with: `count` numbers, or as many for each rank if `op` cuts them."""
    each = count * (ranks if op in CUT_IN_PARTS else 1)
    if op == "scatter" and rank != 0:
        return []
    return [10.0 * (rank + 1) + at for at in range(each)]


def on_a_rank(op: str, count: int, kib: int) -> Moved:
    """One call of `op` on this rank; each number is a block of `kib` KiB. Rank 0 is the root."""
    import torch
    import torch.distributed as dist

    from ddp_helpers.group.lifetime import process_group

    with process_group("gloo") as pg:
        mine = numbers(op, pg.rank, pg.world_size, count)
        x = torch.tensor(mine).repeat_interleave(256 * kib)  # 256 float32 are 1 KiB
        for _ in range(2):  # the first call makes the connections
            dist.barrier()
            sent = _bytes_sent()
            got = _call(dist, torch, op, x.clone(), pg, 256 * kib * count)
            dist.barrier()  # the call may end while its last bytes still wait to be sent
            now = _bytes_sent()
        blocks = got.view(-1, 256 * kib)
        assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))
        counted = None if sent is None or now is None else now - sent
        return Moved(tuple(mine), tuple(blocks[:, 0].tolist()), counted)


def _call(dist, torch, op, x, pg, part):
    """The answer of this rank as one tensor, empty if it gets none."""
    empty, ranks = torch.zeros(0), pg.world_size
    room = list(torch.zeros(ranks, x.numel() if op.endswith("gather") else part))
    if op == "broadcast":
        dist.broadcast(x, src=0)
        return x
    if op == "all_reduce":
        dist.all_reduce(x)
        return x
    if op == "reduce":
        dist.reduce(x, dst=0)
        return x if pg.is_main else empty  # elsewhere gloo leaves partial sums: not to be read
    if op == "all_gather":
        dist.all_gather(room, x)
        return torch.cat(room)
    if op == "gather":
        dist.gather(x, room if pg.is_main else None, dst=0)
        return torch.cat(room) if pg.is_main else empty
    if op == "scatter":
        dist.scatter(room[0], list(x.split(part)) if pg.is_main else None, src=0)
        return room[0]
    if op == "reduce_scatter":
        dist.reduce_scatter(room[0], list(x.split(part)))
        return room[0]
    swapped = torch.zeros_like(x)
    dist.all_to_all_single(swapped, x)
    return swapped


def _bytes_sent() -> int | None:
    """Bytes that this process has sent on all its TCP connections, each counted once."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                facts = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # closed meanwhile, or no TCP
        if len(facts) < BYTES_AGAIN + 8:
            return None
        total += struct.unpack_from("Q", facts, BYTES_SENT)[0]
        total -= struct.unpack_from("Q", facts, BYTES_AGAIN)[0]
    return total


def run(op: str, ranks: int, count: int, kib: int) -> list[Moved]:
    """The same call on `ranks` real ranks."""
    from ddp_helpers.ranks.launcher import launch

    return launch(on_a_rank, ranks, args=(op, count, kib), echo=False, timeout=60).values


def draw(op: str, ranks: int, count: int, kib: int, result: list[Moved] | None) -> Picture:
    """Before and after; a question mark where nobody has run yet."""
    from ddp_helpers.widgets.base import Picture

    before = [numbers(op, rank, ranks, count) for rank in range(ranks)]
    scene = Scene(PAGE, 64 + ROW * ranks)
    left, right = 64, 64 + CELL * max(map(len, before)) + BETWEEN
    scene.text(left, 12, "before", anchor="start", bold=True, size=13)
    scene.text(right, 12, f"after {op}", anchor="start", bold=True, size=13)
    owner = {value: rank for rank, row in enumerate(before) for value in row}
    for rank in range(ranks):
        top = 28 + ROW * rank
        scene.text(left - 8, top + 14, f"rank {rank}", anchor="end")
        _row(scene, left, top, before[rank], owner)
        if result is None:
            scene.text(right + 10, top + 14, "?", size=16, bold=True)
        else:
            _row(scene, right, top, result[rank].after, owner)
            end = right + max(60, CELL * len(result[rank].after)) + 10
            scene.text(end, top + 14, _sent(result[rank]), anchor="start")
    middle = 28 + ROW * ranks / 2 - 3
    scene.line(right - BETWEEN + 8, middle, right - 10, middle, arrow=True)
    _legend(scene, left, 48 + ROW * ranks, ranks, kib)
    return Picture(scene, _in_words(op, ranks, before, kib, result))


def _in_words(
    op: str, ranks: int, before: list[list[float]], kib: int, result: list[Moved] | None
) -> str:
    if result is None:
        return (
            f"{op} on {ranks} ranks: rank 0 starts with {_listed(before[0])}, rank 1 with "
            f"{_listed(before[1])}, in blocks of {kib} KiB. What will each rank hold? "
            "Predict, then run it."
        )
    answers = [f"rank {rank} {_listed(moved.after)}" for rank, moved in enumerate(result)]
    text = f"{op} ran on {ranks} real ranks (CPU, gloo). After it: {'; '.join(answers)}."
    sent = [moved.sent / 1024 for moved in result if moved.sent is not None]
    if len(sent) == ranks:
        text += (
            f" Sent by all ranks together: {sum(sent):,.0f} KiB; "
            f"the busiest sent {max(sent):,.0f} KiB. "
            f"One block is {kib} KiB."
        )
    return text


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "nothing"


def _sent(moved: Moved) -> str:
    return "" if moved.sent is None else f"sent {moved.sent / 1024:,.0f} KiB"


def _row(
    scene: Scene, left: float, top: float, values: Sequence[float], owner: dict[float, int]
) -> None:
    if not values:
        scene.text(left, top + 14, "nothing", anchor="start")
    for at, value in enumerate(values):
        x = left + CELL * at
        rank = owner.get(value)
        fill = "#ffffff" if rank is None else FILLS[rank]
        scene.box(x, top, CELL - 3, ROW - 6, fill=fill, hatch=rank is None)
        text = f"{value:g}"
        if rank is None:  # a number needs a ground of its own on stripes
            wide = min(CELL - 7, 4 + 7.5 * len(text))
            scene.box(x + (CELL - 3 - wide) / 2, top + 5, wide, 18, fill="#ffffff", line=0.0)
        scene.text(x + (CELL - 3) / 2, top + 14, text, color="#000000")


def _legend(scene: Scene, left: float, top: float, ranks: int, kib: int) -> None:
    for rank in range(ranks):
        scene.box(left + 96 * rank, top - 7, 14, 14, fill=FILLS[rank])
        scene.text(left + 96 * rank + 20, top, f"from rank {rank}", anchor="start")
    x = left + 96 * ranks
    scene.box(x, top - 7, 14, 14, fill="#ffffff", hatch=True)
    scene.text(x + 20, top, "from several", anchor="start")
    scene.text(x + 100, top, f"each box: {kib} KiB", anchor="start", color=GREY)


def explorable(op: str = "all_reduce", ranks: int = 3, count: int = 2, kib: int = 64) -> Explorable:
    """Choose a call, predict what each rank will hold, and run it."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "op": Choice("call", op, OPS),
        "ranks": Slider("ranks", ranks, 2, 4),
        "count": Slider("blocks per rank or part", count, 1, 2),
        "kib": Choice("KiB of a block", kib, [1, 64, 1024]),
    }
    return Explorable("Collectives: before and after, on real ranks", controls, draw, run=run)
