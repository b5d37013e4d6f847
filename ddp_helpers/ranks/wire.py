"""How a launcher and its ranks talk, and in which order. Both sides read it here.

What they say stands in messages.py.

1. The launcher listens on a socket with a secret name. A rank calls it and says its number. One
   that the fork server forks brings its socket along, and only says that it is there.
2. The launcher answers with its number and six open files (`RankFiles`). One of them holds the
   `Job`.
3. While it runs, a rank prints into its pipe and may send reports, one JSON text a message.
4. Asked by STACK_SIGNAL, it writes its Python stack into a file, even while it is stuck in C++.
5. At a breakpoint it sends an `Asked` for the reader's keyboard; here alone the launcher answers.
6. At its end it writes an `Outcome` into a file and says DONE. A rank of a session does so after
   each `Command`, and waits for the next one.

Values that may be large travel as files in memory, not through the socket: a rank that leaves
does not wait for a launcher that is busy, and what it left stays when it dies.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import pickle
import secrets
import select
import signal
import socket
import struct
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

from ddp_helpers.ranks.messages import Answer, Asked, Command, Job, Outcome, Report, Wish

STACK_SIGNAL = signal.SIGRTMIN + 5  # rarely used by others; USR1 and USR2 often are
HERE = b"here"
DONE = b"done"
LONGEST_MESSAGE = 1024  # bytes; a report is some 60
LONGEST_LINE = 1 << 16  # bytes that a reader types, or pastes, at once
LONGEST_HELLO = 16  # bytes of a rank's number, and of the word that goes with its files
LONGEST_PLACE = 150  # letters of a place, which JSON may write as six bytes each
HAND_OVER_LIMIT = 5.0  # seconds for a rank that has called to say its number
_COMMAND, _END = b"command", b"end"
_HUNG_UP = "the launcher hung up"


@dataclass(frozen=True)
class RankFiles:
    """The open files that a rank is given; they travel in this order."""

    output: int
    """A pipe for all that it prints."""
    lifeline: int
    """A pipe that closes when the launcher ends, however it ends."""
    job: int
    outcome: int
    stacks: int
    last_call: int


# ---- the launcher's side


def listen(nprocs: int) -> tuple[socket.socket, str]:
    """A socket that ranks can call, and its name, which is told to nobody else."""
    address = f"ddp_helpers-{os.getpid()}-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0" + address)  # abstract: no file that could stay behind
    listener.listen(nprocs)
    return listener, address


def number_of(link: socket.socket) -> int | None:
    """The rank that has called, or None if it is gone already, or is another user's process."""
    link.settimeout(HAND_OVER_LIMIT)
    with contextlib.suppress(OSError):
        hello = link.recv(LONGEST_HELLO) if peer_of(link).uid == os.getuid() else b""
        return int(hello) if hello else None
    return None


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it: nobody can pretend to be another."""

    pid: int
    uid: int
    gid: int


def peer_of(link: socket.socket) -> Peer:
    """Who has called."""
    layout = struct.Struct("3i")  # C's struct ucred
    return Peer(*layout.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)))


def is_here(link: socket.socket) -> bool:
    """Whether the rank that this socket was made for says that it is there, or is gone already."""
    with contextlib.suppress(OSError):
        return link.recv(LONGEST_HELLO, socket.MSG_DONTWAIT) == HERE
    return False


def send_files(link: socket.socket, files: RankFiles, rank: int = 0) -> None:
    """Give a rank its files, and its number.

    Raises:
        OSError: the rank is gone.
    """
    socket.send_fds(link, [str(rank).encode()], list(astuple(files)))


def send_command(link: socket.socket, file: int) -> None:
    """Have a rank of a session obey the command in this file; one that is gone will not."""
    with contextlib.suppress(OSError):
        socket.send_fds(link, [_COMMAND], [file])


def send_end(link: socket.socket) -> None:
    """Tell a rank of a session that no more commands will come."""
    with contextlib.suppress(OSError):
        link.send(_END)


def read_message(message: bytes) -> Report | Asked | None:
    """A report, a word about the keyboard, or None: the outcome is there."""
    if message == DONE:
        return None
    told = json.loads(message)
    if "wish" in told:
        return Asked(Wish[told["wish"]], told["where"])
    return Report(**told)


def answer(link: socket.socket, kind: Answer, line: str = "") -> None:
    """Answer a rank that has asked for the keyboard; one that is gone needs no answer."""
    with contextlib.suppress(OSError):
        link.send(kind.value + line.encode("utf-8", "surrogateescape")[: LONGEST_LINE - 1])


def read_outcome(file: int) -> Outcome:
    """What a rank that said DONE has left."""
    return pickle.loads(read_whole(file))


# ---- the rank's side


def call(address: str, rank: int) -> socket.socket:
    """Call the launcher and say who calls."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.connect("\0" + address)
    link.send(str(rank).encode())
    return link


