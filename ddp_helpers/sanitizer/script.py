"""Watch a whole script, from the start of its process group to its end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.util
import os
import sys
from types import TracebackType

from ddp_helpers.sanitizer.marks import ignore_asked
from ddp_helpers.sanitizer.switch import install, uninstall
from ddp_helpers.sanitizer.talk.meeting import off_unless_all_meet
from ddp_helpers.sanitizer.talk.notes import tell_notes_once
from ddp_helpers.sanitizer.talk.session import (
    FAILED,
    LEFT,
    Options,
    SanitizerError,
    Session,
)


def watch_script(every: int = 1) -> Session:
    """Begin to watch this process; what is found only at the end makes it fail, too."""
    session = install(Options(every, ignore_asked()))
    off_unless_all_meet(session)
    tell_notes_once(session)
    at_end = functools.partial(_finish, session, _Failure(), os.getpid())
    if multiprocessing.parent_process() is None:
        atexit.register(at_end)
    else:  # a rank of mp.spawn or Process, which may end without atexit
        multiprocessing.util.Finalize(None, at_end, exitpriority=0)
    return session


class _Failure:
    """Whether the script ended by an exception, and by which."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._before = sys.excepthook
        sys.excepthook = self._hook

    def _hook(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self._error = error
        self._before(kind, error, trace)

    @property
    def error(self) -> BaseException | None:
        """The exception; in a child of multiprocessing it is still on its way when we are asked."""
        error = self._error or sys.exc_info()[1]
        # mp.spawn has written down what it was, and turned it into an exit
        return error.__context__ if isinstance(error, SystemExit) else error


def _finish(session: Session, failure: _Failure, process: int) -> None:
    if os.getpid() != process:  # a fork of the script
        return
    error = failure.error
    with contextlib.suppress(SanitizerError):  # it is among the findings
        uninstall(session, FAILED if error else LEFT)
    session.print_findings(error)
    told = getattr(error, "finding", None)
    if any(finding.serious and finding is not told for finding in session.findings):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an exception here would not change how the process ends
