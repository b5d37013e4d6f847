"""What a launch needs before its ranks can start: their job, their store, and a fork server."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta

from ddp_helpers.environment.check import usable_cpu_count
from ddp_helpers.evidence.records import LaunchResult
from ddp_helpers.ranks import fork_server, surroundings
from ddp_helpers.ranks.conclusion import LaunchTimeoutError
from ddp_helpers.ranks.given import check_env
from ddp_helpers.ranks.messages import INSIDE_A_RANK, Job
from ddp_helpers.ranks.notebook import ipython_shell, notebook_cells
from ddp_helpers.ranks.readiness import check_loopback
from ddp_helpers.ranks.standby import standby
from ddp_helpers.ranks.temporary import PREFIX, socket_folder, socket_parent
from ddp_helpers.torch_private import torch_version

STORE_BACKLOG = 1024  # calls that may wait: all ranks of a big machine call at once
STORE_PATIENCE = timedelta(seconds=60)  # for an answer of a store in this very process


def make_job(
    function: bytes,
    nprocs: int,
    port: int,
    threads_per_rank: int | None,
    env: Mapping[str, str] | None,
    start_method: str,
) -> Job:
    """What the ranks are told, in the surroundings of this very call."""
    threads = threads_per_rank or max(1, usable_cpu_count() // nprocs)
    sources, names = notebook_cells()
    return Job(
        function=function,
        nprocs=nprocs,
        env=_environment(port, threads, env),
        cwd=os.getcwd(),
        argv=list(sys.argv) if ipython_shell() is None else [""],  # not the kernel's own flags
        threads=threads,
        sources=sources,
        names=names,
        temporary=_temporary_folder(start_method, nprocs),
        own_temporary=start_method == "spawn",
        surroundings=surroundings.look(),
    )


def prepare(start_method: str) -> None:
    """Have a fork server that can fork at once, or be ready to spawn.

    Raises:
        LaunchTimeoutError: as of `launch()`.
    """
    fork_server.tidy_up()
    if start_method == "spawn":
        fork_server.start_resource_tracker()
        return
    if fork_server.is_stale():
        standby.let_go()
        fork_server.end()
    fork_server.warm_up()
    if not fork_server.wait_until_ready(fork_server.LONGEST_START):
        raise LaunchTimeoutError(
            f"no rank has started: after {fork_server.LONGEST_START:g} s the fork server still "
            "loads torch; the machine or its disk is very busy: launch again",
            LaunchResult(()),
        )


def _temporary_folder(start_method: str, nprocs: int) -> str:
    """This process's folder for sockets, which the fork server removes if this process can't.

    Without a fork server: what the names of the ranks' own folders begin with.
    """
    if start_method == "forkserver":
        return socket_folder()
    parent = socket_parent(f"{PREFIX}{nprocs}")
    return os.path.join(parent, f"{PREFIX}{secrets.token_hex(4)}")


@contextlib.contextmanager
def rendezvous_store(address: str = "127.0.0.1") -> Iterator[int]:
    """The store where ranks meet, on a port that the system picks: no two launches can clash.

    Args:
        address: of this machine, where ranks may call; nothing for all of them.
    """
    check_loopback()
    from torch.distributed import TCPStore

    # torch's own socket would take IPv6 too: open to the network, and each rank that calls has
    # an address (::ffff:127.0.0.1) whose name torch asks the name server for, 5 s if it is slow
    listener = socket.create_server((address, 0), backlog=STORE_BACKLOG)
    store = TCPStore(
        "127.0.0.1",
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_PATIENCE,
        master_listen_fd=listener.detach(),
        use_libuv=torch_version() >= (2, 7),  # before, libuv's store takes no socket of ours
    )
    yield store.port
    del store


def _environment(port: int, threads: int, extra: Mapping[str, str] | None) -> dict[str, str]:
    ours = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "OMP_NUM_THREADS": str(threads),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": f"launch-{port}",
        "PYTHONUNBUFFERED": "1",
        INSIDE_A_RANK: "1",
    }
    # on one machine the loopback always works; a VPN's or a firewall's address may not
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if os.path.exists("/sys/class/net/lo") else {}
    check_env(extra)
    return {**loopback, **os.environ, **ours, **(extra or {})}
