"""What a reader sees while ranks run: tagged lines, or a panel for each rank."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ddp_helpers.words import shown

PER_SECOND = 10
LINES_OF_A_PANEL = 8
POINTS_OF_A_SPARKLINE = 120
LONGEST_LINE = 200  # letters of a line that a panel shows
GREY, BLUE = "#767676", "#0072B2"


class View(Protocol):
    """How a launch shows itself. Calls come from the launching thread only."""

    def output(self, rank: int, lines: list[str]) -> None:
        """A rank printed whole lines."""

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        """A rank told how far it is; a loss that is no finite number comes as a text (`nan`)."""

    def end(self, rank: int, how: str) -> None:
        """A rank ended: `done`, `failed` or `ended`."""

    def tick(self) -> None:
        """Time has passed; called at least ten times a second while ranks run."""

    def close(self) -> None:
        """All ranks have ended."""

    def is_stop_asked(self) -> bool:
        """True once the reader has pressed the view's own stop button."""


class Silenceable:
    """The reader's view, which can be switched off for a while; without a view it is always off."""

    def __init__(self, view: View | None) -> None:
        self.given = view
        self.shown = view

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Drop what ranks print within the block."""
        self.shown = None
        try:
            yield
        finally:
            self.shown = self.given


def show(text: str) -> None:
    """Print a text at once; letters that the terminal lacks must not end a run (`LC_ALL=C`)."""
    if sys.stdout is not None:  # a shell can close it: `>&-`
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except OSError as error:  # a full disk, or a reader that has left (`| head -1`)
            text = f"the standard output can't be written: {error.strerror}"
            raise type(error)(error.errno, text) from None


class TextView:
    """Plain lines tagged with their rank: the same in JupyterLab, a terminal or a log."""

    def output(self, rank: int, lines: list[str]) -> None:
        # one write for a batch of lines, so that ranks' lines never mix
        show("".join(f"[rank {rank}] {line}\n" for line in lines))

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        pass

    def end(self, rank: int, how: str) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass

    def is_stop_asked(self) -> bool:
        return False


@dataclass
class _Panel:
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_OF_A_PANEL))
    losses: list[float] = field(default_factory=list)
    step: int = 0
    total: int | None = None
    how: str = "running"


class PanelView:
    """One panel per rank in a notebook: output, steps, loss; redrawn ten times a second.

    The last state stays in the notebook as plain HTML, also for readers without a kernel.
    """

    def __init__(self, nprocs: int) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._panels = [_Panel() for _ in range(nprocs)]
        self._drawn_at = 0.0
        self._dirty = False
        self._stop = _StopButton()
        self._display = display(HTML(self._draw()), display_id=True)

    def output(self, rank: int, lines: list[str]) -> None:
        self._panels[rank].lines.extend(lines)
        self._dirty = True

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        panel = self._panels[rank]
        panel.step, panel.total = step, total
        if isinstance(loss, float):
            panel.losses.append(loss)
            if len(panel.losses) > 2 * POINTS_OF_A_SPARKLINE:
                del panel.losses[::2]  # the whole run stays in sight, at half the detail
        self._dirty = True

    def end(self, rank: int, how: str) -> None:
        self._panels[rank].how = how
        self._dirty = True

    def tick(self) -> None:
        if self._dirty and time.monotonic() > self._drawn_at + 1 / PER_SECOND:
            self._redraw()

    def is_stop_asked(self) -> bool:
        return self._stop.pressed

    def close(self) -> None:
        self._stop.remove()
        self._redraw()

    def _redraw(self) -> None:
        self._display.update(self._html(self._draw()))
        self._drawn_at, self._dirty = time.monotonic(), False

    def _draw(self) -> str:
        panels = "".join(_panel_html(rank, panel) for rank, panel in enumerate(self._panels))
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{panels}</div>'


class _StopButton:
    """Ends the ranks of one launch, while JupyterLab's own button interrupts the whole kernel.

    A click arrives although the cell still runs: JupyterLab sends it to a subshell of the kernel.
    Without subshells (an older kernel), or without ipywidgets, there is no button.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._display = None
        shell = sys.modules["IPython"].get_ipython()
        # without subshells a click waits until the cell has ended: too late to stop it
        if not getattr(shell.kernel, "_supports_kernel_subshells", False):
            return
        with contextlib.suppress(ImportError):
            from IPython.display import display
            from ipywidgets import Button

            told = {"description": shown("Stop"), "tooltip": shown("End these ranks")}
            self._button = Button(icon="stop", **told)
            self._button.on_click(self._press)
            self._display = display(self._button, display_id=True)
            # a widget remembers the shell that drew it, and ipykernel 7.4 sends its clicks there:
            # to the main one, which is busy with this very launch. Without that note, JupyterLab
            # chooses, and takes a subshell
            vars(self._button.comm).pop("_reply_subshell_id", None)

    def _press(self, _: object) -> None:
        # in the subshell's thread: only leave word, the launching thread looks and acts
        self.pressed = True

    def remove(self) -> None:
        """Take it away; a saved notebook must not show a button that can't be pressed."""
        if self._display is not None:
            self._display.update({"text/plain": ""}, raw=True)
            self._button.close()
            self._display = None


def _panel_html(rank: int, panel: _Panel) -> str:
    steps = f"step {panel.step}" + (f" of {panel.total}" if panel.total else "")
    loss = f", loss {panel.losses[-1]:.4g}" if panel.losses else ""
    about = shown(f"{panel.how}, {steps}{loss}" if panel.step else panel.how)
    lines = html.escape("\n".join(line[:LONGEST_LINE] for line in panel.lines))
    share = min(1.0, panel.step / panel.total) if panel.total else 0.0
    return (
        f'<div style="flex:1 1 260px;border:1px solid {GREY};border-radius:4px;padding:6px 8px">'
        f"<b>rank {rank}</b> {about}"
        f'<div role="progressbar" aria-valuenow="{share:.0%}" style="height:4px;margin:4px 0;'
        f'background:linear-gradient(90deg,{BLUE} {share:.1%},transparent {share:.1%})"></div>'
        f"{_sparkline(panel.losses)}"
        f'<pre style="margin:0;font-size:85%;white-space:pre-wrap">{lines}</pre></div>'
    )


def _sparkline(losses: list[float]) -> str:
    """The loss so far as a small line; an SVG, so that it stays sharp and needs no script."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    points = " ".join(
        f"{200 * i / (len(losses) - 1):.1f},{28 - 26 * (loss - low) / span:.1f}"
        for i, loss in enumerate(losses)
    )
    told = shown(f"loss from {losses[0]:.4g} to {losses[-1]:.4g}")
    return (
        f'<svg role="img" aria-label="{told}" '
        f'viewBox="0 0 200 30" style="width:100%;height:30px" preserveAspectRatio="none">'
        f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="1.5"/></svg>'
    )
