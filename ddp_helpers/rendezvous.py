"""Where ranks meet: check an init_method before anything waits for it, and pick a default."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def check_init_method(init_method: str, *, hosting: bool = True) -> None:
    """Reject an init_method that can't work, before anything waits for it.

    Args:
        init_method: `env://`, `tcp://host:port` or `file:///path`.
        hosting: this process will listen on the port (rank 0 does), so try whether it is free.

    Raises:
        ValueError: not one of the three forms, a host that can't be resolved, or `env://`
            without its variables.
        RuntimeError: the port is busy.
    """
    url = urlsplit(init_method)
    if url.scheme == "env":
        _check_master_variables(os.environ)
    elif url.scheme == "file" and url.path:
        _check_folder(init_method, url.path)
    else:
        address = _resolve_tcp(init_method)
        if hosting and not _hosted_by_launcher(urlsplit(init_method).port):
            _check_port_is_free(init_method, address)


def default_init_method(env: Mapping[str, str], world_size: int) -> str:
    """`env://` under torchrun and `launch()`, a `tcp://` address under Slurm or when alone."""
    if "MASTER_ADDR" not in env and "SLURM_JOB_ID" in env:
        # each job has a port of its own, so two jobs on one node don't meet by mistake
        return f"tcp://{_first_slurm_host(env)}:{20000 + int(env['SLURM_JOB_ID']) % 10000}"
    if "MASTER_ADDR" not in env and world_size == 1:
        with socket.create_server(("localhost", 0)) as probe:
            return f"tcp://localhost:{probe.getsockname()[1]}"
    return "env://"


def mend_rendezvous_under_a_launcher() -> None:
    """Mend two faults of torch's rendezvous under torchrun and `launch()`, for plain torch too.

    A launcher serves the address in MASTER_PORT, and says so in a variable. torch takes it as
    true of every address: with `init_method="tcp://localhost:23456"` each rank waits for somebody
    else to listen. And the launcher's store outlives a process group: a second group in the same
    processes finds the first one's addresses in it, and calls ranks that no longer listen there.
    """
    from torch.distributed import PrefixStore

    torchs = importlib.import_module("torch.distributed.rendezvous")  # a function hides it
    create = torchs._create_c10d_store
    if getattr(create, "ours", False):
        return

    starts = itertools.count()

    def create_store(hostname: str, port: int, *args: object, **kwargs: object):
        with _without_agent_store(not _is_launchers_port(port)):
            store = create(hostname, port, *args, **kwargs)
        if not _hosted_by_launcher(port):
            return store
        return PrefixStore(f"start-{next(starts)}", store)  # each group has its own keys

    create_store.ours = True
    torchs._create_c10d_store = create_store


def _hosted_by_launcher(port: int | None) -> bool:
    return os.environ.get(AGENT_STORE) == "True" and _is_launchers_port(port)


def _is_launchers_port(port: int | None) -> bool:
    return str(port) == os.environ.get("MASTER_PORT")


@contextlib.contextmanager
def _without_agent_store(needed: bool) -> Iterator[None]:
    saved = os.environ.pop(AGENT_STORE, None) if needed else None
    try:
        yield
    finally:
        if saved is not None:
            os.environ[AGENT_STORE] = saved


def _check_master_variables(env: Mapping[str, str]) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not set, so the ranks can't find one another: start with "
            'launch() or torchrun, or pass init_method="tcp://localhost:23456"'
        )


def _check_folder(init_method: str, path: str) -> None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f'init_method="{init_method}": the folder {folder} does not exist or can\'t be '
            "written: name a file in a folder that all ranks can write"
        )


def _resolve_tcp(init_method: str) -> tuple:
    url = urlsplit(init_method)
    try:
        host, port = url.hostname, url.port
    except ValueError:  # a port that is no number, or above 65535
        host, port = None, None
    if url.scheme != "tcp" or not host or not port:
        raise ValueError(
            f'init_method="{init_method}": expected env://, file:///path or tcp://host:port '
            "with a port from 1 to 65535, such as tcp://localhost:23456"
        )
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f'init_method="{init_method}": the host "{host}" can\'t be resolved '
            f"({error.strerror}): check its spelling, /etc/hosts or DNS, or give its IP address"
        ) from None


def _check_port_is_free(init_method: str, address: tuple) -> None:
    family, kind, proto, _, (_, port, *_) = address
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # torch listens on every address of the machine
            probe.listen(1)
        except OSError as error:
            raise RuntimeError(
                f'init_method="{init_method}": rank 0 can\'t listen on port {port} '
                f"({error.strerror}): another program, or a run that was left over, has it. "
                f"Choose another port, or see who has it: ss -ltnp 'sport = :{port}'"
            ) from None


def _first_slurm_host(env: Mapping[str, str]) -> str:
    """`node[01-04],gpu7` begins with node01; rank 0 runs on the first host of the list."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", env.get("SLURM_JOB_NODELIST", ""))
    return "".join(part or "" for part in found.groups()) if found else "localhost"
