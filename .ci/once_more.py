"""Run alone what failed beside others, and name what passes now: `flaky: N`, then a name a line.

Real processes on a busy machine: what fails beside others may pass alone. Exit code 1 if a test
fails again, or if there is no second chance: a file could not be collected, tests were never run.
"""

import json
import subprocess
import sys
from pathlib import Path

REPORT = Path(".pytest_cache/v/run_report/last")  # tests/run_report.py writes it


def main() -> int:
    """The exit code for both runs together."""
    if not REPORT.is_file():
        print("no test ran to its end: see above")
        return 1
    first = json.loads(REPORT.read_text())
    lost = [f"{how}: {name}" for how in ("not collected", "never run") for name in first[how]]
    print(*lost, sep="\n", end="\n" if lost else "")
    if not first["failed"]:
        print("no test failed, and still the run did: see above")
        return 1
    print("--- once more, alone: what has failed above ---", flush=True)
    REPORT.unlink()
    subprocess.run([sys.executable, "-m", "pytest", *first["failed"]], check=False)
    second = json.loads(REPORT.read_text()) if REPORT.is_file() else {"failed": [], "ended": []}
    passed = set(second["ended"]) - set(second["failed"])
    flaky = [name for name in first["failed"] if name in passed]
    print(f"flaky: {len(flaky)}", *flaky, sep="\n")
    return int(bool(lost) or len(flaky) < len(first["failed"]))


if __name__ == "__main__":
    sys.exit(main())
