"""Facts about this machine, one function each: /proc, control groups, sockets, torch's build.

No opinion: check.py says what is enough and what to do. A fact that cannot be had raises.
A heavy import is inside the function that needs it. CUDA is touched in a child process only.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESOLVE_LIMIT_S = 1.0  # a dead name server would otherwise hold the check for 10 s and more

# The least `ulimit -v` at which the smallest run on two ranks came through, of torch's CPU build;
# libtorch_cpu.so alone takes half of it. A job, a checkpoint and a figure are files.
TORCH_ADDRESSES, LARGEST_FILE = 750 * 1024 * 1000, 2**20

MANY_TASKS = 10_000

# Read below these, so that a test can put made-up trees in their place.
PROC, CGROUP, DEV = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev")


# ------------------------------------------------------------------ software


def system() -> tuple[str, str, str]:
    """The system's name, its kernel's release and the kind of processor."""
    return platform.system(), platform.release(), platform.machine()


def python() -> tuple[int, int, int]:
    """The version of this Python."""
    return sys.version_info[:3]


def torch_build() -> tuple[str, str | None, str | None]:
    """torch's version, and the CUDA and ROCm versions it was built for (None: not built for it)."""
    check_before_torch()
    import torch

    return str(torch.__version__), torch.version.cuda, torch.version.hip


def backends() -> tuple[str, ...]:
    """Those of nccl and gloo that this torch was built with."""
    check_before_torch()
    import torch.distributed as dist

    if not dist.is_available():
        return ()
    present = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available()}
    return tuple(name for name, there in present.items() if there)


def launched() -> bool:
    """True inside a rank: of torchrun, of a multiprocessing launcher, or of a Slurm or MPI step."""
    step = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ
    marks = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK")
    return step or any(m in os.environ for m in marks) or bool(multiprocessing.parent_process())


def check_before_torch() -> None:
    """What would end this process without a word of Python when torch is loaded.

    Raises:
        OSError: the current folder is deleted or forbidden, or a limit is too low.
        ValueError: TORCH_DISTRIBUTED_DEBUG is not what torch expects.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # Intel's library in torch ends the process for it
        text = "the current folder has been deleted: `cd` to one that exists, and start again there"
        raise FileNotFoundError(text) from None
    if not os.access(folder, os.X_OK):  # as after `sudo -u`: each rank would end in its `chdir`
        raise PermissionError(f"{folder} can't be entered by this user: `cd` to another folder")
    level = os.environ.get("TORCH_DISTRIBUTED_DEBUG", "OFF")
    if level.upper() not in ("OFF", "INFO", "DETAIL"):  # a second `import torch` would abort
        raise ValueError(
            f"TORCH_DISTRIBUTED_DEBUG={level!r}: torch expects OFF, INFO or DETAIL, and does not "
            "load otherwise: `unset TORCH_DISTRIBUTED_DEBUG`"
        )
    for limit, letter, least in zip(limits(), "vf", (TORCH_ADDRESSES, LARGEST_FILE), strict=True):
        if limit < least:
            raise OSError(
                f"`ulimit -{letter}` is {int(limit) >> 10} KiB, and torch with its ranks needs "
                f"{least >> 10} at least: `ulimit -{letter} unlimited` in the shell that starts "
                "Python or JupyterLab; if that is refused, open a new shell, or ask who set it"
            )


# ------------------------------------------------------------------ GPUs of any maker


def gpu_device_files() -> bool:
    """True when a GPU's device file reaches this process (NVIDIA, NVIDIA under WSL2, AMD)."""
    return any(any(DEV.glob(pattern)) for pattern in ("nvidia[0-9]*", "dxg", "kfd"))


@functools.lru_cache
def gpu_count_in_child(visible: str | None) -> int:
    """Asks CUDA in a process of its own (3 s). `visible`, CUDA_VISIBLE_DEVICES, keys the cache."""
    code = "import torch; print(torch.cuda.device_count())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


# ------------------------------------------------------------------ cores, memory, files


def affinity() -> int:
    """Cores this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float:
    """Cores' worth of time the control groups allow; inf without a limit. ValueError on rubbish."""
    quota = math.inf
    for group in dict.fromkeys(cgroup_dirs("cpu")):
        v1 = _words(group / "cpu.cfs_quota_us")
        if v1:
            quota = min(quota, _quota(v1[:1] + _words(group / "cpu.cfs_period_us")[:1]))
        quota = min(quota, _quota(_words(group / "cpu.max")))
    return quota


def _quota(limit: list[str]) -> float:
    """Cores, from the words `quota period` in microseconds; inf where they set no limit."""
    if len(limit) != 2 or limit[0] in ("max", "-1"):
        return math.inf
    if int(limit[0]) <= 0 or int(limit[1]) <= 0:
        raise ValueError(f"the cgroup's CPU quota is {limit[0]} us in {limit[1]} us")
    return int(limit[0]) / int(limit[1])


def memory() -> tuple[int, int]:
    """Bytes (free, in all): the machine's, or the control group's where that is tighter."""
    lines = (PROC / "meminfo").read_text().splitlines()
    info = {key: int(rest.split()[0]) * 1024 for key, rest in (line.split(":") for line in lines)}
    free, total = info["MemAvailable"], info["MemTotal"]
    for group in cgroup_dirs("memory"):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words = _words(group / limit)
            if words and words != ["max"]:
                # file cache counts as used, but the kernel gives it back on demand
                stat = _words(group / "memory.stat")
                cached = int(stat[stat.index(cache) + 1]) if cache in stat else 0
                used = sum(int(word) for word in _words(group / usage)) - cached
                total, free = min(total, int(words[0])), min(free, max(0, int(words[0]) - used))
    return free, total


