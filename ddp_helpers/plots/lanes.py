"""A run as it happened: a lane a rank, time goes down, and each exchange is a block.

A block reaches from the rank's call to the call of the last rank that takes part: who comes early
waits. Rows are made where something happens, so the picture is not to scale; times stand beside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ddp_helpers.evidence.records import (
    ALL,
    ALONE,
    RECV,
    SEND,
    Frame,
    RankResult,
    TimedCall,
    innermost_user_frame,
    name_ranks,
)
from ddp_helpers.plots.colors import BLUE, GREY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.words import columns, shown

SUMS = ("all_reduce", "reduce", "broadcast")  # where all bring as much
ROW, HEAD, MARGIN = 40.0, 34.0, 66.0  # pixels
WIDEST, NARROWEST = 230.0, 150.0
SAME_TIME = 0.002  # seconds: calls that are no further apart share a row
MOST_ROWS = 30
LETTER = 6.8  # pixels of a letter of 12 pixels


@dataclass(eq=False)
class _Block:
    """What stands in a lane: a call, or the wait for one that had begun before."""

    rank: int
    call: TimedCall
    at: float
    is_wait: bool = False
    row: int = 0
    last_row: int = 0


@dataclass(eq=False)
class _Meeting:
    """The calls that belong together."""

    calls: list[tuple[int, TimedCall]] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)
    waiting: list[_Block] = field(default_factory=list)

    @property
    def absent(self) -> list[int]:
        """Ranks that should have come, and for which others wait."""
        first = self.calls[0][1]
        here = {rank for rank, _ in self.calls}
        others = {first.peer} if first.kind in (SEND, RECV) else set(first.group)
        waits = any(call.done is None and call.waited is not None for _, call in self.calls)
        return sorted(others - here - {None}) if waits else []  # type: ignore[arg-type]

    @property
    def disagrees(self) -> bool:
        """Some brought another call, or another number of bytes to one that adds up."""
        first = self.calls[0][1]
        if first.kind != ALL:
            return False
        names = {call.name for _, call in self.calls}
        sizes = {call.bytes for _, call in self.calls}
        return len(names) > 1 or (len(sizes) > 1 and first.name in SUMS)

    @property
    def began(self) -> float:
        """When the last one came."""
        return max(call.began for _, call in self.calls)


def draw_run(ranks: Sequence[RankResult]) -> tuple[Scene, str]:
    """The picture of a run, and what it shows in words.

    Args:
        ranks: what they left; their `calls` are drawn.
    """
    meetings = _meetings(ranks)
    times = _in_rows(ranks, meetings)
    first = max(0, len(times) - MOST_ROWS)
    lane = min(WIDEST, max(NARROWEST, (PAGE - MARGIN - 1) / len(ranks)))
    missing = list(_missing(meetings))
    rows = len(times) - first + 1 + bool(missing)  # in one stands how each rank ended
    scene = Scene(MARGIN + lane * len(ranks) + 1, HEAD + ROW * rows)
    picture = _Picture(scene, lane, first, len(times))
    picture.frame(times, ranks)
    for meeting in meetings.values():
        picture.link(meeting)
        for block in meeting.blocks:
            if block.last_row >= first:
                picture.block(block, meeting)
    for rank in ranks:
        picture.end(rank)
    for number, name in missing:
        picture.missing(number, name)
    return scene, _in_words(ranks, missing)


def row_times(ranks: Sequence[RankResult]) -> list[float]:
    """When each row of `draw_run()`'s picture begins, in seconds from the first exchange on."""
    times = _in_rows(ranks, _meetings(ranks))
    return times[max(0, len(times) - MOST_ROWS) :]


def _key(rank: int, call: TimedCall) -> tuple:
    if call.kind == ALL:
        return ALL, call.group, call.place
    if call.kind == SEND:
        return SEND, rank, call.peer, call.place
    if call.kind == RECV:
        return SEND, call.peer, rank, call.place
    return ALONE, rank, call.place


