"""One watched process: what it found, where it stands, and how it talks to the other ranks."""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from ddp_helpers.arguments import check_whole
from ddp_helpers.evidence.frames import make_frame
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.evidence.records import Finding, Frame, Watched
from ddp_helpers.sanitizer.compare.callsite import (
    Place,
    innermost,
    lines_of_statement,
    places,
    user_frames,
)
from ddp_helpers.sanitizer.kinds import accepted_in, checked
from ddp_helpers.sanitizer.marks import mark_watched
from ddp_helpers.sanitizer.talk.channel import Channel, Gone, open_channel
from ddp_helpers.sanitizer.talk.closing import closing_line
from ddp_helpers.torch_private import TESTED, NotInThisTorch

DEFAULT_TIMEOUT = 1800.0  # seconds; init_process_group's own, where the program gives none
PATIENCE_AT_END = 2.0  # seconds to wait for the other ranks' last records
LEFT, FAILED = "left", "failed"
R = TypeVar("R")
P = ParamSpec("P")


class SanitizerError(RuntimeError):
    """The sanitizer stopped a run; `.finding` says what it found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass(frozen=True)
class Options:
    """How closely to look.

    Args:
        every: compare weights, gradients and data on each `every`-th step only; collectives that
            the program calls itself are compared always.
        ignore: kinds of findings that are accepted, such as `padded-evaluation`: they are counted,
            and neither told nor do they stop the run. A comment `# ddp: ignore[kind]` at the line
            that a finding names does the same for this line.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    every: int = 1
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole("every", self.every, least=1)
        object.__setattr__(self, "ignore", checked("ignore", self.ignore))


