"""Run the two DDP templates many times on two ranks, and count the clean exits.

    python tests/benchmarks/soak_templates.py --runs 50

A run is clean when it ends in time with exit code 0, prints its last line and the accuracy over
all samples, says nothing of an error, and leaves no process and no half-written checkpoint.
The exit code is 0 only if every run was clean.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

TEMPLATES = Path(__file__).resolve().parents[2] / "ddp_helpers" / "templates"
TINY = ["--epochs", "1"]
LAST_LINE = re.compile(r"epoch 1: \d+ of 1000 right, ranks 2")
SECONDS_AT_MOST = 120
COMMANDS = {
    "ddp_spawn.py": [sys.executable, TEMPLATES / "ddp_spawn.py", "--world-size", "2"],
    "ddp_torchrun.py": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        TEMPLATES / "ddp_torchrun.py",
    ],
}


@dataclass(frozen=True)
class Run:
    """How one run ended: what was not clean (empty if all was), and the seconds it took."""

    fault: str
    seconds: float


def processes_of(token: str) -> list[psutil.Process]:
    """Every living process that carries the token in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get("SOAK_RUN") == token:
                found.append(process)
        except psutil.Error:
            continue
    return found


def fault_of(code: int, out: str, err: str, folder: Path, left: int) -> str:
    """What was wrong with the run, in one line; empty if nothing was."""
    if code != 0:
        return f"exit code {code}: {err.strip().splitlines()[-1:]}"
    if not LAST_LINE.fullmatch(out.strip().splitlines()[-1]):
        return f"last line {out.strip().splitlines()[-1:]}"
    if trouble := re.search(r"Traceback|terminate called|error|Error", err):
        return f"stderr says {trouble[0]!r}"
    if [path.name for path in folder.glob("*")] != ["weights.pt"]:
        return f"files left: {sorted(path.name for path in folder.glob('*'))}"
    return f"{left} processes left" if left else ""


def run_once(command: list) -> Run:
    """Run it in a folder of its own, and look at everything it left."""
    token = uuid.uuid4().hex
    environment = os.environ | {"SOAK_RUN": token}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*map(str, command), *TINY],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS_AT_MOST,
            )
        except subprocess.TimeoutExpired:
            fault = f"no end after {SECONDS_AT_MOST} s"
        else:
            seconds = time.monotonic() - begin
            left = settle(token)
            fault = fault_of(done.returncode, done.stdout, done.stderr, Path(folder), left)
            return Run(fault, seconds)
        finally:
            for process in processes_of(token):
                process.kill()
        return Run(fault, time.monotonic() - begin)


def settle(token: str) -> int:
    """How many processes are left one second after the end; helpers may need a moment."""
    limit = time.monotonic() + 1
    while (left := len(processes_of(token))) and time.monotonic() < limit:
        time.sleep(0.05)
    return left


def soak(name: str, runs: int) -> bool:
    """Run one template `runs` times; print each fault and the sum. True if all were clean."""
    results = []
    for number in range(1, runs + 1):
        results.append(run_once(COMMANDS[name]))
        if results[-1].fault:
            print(f"{name} run {number}: {results[-1].fault}", flush=True)
    clean = sum(not result.fault for result in results)
    median = statistics.median(result.seconds for result in results)
    print(f"{name}: {clean} clean exits / {runs} runs, median {median:.1f} s", flush=True)
    return clean == runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="of each template (default: 50)")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs is {runs}: give 1 or more")
    clean = [soak(name, runs) for name in COMMANDS]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
