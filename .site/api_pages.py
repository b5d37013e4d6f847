"""The API reference: a page for each wing and module that a reader imports, from docstrings.

A name stands once, under the shortest path that it can be imported by: of the package, of a wing,
of a module.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import ddp_helpers

GROUPS = {
    "Start ranks": ("group", "evidence.records", "environment"),  # ddp_helpers has all of ranks
    "Train": (
        *("training", "training.losses", "training.precision", "training.schedule"),
        *("training.early_stop", "training.steps", "data", "model"),
    ),
    "Save and go on": ("checkpoints", "checkpoints.random_state", "training.resume"),
    "Find mistakes": ("sanitizer", "diagnosis", "faults"),
    "Measure and predict": (
        *("timeline", "timeline.plots", "scaling", "scaling.plots", "scaling.published"),
        "plots",
    ),
    "Several machines": ("cluster", "cluster.host"),
    "Learn": ("widgets", "exercises"),
}
MODULES = tuple(name for group in GROUPS.values() for name in group)
NOT_FOR_READERS = {"Session"}  # what the sanitizer's checks register with


def write_api(pages: Path) -> None:
    """Write api/index.rst, a page for the package and one for each of `MODULES`."""
    folder = pages / "api"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.rst").write_text(_index(), encoding="utf-8")
    (folder / "ddp_helpers.rst").write_text(_package(), encoding="utf-8")
    for name in MODULES:
        (folder / f"{name}.rst").write_text(_module(name), encoding="utf-8")


def public_names(module: ModuleType) -> list[str]:
    """Functions, then classes, that a wing hands on; or what a module defines, in its order."""
    names = getattr(module, "__all__", None)
    if names is not None:
        found = [name for name in names if _has_entry(getattr(module, name))]
        found = [name for name in found if name not in NOT_FOR_READERS]
        return sorted(found, key=lambda name: inspect.isclass(getattr(module, name)))
    own = {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and _has_entry(thing) and thing.__module__ == module.__name__
    }
    return sorted(own, key=lambda name: inspect.getsourcelines(own[name])[1])


def _has_entry(thing: object) -> bool:
    return (inspect.isfunction(thing) or inspect.isclass(thing)) and bool(inspect.getdoc(thing))


def _same(module: ModuleType, above: ModuleType) -> set[str]:
    """Names of a module that the package, or its wing, gives as well."""
    return {
        name
        for name in set(public_names(module)) & set(public_names(above))
        if getattr(module, name) is getattr(above, name)
    }


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"ddp_helpers.{name}")


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _entry(module: str, name: str) -> str:
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing):
        return f".. autoclass:: {module}.{name}\n   :members:\n   :show-inheritance:\n"
    return f".. autofunction:: {module}.{name}\n"


def _package() -> str:
    names = public_names(ddp_helpers)
    first = ", ".join(name for name in names if name[0].islower())
    code = f".. code-block:: python\n\n   from ddp_helpers import {first}\n"
    entries = [_entry("ddp_helpers", name) for name in names]
    return "\n".join([_title("ddp_helpers"), ".. course-module:: ddp_helpers\n", code, *entries])


def _module(name: str) -> str:
    module = _load(name)
    parts = [_title(f"ddp_helpers.{name}"), f".. course-module:: {module.__name__}\n"]
    exports = _same(module, ddp_helpers)
    if exports:
        links = ", ".join(f":py:obj:`~ddp_helpers.{key}`" for key in sorted(exports))
        parts.append(f"Of this module, :doc:`ddp_helpers` has: {links}.\n")
    wing, _, inside = name.partition(".")
    elsewhere = exports | (_same(module, _load(wing)) if inside else set())
    entries = [key for key in public_names(module) if key not in elsewhere]
    return "\n".join([*parts, *(_entry(module.__name__, key) for key in entries)])


def _index() -> str:
    parts = [
        _title("API"),
        "What you import. :doc:`ddp_helpers` has what most programs need; each other page is a "
        "part of it. All names: :ref:`genindex`.\n",
        ".. toctree::\n   :hidden:\n\n   ddp_helpers\n" + "".join(f"   {m}\n" for m in MODULES),
    ]
    for group, names in GROUPS.items():
        parts.append(f"{group}\n{'-' * len(group)}\n")
        for name in names:
            first = (inspect.getdoc(_load(name)) or "").split("\n\n")[0].split("\n")
            parts.append(f":doc:`{name}`\n   .. course-first-line:: {' '.join(first)}\n")
    return "\n".join(parts)