def wait_for_word(link: socket.socket, seconds: float) -> bool:
    """Wait until this rank is given its files.

    False if they have not come within this time, or if the process that made the socket has ended:
    a child of that process may hold the socket's other end, so its own end would not tell.
    """
    poll = select.poll()
    poll.register(link, select.POLLIN)
    with contextlib.ExitStack() as files:
        try:
            launcher = os.pidfd_open(peer_of(link).pid)
        except ProcessLookupError:
            return False  # it has ended already
        except OSError:
            pass  # before Linux 5.3 there is no such file
        else:
            files.callback(os.close, launcher)
            poll.register(launcher, select.POLLIN)
        return link.fileno() in dict(poll.poll(seconds * 1000))


def receive_files(link: socket.socket) -> tuple[int, RankFiles]:
    """Wait for this rank's number and its files.

    Raises:
        ConnectionError: the launcher hung up instead.
    """
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(len(fields(RankFiles)) * descriptors.itemsize)
    # CLOEXEC: a child that held the pipe, too, would keep its end from being seen
    message, ancillary, _, _ = link.recvmsg(LONGEST_HELLO, room, socket.MSG_CMSG_CLOEXEC)
    if not message:
        raise ConnectionError(_HUNG_UP)
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return int(message), RankFiles(*descriptors)


def read_job(file: int) -> Job:
    """What to do."""
    return pickle.loads(read_whole(file))


def send_report(link: socket.socket, report: Report) -> None:
    """Send a report, unless the launcher is too busy to take it.

    Raises:
        OSError: it is too busy, or gone.
    """
    link.send(json.dumps(vars(report)).encode(), socket.MSG_DONTWAIT)


def ask(link: socket.socket, asked: Asked) -> tuple[Answer, str]:
    """Ask for the keyboard and wait for the answer; CLOSE and QUIT have none.

    Raises:
        OSError: the launcher is gone.
    """
    told = {"wish": asked.wish.name, "where": asked.where[:LONGEST_PLACE]}
    link.setblocking(True)
    link.send(json.dumps(told).encode())
    if asked.wish in (Wish.CLOSE, Wish.QUIT):
        return Answer.HERE, ""
    message = link.recv(LONGEST_LINE)
    if not message:
        raise ConnectionError(_HUNG_UP)
    return Answer(message[:1]), message[1:].decode("utf-8", "surrogateescape")


def receive_command(link: socket.socket) -> Command | None:
    """Wait for the next command of a session; None at its end.

    Raises:
        ConnectionError: the launcher hung up.
    """
    link.setblocking(True)
    message, files, _, _ = socket.recv_fds(link, LONGEST_HELLO, 1)
    if message == _END:
        return None
    if not files:
        raise ConnectionError(_HUNG_UP)
    try:
        return pickle.loads(read_whole(files[0]))
    finally:
        os.close(files[0])


def leave_outcome(outcome: Outcome, file: int, link: socket.socket) -> None:
    """Write the outcome, in place of an earlier one, then say that it is there."""
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    write_whole(file, pickle.dumps(outcome))
    link.setblocking(True)  # this one must arrive, however busy the launcher is
    link.send(DONE)


# ---- files in memory, the same for both sides


def read_whole(file: int) -> bytes:
    """All that a file holds, wherever others stand in it: they share its position."""
    size = os.fstat(file).st_size
    data = os.pread(file, size, 0)
    # Linux reads at most 2 GiB at once
    while len(data) < size and (more := os.pread(file, size - len(data), len(data))):
        data += more
    return data


def write_whole(file: int, data: bytes) -> None:
    """Write all of `data`; one call may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
