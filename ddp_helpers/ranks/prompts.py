"""The launcher's side of a debugger: the reader's keyboard, lent to one rank at a time.

In a notebook the prompt appears under the cell, in a terminal below the output. While a rank has it
or waits for it, the launch holds still: no limit runs, and no rank is called late or stranded.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import ctypes
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Answer, Asked, Wish
from ddp_helpers.ranks.notebook import ipython_shell
from ddp_helpers.ranks.view import Silenceable, TextView, show
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.ranks.launched import Events, LaunchedRank

LONGEST_CANCEL = 1.0  # seconds until a thread of the kernel has left its input()
TERMINAL = 0
HELP = "n: next line, s: into a call, p NAME: print, w: where, c: go on, q: end the run"


class Keyboard(Protocol):
    """Something that a reader types on; `ask` once, then `poll` until a line has come."""

    def ask(self, prompt: str) -> None:
        """Show a prompt and begin to read."""

    def poll(self) -> tuple[Answer, str] | None:
        """What was typed, or None as long as nothing was."""

    def cancel(self) -> None:
        """Stop to read."""


class Prompts:
    """Who of a launch's ranks has the keyboard, and who waits for it."""

    def __init__(self, events: Events, view: Silenceable) -> None:
        self.quit_by: int | None = None
        """The rank at whose prompt the reader has ended the run."""
        self.closed_at = 0.0
        """When the last one gave the keyboard back."""
        self._events = events
        self._view = view
        self._waiting: deque[tuple[LaunchedRank, Asked]] = deque()
        self._holder: LaunchedRank | None = None
        self._for_one_line = False
        self._keyboard: Keyboard | None = None
        self._is_reading = False
        self._prompt = ""
        self._kept: list[tuple[LaunchedRank, list[str]]] = []
        self._helped = False

    @property
    def are_open(self) -> bool:
        """True while a rank has the keyboard or waits for it."""
        return self._holder is not None or bool(self._waiting)

    def take(self, rank: LaunchedRank, asked: Asked) -> None:
        """A rank has sent a word about the keyboard."""
        if asked.wish is Wish.QUIT:
            self.quit_by = rank.rank
        elif asked.wish is Wish.CLOSE:
            self._release()
        elif asked.wish is Wish.LINE and rank is self._holder:
            self._read()
        else:
            self._waiting.append((rank, asked))
        self.tick()

    def output(self, rank: LaunchedRank, lines: list[str]) -> None:
        """Show what a rank has printed: a dialogue below all else, the others not in its midst."""
        if rank is self._holder:
            TextView().output(rank.rank, lines)
        elif self._is_reading:
            self._kept.append((rank, lines))
        elif self._view.shown:
            self._view.shown.output(rank.rank, lines)

    def tick(self) -> None:
        """Pass a line on that has come, and the keyboard to who is next."""
        if self._holder is not None and self._holder.ended:
            self._stop_reading()
            self._release()
        typed = self._keyboard.poll() if self._keyboard and self._is_reading else None
        if typed is not None:
            self._pass_on(*typed)
        while self._holder is None and self._waiting:
            self._serve(*self._waiting.popleft())

    def close(self) -> None:
        """The launch ends: nobody waits for the reader any more."""
        self._stop_reading()
        self._waiting.clear()
        self._holder = None

    # ---- turns

    def _serve(self, rank: LaunchedRank, asked: Asked) -> None:
        if rank.ended or rank.link is None:
            return
        self._keyboard = self._keyboard or find_keyboard(self._events)
        if self._keyboard is None:
            wire.answer(rank.link, Answer.NO_KEYBOARD)
            self.closed_at = time.monotonic()
            return
        self._holder, self._for_one_line = rank, asked.wish is Wish.LINE
        if self._for_one_line:
            self._read()
            return
        if not self._helped:
            self._helped = True
            told = f"rank {rank.rank} has stopped at {asked.where}; the others wait"
            show(f"{shown(told)}\n({shown(HELP)})\n")
        wire.answer(rank.link, Answer.HERE)

    def _release(self) -> None:
        self._holder = None
        self.closed_at = time.monotonic()

    # ---- lines

    def _read(self) -> None:
        assert self._holder
        assert self._keyboard
        self._prompt = self._holder.take_prompt()
        self._is_reading = True
        self._keyboard.ask(f"[rank {self._holder.rank}] {self._prompt}")

    def _pass_on(self, answer: Answer, line: str) -> None:
        assert self._holder
        assert self._holder.link
        self._is_reading = False
        self._holder.text.append(f"{self._prompt}{line}\n")
        wire.answer(self._holder.link, answer, line)
        self._show_kept()
        if self._for_one_line:
            self._release()

    def _stop_reading(self) -> None:
        if self._keyboard and self._is_reading:
            self._is_reading = False
            self._keyboard.cancel()
            self._show_kept()

    def _show_kept(self) -> None:
        kept, self._kept = self._kept, []
        for rank, lines in kept:
            self.output(rank, lines)


