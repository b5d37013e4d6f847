"""What all explorables share: controls, a picture that follows them, and what stays behind.

An `Explorable` says what can be moved and draws; it needs nothing but Python, so the pages of the
course run it, too. A `Live` one shows it in a notebook.

A picture is replaced in one go inside an HTML widget, so nothing flickers, and its SVG is part of
the page, so it follows the theme. In a notebook that is read without a kernel, on GitHub or after
nbconvert, the same output holds the picture as PNG, and its words.
"""

from __future__ import annotations

import base64
import functools
import html
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ddp_helpers.plots.scene import Scene
from ddp_helpers.widgets.controls import Control, put
from ddp_helpers.widgets.player import Player
from ddp_helpers.words import columns, shown

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Picture:
    """What there is to see, and the same in words."""

    scene: Scene
    words: str
    """What the picture shows, for everybody: it stands below it, and is its alternative text."""
    detail: str = ""
    """More HTML below the words, such as a table."""


@dataclass(frozen=True)
class Explorable:
    """What can be moved, and how it is drawn."""

    title: str
    """What can be explored."""
    controls: Mapping[str, Control]
    """One for each argument of `draw`, by its name, as they stand at the start."""
    draw: Callable[..., Picture]
    """The picture for the controls' values; an explorable that runs ranks also gets `result`,
    which is None until they have run."""
    run: Callable[..., object] | None = None
    """With it there is a button, and the values of the controls go to real ranks."""
    run_label: str = "Run on real ranks"
    """What the button says."""
    known: Callable[[], object] | None = None
    """Asked once, in a notebook: the result that is there before the first run."""
    keeps: Collection[str] = ()
    """Names of controls that the result does not depend on: it stays when they move."""
    complete: bool = False
    """The picture says enough before the first run, so readers without a kernel get it as it is."""
    adjust: Callable[..., Mapping[str, Control]] | None = None
    """Called with the name of the control that moved, and all values: others that change with it,
    such as a slider that now ends elsewhere."""
    plays: str = ""
    """The name of the slider that a play button moves on, step by step."""
    shown_by: Callable[[Explorable], Live] | None = None
    """What shows it in a notebook, if that is more than `Live`."""

    def picture(self, values: Mapping[str, Any], result: object = None) -> Picture:
        """The picture for the controls' values.

        Raises:
            ValueError: they do not go together.
        """
        more = {"result": result} if self.run else {}
        return self.draw(**values, **more)


class Live:
    """An explorable in a notebook: its controls above a picture that follows them."""

    def __init__(self, explorable: Explorable) -> None:
        import ipywidgets

        self.explorable, self.title = explorable, shown(explorable.title)
        self.on_ranks = explorable.run
        self.result = explorable.known() if explorable.known else None
        self.keeps, self.complete = frozenset(explorable.keeps), explorable.complete
        self.controls = {name: each.widget() for name, each in explorable.controls.items()}
        self._busy = threading.Lock()
        self.view = ipywidgets.HTML(layout={"margin": "0"})
        self.status = ipywidgets.HTML(layout={"margin": "0"})
        for name, control in self.controls.items():
            control.style.description_width = "initial"
            if isinstance(control, ipywidgets.IntSlider | ipywidgets.SelectionSlider):
                control.layout.width = f"{210 + 8 * columns(control.description)}px"
            else:
                control.layout.width = "auto"
            control.observe(functools.partial(self._changed, name), "value")
        row = list(self.controls.values())
        if explorable.plays:
            self.player = Player(self.controls[explorable.plays])
            row.append(self.player.button)
        if explorable.run:
            self.button = ipywidgets.Button(
                description=shown(explorable.run_label),
                icon="play",
                tooltip=shown(f"{explorable.run_label}, with the values to the left"),
                button_style="primary",
                layout={"width": "auto"},
            )
            self.button.on_click(lambda _: self.run())
            row.append(self.button)
        flow = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 18px"}
        heading = ipywidgets.HTML(f"<b>{html.escape(self.title)}</b>")
        self.widget = ipywidgets.VBox(
            [heading, ipywidgets.Box(row, layout=flow), self.view, self.status]
        )
        self.widget.add_class("ddp-explorable")
        self.redraw()

    @property
    def values(self) -> dict[str, Any]:
        """What the controls say now: arguments of `draw` and `run`."""
        return {name: control.value for name, control in self.controls.items()}

    def picture(self) -> Picture:
        """The picture for the controls as they are."""
        return self.explorable.picture(self.values, self.result)

    def redraw(self) -> None:
        """Show the picture for the controls as they are; values that don't go together are told."""
        try:
            picture = self.picture()
        except ValueError as error:
            self.status.value = _status(f"Not possible: {error}")
            return
        self.view.value = picture.scene.svg(picture.words)
        self.status.value = _status(picture.words) + picture.detail

    def run(self) -> None:
        """Run on real ranks with the controls as they are, and show what came of it."""
        assert self.on_ranks is not None  # otherwise there is no button
        if not self._busy.acquire(blocking=False):
            return  # a second click while the ranks run
        self.button.disabled = True
        self.status.value = _status("The ranks run ...")
        try:
            self.result = self.on_ranks(**self.values)
            self.redraw()
        except Exception as error:  # in a callback nobody else would show it
            self.status.value = _status(f"{type(error).__name__}: {error}")
        finally:
            self.button.disabled = False
            self._busy.release()

    def _changed(self, name: str, _: object) -> None:
        if self.explorable.adjust:
            for other, control in self.explorable.adjust(name, **self.values).items():
                put(self.controls[other], control)
        if name not in self.keeps:
            self.result = None  # it belongs to other values
        self.redraw()

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> dict[str, object]:
        """The live widget, and for those without a kernel the picture and its words.

        They can't press the button: for them the ranks run now, if the picture needs it. A live
        reader predicts first.
        """
        live = self.widget._repr_mimebundle_() or {}
        picture = self.picture()
        if self.on_ranks and self.result is None and not self.complete:
            picture = self.explorable.picture(self.values, self.on_ranks(**self.values))
        return static_bundle(self.title, picture) | {
            kind: data for kind, data in live.items() if kind == WIDGET_VIEW
        }


def static_bundle(title: str, picture: Picture) -> dict[str, object]:
    """What a reader without a kernel gets: an image with alternative text, and the words."""
    from ddp_helpers.plots.style import png_bytes

    fig, words = picture.scene.figure(), shown(picture.words)
    png = base64.b64encode(png_bytes(fig, words)).decode("ascii")
    alt, width = html.escape(words), round(picture.scene.width)
    return {
        "text/html": (
            f'<div class="ddp-static"><b>{html.escape(shown(title))}</b><br><img alt="{alt}" '
            f'width="{width}" src="data:image/png;base64,{png}"><p>{alt}</p>{picture.detail}</div>'
        ),
        "image/png": png,
        "text/plain": words,
    }


def _status(words: str) -> str:
    """Text that screen readers speak when it changes."""
    lines = "<br>".join(html.escape(shown(words)).splitlines())
    return f'<div role="status" style="line-height:1.5;max-width:52em">{lines}</div>'
