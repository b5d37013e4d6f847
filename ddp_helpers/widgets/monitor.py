"""A training on real ranks, watched while it runs: how far each rank is, and for how long it waits.

A rank works until DDP has all gradients of a step, and then waits for those of the others: until
its backward has returned. A loss of one batch jumps from step to step, so a mean of ten is drawn.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import FILLS, GREY, LINES
from ddp_helpers.plots.scene import PAGE, Scene, WordsLook
from ddp_helpers.widgets.base import Explorable, Live
from ddp_helpers.widgets.controls import Choice, Slider

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Picture

GUESSING = 2.4  # nats, just above ln 10: the loss of a model that guesses among ten digits
PER_SECOND = 8  # redraws
MOST_POINTS = 120
WINDOW = 2.0  # seconds over which the throughput is taken
MEAN_OF = 10  # steps
TOLD = re.compile(r"worked ([\d.]+) ms, waited ([\d.]+) ms a step")
LEFT, WIDE, ROW = 60, 270, 82  # pixels of the bars


@dataclass
class OfRank:
    """What one rank has told so far."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    """(seconds on the monotonic clock, steps done)."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    total: int = 0
    how: str = "starts"
    works: float = 0.0
    """Milliseconds of a step, the mean of the last few."""
    waits: float = 0.0

    @property
    def step(self) -> int:
        return self.steps[-1][1] if self.steps else 0

    def steps_per_second(self) -> float:
        """Over the last two seconds; 0 before the second report."""
        if len(self.steps) < 2:
            return 0.0
        end, done = self.steps[-1]
        start, before = next(old for old in self.steps if old[0] >= end - WINDOW)
        return (done - before) / (end - start) if end > start else 0.0

    def tell(self, now: float, step: int, total: int | None, loss: float | str | None) -> None:
        """A report has come; the whole run stays in sight, at half the detail if it is long."""
        self.steps.append((now, step))
        self.total, self.how = total or 0, "trains"
        if isinstance(loss, float):
            self.losses.append((step, loss))
        for told in (self.steps, self.losses):
            if len(told) > 2 * MOST_POINTS:
                del told[1:-1:2]


@dataclass
class Watch:
    """A `View` of `launch()` that keeps what the ranks tell, and calls back when there is news."""

    ranks: list[OfRank]
    news: Callable[[], object] | None = None
    stop: bool = False
    failed: str = ""
    clock: Callable[[], float] = time.monotonic
    """Seconds; of a run that is replayed, those of that run."""
    _drawn_at: float = 0.0

    def output(self, rank: int, lines: list[str]) -> None:
        for found in filter(None, map(TOLD.search, lines)):
            self.ranks[rank].works, self.ranks[rank].waits = map(float, found.groups())

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        self.ranks[rank].tell(self.clock(), step, total, loss)

    def end(self, rank: int, how: str) -> None:
        self.ranks[rank].how = how

    def tick(self) -> None:
        if self.news and time.monotonic() > self._drawn_at + 1 / PER_SECOND:
            self._drawn_at = time.monotonic()
            self.news()

    def close(self) -> None:
        pass

    def is_stop_asked(self) -> bool:
        return self.stop