def _meetings(ranks: Sequence[RankResult]) -> dict[tuple, _Meeting]:
    found: dict[tuple, _Meeting] = {}
    for rank in ranks:
        for call in rank.calls:
            found.setdefault(_key(rank.rank, call), _Meeting()).calls.append((rank.rank, call))
    return found


def _in_rows(ranks: Sequence[RankResult], meetings: dict[tuple, _Meeting]) -> list[float]:
    """Give each meeting its blocks, with their rows; the time of each row, in seconds from the
    first one on."""
    blocks: list[_Block] = []
    for rank in ranks:
        for call in rank.calls:
            blocks.append(_Block(rank.rank, call, call.began))
            if call.waited not in (None, call.began):
                blocks.append(_Block(rank.rank, call, call.waited, is_wait=True))
    blocks.sort(key=lambda block: block.at)
    times: list[float] = []
    taken: dict[int, int] = {}  # the last row in which a rank's lane is in use
    for block in blocks:
        meeting = meetings[_key(block.rank, block.call)]
        apart = not times or block.at > times[-1] + SAME_TIME
        meeting.blocks.append(block)
        if apart or taken.get(block.rank, -1) >= len(times) - 1:
            times.append(block.at)
        block.row = block.last_row = taken[block.rank] = len(times) - 1
        if not block.is_wait and block.call.began == meeting.began:
            for other in meeting.waiting:  # for this one, the last to come
                if other.call.done is None or other.call.done >= block.at:  # a sender may go on
                    other.last_row = taken[other.rank] = block.row
        if block.is_wait or block.call.waited == block.call.began:
            meeting.waiting.append(block)
    start = times[0] if times else 0.0
    for block in blocks:
        if block.call.done is None and block.call.waited is not None:
            block.last_row = len(times) - 1
    return [time - start for time in times]


def _missing(meetings: dict[tuple, _Meeting]) -> Iterator[tuple[int, str]]:
    """The ranks that did not come, each with what others waited for first."""
    told = set()
    for meeting in sorted(meetings.values(), key=lambda meeting: meeting.began):
        first = meeting.calls[0][1]
        name = {SEND: "recv", RECV: "send"}.get(first.kind, first.name)
        for rank in meeting.absent:
            if rank not in told:
                told.add(rank)
                yield rank, name


