"""Faults of torch that would stop a correct program, mended in the process that asks."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ddp_helpers.group.rendezvous import AGENT_STORE, hosted_by_launcher, is_launchers_port
from ddp_helpers.torch_private import CREATE_STORE, NotInThisTorch

if TYPE_CHECKING:
    from torch.distributed import Store

_ended_groups: list[object] = []
atexit.register(_ended_groups.clear)


def hold_ended_group() -> None:
    """Keep the running process group's object until the process ends; call before destroying it.

    A DDP model that outlives its gloo group would hold the last reference. Its destructor then
    waits, with Python's lock in hand, for a thread that needs this lock to finish: the process
    hangs, in a few of a hundred runs on a busy machine. A reference of our own prevents that,
    because Python's own way to drop a group lets go of the lock.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        _ended_groups.append(dist.group.WORLD)


def release_ended_groups() -> None:
    """Let ended groups go, and with them the ports of their stores; call before the next start."""
    _ended_groups.clear()


def mend_destroy_process_group() -> None:
    """Let plain `dist.destroy_process_group()` hold the ended group, too."""
    import torch.distributed as dist

    c10d = importlib.import_module("torch.distributed.distributed_c10d")
    destroy = c10d.destroy_process_group
    if getattr(destroy, "ours", False):
        return

    @functools.wraps(destroy)
    def destroy_process_group(*args: object, **kwargs: object) -> None:
        hold_ended_group()
        destroy(*args, **kwargs)

    destroy_process_group.ours = True  # type: ignore[attr-defined]  # a mark: mended already
    mended = destroy_process_group
    c10d.destroy_process_group = mended  # type: ignore[attr-defined]  # torch's own is replaced
    dist.destroy_process_group = mended


def mend_rendezvous() -> None:
    """Mend faults of torch's rendezvous under torchrun and `launch()`, for plain torch too.

    A launcher serves the address in MASTER_PORT, and says so in a variable. torch takes it as
    true of every address: with `init_method="tcp://localhost:23456"` each rank waits for somebody
    else to listen. And the launcher's store outlives a process group: a second group in the same
    processes finds the first one's addresses in it, and calls ranks that no longer listen there.
    At last, torch asks the name server who 127.0.0.1 is, for its log: a burst of ranks loses some
    of these questions, and waits five seconds for each.
    """
    from torch.distributed import PrefixStore

    try:
        create = CREATE_STORE.get()
    except NotInThisTorch:  # then its faults are perhaps gone, too
        return
    if getattr(create, "ours", False):
        return

    starts = itertools.count()

    def create_store(hostname: str, port: int, *args: object, **kwargs: object) -> Store:
        release_ended_groups()
        if not hosted_by_launcher(port):
            with _without_agent_store(not is_launchers_port(port)):
                return create(hostname, port, *args, **kwargs)
        with _without_name_server(hostname == "127.0.0.1"):
            store = create(hostname, port, *args, **kwargs)
        return PrefixStore(f"start-{next(starts)}", store)  # each group has its own keys

    create_store.ours = True  # type: ignore[attr-defined]  # a mark: mended already
    CREATE_STORE.put(create_store)


@contextlib.contextmanager
def _without_agent_store(needed: bool) -> Iterator[None]:
    saved = os.environ.pop(AGENT_STORE, None) if needed else None
    try:
        yield
    finally:
        if saved is not None:
            os.environ[AGENT_STORE] = saved


@contextlib.contextmanager
def _without_name_server(needed: bool) -> Iterator[None]:
    """Look names up in /etc/hosts only, for the length of the block (glibc can be told so)."""
    configure = getattr(ctypes.CDLL(None), "__nss_configure_lookup", None) if needed else None
    if configure is None:
        yield
        return
    configure(b"hosts", b"files")
    try:
        yield
    finally:
        configure(b"hosts", _name_services())


def _name_services() -> bytes:
    """How this machine looks names up, from /etc/nsswitch.conf, otherwise glibc's default."""
    with contextlib.suppress(OSError), open("/etc/nsswitch.conf", "rb") as file:
        for line in file:
            if line.startswith(b"hosts:"):
                return line.split(b"#")[0].removeprefix(b"hosts:").strip()
    return b"files dns"
