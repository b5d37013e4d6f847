"""The line that ends a watched run: silence must not be taken for "it was off"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ddp_helpers.evidence.records import Watched


def closing_line(seen: Sequence[Watched], kinds: Collection[str]) -> str:
    """Such as `sanitizer: watched 2 ranks, 360 steps, 3 passes over the data; nothing found`.

    Args:
        seen: what each rank saw, rank 0 first.
        kinds: of the findings of any rank.
    """
    watched, accepted = seen[0], Counter[str]()
    for each in seen:
        accepted |= Counter(dict(each.accepted))  # of each kind the most
    ranks = f"{watched.ranks} ranks"
    if not watched.steps and not watched.calls:
        return f"sanitizer: watched nothing: {ranks} took no optimizer step and made no collective"
    parts = [ranks, _counted(watched.steps, "step", "steps")]
    if watched.passes:
        parts.append(f"{_counted(watched.passes, 'pass', 'passes')} over the data")
    if not watched.steps:
        calls = _counted(watched.calls, "collective", "collectives")
        parts = [ranks, "no optimizer step", calls]
    found = f"found: {', '.join(sorted(kinds))}" if kinds else "nothing found"
    if accepted:
        times = [f"{kind} ({_counted(n, 'time', 'times')})" for kind, n in accepted.items()]
        found = found if kinds else "nothing else found"
        found += f"; accepted: {', '.join(sorted(times))}"
    return f"sanitizer: watched {', '.join(parts)}; {found}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