class _Picture:
    def __init__(self, scene: Scene, lane: float, first: int, rows: int) -> None:
        self.scene, self.lane, self.first, self.rows = scene, lane, first, rows

    def frame(self, times: Sequence[float], ranks: Sequence[RankResult]) -> None:
        """The lanes' names, and the rows' times."""
        for rank in ranks:
            x = self._x(rank.rank)
            self.scene.line(x, 4, x, self.scene.height - 4, width=0.5)
            self.scene.line(x + self.lane, 4, x + self.lane, self.scene.height - 4, width=0.5)
            self.scene.text(x + self.lane / 2, 14, f"rank {rank.rank}", size=13, bold=True)
        for row, time in enumerate(times[self.first :]):
            y = HEAD + ROW * row + 12
            self.scene.text(MARGIN - 8, y, _time(time), anchor="end", color=GREY)

    def block(self, block: _Block, meeting: _Meeting) -> None:
        call, x, y = block.call, self._x(block.rank) + 6, self._y(max(block.row, self.first))
        height = self._y(block.last_row) - y + ROW - 8
        stuck = call.done is None and call.waited is not None
        wrong = stuck or meeting.disagrees
        edge = VERMILLION if wrong else GREY if call.kind == ALONE else BLUE
        self.scene.box(x, y, self.lane - 12, height, edge=edge, line=2 if wrong else 1.2)
        called = f"wait for {call.name}" if block.is_wait else f"{call.name}{_about(call)}"
        self._text(x, y + 10, called)
        self._text(x, y + 24, _place(call))
        if block.last_row > block.row:
            waited = meeting.began - block.at
            told = "never done" if stuck else f"waits {_time(waited)}"
            self._text(x, y + height - 10, told, None if stuck else GREY)

    def link(self, meeting: _Meeting) -> None:
        """A line between the calls that meet."""
        shown = [b for b in meeting.blocks if not b.is_wait and b.row >= self.first]
        lanes = sorted({block.rank for block in shown})
        if len(lanes) < 2 or meeting.absent:
            return
        last = max(block.row for block in shown)
        by_lane = {block.rank: min(last, block.last_row) for block in shown}
        wrong = meeting.disagrees
        for left, right in itertools.pairwise(lanes):  # aslant where one has gone on since
            ends = [self._y(by_lane[lane]) + (ROW - 8) / 2 for lane in (left, right)]
            color, width = (VERMILLION, 2.0) if wrong else (BLUE, 1.5)
            if right - left > 1 and not wrong:  # it crosses the words of the lanes between
                color, width = GREY, 0.7
            x, to_x = self._x(left) + self.lane - 6, self._x(right) + 6
            self.scene.line(x, ends[0], to_x, ends[1], color=color, width=width, dashed=wrong)

    def end(self, rank: RankResult) -> None:
        told, place = _end(rank)
        x, y = self._x(rank.rank) + 6, self._y(self.rows)
        color = GREY if rank.ok else None
        self._text(x, y + 10, told, color)
        self._text(x, y + 24, place, color)

    def missing(self, rank: int, name: str) -> None:
        x, y = self._x(rank) + 6, self._y(self.rows + 1)
        width = self.lane - 12
        for ends in _edges(x, y, width, ROW - 12):
            self.scene.line(*ends, color=VERMILLION, width=2, dashed=True)
        text = f"{name} is missing"
        self.scene.text(x + width / 2, y + 14, text, bold=True)

    def _text(self, x: float, y: float, text: str, color: str | None = None) -> None:
        most, told = int((self.lane - 24) / LETTER), shown(text)
        while columns(told) > most:
            told = f"{told.removesuffix('…')[:-1]}…"
        look = {"color": color} if color else {}
        self.scene.text(x + 6, y, told, anchor="start", **look)  # type: ignore[arg-type]

    def _x(self, rank: int) -> float:
        return MARGIN + self.lane * rank

    def _y(self, row: int) -> float:
        return HEAD + ROW * (row - self.first)


def _edges(x: float, y: float, width: float, height: float) -> list[tuple[float, ...]]:
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
    return [(*one, *other) for one, other in itertools.pairwise(corners)]


def _about(call: TimedCall) -> str:
    """What a call brings, and to whom."""
    word = {SEND: "to", RECV: "from"}.get(call.kind, "of")
    peer = f" {shown(f'{word} {call.peer}')}" if call.peer is not None else ""
    return f"{peer}, {size(call.bytes)}" if call.bytes else peer


def size(count: int) -> str:
    """Bytes as a reader says them."""
    for unit, many in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= many:
            return f"{count / many:.3g} {unit}"
    return f"{count} B"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"


def _place(call: TimedCall) -> str:
    return _short(call.frame) if call.frame.filename else ""


def _short(frame: Frame) -> str:
    return f"{frame.filename.rpartition('/')[2]}, {shown(f'line {frame.line}')}"


def _end(rank: RankResult) -> tuple[str, str]:
    """How a rank ended, and where."""
    if rank.ok:
        return "returned", ""
    if rank.error and not rank.stack:  # with a stack it hung, and this came of its end
        frame = rank.error.user_frame
        return f"raised {rank.error.type_name}", _short(frame) if frame else ""
    if rank.exit_code is not None:
        return "its process ended", f"exit code {rank.exit_code}"
    frame = innermost_user_frame(rank.stack)
    return "was ended", f"at {_short(frame)}" if frame else ""


def _in_words(ranks: Sequence[RankResult], missing: Sequence[tuple[int, str]]) -> str:
    lines = []
    for rank in ranks:
        calls = ", ".join(call.name for call in rank.calls[-MOST_ROWS:]) or "no exchange"
        lines.append(f"Rank {rank.rank}: {calls}; {' '.join(_end(rank)).strip()}.")
    absent: dict[str, list[int]] = {}
    for number, name in missing:
        absent.setdefault(name, []).append(number)
    lines += [f"Missing: {name} of {name_ranks(numbers)}." for name, numbers in absent.items()]
    return " ".join(lines)
