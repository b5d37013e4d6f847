"""Watch a whole script from its first `import torch` to its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from types import TracebackType

from ddp_helpers.sanitizer.switch import install, uninstall
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
    session = install(Options(every))
    tell_notes_once(session)
    atexit.register(_finish, session, _Failure(), os.getpid())
    return session


class _Failure:
    """Whether the script ended by an exception, and by which."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._before = sys.excepthook
        sys.excepthook = self._hook

    def _hook(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self.error = error
        self._before(kind, error, trace)


def _finish(session: Session, failure: _Failure, process: int) -> None:
    if os.getpid() != process:  # a fork of the script
        return
    with contextlib.suppress(SanitizerError):  # it is among the findings
        uninstall(session, FAILED if failure.error else LEFT)
    session.print_findings(failure.error)
    told = getattr(failure.error, "finding", None)
    if any(finding.serious and finding is not told for finding in session.findings):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an exception here would not change how the process ends
