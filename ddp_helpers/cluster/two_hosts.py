"""Two machines to learn on, made of this one: each runs real processes, and a cable joins them.

Where Linux lets this process make network namespaces (as root, or in a user namespace), they are
two of those, joined by a cable. Elsewhere they are two "nodes" on the loopback of this machine;
`note` says so, and why.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddp_helpers.cluster.host import Host
from ddp_helpers.cluster.namespaces import CARD, Namespace, NoNamespaces, joined
from ddp_helpers.ranks.interrupts import HeldInterrupts

KIND = "DDP_HELPERS_TWO_HOSTS"  # "loopback" makes no namespaces; "namespaces" takes nothing else
NAMES = ("first", "second")
ADDRESSES = ("10.99.0.1", "10.99.0.2")  # they exist within the two namespaces only
PORT = 29500  # torchrun's own; within the namespaces nobody else has it


class TwoHosts:
    """Two joined hosts, until `close()` or the end of the `with` block, or of this process.

    Args:
        folder: for the hosts' own folders; by default one under /tmp that goes away with them.
        kind: "namespaces" or "loopback"; by default the first that can be had, or what the
            environment variable DDP_HELPERS_TWO_HOSTS says.

    Raises:
        NoNamespaces: kind is "namespaces", and there can be none; with the reason.
    """

    def __init__(self, folder: Path | None = None, kind: str | None = None) -> None:
        kind = kind or os.environ.get(KIND)
        if kind not in (None, "namespaces", "loopback"):
            raise ValueError(f"kind={kind!r}: expected namespaces, loopback, or nothing for either")
        with contextlib.ExitStack() as stack, HeldInterrupts():
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="two-hosts-")))
            self.hosts, self.note = _make(folder, kind)
            stack.callback(_end, self.hosts)
            # like that of a TemporaryDirectory: also when nobody closes it
            self._finalizer = weakref.finalize(self, stack.pop_all().close)

    @property
    def first(self) -> Host:
        """The one where the two meet, and which has rank 0."""
        return self.hosts[0]

    @property
    def second(self) -> Host:
        """The other one."""
        return self.hosts[1]

    @property
    def joined_by_cable(self) -> bool:
        """Whether they are namespaces, with a network of their own."""
        return self.first.namespace is not None

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __enter__(self) -> TwoHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that runs on them, and remove them; a second time does nothing."""
        self._finalizer()


def why_no_namespaces() -> str:
    """Why this process can't make two hosts with a cable; empty if it can."""
    try:
        for namespace in joined(NAMES, ADDRESSES):
            namespace.end()
    except NoNamespaces as problem:
        return str(problem)
    return ""


def _make(folder: Path, kind: str | None) -> tuple[tuple[Host, Host], str]:
    reason = f"{KIND} or kind= asks for it"
    if kind != "loopback":
        try:
            namespaces = joined(NAMES, ADDRESSES)
        except NoNamespaces as problem:
            if kind == "namespaces":
                raise
            reason = str(problem)
        else:
            places = zip(ADDRESSES, (CARD, CARD), namespaces, strict=True)
            return _hosts(folder, PORT, places), "two network namespaces, joined by a cable (veth)"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    note = f"two nodes on the loopback of one machine, without a cable ({reason})"
    return _hosts(folder, port, [("127.0.0.1", "lo", None)] * 2), note


def _hosts(
    folder: Path, port: int, places: Iterable[tuple[str, str, Namespace | None]]
) -> tuple[Host, Host]:
    hosts = []
    for number, (address, card, namespace) in enumerate(places):
        place = folder / NAMES[number]
        place.mkdir(parents=True)
        hosts.append(Host(NAMES[number], number, address, card, port, place, namespace))
    first, second = hosts
    return first, second


def _end(hosts: tuple[Host, Host]) -> None:
    with HeldInterrupts():
        for host in hosts:
            with contextlib.suppress(Exception):  # each gets its turn
                host.end()