class Session:
    """The sanitizer in one process.

    wiring.py fills these lists; each entry is called without arguments:
        on_group: once a process group has started (the channel is open).
        at_end: when the group ends, or the program does; here a checker leaves its last records.
        at_last: after that; here it compares what it has not compared yet, waiting for the others'
            records at most `PATIENCE_AT_END`. Nothing is left for others from here on.
    """

    def __init__(
        self, options: Options | None = None, names: Mapping[str, str] | None = None
    ) -> None:
        self.options = options or Options()
        self.names = dict(names or {})
        self.patches = Patches()
        self.findings: list[Finding] = []
        self.accepted: Counter[str] = Counter()
        """How often findings came that the reader has accepted, by their kind."""
        self.told_elsewhere: set[str] = set()
        """Kinds of findings that other ranks have, as far as they said so."""
        self.looked_at: Callable[[], Watched] = Watched
        """How much of the run was seen."""
        self._widest = 1  # ranks of the largest group
        self.channel: Channel | None = None
        self.rank, self.world_size = 0, 1
        self.step = 0  # optimizer steps so far
        self.timeout = DEFAULT_TIMEOUT
        self.on_group: list[Callable[[], None]] = []
        self.at_end: list[Callable[[], None]] = []
        self.at_last: list[Callable[[], None]] = []
        self._ending = False
        self.told: set[tuple[str, str]] = set()  # kind and cause of notes that others tell
        self.on_fault: dict[str, Callable[[], None]] = {}
        """By the name of a check: what lets the other ranks know that it has failed here."""
        self._faulty: set[str] = set()
        _watch_forks(self)

    @property
    def line(self) -> Channel:
        """The channel, for callbacks: they are called only while there is one."""
        assert self.channel is not None
        return self.channel

    # ---- the life of a group

    def group_started(self, timeout: float) -> None:
        """The default process group runs: open the channel."""
        import torch.distributed as dist

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        self._widest = max(self._widest, self.world_size)
        mark_watched()
        if self.world_size > 1:
            self.channel = self.guarded("all ranks", open_channel)()
        for call in self.on_group:
            call()

    def switch_off(self) -> None:
        """This group is not watched after all."""
        self.channel = None
        self._widest = 1

    def group_ends(self, how: str = LEFT) -> None:
        """The group, or the program, ends: last comparisons, then tell the others."""
        if self.channel is None or self._ending:  # a last comparison may end the group itself
            return
        if how == FAILED:  # its peers may hang in a collective: tell them at once, compare nothing
            self.channel.publish("end", how)
            self.channel = None
            return
        self._ending = True
        # Two phases. Were a rank to leave one record, wait for the others' and leave the next,
        # two ranks with different checks to go could wait for each other. So each leaves all it
        # has and says so ("last"): what is missing then will not come, and nobody waits for it.
        raised = self._call_all(self.at_end)
        self.channel.publish("last", True)
        raised = self._call_all(self.at_last) or raised
        self._ending = False
        # only now: who still waits for this rank's notes gives up once it reads "end"
        self.channel.publish("end", how)
        self.channel = None
        if raised:
            raise raised

    def _call_all(self, calls: Sequence[Callable[[], None]]) -> SanitizerError | None:
        raised = None
        for call in calls:
            try:
                call()
            except SanitizerError as error:
                raised = raised or error
        return raised

    def what_became_of(self, ranks: Sequence[int]) -> dict[int, str]:
        """`left` or `failed` for those of these ranks that have ended."""
        return self.channel.read_those_here("end", ranks, str) if self.channel else {}

    def have_ended(self, ranks: Sequence[int]) -> str | None:
        """`ended` if one of these ranks has."""
        return "ended" if self.what_became_of(ranks) else None

    def have_left_all(self, ranks: Sequence[int]) -> str | None:
        """`ended` if one of these ranks has left all its records: look once more, then give up."""
        last = self.channel.read_those_here("last", ranks, bool) if self.channel else {}
        return "ended" if last else self.have_ended(ranks)

    def gather(self, name: str, record: R, limit: float = PATIENCE_AT_END) -> dict[int, R]:
        """Leave a record and return those of all ranks that come within the limit, by rank."""
        if self.channel is None:
            return {self.rank: record}
        self.channel.publish(name, record)
        everyone, kind = range(self.world_size), type(record)
        try:
            return self.channel.wait(name, everyone, kind, limit, self._has_failed)
        except Gone:
            return self.channel.read_those_here(name, everyone, kind)

    def _has_failed(self, ranks: list[int]) -> str | None:
        return FAILED if FAILED in self.what_became_of(ranks).values() else None

    def in_child(self) -> None:
        """This process is a fork of the watched one: never touch the parent's connection."""
        self._parents, self.channel = self.channel, None  # kept, so that nothing closes it

    # ---- findings

    def guarded(self, check: str, call: Callable[P, R]) -> Callable[P, R | None]:
        """Make a callback of a checker safe: a fault of ours must not break the watched run.

        Whatever it raises, except SanitizerError, is told once as a note, and from then on the
        check of this name stays quiet and its callbacks return None.
        """

        @functools.wraps(call)
        def safe(*args: P.args, **kwargs: P.kwargs) -> R | None:
            if check in self._faulty:
                return None
            try:
                return call(*args, **kwargs)
            except SanitizerError:
                raise
            except Exception as error:
                self._faulty.add(check)
                with contextlib.suppress(Exception):
                    self.on_fault.get(check, lambda: None)()
                self.found(_own_fault(check, error))
                return None

        return safe

    def found(self, finding: Finding) -> None:
        """Keep a finding; a serious one stops the program here.

        Raises:
            SanitizerError: if it is serious.
        """
        if self._is_accepted(finding):
            self.accepted[finding.kind] += 1
            return
        known = any((f.kind, f.cause) == (finding.kind, finding.cause) for f in self.findings)
        if not known:
            self.findings.append(finding)
        if finding.serious:
            raise SanitizerError(finding)

    def _is_accepted(self, finding: Finding) -> bool:
        if finding.kind in self.options.ignore:
            return True
        place = finding.place
        if place is None:
            return False
        # names of cells are told to the reader in place of their files
        files = {shown: name for name, shown in self.names.items()}
        lines = lines_of_statement(files.get(place.filename, place.filename), place.line)
        return finding.kind in accepted_in(lines)

    def frame(self, place: Place) -> Frame:
        """A place in the reader's code, with its text."""
        filename, line, function = place
        return make_frame(filename, line, function, self.names, linecache.getline(filename, line))

    def frame_of(self, place: Place | None) -> Frame | None:
        """The same for a place that may be unknown."""
        return self.frame(place) if place else None

    def here(self) -> Frame | None:
        """The reader's innermost line right now."""
        frames, _ = user_frames(2)
        return self.frame_of(innermost(places(frames)))

    def print_findings(self, raised: BaseException | None = None) -> None:
        """Tell on stderr what was found and neither raised nor told by another rank.

        Args:
            raised: what ended the run; where nothing did, rank 0 closes with how much was seen.
        """
        shown = getattr(raised, "finding", None)
        for finding in self.findings:
            if finding is shown or (finding.kind, finding.cause) in self.told:
                continue
            head = "sanitizer" if finding.serious else "sanitizer, a note"
            print(f"{head}: {finding}", file=sys.stderr, flush=True)
        if raised is None and self.rank == 0 and (watched := self.watched()):
            kinds = {finding.kind for finding in self.findings} | self.told_elsewhere
            print(closing_line([watched], kinds), file=sys.stderr, flush=True)

    def watched(self) -> Watched | None:
        """How much was seen; None where no group of several ranks was watched."""
        if self._widest == 1:
            return None
        accepted = tuple(sorted(self.accepted.items()))
        return replace(self.looked_at(), ranks=self._widest, accepted=accepted)


def _own_fault(check: str, error: Exception) -> Finding:
    if isinstance(error, NotInThisTorch):
        return Finding(
            "not-in-this-torch",
            f"the check of {check} is left out: {error}",
            f"it was {TESTED}",
            serious=False,
        )
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    where = f"{os.path.basename(frame.f_code.co_filename)}:{line}"
    return Finding(
        "sanitizer-fault",
        f"the sanitizer's check of {check} failed itself ({type(error).__name__}: {error}, "
        f"{where}) and is off now",
        "report it; your run goes on and is not concerned",
        serious=False,
    )


def _watch_forks(session: Session) -> None:
    """DataLoader workers may be forks: there the session is off."""
    reference = weakref.ref(session)

    def after_fork() -> None:
        if (alive := reference()) is not None:
            alive.in_child()

    os.register_at_fork(after_in_child=after_fork)