def train(epochs: int, batch_size: int, slow_ms: int) -> float:
    """Train on the digits; rank 1 sleeps `slow_ms` in each step. Returns the last loss."""
    import torch
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.utils.data import DistributedSampler

    from ddp_helpers.data.digits import load_mnist_5k
    from ddp_helpers.data.loaders import make_train_loader
    from ddp_helpers.group.lifetime import process_group
    from ddp_helpers.model import SmallCNN
    from ddp_helpers.ranks.progress import report

    ready = 0.0
    losses: deque[float] = deque(maxlen=MEAN_OF)
    times: deque[tuple[float, float]] = deque(maxlen=MEAN_OF)

    def note(state, bucket):
        nonlocal ready
        ready = time.perf_counter()  # after the last bucket nothing is left but to wait
        return allreduce_hook(state, bucket)

    with process_group() as pg:
        torch.manual_seed(0)
        ddp = torch.nn.parallel.DistributedDataParallel(SmallCNN().to(pg.device))
        ddp.register_comm_hook(None, note)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.02, momentum=0.9)
        loader = make_train_loader(
            load_mnist_5k(), batch_size, rank=pg.rank, world_size=pg.world_size
        )
        sampler = loader.sampler
        assert isinstance(sampler, DistributedSampler)  # of every make_train_loader
        step, total, start = 0, epochs * len(loader), time.perf_counter()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for images, labels in loader:
                time.sleep(slow_ms / 1000 if pg.rank == 1 else 0)
                logits = ddp(images.to(pg.device))
                loss = torch.nn.functional.cross_entropy(logits, labels.to(pg.device))
                optimizer.zero_grad()
                loss.backward()
                losses.append(loss.item())
                back = time.perf_counter()
                optimizer.step()
                step += 1
                times.append((ready - start, back - ready))
                start = back
                report(step=step, total=total, loss=mean(losses))
                if step % 5 == 0 or step == total:
                    worked, waited = (1000 * mean(some) for some in zip(*times, strict=True))
                    print(f"worked {worked:.1f} ms, waited {waited:.1f} ms a step")
        return losses[-1]


def draw(ranks: int, epochs: int, batch_size: int, slow_ms: int, result: Watch | None) -> Picture:
    """Progress and waits on the left, the losses on the right."""
    from ddp_helpers.widgets.base import Picture

    told = result.ranks if result else [OfRank(how="not started") for _ in range(ranks)]
    scene = Scene(PAGE, max(204, 30 + ROW * len(told)))
    scene.text(LEFT, 12, "steps done; a step, and the wait in it", **_HEAD)
    longest = max(one.works + one.waits for one in told) or 1.0
    for rank, one in enumerate(told):
        _progress(scene, 30 + ROW * rank, rank, one, batch_size)
        if one.works:
            _step(scene, 30 + ROW * rank + 40, rank, one, longest)
    _losses(scene, told)
    if result is None:
        words = (
            f"Not started. ranks: {ranks}, epochs: {epochs}, batches of {batch_size}, "
            f"rank 1 sleeps {slow_ms} ms a step. "
            "Predict: if rank 1 is slow in each step, how fast is rank 0?"
        )
        return Picture(scene, words)
    return Picture(scene, _in_words(told, batch_size, slow_ms, result))


def _in_words(told: list[OfRank], batch_size: int, slow_ms: int, result: Watch) -> str:
    if result.failed:
        return result.failed
    ranks = [
        f"rank {rank} {one.how}, step {one.step} of {one.total}"
        + (f", {batch_size * one.steps_per_second():,.0f} digits/s" if one.step else "")
        + (f", loss {one.losses[-1][1]:.3f}" if one.losses else "")
        + (f", waits {one.waits:.1f} of {one.works + one.waits:.1f} ms" if one.works else "")
        for rank, one in enumerate(told)
    ]
    late = f" Rank 1 sleeps {slow_ms} ms in each step." if slow_ms and len(told) > 1 else ""
    return f"{'Stopped. ' if result.stop else ''}{'; '.join(ranks)}.{late}"


def _progress(scene: Scene, top: float, rank: int, one: OfRank, batch_size: int) -> None:
    scene.text(LEFT - 8, top + 8, f"rank {rank}", anchor="end")
    scene.box(LEFT, top, WIDE, 16)
    share = one.step / one.total if one.total else 0.0
    scene.box(LEFT, top, WIDE * share, 16, fill=FILLS[rank % len(FILLS)])
    speed = f", {batch_size * one.steps_per_second():,.0f} digits/s" if one.step else ""
    text = f"{one.how}: step {one.step} of {one.total or '?'}{speed}"
    scene.text(LEFT, top + 27, text, anchor="start")


def _step(scene: Scene, top: float, rank: int, one: OfRank, longest: float) -> None:
    """How much of a step is work, and how much is waiting for the others."""
    works, waits = (WIDE * ms / longest for ms in (one.works, one.waits))
    scene.box(LEFT, top, works, 12, fill=FILLS[rank % len(FILLS)])
    scene.box(LEFT + works, top, waits, 12, fill="#ffffff", hatch=True)
    text = f"works {one.works:.1f} ms, waits {one.waits:.1f} ms"
    scene.text(LEFT, top + 22, text, anchor="start", bold=one.waits > one.works)