# ---- keyboards


def find_keyboard(events: Events) -> Keyboard | None:
    """The reader's, or None where nobody sits at one: nbclient, a pipe, a job in the background."""
    shell = ipython_shell()
    if hasattr(shell, "kernel"):  # what runs this cell has said whether it can ask its reader
        return KernelKeyboard(events) if getattr(shell.kernel, "_allow_stdin", True) else None
    return TerminalKeyboard(events) if _is_terminal() else None


def _is_terminal() -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not (sys.stdin.isatty() and sys.stdin.fileno() == TERMINAL):
            return False
        # a job in the background would be stopped if it read
        return os.tcgetpgrp(TERMINAL) == os.getpgrp()
    return False


class TerminalKeyboard:
    """The terminal itself, which sends whole lines, and lets them be edited before."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._data = b""
        self._typed: tuple[Answer, str] | None = None

    def ask(self, prompt: str) -> None:
        """Show a prompt and begin to read."""
        show(prompt)
        self._typed = None
        self._events.on(TERMINAL, self._read)

    def poll(self) -> tuple[Answer, str] | None:
        """What was typed, or None as long as nothing was."""
        return self._typed

    def cancel(self) -> None:
        """Stop to read."""
        if TERMINAL in self._events:
            show("\n")
            self._events.off(TERMINAL)

    def _read(self) -> None:
        try:
            data = os.read(TERMINAL, wire.LONGEST_LINE)
        except OSError:  # the terminal is gone
            data = b""
        self._data += data
        if data and not self._data.endswith(b"\n"):
            return
        line, self._data = self._data.decode("utf-8", "surrogateescape").rstrip("\n"), b""
        self._typed = (Answer.HERE, line) if line or data else (Answer.END, "")
        if not data:
            show("\n")  # of Ctrl-D the terminal shows nothing
        self._events.off(TERMINAL)


class KernelKeyboard:
    """The notebook's own input(), in a thread: the launching thread goes on to watch the ranks."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._typed: tuple[Answer, str] | None = None
        self._thread: threading.Thread | None = None
        self._wake = -1

    def ask(self, prompt: str) -> None:
        """Show a prompt and begin to read."""
        self._typed = None
        self._wake = os.eventfd(0)
        self._events.on(self._wake, lambda: None)
        # the kernel knows by the context which cell asks
        read = contextvars.copy_context().run
        self._thread = threading.Thread(target=read, args=(self._read, prompt), daemon=True)
        self._thread.start()

    def poll(self) -> tuple[Answer, str] | None:
        """What was typed, or None as long as nothing was."""
        if self._typed is not None:
            self._leave()
        return self._typed

    def cancel(self) -> None:
        """Stop to read: the kernel's input() looks every few milliseconds, and an error ends it."""
        if self._thread is not None and self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
            )
        self._leave()

    def _leave(self) -> None:
        if self._thread is not None:
            self._thread.join(LONGEST_CANCEL)
            self._events.off(self._wake)
            if not self._thread.is_alive():  # else it may still write there
                os.close(self._wake)
            self._thread = None

    def _read(self, prompt: str) -> None:
        typed = Answer.NO_KEYBOARD, ""
        try:
            typed = Answer.HERE, builtins.input(prompt)
        except EOFError:
            typed = Answer.END, ""
        except (Exception, KeyboardInterrupt, SystemExit):  # it can't ask after all; or cancel()
            pass
        self._typed = typed
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)
