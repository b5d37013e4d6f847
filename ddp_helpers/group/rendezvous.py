"""Where ranks meet: check an init_method before anything waits for it, and pick a default."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
# below 32768, from where on Linux picks ports for calls that go out
SLURM_PORTS = range(20000, 30000)
STEP_APART = 1009  # so that the next steps of a job have not the ports of the next jobs
BATCH = str(2**32 - 5)  # the step of a batch script, in versions of Slurm that name it


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
        if hosting and not hosted_by_launcher(urlsplit(init_method).port):
            _check_port_is_free(init_method, address)


def default_init_method(env: Mapping[str, str], world_size: int) -> str:
    """`env://` under torchrun and `launch()`, a `tcp://` address under Slurm or when alone."""
    if "MASTER_ADDR" not in env and "SLURM_JOB_ID" in env:
        # each step has a port of its own, so two that share a node don't meet by mistake
        step = env.get("SLURM_STEP_ID", BATCH)
        number = int(env["SLURM_JOB_ID"]) + STEP_APART * (int(step) if step != BATCH else 0)
        port = SLURM_PORTS[number % len(SLURM_PORTS)]
        return f"tcp://{_first_slurm_host(env)}:{port}"
    if "MASTER_ADDR" not in env and world_size == 1:
        with socket.create_server(("127.0.0.1", 0)) as probe:  # some hosts files lack localhost
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    return "env://"


def hosted_by_launcher(port: int | None) -> bool:
    """True if torchrun or `launch()` already serves this port, so that no rank has to."""
    return os.environ.get(AGENT_STORE) == "True" and is_launchers_port(port)


def is_launchers_port(port: int | None) -> bool:
    """True for the port that the launcher told its ranks."""
    return str(port) == os.environ.get("MASTER_PORT")


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


def check_slurm_step(env: Mapping[str, str]) -> None:
    """Reject what Slurm tells where it can't be true of a rank, before one waits for the others.

    Raises:
        ValueError: this is the batch script itself, or the numbers of tasks contradict each other.
    """
    tasks, each = (env.get(f"SLURM_{name}", "1") for name in ("NTASKS", "NTASKS_PER_NODE"))
    if "SLURM_JOB_ID" in env and tasks != "1" and env.get("SLURM_STEP_ID", BATCH) == BATCH:
        raise ValueError(
            f"SLURM_NTASKS={tasks}, but this process runs in the batch script itself, as one, and "
            f"not as one of {tasks} tasks: start it with `srun python SCRIPT`, or with torchrun"
        )
    nodes = env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", ""))
    known = "SLURM_NTASKS_PER_NODE" in env and all(map(str.isdigit, (tasks, each, nodes)))
    if known and int(tasks) > int(each) * int(nodes):
        raise ValueError(
            f"SLURM_NTASKS={tasks}, but SLURM_NTASKS_PER_NODE={each} on {nodes} node(s) makes "
            f"{int(each) * int(nodes)}: give the job --nodes and --ntasks-per-node, and leave "
            "--ntasks out"
        )


def _first_slurm_host(env: Mapping[str, str]) -> str:
    """`node[01-04],gpu7` begins with node01; rank 0 runs on the first host of the step.

    A step may have other hosts than its job, whose first one then runs no rank of it.
    """
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else "localhost"