def _losses(scene: Scene, told: list[OfRank]) -> None:
    left, wide, top, high = 388, 296, 30, 120
    head = f"loss on its own batches, mean of {MEAN_OF} steps"
    scene.text(left, 12, head, **_HEAD)
    points = [point for one in told for point in one.losses]
    last = max((one.total for one in told), default=0) or 1
    peak = max([GUESSING, *(loss for _, loss in points)])
    for share in (0.0, 0.5, 1.0):
        y = top + high * (1 - share)
        scene.line(left, y, left + wide, y, color=GREY, width=0.5)
        scene.text(left - 6, y, f"{peak * share:.1f}", anchor="end")
    scene.axis(left, top + high, wide, last, "step")
    for rank, one in enumerate(told):
        few = one.losses[:: max(1, len(one.losses) // MOST_POINTS)]
        places = [(left + wide * step / last, top + high * (1 - loss / peak)) for step, loss in few]
        for (x, y), (to_x, to_y) in itertools.pairwise(places):
            color, dashed = LINES[rank % len(LINES)], rank % 2 == 1
            scene.line(x, y, to_x, to_y, color=color, width=1.5, dashed=dashed)


_HEAD: WordsLook = {"anchor": "start", "bold": True, "size": 13}


class Monitor(Live):
    """Starts a training in the background, so that its controls and its stop button stay alive."""

    result: Watch | None

    def __init__(self, explorable: Explorable) -> None:
        from ipywidgets import Button

        super().__init__(explorable)
        self.stop_button = Button(
            description="Stop", icon="stop", tooltip="End these ranks", disabled=True
        )
        self.stop_button.on_click(lambda _: self.stop())
        row = self.widget.children[1]
        row.children = (*row.children, self.stop_button)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Start; returns at once."""
        if self._thread is None or not self._thread.is_alive():
            self._values = self.values
            self.result = Watch([OfRank() for _ in range(self._values["ranks"])], self.redraw)
            self._thread = threading.Thread(target=self._train, args=(self.result,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the ranks; the picture stays."""
        if self.result is not None:
            self.result.stop = True

    def wait(self, seconds: float = 60) -> None:
        """Until the ranks have ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _train(self, watch: Watch) -> None:
        self.button.disabled, self.stop_button.disabled = True, False
        watched(**self._values, watch=watch)
        self.button.disabled, self.stop_button.disabled = False, True
        self.redraw()

    def _changed(self, name: str, change: object) -> None:
        """A run that goes on stays in sight; the controls are for the next one."""
        if self._thread is None or not self._thread.is_alive():
            super()._changed(name, change)

    def picture(self) -> Picture:
        """What the ranks have told; of a run that goes on, with the values it began with."""
        running = self.result is not None
        return draw(**(self._values if running else self.values), result=self.result)


def watched(
    ranks: int, epochs: int, batch_size: int, slow_ms: int, watch: Watch | None = None
) -> Watch:
    """Train, and return what the ranks told; it says so if they failed."""
    from ddp_helpers.ranks.conclusion import LaunchStopped
    from ddp_helpers.ranks.launcher import launch

    watch = watch or Watch([OfRank() for _ in range(ranks)])
    given = (epochs, batch_size, slow_ms)
    try:
        launch(train, ranks, args=given, echo=False, live=watch, timeout=300)
    except LaunchStopped:
        watch.stop = True
    except Exception as error:
        watch.failed = f"{type(error).__name__}: {error}"
    return watch


def explorable(
    ranks: int = 2, epochs: int = 2, batch_size: int = 64, slow_ms: int = 0
) -> Explorable:
    """Start a training, watch it, slow one rank down, and stop it."""
    controls = {
        "ranks": Slider("ranks", ranks, 1, 4),
        "epochs": Slider("epochs", epochs, 1, 10),
        "batch_size": Choice("batch size per rank", batch_size, [16, 32, 64, 128]),
        "slow_ms": Slider("rank 1 sleeps (ms a step)", slow_ms, 0, 100, step=10),
    }
    title, label = "A training, watched live", "Train on real ranks"
    return Explorable(title, controls, draw, run=watched, run_label=label, shown_by=Monitor)
