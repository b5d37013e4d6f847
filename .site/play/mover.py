"""What a page asks its Python: an explorable's picture for the values that its controls have."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

from ddp_helpers.environment.report import Check, EnvironmentReport
from ddp_helpers.widgets.base import Explorable
from ddp_helpers.widgets.controls import Choice, Control, Slider
from ddp_helpers.widgets.machine_room import Room

RECORDED = Path(__file__).with_name("recorded")
MOVING = ("ring", "sampler", "accumulation", "planner", "memory", "ladder", "machine_room")
"""Those that need no ranks to be drawn, as they follow each other on their page."""
explorables: dict[str, Explorable] = {}


def load(name: str) -> Explorable:
    """An explorable by its name, made once."""
    if name not in explorables:
        module = importlib.import_module(f"ddp_helpers.widgets.{name}")
        explorables[name] = module.explorable()
    return explorables[name]


def warm_up() -> None:
    """Draw each once, and what takes long for all its values: a page starts with what that left."""
    for name in MOVING:
        explorable = load(name)
        values = {key: control.value for key, control in explorable.controls.items()}
        explorable.picture(values, result_of(name))
    rung, shown = load("ladder").controls.values()
    for values in itertools.product(range(rung.least, rung.most + 1), shown.options):
        load("ladder").draw(*values)  # compares two files, and keeps it


def move(name: str, stands: str, moved: str) -> str:
    """The picture after a move, as JSON for the page.

    Args:
        stands: where each control stands, as JSON: a number, the place among its options, or a
            truth value.
        moved: the names of the controls that moved since the last picture, with commas.
    """
    explorable = load(name)
    controls = dict(explorable.controls)
    places = json.loads(stands)
    values = {each: value_of(controls[each], at) for each, at in places.items()}
    changed: dict[str, Control] = {}
    for each in moved.split(",") if explorable.adjust else ():
        now = explorable.adjust(each, **values)
        values |= {key: control.value for key, control in now.items()}
        changed |= now
    told: dict[str, object] = {"controls": {key: stand(each) for key, each in changed.items()}}
    try:
        picture = explorable.picture(values, result_of(name))
    except ValueError as error:
        return json.dumps(told | {"error": f"Not possible: {error}"})
    svg = picture.scene.svg(picture.words)
    return json.dumps(told | {"svg": svg, "words": picture.words, "detail": picture.detail})


def value_of(control: Control, at: int | bool) -> object:
    """What stands at a place of a control."""
    return control.pairs[int(at)][1] if isinstance(control, Choice) else at


def stand(control: Control) -> dict[str, object]:
    """A control that another one has changed, as the page understands it."""
    if isinstance(control, Slider):
        return {"most": control.most, "at": control.value}
    if isinstance(control, Choice):
        pairs = control.pairs
        at = [value for _, value in pairs].index(control.value)
        return {"options": [label for label, _ in pairs], "at": at}
    return {"at": control.value}


def result_of(name: str) -> object:
    """What the explorable must know before it can draw."""
    return recorded_machine() if name == "machine_room" else None


def recorded_machine() -> tuple[EnvironmentReport, Room]:
    """What a real machine answered: the page's Python has none."""
    found = json.loads((RECORDED / "machine_room.json").read_text(encoding="utf-8"))
    checks = tuple(Check(**row) for row in found["checks"])
    return EnvironmentReport(checks), Room(**found["room"])
