"""What a page asks its Python: an explorable's picture for the values that its controls have."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Collection, Mapping
from typing import Any

from film import Replay
from recordings import FOLDER, Recording

from ddp_helpers.environment.report import Check, EnvironmentReport
from ddp_helpers.widgets.base import Explorable
from ddp_helpers.widgets.controls import Choice, Control, Slider
from ddp_helpers.widgets.machine_room import Room

RANKS = ("collectives", "one_step", "overlap", "monitor", "fault_lab")
RECORDED = tuple(name for name in RANKS if (FOLDER / f"{name}.json").exists())
"""Those whose button shows what real ranks did when it was recorded."""
MOVING = ("ring", "sampler", *RECORDED, "accumulation", "planner", "memory")
MOVING += ("ladder", "machine_room")
REPLAYED = ("monitor",)  # those of which a recording is a film
"""Those that move on a page, as they follow each other on theirs."""
explorables: dict[str, Explorable] = {}
recordings: dict[str, Recording] = {}


def load(name: str, start: Mapping[str, Any] | None = None) -> Explorable:
    """An explorable by its name, as a page has it: its controls kept to what was recorded."""
    found = importlib.import_module(f"ddp_helpers.widgets.{name}").explorable(**(start or {}))
    if name in RECORDED:
        found = recording(name).limit(found)
    return Replay(found, recording(name).result).explorable() if name in REPLAYED else found


def recording(name: str) -> Recording:
    """What real ranks did, read once."""
    if name not in recordings:
        recordings[name] = Recording(name)
    return recordings[name]


def known(name: str) -> Explorable:
    """An explorable, made once."""
    if name not in explorables:
        explorables[name] = load(name)
    return explorables[name]


def warm_up() -> None:
    """Draw each once, and what takes long for all its values: a page starts with what that left."""
    for name in MOVING:
        explorable = known(name)
        values = {key: control.value for key, control in explorable.controls.items()}
        for ran in {False, name in RECORDED}:
            explorable.picture(values, result_of(name, values, ran))
    rung, shown = known("ladder").controls.values()
    for given in itertools.product(range(rung.least, rung.most + 1), shown.options):
        known("ladder").draw(*given)  # compares two files, and keeps it


def move(name: str, stands: str, moved: str, ran: bool) -> str:
    """The picture after a move, as JSON for the page.

    Args:
        stands: where each control stands, as JSON: a number, the place among its options, or a
            truth value.
        moved: the names of the controls that moved since the last picture, with commas.
        ran: the button was pressed, or the last picture showed what the ranks did.
    """
    explorable, names = known(name), moved.split(",") if moved else []
    values = values_at(explorable, json.loads(stands))
    changed = settle(explorable, names, values)
    values |= {key: control.value for key, control in changed.items()}
    ran = ran and stays(explorable, {*names, *changed})
    told: dict[str, object] = {"controls": {key: stand(each) for key, each in changed.items()}}
    try:
        picture = explorable.picture(values, result_of(name, values, ran))
    except ValueError as error:
        return json.dumps(told | {"error": f"Not possible: {error}"})
    svg = picture.scene.svg(picture.words)
    told |= {"svg": svg, "words": picture.words, "detail": picture.detail, "ran": ran}
    return json.dumps(told)


def values_at(explorable: Explorable, places: Mapping[str, int | bool]) -> dict[str, Any]:
    """What stands at these places; an earlier list may decide what is in a later one."""
    controls = dict(explorable.controls)
    values = {key: control.value for key, control in controls.items()}
    for each, at in places.items():
        values[each] = value_of(controls[each], at)
        now = explorable.adjust(each, **values) if explorable.adjust else {}
        controls |= {key: other for key, other in now.items() if isinstance(other, Choice)}
    return values


def settle(
    explorable: Explorable, moved: Collection[str], values: Mapping[str, Any]
) -> dict[str, Control]:
    """The controls that change with those that moved, and with one another."""
    values, changed, waiting = dict(values), {}, list(moved)
    while waiting and explorable.adjust:
        now = explorable.adjust(waiting.pop(0), **values)
        waiting += [
            key
            for key, control in now.items()
            if isinstance(control, Choice) or values[key] != control.value  # or other options
        ]
        values |= {key: control.value for key, control in now.items()}
        changed |= now
    return changed


def stays(explorable: Explorable, moved: Collection[str]) -> bool:
    """Whether a result still belongs to the values after these controls have moved."""
    return set(moved) <= set(explorable.keeps)


def value_of(control: Control, at: int | bool) -> object:
    """What stands at a place of a control; of a list that is shorter now, its last place."""
    if not isinstance(control, Choice):
        return at
    return control.pairs[min(int(at), len(control.pairs) - 1)][1]


def stand(control: Control) -> dict[str, object]:
    """A control that another one has changed, as the page understands it."""
    if isinstance(control, Slider):
        return {"most": control.most, "at": control.value}
    if isinstance(control, Choice):
        pairs = control.pairs
        at = [value for _, value in pairs].index(control.value)
        return {"options": [label for label, _ in pairs], "at": at}
    return {"at": control.value}


def result_of(name: str, values: Mapping[str, Any], ran: bool) -> object:
    """What an explorable draws beside its values; a page's Python has no machine and no ranks."""
    if name == "machine_room":
        return recorded_machine()
    return recording(name).result(values) if ran else None


def recorded_about(name: str) -> str:
    """When something was recorded, and on what."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["recorded"]


def recorded_machine() -> tuple[EnvironmentReport, Room]:
    """What a real machine answered: the page's Python has none."""
    found = json.loads((FOLDER / "machine_room.json").read_text(encoding="utf-8"))
    checks = tuple(Check(**row) for row in found["checks"])
    return EnvironmentReport(checks), Room(**found["room"])
