"""The API reference: a page for each module that a reader imports, from its docstrings."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import ddp_helpers

GROUPS = {
    "Start ranks": ("launch", "process_group", "progress", "records", "environment"),
    "Train": (
        *("training", "training_records", "evaluation", "loaders", "sampler", "data", "model"),
        *("losses", "precision", "schedule", "early_stop", "steps", "random_state"),
    ),
    "Save and go on": ("checkpoint_folder", "checkpoint", "resume"),
    "Find mistakes": ("sanitizer", "diagnosis", "faults"),
    "Measure and predict": (
        *("timeline", "timeline_records", "timeline_plots", "scaling", "cost_records"),
        *("machine_costs", "scaling_plots", "plots", "collective_plots"),
    ),
    "Several machines": ("cluster", "two_hosts", "host"),
    "Learn": ("widgets", "exercises"),
}
MODULES = tuple(name for group in GROUPS.values() for name in group)
TOP = "api/ddp_helpers"


def write_api(pages: Path) -> None:
    """Write api/index.rst, a page for the package and one for each of `MODULES`."""
    folder = pages / "api"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.rst").write_text(_index(), encoding="utf-8")
    (folder / "ddp_helpers.rst").write_text(_package(), encoding="utf-8")
    for name in MODULES:
        (folder / f"{name}.rst").write_text(_module(name), encoding="utf-8")


def own_names(module: ModuleType) -> list[str]:
    """Public functions and classes that a module defines itself, in the order of its text."""
    found = [
        (inspect.getsourcelines(thing)[1], name)
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
        and inspect.getdoc(thing)
    ]
    return [name for _, name in sorted(found)]


def _exports() -> dict[str, str]:
    """The module of each name that `from ddp_helpers import ...` gives."""
    return {name: getattr(ddp_helpers, name).__module__ for name in ddp_helpers.__all__}


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
    exports = _exports()
    entries = [_entry(module, name) for name, module in exports.items()]
    first = ", ".join(name for name in exports if name[0].islower())
    code = f".. code-block:: python\n\n   from ddp_helpers import {first}\n"
    return "\n".join([_title("ddp_helpers"), ".. course-module:: ddp_helpers\n", code, *entries])


def _module(name: str) -> str:
    module = _load(name)
    exports = {key for key, home in _exports().items() if home == module.__name__}
    parts = [_title(f"ddp_helpers.{name}"), f".. course-module:: {module.__name__}\n"]
    if exports:
        links = ", ".join(f":py:obj:`~{module.__name__}.{key}`" for key in sorted(exports))
        parts.append(f"Of this module, :doc:`ddp_helpers` has: {links}.\n")
    parts += [_entry(module.__name__, key) for key in own_names(module) if key not in exports]
    return "\n".join(parts)


def _index() -> str:
    parts = [
        _title("API"),
        "What you import. :doc:`ddp_helpers` has what most programs need; each other page is a "
        "module. All names: :ref:`genindex`.\n",
        ".. toctree::\n   :hidden:\n\n   ddp_helpers\n" + "".join(f"   {m}\n" for m in MODULES),
    ]
    for group, names in GROUPS.items():
        parts.append(f"{group}\n{'-' * len(group)}\n")
        for name in names:
            first = (inspect.getdoc(_load(name)) or "").split("\n\n")[0].split("\n")
            parts.append(f":doc:`{name}`\n   .. course-first-line:: {' '.join(first)}\n")
    return "\n".join(parts)
