"""Of a log of any size the lines that can tell why it failed, with some around them.

A log of many ranks grows to hundreds of megabytes, nearly all of it progress. One pass of a
compiled pattern over the bytes finds the few lines that matter; the rest is never decoded.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator

# words of errors, signals, schedulers and launchers. Each begins with a capital, which is rare in
# progress: the search leaps from one to the next. Not with [EF] or the like: then it does not leap
CAPITALS = re.compile(
    rb"(?:Traceback|Error|Exception|Interrupt|Exit|Stop(?:Iteration|Async)|BdbQuit|FAILED|"
    rb'Failures:|Root Cause|File "|Cell In|EADDRINUSE|Killed|Terminated|Aborted|Hangup|Illegal|'
    rb"OOM|Out [Oo]f [Mm]em|OutOfMemory|SIG[A-Z]{2}|Segmentation|Bus error|Fatal|Watchdog|"
    rb"Guessing|NCCL(?: [^ \n]+)? WARN|E\d{3,4} \d\d:|F\d{3,4} \d\d:|E [A-Z]\w+\.cpp|DUE TO|"
    rb"CANCELLED|MEMBER: |MiB \||NVRM|NVML|Xid|This DataLoader will create|PREEMPT|NODE FAIL|"
    rb"Node failure|Evicted|No module named|Errno \d|PBS: job killed|TERM_(?:RUN|MEM)LIMIT|"
    rb"Job has gone over|MPI_ABORT|CUDA out of memory|HIP out of memory)"
    rb"[^\n]*"  # one of a line is enough
)
# those that have none: a plain search for each is faster than all of them in one pattern
OTHERS = tuple(
    text.encode()
    for text in (
        "exitcode|exit code|exit status|return code|core dumped|terminate called|death signal|"
        "slurmstepd|srun: |oom_kill|oom-kill|error: |c10d]|gai error|what to do: |enough slots|"
        "temporarily unavailable|pthread_create|pids controller|Grad strides|find_unused|lost.|"
        "device used by this process|symbol lookup|encountered in worker|"
        "unexpected system error|by signal |sanitizer|❱ |with code "
    ).split("|")
)
BEFORE, AFTER = 2, 30  # lines around one: whose it is, and the rest of a message
MOST_HEAD, MOST_TAIL = 12_000, 12_000  # lines kept from the beginning and from the end
MOST_ALIKE = 1000  # lines that differ in numbers only: a warning of each step
MOST_KEYS = 50_000  # of such lines that are counted at a time
LONGEST_LINE = 20_000  # bytes: a binary file has no lines


def sift(chunks: Iterable[bytes]) -> list[tuple[int, str]]:
    """Numbers and texts of the lines worth a look, in order.

    Args:
        chunks: the log in pieces of any size; a line may begin in one and end in the next.
    """
    head: list[tuple[int, bytes]] = []
    tail: deque[tuple[int, bytes]] = deque(maxlen=MOST_TAIL)
    for kept in _kept(_whole_lines(chunks)):
        (head if len(head) < MOST_HEAD else tail).append(kept)
    return [(number, text.decode("utf-8", "replace")) for number, text in [*head, *tail]]


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks that end with a line, whatever a terminal makes of the returns in it."""
    rest = b""
    for chunk in chunks:
        block = rest + chunk
        if block.endswith(b"\r"):  # its \n may come with the next
            block, held = block[:-1], b"\r"
        else:
            held = b""
        end = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
        if not end and len(block) > LONGEST_LINE:
            end = len(block)
        rest = block[end:] + held
        if end:
            yield _newlines(block[:end])
    if rest:
        yield _newlines(rest + b"\n")


def _newlines(block: bytes) -> bytes:
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\0" in block:
        block = block.replace(b"\0", b"")
    return block if block.endswith(b"\n") else block + b"\n"


def _kept(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    first = 1  # the number of the block's first line
    wanted = 0  # the number of the last line that a hit still wants
    alike: Counter[bytes] = Counter()
    recent: list[tuple[int, bytes]] = []
    for block in blocks:
        hits = _hits(block, alike)
        count = block.count(b"\n")
        if not hits and first > wanted:
            last = block[:-1].rsplit(b"\n", BEFORE)[-BEFORE:]
            recent = [*recent, *enumerate(last, first + count - len(last))][-BEFORE:]
        else:
            for number, text in enumerate(block[:-1].split(b"\n"), first):
                if number - first in hits:
                    yield from recent
                    recent, wanted = [], number + AFTER
                if number <= wanted:
                    yield number, text[:LONGEST_LINE]
                else:
                    recent = [*recent[-BEFORE + 1 :], (number, text[:LONGEST_LINE])]
        first += count


def _hits(block: bytes, alike: Counter[bytes]) -> set[int]:
    """Which lines of the block, counted from 0, are interesting."""
    hits: set[int] = set()
    line = at = 0
    for position in _places(block):
        further = block.count(b"\n", at, position)
        if not further and line in hits:
            continue
        line += further
        at = position
        begin = block.rfind(b"\n", 0, at) + 1
        key = block[begin : begin + 120].translate(None, b"0123456789")
        alike[key] += 1
        if len(alike) > MOST_KEYS:
            alike.clear()
        if alike[key] <= MOST_ALIKE or block.startswith(b'File "', at):
            hits.add(line)
    return hits


def _places(block: bytes) -> list[int]:
    """Where something interesting begins."""
    places = [hit.start() for hit in CAPITALS.finditer(block)]
    for text in OTHERS:
        at = block.find(text)
        while at >= 0:
            places.append(at)
            at = block.find(text, at + 1)
    return sorted(places)
