"""Record what a page cannot ask for itself: `make recordings`, on the machine that it is about.

    python .site/play/record.py                          # all
    python .site/play/record.py collectives one_step     # some

Times are of this machine, so it should have nothing else to do.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from recordings import FOLDER, encode, key  # noqa: E402

from ddp_helpers.environment import usable_cpu_count  # noqa: E402
from ddp_helpers.widgets.machine_room import look  # noqa: E402

GRIDS: dict[str, dict[str, list]] = {
    "collectives": {
        "op": [
            *("broadcast", "all_reduce", "reduce", "all_gather"),
            *("gather", "scatter", "reduce_scatter", "all_to_all"),
        ],
        "ranks": [2, 3, 4],
        "count": [1, 2],
        "kib": [1, 64, 1024],
    },
    "one_step": {
        "model": ["SmallCNN", "60 thin layers"],
        "workers": [2, 4],
        "batch": [64, 256, 1024],
    },
    "overlap": {
        "layers": [2, 6, 12],
        "width": [512, 1024],
        "batch": [64],
        "bucket_mib": [0.05, 0.25, 1.0, 25.0],
        "ranks": [2],
    },
}


def about() -> str:
    """When, and on what."""
    return f"{datetime.date.today():%d %B %Y}, {usable_cpu_count()} CPU cores, gloo"


def the_machine() -> dict[str, object]:
    """The answers of this machine."""
    report, room = look()
    return {
        "recorded": about().removesuffix(", gloo"),
        "room": {name: round(value, 1) for name, value in asdict(room).items()},
        "checks": report.to_dict()["checks"],
    }


def the_runs(name: str) -> dict[str, object]:
    """An explorable's ranks, run for each setting of its grid."""
    grid = GRIDS[name]
    module = importlib.import_module(f"ddp_helpers.widgets.{name}")
    start = {each: control.value for each, control in module.explorable().controls.items()}
    results = {}
    for setting in itertools.product(*grid.values()):
        values = start | dict(zip(grid, setting, strict=True))
        results[key(grid, values)] = encode(small(module.run(**values)))
        print(f"{name} {len(results)}: {setting}", flush=True)
    return {"recorded": about(), "grid": grid, "results": results}


def small(result: object) -> object:
    """Of a recorded timeline the last step, which is the one that is drawn, from its own start."""
    if not isinstance(result, list) or not hasattr(result[0], "steps"):
        return result
    return [replace(timeline, steps=timeline.steps[-1:]) for timeline in result]


def main() -> int:
    """Write files in recorded/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["machine_room", *GRIDS])
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        found = the_machine() if name == "machine_room" else the_runs(name)
        path = FOLDER / f"{name}.json"
        text = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        path.write_text(text.replace('"[', '\n"[').replace('{"name"', '\n{"name"') + "\n")
        print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
