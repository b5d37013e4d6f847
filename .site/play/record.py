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
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from film import Film  # noqa: E402
from recordings import FOLDER, encode, key  # noqa: E402

from ddp_helpers import faults  # noqa: E402
from ddp_helpers.environment import usable_cpu_count  # noqa: E402
from ddp_helpers.evidence.records import RankError, RankResult  # noqa: E402
from ddp_helpers.widgets import fault_lab, monitor  # noqa: E402
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
    "monitor": {
        "ranks": [1, 2, 4],
        "epochs": [1, 2],
        "batch_size": [64],
        "slow_ms": [0, 20, 50],
    },
    "fault_lab": {"fault": faults.names(), "version": list(fault_lab.VERSIONS)},
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
        run = RUNS.get(name) or module.run
        results[key(grid, values)] = encode(small(run(**values)))
        print(f"{name} {len(results)}: {setting}", flush=True)
    return {"recorded": about(), "grid": grid, "results": results}


def small(result: object) -> object:
    """Of a recorded timeline the last step, which is the one that is drawn, from its own start."""
    if not isinstance(result, list) or not hasattr(result[0], "steps"):
        return result
    return [replace(timeline, steps=timeline.steps[-1:]) for timeline in result]


class Noting(monitor.Watch):
    """Keeps all that it is told, with the time."""

    def __init__(self, ranks: int) -> None:
        super().__init__([monitor.OfRank() for _ in range(ranks)])
        self.told: list[tuple] = []

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        self._note("report", rank, step, total, loss)

    def end(self, rank: int, how: str) -> None:
        self._note("end", rank, how)

    def _note(self, *what: object) -> None:
        self.told.append((time.monotonic(), *what))


def film(**values: int) -> Film:
    """A training, as its ranks told it; the first thing told is at the start."""
    noting = Noting(values["ranks"])
    assert not monitor.watched(**values, watch=noting).failed
    begin = noting.told[0][0]
    return Film(
        values["ranks"], tuple((round(1e3 * (at - begin)), *what) for at, *what in noting.told)
    )


def fault(**values: str) -> faults.Seen:
    """A fault or its mend: what is drawn of it, and the end of what was printed."""
    name, is_faulty = values["fault"], values["version"] == fault_lab.VERSIONS[0]
    seen = fault_lab.run(**values)
    apart = is_faulty and not faults.record(name).in_terminal  # a command has run by itself
    alone = torch_alone(name) if apart else None
    seen = replace(seen, output=fault_lab.last_lines(plain(seen.output)), alone=alone)
    if seen.result is None:
        return seen
    ranks = tuple(drawn(rank) for rank in seen.result.ranks)
    return replace(seen, report=plain(seen.report), result=replace(seen.result, ranks=ranks))


def torch_alone(name: str) -> str | None:
    """What torch prints of a fault, if it is what it usually prints: a chance may decide."""
    wanted = faults.record(name).says
    for _ in range(3):
        text = plain(faults.torch_says(name))
        if wanted in text or wanted == "nothing":
            return fault_lab.last_lines(text)
    return None


def drawn(rank: RankResult) -> RankResult:
    """Of a rank how it ended, and when."""
    error = rank.error and RankError(rank.error.type_name, "", "")
    return RankResult(
        rank.rank,
        exit_code=rank.exit_code,
        error=error,
        seconds=rank.seconds,
        returned=rank.returned,
    )


def plain(text: str) -> str:
    """Without this machine's folders, by whichever of their names."""
    folders = [sys.prefix, sys.base_prefix, tempfile.gettempdir(), HERE.parents[1], Path.home()]
    for folder in (name for each in folders for name in (each, Path(each).resolve())):
        text = text.replace(f"{folder}/", ".../")
    return text


RUNS = {"monitor": film, "fault_lab": fault}
"""How those are recorded whose result holds more than is drawn."""


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
