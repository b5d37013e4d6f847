"""An error as a log or a rank tells it, and who raised it: torch itself, or somebody else.

The same words, `Connection reset by peer`, mean a lost rank if torch raised them, and a lost
download if the reader's code did. So a rule may ask who it was: by the C++ file in front of the
message, by the type that is torch's alone, or by the innermost line of the traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddp_helpers.diagnosis.log_marks import Line

# `[.../gloo/transport/tcp/pair.cc:553]`, `[enforce fail at ...]`, and what only c10d says
IN_CPP = re.compile(
    r"\[(?:enforce fail at )?[^\]\s]*\w\.(?:cc|cpp|cu|h|hpp):\d+\]|NCCL error in: |ncclWarning: |"
    r"Exception raised from \w+ at |\[c10d\]|is setting up NCCL communicator and |"
    r"NCCL communicator was aborted on rank |Watchdog caught collective operation timeout: |"
    r"wait timeout after \d+ms, keys: "
)
CPP_STACK = re.compile(r"\n(?=Exception raised from |frame #\d)")  # torch appends it to some
OWN_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError", "ncclWarning")
# not its checkpoints: what these read may come from anywhere
TORCH_FILES = re.compile(
    r"torch/(?:distributed/(?!checkpoint/)|nn/parallel/distributed\.py|lib/c10d)"
)
STANDARD = re.compile(
    r"<frozen |<string>|/lib/python3[^/]*/(?!site-packages|dist-packages)|^[A-Z]:.*/[Ll]ib/\w+\.py$"
)
NOT_THEIRS = re.compile(r"site-packages|dist-packages|/lib/python3|<frozen |<string>|(?:^|/)torch/")
LIBRARY = re.compile(r"/(?:site|dist)-packages/")
KEYS = re.compile(r"((?:Missing|Unexpected) key\(s\) in state_dict: )(.*)")
MOST_KEYS = 3
LONGEST_LINE = 300
MOST_LINES = 4


@dataclass(frozen=True)
class Place:
    """A line of a traceback."""

    file: str
    line: int
    function: str
    source: str

    @property
    def posix(self) -> str:
        """The file with the slashes of Linux, also from a log of Windows."""
        return self.file.replace("\\", "/")

    def __str__(self) -> str:
        inside = f", in {self.function}" if self.function else ""
        return f"{self.file}, line {self.line}{inside}"


@dataclass(eq=False)
class LoggedError:
    """An error text, `Type: message`, with all that tells whose it is."""

    kind: str
    message: str
    line: Line | None = None
    rank: str = ""
    places: Sequence[Place] = ()
    """The traceback, outermost line first; empty if none was printed."""
    thrown_by: str = ""
    """The C++ namespace, if it was no Python that threw it."""
    torch_told: bool = False
    """True if torch is known to have raised it, by other evidence than these texts."""
    of_ranks: bool = False
    """True if the run is known to have several ranks."""
    worker: str = ""
    """`DataLoader worker process 0`, or `thread Thread-3 (read)`, if it was raised there."""
    beside: bool = False
    """True for a member of a group of exceptions that is not its first: none came after another."""
    inner: LoggedError | None = field(default=None, repr=False)
    """The exception before it in a chain."""
    led_to: LoggedError | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message or self.thrown_by else self.kind

    @property
    def by_torch(self) -> bool:
        """True if torch.distributed, gloo or NCCL raised it."""
        if self.torch_told or self.kind in OWN_TYPES or IN_CPP.search(str(self)):
            return True
        if self.thrown_by.startswith(("gloo::", "c10", "NCCL")):
            return True
        inner = self.innermost
        return inner is not None and bool(TORCH_FILES.search(inner.posix))

    @property
    def innermost(self) -> Place | None:
        """Where it was raised: the innermost line outside of Python's own library."""
        own = (place for place in reversed(self.places) if not STANDARD.search(place.posix))
        return next(own, None)

    @property
    def from_environ(self) -> bool:
        """True if a variable of the environment was asked for, and was not set."""
        sources = [place.source for place in self.places[-2:]]
        files = [place.file for place in self.places[-1:]]
        return any("environ" in each for each in sources) or any(
            re.search(r"(?:^|[ /])os\.py|<frozen os>", each) for each in files
        )

    @property
    def in_a_library(self) -> bool:
        """True if the innermost line is one of a package that was installed."""
        return bool(self.innermost and LIBRARY.search(self.innermost.posix))

    def whole(self) -> list[str]:
        """The message in a few lines: keys counted, the worker named, and what it led to."""
        own = CPP_STACK.split(str(self))[0]
        told = [shorten_keys(line) for line in own.splitlines() if line.strip()]
        lines = [_cut(line) for line in told[:MOST_LINES]] or [self.kind]
        if self.worker:
            lines[0] += f" (in {self.worker})"
        last = self.led_to
        first = (str(last).splitlines() or [""])[0]
        again = last is not None and last.kind == self.kind and self.message in last.message
        if last is not None and last.kind != "SystemExit" and not again:
            lines.append(_cut(f"which led to {first}"))
        return lines


def shorten_keys(line: str) -> str:
    """load_state_dict's line with the first few of its keys, and how many there are."""
    hit = KEYS.search(line)
    keys = re.findall(r'"([^"]+)"', hit[2]) if hit else []
    if not hit or len(keys) <= MOST_KEYS:
        return line
    named = ", ".join(f'"{key}"' for key in keys[:MOST_KEYS])
    return f"{line[: hit.start()]}{hit[1]}{named} and {len(keys) - MOST_KEYS} more"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 3] + "..."
