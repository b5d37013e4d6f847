"""The failure lab: each fault with its cause, what mends it, and the file that shows both."""

from __future__ import annotations

from pathlib import Path

from editions import said, twin
from exercise_page import plain

from ddp_helpers import faults
from ddp_helpers.faults._catalogue import source
from ddp_helpers.words import shown

PAGE = "faults.md"
HEAD = """
```python
from ddp_helpers import faults

faults.run("one_extra_collective")               # see it happen, and what the report says
faults.run("one_extra_collective", fixed=True)
```
"""


def write_faults(pages: Path) -> None:
    """Write faults.md, with a heading for each fault that is its name."""
    about = (
        "Small programs that go wrong on purpose, each with a version that is right. In a notebook "
        "of the course:"
    )
    parts = [f"# {said('The failure lab')}\n", twin(PAGE), said(about), HEAD]
    for name in faults.names():
        fault = faults.record(name)
        title = plain(shown(fault.title))
        prints = "nothing" if fault.says == "nothing" else f"`{fault.says}`"
        parts += [
            f"## {name}\n",
            said("**{title}** ({group})", title=title, group=said(fault.group)) + "\n",
            said("- What torch prints: {text}", text=said(prints)),
            said("- Cause: {text}", text=plain(shown(fault.cause))),
            said("- What mends it: {text}", text=plain(shown(fault.mend))),
            f"\n``````python\n{source(name).rstrip()}\n``````\n",
        ]
    (pages / PAGE).write_text("\n".join(parts), encoding="utf-8")
