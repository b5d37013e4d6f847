"""The launcher's side of ranks that stay: it has them obey one command after another."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.interrupts import HeldInterrupts
from ddp_helpers.ranks.launched import LaunchedRank
from ddp_helpers.ranks.messages import Command
from ddp_helpers.ranks.notebook import notebook_cells
from ddp_helpers.ranks.processes import count_memory_kills
from ddp_helpers.ranks.stacks import StrandedLook
from ddp_helpers.ranks.stall import StallWatch
from ddp_helpers.ranks.supervisor import Ending, Supervisor
from ddp_helpers.ranks.view import View

LONGEST_BEGIN = 60.0  # seconds for the ranks to start and meet, whatever a command may take
LONGEST_END = 10.0  # seconds for the ranks to leave their group and end


class Staying(Supervisor):
    """The launcher's side of the ranks that stay."""

    has_closed = False
    """All ranks have ended."""

    def begin(self) -> tuple[RankResult[Any], ...]:
        """Start the ranks, and wait until each has joined the group."""
        self._is_leaving = False
        self._memory_kills = count_memory_kills()
        return self._do(self._start, max(self.timeout, LONGEST_BEGIN), None)

    def obey(
        self, command: Command, numbers: Sequence[int], limit: float, view: View | None
    ) -> tuple[RankResult[Any], ...]:
        """Have some of the ranks obey, and wait for them."""
        self.timeout = limit
        sources, names = notebook_cells()
        new = {name: text for name, text in sources.items() if name not in self.job.sources}
        command = replace(command, sources=new | command.sources, names=names | command.names)
        self.job.sources.update(command.sources)
        self.job.names.update(command.names)

        def send() -> None:
            file = os.memfd_create("ddp_helpers-command")
            try:
                wire.write_whole(file, pickle.dumps(command))
                for number in numbers:
                    self._ranks[number].begin()
                for number in numbers:
                    link = self._ranks[number].link
                    assert link is not None
                    wire.send_command(link, file)
            finally:
                os.close(file)

        return self._do(send, limit, view, numbers)

    def leave(self, view: View | None) -> tuple[RankResult[Any], ...]:
        """Let the ranks end by themselves; those that don't are killed."""

        def send() -> None:
            self._is_leaving = True
            for rank in self._ranks:
                rank.begin()
                assert rank.link is not None
                wire.send_end(rank.link)

        return self._do(send, LONGEST_END, view)

    def kill(self) -> None:
        """End the ranks at once."""
        if not self.has_closed:
            self.has_closed = True
            self._end()

    def _do(
        self,
        act: Callable[[], None],
        limit: float,
        view: View | None,
        numbers: Sequence[int] | None = None,
    ) -> tuple[RankResult[Any], ...]:
        """Act, watch until it is done, and say what the ranks have left."""
        self._view.given = self._view.shown = view
        self._interrupts = HeldInterrupts()
        self._stranded, self._stall = StrandedLook(), StallWatch()
        started_at = time.monotonic()
        with self._interrupts:
            try:
                act()
                self.ending = self._watch(started_at + limit)
            except KeyboardInterrupt:
                self.ending = Ending.INTERRUPTED
            except BaseException:
                self.kill()
                raise
            self.seconds = time.monotonic() - started_at
            if self.ending is Ending.ALL_ENDED and all(map(waits, self._ranks)):
                self._finish(numbers)
            else:
                self.kill()
            if self.ending is Ending.INTERRUPTED:
                self._interrupts.forget()
        more = self.has_closed and count_memory_kills() > self._memory_kills
        return tuple(
            rank.result(more)
            if numbers is None or rank.rank in numbers or rank.ended
            else RankResult(rank.rank, exit_code=0)
            for rank in self._ranks
        )

    def _finish(self, numbers: Sequence[int] | None) -> None:
        for rank in self._ranks:
            if numbers is None or rank.rank in numbers:
                rank.finish()
        if self._view.given:
            self._view.given.close()
        self._view.given = self._view.shown = None

    def _busy(self) -> list[LaunchedRank]:
        return [rank for rank in self._living() if self._is_leaving or not waits(rank)]


def waits(rank: LaunchedRank) -> bool:
    """It waits for the next command."""
    return rank.outcome is not None and rank.outcome.stays and not rank.ended
