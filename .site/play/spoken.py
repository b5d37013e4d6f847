"""Explorables in the reader's language: their controls on a page, and each picture's words."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import mover

from ddp_helpers.widgets.base import Explorable
from ddp_helpers.widgets.controls import Choice, Control
from ddp_helpers.words import VARIABLE, shown

WORDS = ("environment", "faults", "figures", "launch", "ranks", "scaling", "widgets")
"""The catalogues that a page of another language gets; the rest is for those who run ranks."""


def translated(explorable: Explorable) -> Explorable:
    """The same with its title and its controls as the reader is to see them."""
    controls = {key: _control(each) for key, each in explorable.controls.items()}
    title, label = shown(explorable.title), shown(explorable.run_label)
    return replace(explorable, title=title, run_label=label, controls=controls)


def _control(control: Control) -> Control:
    if isinstance(control, Choice):
        control = replace(control, options=control.said())
    return replace(control, label=shown(control.label))


def move(name: str, stands: str, moved: str, ran: bool, language: str) -> str:
    """What `mover.move` tells, in a language; "" for English."""
    os.environ[VARIABLE] = language  # empty: no catalogue is read, and a page has none
    told = json.loads(mover.move(name, stands, moved, ran))
    for key in {"words", "error"} & told.keys():
        told[key] = shown(told[key])
    for control in told["controls"].values():
        if "options" in control:
            control["options"] = [shown(label) for label in control["options"]]
    return json.dumps(told)
