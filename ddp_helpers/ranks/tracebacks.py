"""In a terminal nobody can ask for a rank's traceback later: it goes to a file that stays."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence

from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks.notebook import ipython_shell

LONGEST = 20_000  # characters of one rank's traceback; its end tells most


def keep_tracebacks(ranks: Sequence[RankResult]) -> str | None:
    """Write the ranks' tracebacks to a file that only this user can read; returns its name.

    None where they can be asked for (in IPython), where no reader sits in front of it, or if there
    is nothing to write.
    """
    told = [rank for rank in ranks if rank.traceback]
    if not told or ipython_shell() is not None or not sys.stderr.isatty():
        return None
    texts = [f"rank {rank.rank}\n{rank.traceback[-LONGEST:]}" for rank in told]
    try:
        file, name = tempfile.mkstemp(prefix="ddp_helpers-tracebacks-", suffix=".txt")
        with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as text:
            text.write("\n".join(texts))
    except OSError:
        return None  # a full disk: the report itself still comes
    return name
