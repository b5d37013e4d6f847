"""A rank's side of a debugger: the reader's keyboard, and a pdb that knows the reader's cells.

`breakpoint()`, `pdb.set_trace()`, `pdb.post_mortem()`, `torch.distributed.breakpoint()` and
`input()` work in a rank as they do in one process: what they read comes from the launcher, which
gives its keyboard to one rank at a time (prompts.py). Where nobody sits at a keyboard, a rank says
so in a line and goes on.
"""

from __future__ import annotations

import bdb
import io
import os
import pdb
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from ddp_helpers.evidence.frames import is_launcher_file, is_user_file
from ddp_helpers.evidence.records import RankError
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Answer, Asked, Wish
from ddp_helpers.torch_private import set_timeouts
from ddp_helpers.words import shown

_keyboard: Keyboard | None = None
_names: Mapping[str, str] = {}
_told: set[str] = set()  # places where the want of a keyboard was told: a loop comes by often
_passed: Counter[tuple[str, int]] = Counter()  # how often a breakpoint with `skip` was passed
_original_pm = pdb.pm


class Keyboard(io.TextIOBase):
    """The standard input of a rank: lines that the reader types where the ranks were launched."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._process = os.getpid()
        self._lock = threading.RLock()  # a thread of the rank may stop, too
        self._depth = 0
        self.is_absent = False
        """Nobody could be asked, when it was tried last."""

    def readable(self) -> bool:
        """True, as of any input."""
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # as io's own
        """One line with its end, or nothing at the end of the input."""
        with self._lock:
            answer, line = self._ask(Asked(Wish.LINE))
        self.is_absent = answer is Answer.NO_KEYBOARD
        return f"{line}\n" if answer is Answer.HERE else ""

    def read(self, size: int | None = -1, /) -> str:
        """All lines until Ctrl-D."""
        return "".join(iter(self.readline, ""))

    def close(self) -> None:
        """Do nothing: multiprocessing closes it in a process that a rank has forked."""

    def open(self, where: str) -> bool:
        """Wait for this rank's turn; False if nobody sits at a keyboard."""
        self._lock.acquire()
        if self._depth == 0 and self._ask(Asked(Wish.OPEN, where))[0] is not Answer.HERE:
            self._lock.release()
            return False
        self._depth += 1
        return True

    def give_back(self) -> None:
        """Let the next rank have its turn."""
        self._depth -= 1
        if self._depth == 0:
            self._ask(Asked(Wish.CLOSE))
        self._lock.release()

    def quit(self) -> None:
        """Have the launcher end the run."""
        self._ask(Asked(Wish.QUIT))

    def _ask(self, asked: Asked) -> tuple[Answer, str]:
        if os.getpid() != self._process:  # a loader's worker: the answer might reach its rank
            return Answer.NO_KEYBOARD, ""
        return wire.ask(self._link, asked)


