"""Switch the sanitizer on and off in this process."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from ddp_helpers.sanitizer.talk.notes import tell_notes_once
from ddp_helpers.sanitizer.talk.session import (
    DEFAULT_TIMEOUT,
    FAILED,
    LEFT,
    Options,
    SanitizerError,
    Session,
)

_session: Session | None = None


def install(options: Options | None = None, names: Mapping[str, str] | None = None) -> Session:
    """Begin to watch this process.

    Args:
        options: how closely to look.
        names: how the reader knows files: `{"/tmp/ipykernel_1/2.py": "cell In[4]"}`.

    Raises:
        RuntimeError: this process is watched already.
    """
    global _session
    import torch.distributed as dist

    if _session is not None:
        raise RuntimeError("the sanitizer already watches this process: switch it on once")
    from ddp_helpers.sanitizer.wiring import watch

    session = Session(options, names)
    for module in (dist, dist.distributed_c10d):
        session.patches.put(module, "init_process_group", _starting(session))
        session.patches.put(module, "destroy_process_group", _ending(session))
    try:
        watch(session)
    except BaseException:  # another version of torch may lack what we look for
        session.patches.undo()
        raise
    _session = session
    if dist.is_initialized():
        session.group_started(_seconds(None))
    return session


def is_watched() -> bool:
    """True if the sanitizer is on in this process."""
    return _session is not None


def uninstall(session: Session, how: str = LEFT) -> None:
    """Make the last comparisons and stop watching.

    Raises:
        SanitizerError: something serious was found in the end.
    """
    global _session
    try:
        session.group_ends(how)
    finally:
        session.patches.undo()
        _session = None


@contextlib.contextmanager
def sanitize(every: int = 1, ignore: Sequence[str] = ()) -> Iterator[Session]:
    """Watch the block; call it in each rank, before the process group starts or after.

    Args:
        every: compare weights and data on each `every`-th step only.
        ignore: kinds of findings that are accepted; each finding ends with its kind.

    Raises:
        SanitizerError: as soon as something serious is found, or at the end.
    """
    import torch  # noqa: F401

    if _session is not None:  # switched on from outside, too
        yield _session
        return
    session, raised = install(Options(every, ignore)), None
    tell_notes_once(session)
    try:
        yield session
    except BaseException:
        uninstall(session, FAILED)
        raise
    try:
        uninstall(session)
    except SanitizerError as error:
        raised = error
        raise
    finally:
        session.print_findings(raised)


def _starting(session: Session) -> Callable[[Callable], Callable]:
    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def init_process_group(*args: object, **kwargs: Any) -> None:
            original(*args, **kwargs)
            session.group_started(_seconds(kwargs.get("timeout")))

        return init_process_group

    return make


def _ending(session: Session) -> Callable[[Callable], Callable]:
    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def destroy_process_group(group: object = None) -> None:
            import torch.distributed as dist

            if group is None or group is dist.group.WORLD:
                session.group_ends(FAILED if sys.exc_info()[0] else LEFT)
            original(group)

        return destroy_process_group

    return make


def _seconds(timeout: timedelta | None) -> float:
    return timeout.total_seconds() if timeout is not None else DEFAULT_TIMEOUT