def cgroup_dirs(controller: str) -> list[Path]:
    """This process's control group and all its parents, v1 and v2: the tightest limit counts.

    In a container the path is often the host's and does not exist; then its top directory does.
    """
    dirs = []
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)  # v2 names no controller
        if names and controller not in names.split(","):
            continue
        group = Path(os.path.normpath(path)).relative_to("/")  # a path may start with /..
        for mount in (names, controller) if names else ("", "unified"):
            dirs += [CGROUP / mount / part for part in (group, *group.parents)]
    return dirs


def _words(path: Path) -> list[str]:
    """The words in a file; none where it does not exist, which for a limit means no limit."""
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def shm() -> tuple[int, int]:
    """Bytes (free, in all) of /dev/shm; PermissionError where this process may not write."""
    path = DEV / "shm"
    space = os.statvfs(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError("this process may not write there")
    return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def open_files() -> tuple[float, float]:
    """The soft and the hard limit on open files; inf for none."""
    import resource  # not on Windows

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return soft, hard


def files_in_use() -> int:
    """How many files this process has open."""
    try:
        return len(os.listdir(PROC / "self/fd")) - 1  # one was opened to list them
    except FileNotFoundError:  # a sandbox without /proc: at least these
        return 3


def tasks() -> tuple[float, int]:
    """`ulimit -u`, and how many processes and threads this user runs; (inf, 0) if it can't matter.

    It binds all users but root, and is worth the count only where it is low.
    """
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit > MANY_TASKS:
        return math.inf, 0
    return limit, sum(map(_own_threads, PROC.glob("[0-9]*")))


def _own_threads(process: Path) -> int:
    try:
        return len(os.listdir(process / "task")) if process.stat().st_uid == os.geteuid() else 0
    except OSError:  # it has ended meanwhile
        return 0


def limits() -> tuple[float, float]:
    """Bytes that `ulimit -v` and `ulimit -f` allow, of addresses and of a file; inf: no limit."""
    import resource  # not on Windows

    given = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    addresses, file = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in given)
    return addresses, file


# ------------------------------------------------------------------ network


def hostname() -> str:
    """The name this machine calls itself."""
    return socket.gethostname()


def resolve(name: str) -> list[tuple[Any, ...]]:
    """getaddrinfo(name) with a time limit, which it has not itself; raises OSError."""
    box: list[Any] = []

    def ask() -> None:
        try:
            box.append(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
        except Exception as error:  # carried to the caller's thread
            box.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_LIMIT_S)
    if not box:
        raise TimeoutError(f"no answer within {RESOLVE_LIMIT_S:g} s")
    if isinstance(box[0], Exception):
        raise OSError(str(box[0])) from box[0]
    return box[0]


def is_local(info: tuple[Any, ...]) -> bool:
    """Can a socket bind to this answer of getaddrinfo? So torch's gloo decides as well."""
    family, kind, _, _, address = info
    try:
        with socket.socket(family, kind) as sock:
            sock.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def loopback() -> None:
    """Connects to itself on 127.0.0.1; raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1.0)
        with socket.create_connection(server.getsockname(), timeout=1.0):
            server.accept()[0].close()


def free_port() -> int:
    """A port the system gave on all addresses, where a rendezvous listens; raises OSError."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def interfaces() -> dict[str, str]:
    """Interfaces that are up and have an address, with `IPv4`, `IPv6` or `IPv4 IPv6`."""
    import psutil

    names = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
    stats, found = psutil.net_if_stats(), {}
    for interface, addresses in psutil.net_if_addrs().items():
        kinds = {
            names[a.family]
            for a in addresses
            # link-local IPv6 is on every cable and container bridge, and no rank connects to it
            if a.family in names and not ipaddress.ip_address(a.address).is_link_local
        }
        if kinds and interface in stats and stats[interface].isup:
            found[interface] = " ".join(sorted(kinds))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "lo", item[0])))


def named_in_vain(variable: str, up: Iterable[str]) -> list[str]:
    """The interfaces that GLOO_ or NCCL_SOCKET_IFNAME names in vain; none where a run can start."""
    setting = os.environ.get(variable, "")
    if not setting:
        return []
    if variable.startswith("GLOO"):  # exact names, each must be there, and a space is no separator
        return [name for name in setting.split(",") if name not in up]
    # nccl: one match is enough; a name is a prefix, `=` in front makes all exact, `^` excludes
    exact, names = setting.startswith("="), setting.removeprefix("=").split(",")
    found = any(u == name if exact else u.startswith(name) for name in names for u in up)
    return [] if found or setting.startswith("^") else names


def taken_too(setting: str, cards: Iterable[str]) -> dict[str, list[str]]:
    """Cards whose names only begin with one that NCCL_SOCKET_IFNAME names whole, by that one.

    nccl takes eth10 for eth1, unless the setting begins with `=`.
    """
    cards = list(cards)
    names = [] if setting.startswith(("^", "=")) else setting.split(",")
    more = {
        name: [card for card in cards if card.startswith(name) and card not in names]
        for name in names
        if name in cards
    }
    return {name: also for name, also in more.items() if also}