class RankPdb(pdb.Pdb):
    """pdb with the reader's names of files, without the launcher's frames, in turn with others."""

    def __init__(self, completekey: str | None = None, *args: Any, **more: Any) -> None:
        # no completion: it would load readline, which has no terminal here
        super().__init__(None, *args, **{"nosigint": True, **more})  # type: ignore[arg-type]
        self._after_death = False

    # ---- the prompt

    def interaction(self, frame: FrameType | None, *rest: Any) -> None:
        """A prompt, once it is this rank's turn."""
        trace = next((each for each in rest if each is not None), None)
        self._after_death = frame is None or trace is not None
        place = _place(frame, trace)
        if _keyboard is None or not _keyboard.open(place):
            self._pass(place)
            return
        try:
            super().interaction(frame, *rest)
        finally:
            _keyboard.give_back()

    def _pass(self, place: str) -> None:
        """Go on, and say why no prompt has come."""
        if place not in _told:
            _told.add(place)
            worker = _keyboard is not None and os.getpid() != _keyboard._process
            why = "a worker has no keyboard (num_workers=0 has)" if worker else "no keyboard here"
            print(shown(f"breakpoint at {place}: {why}, so it goes on"), flush=True)
        if not self._after_death:
            self.set_continue()

    def do_quit(self, arg: str) -> bool:
        """End the run; after a failure, only leave the prompt."""
        if not self._after_death and _keyboard is not None:
            _keyboard.quit()
        self._user_requested_quit = True
        self.set_quit()
        return True

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool:
        """Ctrl-D is quit; a keyboard that turns out to be missing is none."""
        if _keyboard is None or _keyboard.is_absent:
            self.message("")
            self._pass(_place(self.curframe, None))
            return True
        return self.do_quit(arg)

    # ---- what it shows

    def get_stack(
        self, frame: FrameType | None, trace: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        """The frames from the reader's function on; after a failure, at the reader's own line."""
        stack, at = super().get_stack(frame, trace)
        ours = [n for n, (each, _) in enumerate(stack) if is_launcher_file(_file(each))]
        first = ours[-1] + 1 if ours else 0
        stack, at = stack[first:] or stack, max(0, at - first)
        if self._after_death:
            own = [n for n, (each, _) in enumerate(stack) if is_user_file(_file(each))]
            at = own[-1] if own else at
        return stack, at

    def format_stack_entry(self, frame_lineno: tuple[FrameType, int], lprefix: str = ": ") -> str:
        """`cell In[4], line 7, in train` for a cell; anything else as pdb shows it."""
        frame, line = frame_lineno
        text = super().format_stack_entry(frame_lineno, lprefix)
        if _file(frame) not in _names:
            return text
        _, _, source = text.partition(lprefix)
        return f"{_name(frame, line)}{lprefix}{source}" if source else _name(frame, line)

    # ---- of torch.distributed.breakpoint(), which stops at its own line

    def look(self, frame: FrameType) -> bool:
        """A prompt at this line; True if the reader wants to step on from here."""
        self.reset()
        self.interaction(frame, None)
        return bool(self.quitting or self.breaks or self.stoplineno != -1)

    def follow(self, frame: FrameType) -> None:
        """Step on from this frame, after a look at it."""
        if self.quitting:
            raise bdb.BdbQuit
        each: FrameType | None = frame
        while each is not None:
            each.f_trace = self.trace_dispatch
            self.botframe = each
            each = each.f_back
        start = getattr(self, "start_trace", None)  # from Python 3.14 on
        (start or partial(sys.settrace, self.trace_dispatch))()


def connect(link: socket.socket, names: Mapping[str, str]) -> None:
    """Read this rank's input through a socket, and let pdb use it; the worker calls it once."""
    global _keyboard, _names
    _keyboard, _names = Keyboard(link), names
    sys.stdin = _keyboard
    pdb.Pdb, pdb.pm = RankPdb, pm  # type: ignore[misc]  # pdb's own functions take them from there


def replace_torchs() -> None:
    """Have torch.distributed.breakpoint() use this keyboard: its own opens the terminal itself."""
    import torch.distributed

    torch.distributed.breakpoint = breakpoint_on


def breakpoint_on(rank: int = 0, skip: int = 0, timeout_s: float | None = 3600) -> None:
    """torch.distributed.breakpoint(): all ranks come here, one has a prompt, the others wait.

    Args:
        rank: the one that stops.
        skip: pass so many times first.
        timeout_s: from now on the collectives of all groups wait so long; None leaves them.
    """
    import torch.distributed as dist

    frame = sys._getframe(1)
    place = (_file(frame), frame.f_lineno)
    _passed[place] += 1
    if _passed[place] <= skip:
        return
    if timeout_s is not None:
        set_timeouts(timeout_s)
    debugger, steps = RankPdb(), False
    if dist.get_rank() == rank:
        steps = debugger.look(frame)
    dist.barrier()
    if steps:
        debugger.follow(frame)


def pm() -> None:
    """pdb.pm(), which in a rank takes the exception that is being handled, too."""
    error = sys.exc_info()[1]
    if error is None or hasattr(sys, "last_value"):
        _original_pm()
    else:
        pdb.post_mortem(error.__traceback__)


def after_failure(raised: BaseException, error: RankError) -> None:
    """A prompt at the line where this rank has failed for a reason of its own, before it ends."""
    from ddp_helpers.diagnosis.causes import is_consequence  # its rules load only where one fails

    if raised.__traceback__ is not None and not is_consequence(error):
        print(error, flush=True)
        pdb.post_mortem(raised.__traceback__)


def _place(frame: FrameType | None, trace: object) -> str:
    """Where a debugger stops, in the reader's words."""
    if frame is not None and not isinstance(trace, TracebackType):
        return _name(frame, frame.f_lineno)
    found = None
    if isinstance(trace, BaseException):  # so from Python 3.13 on
        trace = trace.__traceback__
    while isinstance(trace, TracebackType):
        if is_user_file(_file(trace.tb_frame)) or found is None:
            found = trace
        trace = trace.tb_next
    return _name(found.tb_frame, found.tb_lineno) if found else "its last line"


def _name(frame: FrameType, line: int) -> str:
    file = _file(frame)
    return f"{_names.get(file, file)}, line {line}, in {frame.f_code.co_name}"


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename
