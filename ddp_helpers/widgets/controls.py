"""What a reader can move: said once, for JupyterLab's widgets and for a page's plain HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ipywidgets import DOMWidget


@dataclass(frozen=True)
class Control:
    """What every kind has: its label, and where it stands."""

    label: str
    value: Any

    def widget(self) -> DOMWidget:
        """The same as an ipywidget."""
        raise NotImplementedError


@dataclass(frozen=True)
class Slider(Control):
    """Whole numbers from `least` to `most`."""

    least: int
    most: int
    step: int = 1

    def widget(self) -> DOMWidget:
        from ipywidgets import IntSlider

        given = {"value": self.value, "min": self.least, "max": self.most, "step": self.step}
        return IntSlider(**given, description=shown(self.label))


@dataclass(frozen=True)
class Choice(Control):
    """One of some values, picked from a list; a pair is what the list says, and the value."""

    options: Sequence[Any]

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        """For each option what the list says, and the value."""
        return [each if isinstance(each, tuple) else (str(each), each) for each in self.options]

    def said(self) -> list[Any]:
        """The options as the reader is to see them."""
        told = [(shown(label), value) for label, value in self.pairs]
        return list(self.options) if told == self.pairs else told

    def widget(self) -> DOMWidget:
        from ipywidgets import Dropdown

        return Dropdown(value=self.value, options=self.said(), description=shown(self.label))


@dataclass(frozen=True)
class Steps(Choice):
    """One of some values in their order, moved to along a slider."""

    def widget(self) -> DOMWidget:
        from ipywidgets import SelectionSlider

        return SelectionSlider(value=self.value, options=self.said(), description=shown(self.label))


@dataclass(frozen=True)
class Frames(Steps):
    """Moments one after another, which a reader can also let pass by."""

    seconds: float
    """From one to the next, while they pass."""


@dataclass(frozen=True)
class Tick(Control):
    """Yes or no."""

    def widget(self) -> DOMWidget:
        from ipywidgets import Checkbox

        return Checkbox(value=self.value, description=shown(self.label), indent=False)


def put(widget: DOMWidget, control: Control) -> None:
    """Make an ipywidget that is shown what `control` says: its bounds or options, and its value."""
    if isinstance(control, Slider):
        widget.min, widget.max = control.least, control.most
    elif isinstance(control, Choice) and list(widget.options) != control.said():
        widget.options = control.said()
    widget.value = control.value
