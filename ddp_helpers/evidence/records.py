"""Plain records that cross a process boundary. They import nothing but the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

# what the function returns; covariant, because nobody writes into a frozen record
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Frame:
    """One line of a Python stack, named as the reader knows it (`cell In[4]`, not a temp file)."""

    filename: str
    line: int
    function: str
    source: str = ""
    is_user: bool = True
    is_launcher: bool = False
    """True for the lines that run a rank's function, which no reader has to look at."""

    def __str__(self) -> str:
        return f"{self.filename}, line {self.line}, in {self.function}"


@dataclass(frozen=True)
class RankError:
    """An exception that a rank raised, as text, so that any exception can travel."""

    type_name: str
    message: str
    traceback: str
    frames: tuple[Frame, ...] = ()
    at: float = 0.0
    """Seconds on the machine's monotonic clock, the same for all ranks of one machine."""

    @property
    def user_frame(self) -> Frame | None:
        """The innermost line that is the reader's own, or None."""
        return innermost_user_frame(self.frames)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


@dataclass(frozen=True)
class LastCall:
    """The last collective that a rank called itself; DDP's own are made in C++ and not seen."""

    number: int
    """Its place among this rank's calls, counted from 1."""
    name: str
    frame: Frame
    group: str = ""
    """Name and size of its process group."""
    tensors: str = ""
    """Type and shape of what all ranks must agree on: `float32 (5,)`."""
    peer: int | None = None
    """The group's rank that it sends to, receives from, or that has the data (src, dst)."""
    before: tuple[LastCall, ...] = ()
    """The few calls before it, the latest first."""

    def __str__(self) -> str:
        return f"{self.name} (its call number {self.number}) at {self.frame}"


ALL, SEND, RECV, ALONE = "all", "send", "recv", "alone"


@dataclass(frozen=True)
class TimedCall:
    """An exchange of one rank, or a backward; times are of the machine's monotonic clock."""

    name: str
    frame: Frame
    kind: str
    """ALL ranks of a group take part, or it is one's SEND or RECV, or a backward, of ALONE."""
    bytes: int
    """That it brings to the exchange; of a recv, that it gets."""
    peer: int | None
    """The rank that it sends to, receives from, or that has the data (src, dst)."""
    group: tuple[int, ...]
    """The ranks that take part; empty where that isn't known."""
    place: int
    """How many of its kind were before it, with the same group or peer: so calls meet."""
    began: float
    waited: float | None
    """When it began to wait for the result: None as long as an asynchronous call is under way."""
    done: float | None
    """None if it never came to its end."""


@dataclass(frozen=True)
class Finding:
    """Something that the sanitizer found wrong in a run."""

    kind: str
    """A short name that stays: `epoch-not-advanced`."""
    cause: str
    """One sentence that names ranks and values."""
    advice: str
    ranks: tuple[int, ...] = ()
    """The ranks that did it, as far as that can be told."""
    step: int | None = None
    """Optimizer steps done before, counted from 0."""
    place: Frame | None = None
    """The reader's own line."""
    details: tuple[str, ...] = ()
    """Further lines, such as what each rank did."""
    serious: bool = True
    """False for what is only slow or wasteful."""

    def __str__(self) -> str:
        lines = [self.cause, *(f"  {line}" for line in self.details)]
        if self.place and not self.details:
            lines.append(f"  at {self.place}")
            lines += [f"    {self.place.source}"] if self.place.source else []
        return "\n".join([*lines, f"what to do: {self.advice}", f"[{self.kind}]"])


@dataclass(frozen=True)
class Watched:
    """How much of a run the sanitizer saw."""

    ranks: int = 1
    """Of the largest process group."""
    steps: int = 0
    """Of optimizers, on this rank as all that follows."""
    passes: int = 0
    """Whole passes over a loader in which an optimizer stepped."""
    calls: int = 0
    """Collectives that were compared, DDP's own among them."""
    accepted: tuple[tuple[str, int], ...] = ()
    """Kinds of findings that the reader has accepted, and how often they came."""


@dataclass(frozen=True)
class RankResult(Generic[R_co]):
    """What one rank left: its value, everything it printed, and how it ended."""

    rank: int
    value: R_co = None  # type: ignore[assignment]  # a rank that failed has none
    output: str = ""
    exit_code: int | None = None
    """0 after a normal end, a negative signal number, or None if the launcher ended the rank."""
    error: RankError | None = None
    stack: tuple[Frame, ...] = ()
    """Where the rank stood when a hang was reported, outermost line first."""
    seconds: float = 0.0
    out_of_memory: bool = False
    """True if the system's count of out-of-memory kills went up while the rank was killed."""
    returned: bool = True
    """False if the process ended before its function did, for instance by `os._exit(0)`."""
    findings: tuple[Finding, ...] = ()
    """What the sanitizer found on this rank."""
    last_call: LastCall | None = None
    """The last collective it called."""
    stopped: bool = False
    """True if the process was paused (SIGSTOP, Ctrl-Z) when a hang was reported."""
    watched: Watched | None = None
    """How much the sanitizer saw, if it watched."""
    calls: tuple[TimedCall, ...] = ()
    """Its last exchanges, of a run that is drawn."""
    host: str = ""
    """Where it ran, if `launch()` was given hosts."""

    @property
    def ok(self) -> bool:
        """True if the function returned on this rank."""
        return self.error is None and self.exit_code == 0 and self.returned

    @property
    def traceback(self) -> str:
        """The full traceback of a rank that raised, otherwise an empty string."""
        return self.error.traceback if self.error else ""


@dataclass(frozen=True)
class LaunchResult(Generic[R_co]):
    """What `launch()` returns: one `RankResult` a rank, in rank order."""

    ranks: tuple[RankResult[R_co], ...]
    seconds: float = 0.0
    start_method: str = "forkserver"
    quit_by: int | None = None
    """The rank at whose prompt the reader typed `quit`, which ended the run."""

    @property
    def values(self) -> list[R_co]:
        """The function's return values, in rank order."""
        return [rank.value for rank in self.ranks]

    @property
    def findings(self) -> list[Finding]:
        """What the sanitizer found, each thing once, the serious ones first."""
        found = {
            (finding.kind, finding.cause): finding
            for rank in self.ranks
            for finding in rank.findings
        }
        return sorted(found.values(), key=lambda finding: not finding.serious)

    def __getitem__(self, rank: int) -> RankResult[R_co]:
        return self.ranks[rank]

    def __len__(self) -> int:
        return len(self.ranks)

    def __repr__(self) -> str:
        ended = "ok" if all(rank.ok for rank in self.ranks) else "failed"
        if self.quit_by is not None:
            ended = f"quit at rank {self.quit_by}'s prompt"
        return f"LaunchResult({len(self)} ranks, {ended}, {self.seconds:.2f} s)"


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0 and 2`, `ranks 0, 1 and 2`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def innermost_user_frame(frames: tuple[Frame, ...]) -> Frame | None:
    """The last frame that belongs to the reader's code, or None."""
    return next((frame for frame in reversed(frames) if frame.is_user), None)
