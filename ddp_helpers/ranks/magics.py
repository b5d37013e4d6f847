"""`%%ranks` and `%%rank 1`: cells of plain statements that run on the ranks of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddp_helpers.ranks.session import Session


def register(shell: Any, session: Callable[[], Session]) -> None:
    """Give IPython the two magics; they run on the session that is the latest then."""

    def on_all(line: str, cell: str) -> None:
        """Run this cell on all ranks of the latest session."""
        if line.strip():
            raise ValueError(f"%%ranks {line}: expected nothing more; one rank: `%%rank 1`")
        _run(shell, session(), None, "%%ranks", cell)

    def on_some(line: str, cell: str) -> None:
        """Run this cell on one rank, or some: `%%rank 1`, `%%rank 0,2`."""
        numbers = _numbers(line)
        _run(shell, session(), numbers, f"%%rank {line}", cell)

    shell.register_magic_function(on_all, "cell", "ranks")
    shell.register_magic_function(on_some, "cell", "rank")


def _run(shell: Any, session: Session, on: list[int] | None, head: str, cell: str) -> None:
    # not shell.execution_count, which from IPython 9 on is the next cell's
    number = len(shell.history_manager.input_hist_raw) - 1
    session.run_cell(cell, on, f"cell In[{number}]", head)


def _numbers(line: str) -> list[int]:
    words = line.replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"%%rank {line}: expected a rank, or some: `%%rank 1`, `%%rank 0,2`")
    return [int(word) for word in words]
