"""What real ranks did for some settings, as JSON: written on a real machine, read in a page."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ddp_helpers.widgets.base import Explorable
from ddp_helpers.widgets.controls import Choice, Control, Slider, Steps

FOLDER = Path(__file__).with_name("recorded")
CLASSES = {
    "Moved": "ddp_helpers.widgets.collectives",
    "Part": "ddp_helpers.widgets.one_step",
    "Step": "ddp_helpers.widgets.one_step",
    "Collective": "ddp_helpers.timeline.records",
    "StepTimeline": "ddp_helpers.timeline.records",
    "RankTimeline": "ddp_helpers.timeline.records",
    "Film": "film",
    "Seen": "ddp_helpers.faults._catalogue",
    "LaunchResult": "ddp_helpers.evidence.records",
    "RankResult": "ddp_helpers.evidence.records",
    "RankError": "ddp_helpers.evidence.records",
    "Frame": "ddp_helpers.evidence.records",
    "TimedCall": "ddp_helpers.evidence.records",
}
"""Records that a result is made of, and where they are defined."""
KIND = "is a"


def encode(result: Any, digits: int = 3) -> Any:
    """A result as what JSON can hold."""
    if is_dataclass(result):
        given = {each.name: (getattr(result, each.name), each.default) for each in fields(result)}
        told = {
            name: encode(value, digits) for name, (value, usual) in given.items() if value != usual
        }
        return {KIND: type(result).__name__, **told}
    if isinstance(result, Mapping):
        return {key: encode(value, digits) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [encode(each, digits) for each in result]
    return round(result, digits) if isinstance(result, float) else result


def decode(told: Any) -> Any:
    """The result again; what was a tuple or a list is a tuple."""
    if isinstance(told, list):
        return tuple(decode(each) for each in told)
    if not isinstance(told, dict):
        return told
    found = {key: decode(value) for key, value in told.items() if key != KIND}
    if KIND not in told:
        return found
    return getattr(importlib.import_module(CLASSES[told[KIND]]), told[KIND])(**found)


class Recording:
    """The results of one explorable, by the values of the controls that they depend on."""

    def __init__(self, name: str) -> None:
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        self.about: str = found["recorded"]
        self.grid: dict[str, list] = found["grid"]
        self._results: dict[str, Any] = found["results"]
        self._read: dict[str, Any] = {}

    def result(self, values: Mapping[str, Any]) -> Any:
        """What the ranks did at these values."""
        setting = key(self.grid, values)
        if setting not in self._read:
            self._read[setting] = decode(self._results[setting])
        return self._read[setting]

    def limit(self, explorable: Explorable) -> Explorable:
        """The same explorable, its controls kept to what was recorded."""
        controls = dict(explorable.controls)
        for name, values in self.grid.items():
            controls[name] = limited(controls[name], values)
        return replace(explorable, controls=controls)


def key(grid: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The name of a setting in the file."""
    return json.dumps([values[name] for name in grid])


def limited(control: Control, values: list) -> Control:
    """A control that stands at one of some values only."""
    at = control.value if control.value in values else values[0]
    if isinstance(control, Slider):
        if values == list(range(control.least, control.most + 1, control.step)):
            return control
        return Steps(control.label, at, values)
    assert isinstance(control, Choice)  # a box that is ticked or not is recorded for both
    return type(control)(control.label, at, [each for each in control.pairs if each[1] in values])
