"""Record the demo on real ranks: two mistakes, with torchrun alone and with launch().

The times are those of the ranks' own clock, from the first exchange or the first line on.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILE = HERE / "recorded.json"
ALONE, LIMIT = 25, 12  # seconds that torchrun may have, and launch()'s timeout
LAUNCH = f"""
import json, os, pathlib, sys
sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]
from ddp_helpers import LaunchTimeoutError, launch
from ddp_helpers.ranks.drawing import Draw
import stuck
try:
    launch(stuck.train, 2, timeout={LIMIT}, draw=Draw.LATER)
except LaunchTimeoutError as error:
    print(error, flush=True)
    for rank in error.result.ranks:
        notes = pathlib.Path(os.environ["DEMO_NOTES"], f"{{rank.rank}}.jsonl").open("w")
        for call in rank.calls:
            for done, at in ((False, call.began), (True, call.done)):
                if at is not None:
                    told = {{"name": call.name, "done": done, "at": at, "rank": rank.rank}}
                    print(json.dumps(told), file=notes)
"""


WATCHED = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]
from ddp_helpers import LaunchError, launch
import drift
try:
    launch(drift.train, 2, sanitize=True)
except LaunchError as error:
    print(error, flush=True)
"""
STEP = re.compile(r"\[(?:rank |default)(\d)\]:? ?step +(\d+): loss ([\d.]+), weight (-?[\d.]+)")


def run(command: list[str], seconds: float) -> dict[str, object]:
    """What a command printed, line by line with the time, and its ranks' exchanges."""
    with tempfile.TemporaryDirectory() as notes:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=HERE,
            env=os.environ | {"DEMO_NOTES": notes, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        lines: list[tuple[float, str]] = []
        assert process.stdout is not None
        listen = lambda: lines.extend(
            (time.monotonic(), line.rstrip("\n")) for line in process.stdout
        )
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        alive, ended = process.poll() is None, time.monotonic()
        if alive:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            process.wait()
        listener.join(5)
        events = [
            json.loads(line)
            for path in sorted(Path(notes).iterdir())
            for line in path.read_text().splitlines()
            if '"init_process_group"' not in line
        ]
    begin = min([each["at"] for each in events] or [at for at, line in lines if STEP.match(line)])
    since = lambda at: round(at - begin, 3)
    for each in events:
        each["at"] = since(each["at"])
    steps = [
        [since(at), int(found[1]), int(found[2]), float(found[3]), float(found[4])]
        for at, line in lines
        if (found := STEP.match(line))
    ]
    told = [
        [since(at), line.replace(str(HERE / "stuck.py"), "train.py").replace(f"{HERE}/", "")]
        for at, line in lines
        if not STEP.match(line)
    ]
    found = {"alive": alive, "until": since(ended), "events": events, "lines": told}
    return found | ({"steps": steps} if steps else {})


def main() -> int:
    """Write recorded.json."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found = {
        "recorded": f"{datetime.date.today():%d %B %Y}, {os.cpu_count()} CPU cores",
        "limit": LIMIT,
        "alone": run([*torchrun, "--nproc_per_node=2", "noted.py"], ALONE),
        "launched": run([sys.executable, "-c", LAUNCH], 120),
        "drifting": {
            "alone": run([*torchrun, "--nproc_per_node=2", "--tee=3", "drift.py"], 60),
            "watched": run([sys.executable, "-c", WATCHED], 60),
        },
    }
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
