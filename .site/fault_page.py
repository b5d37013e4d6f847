"""The failure lab: each fault with its cause, what mends it, and the file that shows both."""

from __future__ import annotations

import importlib
from pathlib import Path

from exercise_page import plain

from ddp_helpers import faults

HEAD = """# The failure lab

Small programs that go wrong on purpose, each with a version that is right. In a notebook of the
course:

```python
from ddp_helpers import faults

faults.run("one_extra_collective")               # see it happen, and what the report says
faults.run("one_extra_collective", fixed=True)
```
"""


def write_faults(pages: Path) -> None:
    """Write faults.md, with a heading for each fault that is its name."""
    parts = [HEAD]
    for name in faults.names():
        module = importlib.import_module(f"ddp_helpers.faults.{name}")
        fault = module.FAULT
        source = Path(module.__file__).read_text(encoding="utf-8").rstrip()
        parts.append(
            f"## {name}\n\n**{plain(fault.title)}** ({fault.group})\n\n"
            f"- What torch prints: `{fault.says}`\n- Cause: {plain(fault.cause)}\n"
            f"- What mends it: {plain(fault.mend)}\n\n``````python\n{source}\n``````\n"
        )
    (pages / "faults.md").write_text("\n".join(parts), encoding="utf-8")
