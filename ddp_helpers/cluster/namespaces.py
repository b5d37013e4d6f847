"""A machine within this machine: a network namespace with its own card, name and process numbers.

All commands come with every Linux (util-linux, iproute2). As root it is made directly, else in a
user namespace, where the system allows one. Nothing has a name outside: with its first process it
is gone, and so are its cards and all that runs in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CARD = "eth0"
LEAST_BUCKET = 16_000  # bytes: ten full frames, as tbf drops a frame that is larger than it
SECONDS = 10  # limit for each command here; all take milliseconds
KEPT = ("--mount", "--net", "--uts", "--pid")
# /proc and /sys must be those of the new machine; `read` ends when this process does
INIT = """
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount --bind {hosts} /etc/hosts &&
hostname {name} && echo up; read x
"""
# as Debian and Ubuntu write it: a machine's own name leads to its loopback, a trap for gloo
HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n"
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))  # ip and tc


class NoNamespaces(OSError):
    """This process may not make a namespace, or a program for it is missing."""


@dataclass
class Namespace:
    """One machine: `holder` is the process outside, `pid` the first one within, seen from here."""

    name: str
    holder: subprocess.Popen[str]
    pid: int
    user: tuple[str, ...] = ()

    def enter(self, *command: object, folder: Path | str = "/") -> list[str]:
        """The words that run a command within, in a folder."""
        flags = [*self.user, *KEPT]
        there = ["nsenter", f"--target={self.pid}", *flags, "env", f"--chdir={folder}"]
        return [*there, *map(str, command)]

    def run(self, *command: object) -> str:
        """Run a short command within; returns what it printed, raises OSError with its error."""
        return _run(self.enter(*command))

    def sent_bytes(self) -> int:
        """What has left by the card so far."""
        return sent_bytes(CARD, self.pid)

    def limit(self, mbit: float | None) -> None:
        """Let the card send no more than this many megabits per second; None takes that away."""
        if mbit is not None and not mbit > 0:
            raise ValueError(f"mbit={mbit}: expected a rate above 0, such as 100, or None")
        with contextlib.suppress(OSError):  # there was none
            self.run("tc", "qdisc", "delete", "dev", CARD, "root")
        if mbit is not None:
            # a bucket of 10 ms of the rate; what is too much waits, up to 1 s, and is not lost
            size = max(LEAST_BUCKET, round(mbit * 1e6 / 8 * 0.01))
            shape = ("tbf", "rate", f"{mbit}mbit", "burst", f"{size}b", "latency", "1s")
            self.run("tc", "qdisc", "add", "dev", CARD, "root", *shape)

    def processes(self) -> list[psutil.Process]:
        """Every living process within, whoever started it, but for the two that hold it."""
        holders = (self.pid, self.holder.pid)
        return [process for process in _processes_in(self.pid) if process.pid not in holders]

    def end(self) -> None:
        """End it at once; with its first process Linux ends all others in it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.holder.wait(SECONDS)  # it waits for that process, which waits for all others in it
        for pipe in (self.holder.stdin, self.holder.stdout):
            if pipe:
                pipe.close()


def joined(names: Sequence[str], addresses: Sequence[str]) -> tuple[Namespace, Namespace]:
    """Two machines with a cable between their cards (a veth pair), and these addresses.

    Raises:
        NoNamespaces: with the reason, and what to install or to allow.
    """
    made: list[Namespace] = []
    try:
        made.append(_first(names[0]))
        made.append(_beside(made[0], names[1]))
        a, b = made
        a.run("ip", "link", "add", CARD, "type", "veth", "peer", "name", "peer0")
        # from outside /proc, because `a` does not know the process numbers of `b`
        _run([*_network_of(a), "ip", "link", "set", "peer0", "netns", str(b.pid)])
        b.run("ip", "link", "set", "peer0", "name", CARD)
        for machine, address in zip(made, addresses, strict=True):
            machine.run("ip", "addr", "add", f"{address}/24", "dev", CARD)
            machine.run("ip", "link", "set", CARD, "up")
            machine.run("ip", "link", "set", "lo", "up")
    except BaseException as problem:
        for machine in made:
            machine.end()
        if isinstance(problem, OSError) and not isinstance(problem, NoNamespaces):
            raise NoNamespaces(str(problem)) from problem
        raise
    return a, b


def sent_bytes(card: str, pid: int | str = "self") -> int:
    """What has left by a card so far; the ninth number of its line in /proc/PID/net/dev."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == card:
            return int(counts.split()[8])
    raise ValueError(f"card={card!r}: /proc/{pid}/net/dev has none of that name")


def _first(name: str) -> Namespace:
    for program in ("unshare", "nsenter", "ip"):
        if not shutil.which(program, path=PATH):
            raise NoNamespaces(f"no command {program}: apt install util-linux iproute2")
    reasons = []
    for user in ((), ("--user", "--map-root-user")):
        try:
            return _hold(
                ["unshare", *user], name, ("--user", "--preserve-credentials") * bool(user)
            )
        except NoNamespaces as problem:
            reasons.append(str(problem))
    raise NoNamespaces("; ".join(dict.fromkeys(reasons)))


def _beside(first: Namespace, name: str) -> Namespace:
    """Another one that belongs to the same user namespace, so that a cable may join them."""
    enter = ["nsenter", f"--target={first.pid}", *first.user] if first.user else []
    return _hold([*enter, "unshare"], name, first.user)


def _network_of(machine: Namespace) -> list[str]:
    return ["nsenter", f"--target={machine.pid}", *machine.user, "--net"]


def _hold(unshare: list[str], name: str, user: tuple[str, ...]) -> Namespace:
    flags = [*KEPT, "--fork", "--kill-child"]
    with tempfile.NamedTemporaryFile("w", prefix="hosts-") as hosts:
        hosts.write(HOSTS.format(name=name))
        hosts.flush()
        os.chmod(hosts.name, 0o644)
        script = INIT.format(name=name, hosts=hosts.name)
        command = [*unshare, *flags, "sh", "-c", script]
        holder = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=_env(),
        )
        assert holder.stdin
        assert holder.stdout
        assert holder.stderr  # all three are pipes
        came = holder.stdout.readline() == "up\n"
    with holder.stderr as errors:
        if not came:
            holder.kill()
            holder.stdin.close()
            holder.stdout.close()
            said = errors.read().strip() or f"exit code {holder.wait(SECONDS)}"
            holder.wait(SECONDS)
            raise NoNamespaces(said.splitlines()[-1])
    (child,) = psutil.Process(holder.pid).children()
    return Namespace(name, holder, child.pid, user)


def _processes_in(pid: int) -> list[psutil.Process]:
    """All processes whose network is that of this one."""
    network = os.stat(f"/proc/{pid}/ns/net").st_ino
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            same = os.stat(f"/proc/{process.pid}/ns/net").st_ino == network
            if same and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=_env())
    if done.returncode:
        raise OSError(f"{' '.join(command[-8:])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _env() -> dict[str, str]:
    return os.environ | {"PATH": PATH, "LC_ALL": "C"}
