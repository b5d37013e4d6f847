"""What ranks have left, as the result of their launch; or as the error that tells how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ddp_helpers.evidence.records import LaunchResult, RankResult
from ddp_helpers.ranks.supervisor import Ending, Supervisor
from ddp_helpers.ranks.tracebacks import keep_tracebacks
from ddp_helpers.ranks.view import show
from ddp_helpers.sanitizer.talk.closing import closing_line
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.ranks.hosts import HostsRun

R = TypeVar("R")


class _Report(BaseException):
    """An exception whose text is a report, in the reader's language."""

    def __init__(self, report: str, result: LaunchResult[Any]) -> None:
        super().__init__(report)
        self.result = result

    def __str__(self) -> str:
        return shown(self.args[0])

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the launcher's own stack."""
        return [f"{type(self).__name__}: {self}"]


class LaunchError(_Report, RuntimeError):
    """A rank failed, or the ranks did not end in time. `.result` holds what each rank left."""


class LaunchTimeoutError(LaunchError):
    """The ranks did not end within launch()'s timeout."""


class LaunchStopped(_Report, KeyboardInterrupt):
    """The reader pressed the stop button of the live view. `.result` holds what each rank left."""


def interrupted(report: str, result: LaunchResult[Any]) -> KeyboardInterrupt:
    """What a Ctrl-C raises: with `.result`, and in IPython without the launcher's own stack.

    No class of its own: after an exact KeyboardInterrupt Python ends by SIGINT, and only then does
    a loop of the shell end as well.
    """
    stop = KeyboardInterrupt(report)
    lines = [f"KeyboardInterrupt: {shown(report)}"]
    vars(stop).update(result=result, _render_traceback_=lambda: lines)
    return stop


@contextlib.contextmanager
def getting_ready(told: str = "stopped before a rank had started") -> Iterator[None]:
    """A Ctrl-C in the block says so, in place of a stack of ours, of torch's imports or of pickle.

    Of a line without a number, as pickle's may be, IPython could not even show the stack.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(told, LaunchResult(())) from None


def conclude(
    run: Supervisor | HostsRun,
    ranks: tuple[RankResult[Any], ...],
    *,
    echo: bool,
    last_line: str = "",
) -> LaunchResult[Any]:
    """What ranks have left as a result; or as the error that tells how they failed.

    Args:
        last_line: added to a report.

    Raises:
        LaunchError, LaunchTimeoutError, LaunchStopped, KeyboardInterrupt: as of `launch()`.
    """
    result = LaunchResult(ranks, run.seconds, run.start_method, run.quit_by)
    if run.quit_by is not None:
        told = f"ended at the prompt of rank {run.quit_by}, and so have all ranks"
        show(f"{shown(told)}\n")
        return result
    stopped = run.ending in (Ending.STOPPED, Ending.INTERRUPTED)
    if all(rank.ok for rank in ranks) and not stopped:
        _print_notes(result, echo)
        return result
    from ddp_helpers.diagnosis.failure_report import failure_report, stopped_report

    if stopped:
        report = stopped_report(ranks, result.seconds)
        kind = LaunchStopped if run.ending is Ending.STOPPED else interrupted
        raise kind(_with_last(report, last_line), result) from None
    late = run.ending is Ending.TIMED_OUT
    stranded = run.ending is Ending.STRANDED
    report = failure_report(
        ranks,
        timeout=run.timeout if late else None,
        stranded=stranded,
        kept_in=keep_tracebacks(ranks) if echo else None,
    )
    raise (LaunchTimeoutError if late else LaunchError)(
        _with_last(report, last_line), result
    ) from None


def _with_last(report: str, line: str) -> str:
    """One line more, without more lines in all than a reader sees at once."""
    from ddp_helpers.diagnosis.failure_report import MOST_LINES

    lines = report.splitlines()
    if not line:
        return report
    most = MOST_LINES - 1
    return "\n".join([*(lines if len(lines) <= most else lines[: most - 1] + lines[-1:]), line])


def finished(result: LaunchResult[R]) -> LaunchResult[R]:
    """The result itself, for who can't go on without its values.

    Raises:
        LaunchStopped: the reader has ended the run at a prompt.
    """
    if result.quit_by is not None:
        raise LaunchStopped(f"ended at the prompt of rank {result.quit_by}", result)
    return result


def _print_notes(result: LaunchResult[Any], echo: bool) -> None:
    for finding in result.findings if echo else []:
        told = shown(f"sanitizer, a note: {finding}")
        show(f"{told}\n")
    seen = [rank.watched for rank in result.ranks if rank.watched is not None]
    if echo and seen:
        kinds = {finding.kind for finding in result.findings}
        show(f"{shown(closing_line(seen, kinds))}\n")
