"""How long an explorable needs to follow a control: the time of one redraw.

    python tests/benchmarks/bench_widgets.py [--rounds 200]

A redraw computes the picture for the controls' values and writes its SVG and its words into the
widget; what the browser then needs is not in it. Each round moves one control. Where some controls
can be moved while the result of a run stays in sight, these are timed with a result, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from ddp_helpers import widgets
from ddp_helpers.environment import usable_cpu_count
from ddp_helpers.widgets.base import Live

LIMIT = 50.0  # ms, median


def values_of(control: object) -> list[object]:
    """Some values that a control can have."""
    if hasattr(control, "max"):
        return list(range(control.min, control.max + 1))
    if hasattr(control, "options"):
        return [entry[1] if isinstance(entry, tuple) else entry for entry in control.options]
    return [True, False]


def redraws(shown: Live, names: list[str], rounds: int) -> list[float]:
    """Milliseconds until the picture follows, for each move of one of the named controls."""
    times: list[float] = []
    while len(times) < rounds:
        control = shown.controls[names[len(times) % len(names)]]
        choice = [value for value in values_of(control) if value != control.value]
        start = time.perf_counter()
        control.value = choice[len(times) % len(choice)]
        times.append(1000 * (time.perf_counter() - start))
    return times


def main() -> int:
    """Command line; exit code 1 if a median is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    print(f"redraw of an explorable, CPU cores: {usable_cpu_count()}, rounds: {options.rounds}")
    slow = 0
    for name in widgets.NAMES:
        shown = widgets.explore(name)
        ways = {"": list(shown.controls)}
        if shown.keeps and len(shown.keeps) < len(shown.controls):
            ways["with a result"] = sorted(shown.keeps)
        for way, names in ways.items():
            if way:
                shown.result = shown.on_ranks(**shown.values)
            times = redraws(shown, names, options.rounds)
            median, worst = statistics.median(times), max(times)
            slow += median > LIMIT
            print(
                f"{name:13} {way:13} median {median:6.2f} ms, longest {worst:6.2f} ms", flush=True
            )
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
