"""What a launcher and its ranks tell each other; wire.py says in which order, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ddp_helpers.evidence.records import Finding, RankError, Watched
from ddp_helpers.ranks.surroundings import Surroundings

INSIDE_A_RANK = "DDP_HELPERS_INSIDE_A_RANK"  # in the environment of every rank


@dataclass(frozen=True)
class Job:
    """What every rank of one launch is told."""

    function: bytes
    """`(fn, args, kwargs)` by cloudpickle; fn may be a text `path/script.py:name`."""
    nprocs: int
    env: dict[str, str]
    cwd: str
    argv: list[str]
    threads: int
    sources: dict[str, str] = field(default_factory=dict)
    """The text of notebook cells by file name, so that a traceback can quote them."""
    names: dict[str, str] = field(default_factory=dict)
    """How the reader knows those files: `cell In[4]`."""
    temporary: str = ""
    """Where multiprocessing keeps its sockets: a folder that is there already, or, with
    `own_temporary`, what the name of a rank's own begins with. A rank that is killed can't remove
    it; the launcher does."""
    own_temporary: bool = False
    post_mortem: bool = False
    """A rank that raises opens a prompt at its line before it ends."""
    sanitize: int = 0
    """Watch the run, and look at weights and data on each n-th step; 0 is off."""
    ignore: tuple[str, ...] = ()
    """Kinds of the sanitizer's findings that are accepted."""
    draw: bool = False
    """Keep the last exchanges of each rank with their times, for a picture."""
    surroundings: Surroundings | None = None
    """What else the launcher's own child would inherit; None leaves a rank as it is."""
    first_rank: int = 0
    """Of those that run here, where others run on other hosts."""
    world_size: int = 0
    """Of all hosts; 0 where they all run here."""

    def temporary_folder(self, rank: int) -> str:
        """Where multiprocessing keeps this rank's sockets."""
        return f"{self.temporary}{rank}" if self.own_temporary else self.temporary


@dataclass(frozen=True)
class Outcome:
    """How the function ended on one rank: a value by cloudpickle, or an error."""

    value: bytes | None
    error: RankError | None
    exit_code: int
    seconds: float
    findings: tuple[Finding, ...] = ()
    watched: Watched | None = None
    """How much the sanitizer saw."""
    stays: bool = False
    """The rank of a session has done one command, and waits for the next."""


@dataclass(frozen=True)
class Command:
    """What a rank of a session is to do next: call a function, or run a cell."""

    function: bytes | None = None
    """`(fn, args, kwargs)` by cloudpickle."""
    code: str = ""
    filename: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    """Cells that have been run since the last command, and how the reader knows them."""
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """How far a rank is."""

    step: int
    total: int | None = None
    loss: float | str | None = None
    """The texts `nan`, `inf` and `-inf` for what JSON has no number for."""


class Wish(Enum):
    """What a rank wants of the keyboard, which one rank has at a time."""

    OPEN = "have it until it says CLOSE: a debugger's prompt"
    LINE = "one line"
    CLOSE = "give it back"
    QUIT = "end the run: the reader has typed `quit`"


@dataclass(frozen=True)
class Asked:
    """A rank's message about the reader's keyboard; OPEN and LINE get an answer."""

    wish: Wish
    where: str = ""
    """Where a debugger has stopped, as the reader knows the place."""


class Answer(Enum):
    """How an answer begins; after HERE comes the line, if a line was asked for."""

    HERE = b"+"
    END = b"-"  # Ctrl-D
    NO_KEYBOARD = b"!"
