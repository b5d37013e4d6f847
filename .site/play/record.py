"""Record what a page cannot ask for itself: `make recordings`, on the machine that it is about."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from ddp_helpers.widgets.machine_room import look  # noqa: E402


def main() -> int:
    """Write recorded/machine_room.json."""
    report, room = look()
    checks = report.to_dict()["checks"]
    found = {
        "recorded": f"{datetime.date.today():%d %B %Y}, {room.cores} CPU cores",
        "room": {key: round(value, 1) for key, value in asdict(room).items()},
        "checks": checks,
    }
    path = HERE / "recorded" / "machine_room.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
