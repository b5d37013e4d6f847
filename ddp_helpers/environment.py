"""What this machine can do for data-parallel training: one row per question, each with advice.

    check_environment()                 # a table in a notebook, text in a terminal
    check_environment()["/dev/shm"]     # one row: name, status, value, advice

pass: nothing to do. warn: the course runs, but slower or with a trap. fail: it cannot run.
Nothing here touches CUDA: a process that has, can no longer fork safely, and holds GPU memory.
"""

from __future__ import annotations

import functools
import html
import ipaddress
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]
Answer = tuple[Status, str, str]  # status, value, advice

GIB = 1024**3
# Measured with torch 2.13: a rank holds 0.3 GiB after one DDP step, the process that starts
# the ranks 0.2 GiB. Below 0.5 GiB there is no room for even one of each: the kernel kills a rank.
# 2 GiB holds two ranks, the notebook server and a batch or two.
MEMORY_FAIL, MEMORY_WARN = GIB // 2, 2 * GIB
# Loader workers hand batches over in /dev/shm, and nccl keeps its buffers there (its manual asks
# for 1 GiB). Two workers, each two batches ahead, of 256 float32 images of 3x224x224 fill 0.6 GiB.
SHM_WARN = GIB
# Each tensor a loader worker hands over holds one open file. 1024 is Linux's own default.
OPEN_FILES_WARN = 1024
RESOLVE_LIMIT_S = 1.0  # a dead name server would otherwise hold the check for 10 s and more
SMI_LIMIT_S = 10.0  # eight GPUs without persistence mode really need several seconds
PYTHON_MIN, TORCH_MIN = (3, 10), (2, 13)

# Read below these, so that a test can put made-up trees in their place.
_PROC, _CGROUP, _DEV = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev")


@dataclass(frozen=True)
class Check:
    """One row of the report. `value` is what was found; `advice` is empty on pass."""

    name: str
    status: Status
    value: str
    advice: str = ""


@dataclass(frozen=True, repr=False)
class EnvironmentReport:
    """The rows of `check_environment()`: print it, show it in a notebook, index it by name."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when no row fails; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def summary(self) -> str:
        """How many rows there are of each status, for example `13 pass, 2 warn, 0 fail`."""
        count = Counter(check.status for check in self.checks)
        return ", ".join(f"{count[status]} {status}" for status in ("pass", "warn", "fail"))

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        names = ", ".join(check.name for check in self.checks)
        raise KeyError(f"no row is called {name!r}; the rows are: {names}")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists and strings: keys `ok` and `checks`."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            head = f"{check.status}  {check.name:{width}}  "
            lines += _wrap(check.value, head, " " * len(head))
            lines += _wrap(check.advice, "      -> ", "         ") if check.advice else []
        text = "\n".join([*lines, self.summary])
        return text.encode("ascii", "backslashreplace").decode()  # some terminals know no more

    __repr__ = __str__  # so that a terminal shows the table too

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(check) for check in self.checks)
        return (
            '<table style="border-collapse:collapse;text-align:left;margin:0">'
            f'<caption style="text-align:left;padding:4px 8px">This machine: {self.summary}'
            f"</caption><tbody>{rows}</tbody></table>"
        )


def _wrap(text: str, first: str, rest: str) -> list[str]:
    # a command in backticks stays on one line, so that it can be copied
    text = re.sub(r"`[^`]+`", lambda command: command[0].replace(" ", "\0"), text)
    wrapper = textwrap.TextWrapper(96, initial_indent=first, subsequent_indent=rest)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    lines = wrapper.wrap(text) or [first.rstrip()]
    return [line.replace("\0", " ") for line in lines]


# Text takes the page's own colour and there is no background, so light and dark themes both work.
# Each mark has a contrast of 3 or more on white and on #111, and says the same as the word.
_MARKS = {
    "pass": ("#1a9850", "&#10003;"),
    "warn": ("#c77700", "&#9650;"),
    "fail": ("#e5484d", "&#10007;"),
}
_CODE = "display:inline-block;max-width:100%"  # a command wraps only where it must
_CELL = "text-align:left;vertical-align:top;padding:4px 8px;border:0;"


def _html_row(check: Check) -> str:
    colour, mark = _MARKS[check.status]
    value, advice = (
        re.sub(r"`([^`]+)`", rf'<code style="{_CODE}">\1</code>', html.escape(text))
        for text in (check.value, check.advice)
    )
    advice = f'<div style="margin-top:2px">&rarr; {advice}</div>' if advice else ""
    return (
        '<tr style="border-top:1px solid rgba(128,128,128,.35)">'
        f'<td style="{_CELL}white-space:nowrap;border-left:4px solid {colour}">'
        f'<span style="color:{colour};display:inline-block;width:1.3em" aria-hidden="true">'
        f"{mark}</span>{check.status}</td>"
        f'<th scope="row" style="{_CELL}white-space:nowrap">{html.escape(check.name)}</th>'
        f'<td style="{_CELL}white-space:normal;max-width:46em">{value}{advice}</td></tr>'
    )


# ------------------------------------------------------------------ sources: one fact each


def _system() -> tuple[str, str, str]:
    return platform.system(), platform.release(), platform.machine()


def _python() -> tuple[int, int, int]:
    return sys.version_info[:3]


def _torch_build() -> tuple[str, str | None, str | None]:
    """torch's version, and the CUDA and ROCm versions it was built for (None: not built for it)."""
    import torch  # here, not above: without torch the report must still be made

    return str(torch.__version__), torch.version.cuda, torch.version.hip


def _backends() -> tuple[str, ...]:
    import torch.distributed as dist

    if not dist.is_available():
        return ()
    present = {"nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available()}
    return tuple(name for name, there in present.items() if there)


def _words(path: Path) -> list[str]:
    """The words in a file; none where it does not exist, which for a limit means no limit."""
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []


def _cgroup_dirs(controller: str) -> list[Path]:
    """This process's control group and all its parents, v1 and v2: the tightest limit counts.

    In a container the path is often the host's and does not exist; then its top directory does.
    """
    dirs = []
    for line in (_PROC / "self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)  # v2 names no controller
        if names and controller not in names.split(","):
            continue
        group = Path(os.path.normpath(path)).relative_to("/")  # a path may start with /..
        for mount in (names, controller) if names else ("", "unified"):
            dirs += [_CGROUP / mount / part for part in (group, *group.parents)]
    return dirs


def _cpu_quota() -> float:
    """Cores' worth of time the control groups allow; inf without a limit. ValueError on rubbish."""
    quota = math.inf
    for group in _cgroup_dirs("cpu"):
        v1 = _words(group / "cpu.cfs_quota_us")[:1] + _words(group / "cpu.cfs_period_us")[:1]
        for limit in (_words(group / "cpu.max"), v1):
            if len(limit) == 2 and limit[0] not in ("max", "-1"):
                if int(limit[0]) <= 0 or int(limit[1]) <= 0:
                    raise ValueError(f"the cgroup's CPU quota is {limit[0]} us in {limit[1]} us")
                quota = min(quota, int(limit[0]) / int(limit[1]))
    return quota


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int, int]:
    """Bytes (free, in all): the machine's, or the control group's where that is tighter."""
    lines = (_PROC / "meminfo").read_text().splitlines()
    info = {key: int(rest.split()[0]) * 1024 for key, rest in (line.split(":") for line in lines)}
    free, total = info["MemAvailable"], info["MemTotal"]
    for group in _cgroup_dirs("memory"):
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


def _shm() -> tuple[int, int]:
    """Bytes (free, in all) of /dev/shm; PermissionError where this process may not write."""
    path = _DEV / "shm"
    space = os.statvfs(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError("this process may not write there")
    return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize


def _open_files() -> tuple[float, float]:
    """The soft and the hard limit on open files; inf for none."""
    import resource  # not on Windows

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits)
    return soft, hard


def _hostname() -> str:
    return socket.gethostname()


def _resolve(name: str) -> list[tuple[Any, ...]]:
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


def _is_local(info: tuple[Any, ...]) -> bool:
    """Can a socket bind to this answer of getaddrinfo? So torch's gloo decides as well."""
    family, kind, _, _, address = info
    try:
        with socket.socket(family, kind) as sock:
            sock.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _loopback() -> None:
    """Connects to itself on 127.0.0.1; raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1.0)
        with socket.create_connection(server.getsockname(), timeout=1.0):
            server.accept()[0].close()


def _free_port() -> int:
    """A port the system gave on all addresses, where a rendezvous listens; raises OSError."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _interfaces() -> dict[str, str]:
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


def _gpu_device_files() -> bool:
    """True when a GPU's device file reaches this process (NVIDIA, NVIDIA under WSL2, AMD)."""
    return any(any(_DEV.glob(pattern)) for pattern in ("nvidia[0-9]*", "dxg", "kfd"))


@dataclass(frozen=True)
class _Nvidia:
    """What NVIDIA's tools and files say. `error` is why nvidia-smi did not list the GPUs."""

    gpus: tuple[str, ...] = ()  # "NVIDIA H100 80GB HBM3 (80 GiB)"
    links: str = ""
    cuda: tuple[int, int] | None = None  # the newest the driver can run
    error: str = ""
    smi_found: bool = True
    device_file: bool = False
    driver_loaded: bool = False

    @property
    def gpu_here(self) -> bool:
        return bool(self.gpus) or self.device_file or self.driver_loaded


def _nvidia() -> _Nvidia:
    traces = {
        "device_file": any(_DEV.glob("nvidia[0-9]*")),
        "driver_loaded": (_PROC / "driver/nvidia/version").exists(),
    }
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed, banner, matrix = _nvidia_smi(query, [], ["topo", "-m"])
    except FileNotFoundError:
        return _Nvidia(error="nvidia-smi was not found", smi_found=False, **traces)
    except OSError as error:
        return _Nvidia(error=f"nvidia-smi did not start: {error}", **traces)
    if listed[0] != 0 or not listed[1].strip():
        return _Nvidia(error=f"nvidia-smi says: {listed[1].strip() or 'nothing'}", **traces)
    # driver 610 renamed the banner's "CUDA Version" to "CUDA UMD Version"
    version = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", banner[1])
    cuda = (int(version[1]), int(version[2])) if version else None
    gpus = tuple(_gpu_name(line) for line in listed[1].strip().splitlines())
    return _Nvidia(gpus, _gpu_links(matrix[1]), cuda, **traces)


def _nvidia_smi(*questions: list[str]) -> list[tuple[int, str]]:
    """(exit code, output) of nvidia-smi for each list of arguments, asked all at once."""
    deadline = time.monotonic() + SMI_LIMIT_S
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipes |= {"stdin": subprocess.DEVNULL, "text": True, "errors": "replace"}
    asked: list[subprocess.Popen[str]] = []
    try:
        for question in questions:
            command = ["nvidia-smi", *question]
            asked.append(subprocess.Popen(command, start_new_session=True, **pipes))
        return [_smi_answer(process, deadline) for process in asked]
    finally:
        for process in asked:
            _end(process)


def _smi_answer(process: subprocess.Popen[str], deadline: float) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {SMI_LIMIT_S:g} s"
    return process.returncode, text


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        # a hung driver holds its caller in the kernel, where SIGKILL waits too: so shall not we
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    if process.stdout:
        process.stdout.close()


def _gpu_name(line: str) -> str:
    """`NVIDIA A100-SXM4-40GB, 40960` (MiB) to `NVIDIA A100-SXM4-40GB (40 GiB)`."""
    name, _, mib = (part.strip() for part in line.rpartition(","))
    return f"{name} ({round(int(mib) / 1024)} GiB)" if mib.isdigit() else name or line.strip()


_LINKS = {"PIX": "PCIe switch", "PXB": "PCIe switch", "PHB": "PCIe", "NODE": "PCIe"}
_LINKS |= {"SYS": "PCIe across CPU sockets", "SOC": "PCIe across CPU sockets"}


def _gpu_links(matrix: str) -> str:
    """How the pairs of GPUs are joined, from the table of `nvidia-smi topo -m`; empty for none."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)  # the header is underlined
    lines = [line.split() for line in plain.splitlines() if line.startswith("GPU")]
    rows = [cells[1:] for cells in lines if "X" in cells]  # X: the GPU itself; the header has none
    pairs = [row[j] for i, row in enumerate(rows) for j in range(i + 1, min(len(rows), len(row)))]
    kinds = Counter("NVLink" if re.match(r"NV\d", p) else _LINKS.get(p, p) for p in pairs)
    if len(kinds) < 2:
        return "".join(kinds)
    return ", ".join(f"{kind} ({n} pair{'s' * (n > 1)})" for kind, n in kinds.most_common())


# ------------------------------------------------------------------ rows: one question each


def _check_system() -> Answer:
    system, release, machine = _system()
    if system != "Linux":
        advice = "This course needs Linux: a server, a Docker container, or WSL2 on Windows."
        return "fail", f"{system} {release}", advice
    wsl = ", WSL2" if "microsoft" in release.lower() else ""
    return "pass", f"kernel {release.split('-')[0]}, {machine}{wsl}", ""


def _check_python() -> Answer:
    version = _python()
    value = ".".join(map(str, version))
    if version[:2] < PYTHON_MIN:
        return "fail", value, "Use Python {}.{} or newer.".format(*PYTHON_MIN)
    return "pass", value, ""


_INSTALL_CPU = "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"


def _check_torch(nvidia: _Nvidia) -> Answer:
    try:
        version, cuda, hip = _torch_build()
    except ModuleNotFoundError as error:
        if error.name != "torch":
            return _broken_torch(error)
        advice = f"The small CPU build is enough: {_INSTALL_CPU}. For GPUs: `pip install torch`."
        return "fail", "not installed", advice
    except Exception as error:
        return _broken_torch(error)
    build = f"CUDA {cuda} build" if cuda else f"ROCm {hip} build" if hip else "CPU build"
    value = f"{version}, {build}"
    answer = _compare_cuda(value, cuda, nvidia) if nvidia.gpu_here and not hip else None
    if answer and answer[0] != "pass":
        return answer
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < TORCH_MIN:
        oldest = "{}.{}".format(*TORCH_MIN)
        return "warn", value, f"The course is written for torch {oldest} or newer: update torch."
    return answer or ("pass", value, "")


def _broken_torch(error: Exception) -> Answer:
    advice = f"Install it afresh: `pip uninstall -y torch`, then {_INSTALL_CPU}."
    return "fail", f"installed, but does not load: {type(error).__name__}: {error}", advice


def _compare_cuda(value: str, cuda: str | None, nvidia: _Nvidia) -> Answer:
    """torch's CUDA against the driver's. Same major version is enough: NVIDIA calls this minor
    version compatibility (https://docs.nvidia.com/deploy/cuda-compatibility/)."""
    driver = "{}.{}".format(*nvidia.cuda) if nvidia.cuda else ""
    pick = f"a build for CUDA {driver} or older" if driver else "a CUDA build"
    pick += " at `https://pytorch.org/get-started/locally/`"
    if cuda is None:
        advice = "Everything runs on the CPU until you put in a CUDA build: "
        advice += f"`pip uninstall -y torch`, then choose {pick}."
        return "warn", f"{value}, on a machine with a GPU", advice
    if nvidia.cuda is None:
        advice = "If torch says that the driver is too old, update the driver."
        why = nvidia.error or "nvidia-smi does not print it"
        return "warn", f"{value}; could not tell the driver's CUDA version, because {why}", advice
    value = f"{value}, driver for CUDA {driver}"
    if nvidia.cuda[0] < int(cuda.split(".")[0]):
        advice = f"The driver is too old for this build. Update the driver, or choose {pick}."
        return "fail", value, advice
    return "pass", value, ""


def _check_gpus(nvidia: _Nvidia) -> Answer:
    if not nvidia.gpus:
        return _no_gpus(nvidia)
    value = ", ".join(f"{count} x {name}" for name, count in Counter(nvidia.gpus).items())
    value += f"; links: {nvidia.links}" if nvidia.links else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "pass", value, ""
    value += f"; CUDA_VISIBLE_DEVICES={visible!r}"
    if visible.strip() in ("", "-1"):
        return "warn", value, "That hides every GPU: `unset CUDA_VISIBLE_DEVICES` to use them."
    return "pass", value, ""


def _no_gpus(nvidia: _Nvidia) -> Answer:
    if nvidia.device_file:
        advice = "Make `nvidia-smi` work first: it comes with the driver, and after an update of "
        return "warn", f"a GPU is here, but {nvidia.error}", advice + "the driver needs a restart."
    if nvidia.driver_loaded:
        advice = "In Docker: `docker run --gpus all ...`. In Slurm: ask for GPUs with `--gpus`."
        return "warn", "the NVIDIA driver is loaded, but no GPU reaches this process", advice
    if nvidia.smi_found:
        advice = (
            "If this machine has a GPU, install or load its driver. If not: gloo runs on the CPU."
        )
        return "warn", nvidia.error, advice
    return "pass", "none, and that is fine: gloo runs on the CPU", ""


def _check_backends(nvidia: _Nvidia) -> Answer:
    backends = _backends()
    if not backends:
        advice = (
            f"This torch was built without torch.distributed. Take the usual build: {_INSTALL_CPU}."
        )
        return "fail", "none", advice
    value = ", ".join(backends)
    if "gloo" not in backends:
        return "warn", value, f"Cells that run on the CPU need gloo: {_INSTALL_CPU}."
    if "nccl" not in backends and nvidia.gpu_here:
        return "warn", value, "GPUs need nccl, which comes with a CUDA build of torch on Linux."
    return "pass", value, ""


def _check_cores() -> Answer:
    affinity, quota, cores = _affinity(), _cpu_quota(), usable_cpu_count()
    value = f"{cores} core" if cores == 1 else f"{cores} cores"
    if quota < affinity:
        value += f" ({affinity} visible, but the cgroup's quota is {quota:.3g})"
    if cores == 1:
        # with one core the ranks are still real processes and still agree: only speed is lost
        advice = "The ranks take turns: everything works, only slower. More cores: `docker run "
        return "warn", value, advice + "--cpus=2`, Slurm `--cpus-per-task=2`, or a larger machine."
    return "pass", value, ""


def _check_threads() -> Answer:
    setting, cores = os.environ.get("OMP_NUM_THREADS"), usable_cpu_count()
    if setting is None:
        return "pass", "not set", ""
    advice = f"For two ranks: `export OMP_NUM_THREADS={max(1, cores // 2)}` (cores / ranks)."
    first = setting.split(",")[0].strip()  # OpenMP allows a list, one number per nesting level
    if not first.isdecimal() or int(first) < 1:
        return "warn", repr(setting), f"It should be a whole number from 1 up. {advice}"
    if int(first) > cores:
        return "warn", f"{first}, on {cores} usable", f"Too many threads slow all ranks. {advice}"
    return "pass", first, ""


def _size(size: int) -> str:
    """In whole GiB where that says enough: a figure that changes at each look helps nobody."""
    if size < GIB:
        return f"{size // 2**20} MiB"
    return f"{size / GIB:.0f} GiB" if size >= 4 * GIB else f"{size / GIB:.1f} GiB"


def _check_memory() -> Answer:
    free, total = _memory()
    value = f"{_size(free)} free of {_size(total)}"
    advice = "Close other programs, or raise the limit (`docker run --memory=4g`)."
    if free < MEMORY_FAIL:
        return "fail", value, f"One rank alone needs about 0.3 GiB. {advice}"
    if free < MEMORY_WARN:
        return "warn", value, f"Use two ranks and small batches: each rank takes 0.3 GiB. {advice}"
    return "pass", value, ""


def _check_shm() -> Answer:
    grow = "In Docker: `docker run --shm-size=2g ...`, or `--ipc=host`. "
    grow += "Elsewhere: `sudo mount -o remount,size=2g /dev/shm`."
    try:
        free, total = _shm()
    except (FileNotFoundError, PermissionError) as error:
        # the locks and queues of torch.multiprocessing live there: no rank could start
        advice = (
            "torch.multiprocessing needs it: `sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm`."
        )
        return "fail", f"not usable: {error}", advice
    meanwhile = "Until then use `num_workers=0` in each DataLoader."
    if total < SHM_WARN:
        return "warn", _size(total), f"Loader workers and nccl need more. {grow} {meanwhile}"
    if free < SHM_WARN // 4:
        advice = f"Nearly full: see `ls -l /dev/shm` for what ended runs left behind. {meanwhile}"
        return "warn", f"{_size(free)} free of {_size(total)}", advice
    return "pass", _size(total), ""


def _check_open_files() -> Answer:
    soft, hard = _open_files()
    value = "unlimited" if soft == math.inf else f"{soft}"
    if soft >= OPEN_FILES_WARN:
        return "pass", value, ""
    advice = f"`ulimit -n {min(4096, hard)}` in the shell that starts Python or JupyterLab."
    if hard < OPEN_FILES_WARN:
        advice += f" The hard limit is {hard}: ask the administrator for more."
    return "warn", value, f"Many loader workers may end in `Too many open files`. {advice}"


def _check_hostname() -> Answer:
    # warn, not fail: on one machine gloo falls back to loopback, after a line of complaint
    name = _hostname()
    advice = 'Add it to the hosts file: `echo "127.0.1.1 $(hostname)" | sudo tee -a /etc/hosts`. '
    advice += "Or, if all ranks are on this machine: `export GLOO_SOCKET_IFNAME=lo`."
    try:
        answers = _resolve(name)
    except OSError as error:
        return "warn", f"{name!r} does not resolve: {error}", advice
    if not any(_is_local(answer) for answer in answers):
        found = ", ".join(sorted({answer[4][0] for answer in answers}))
        return "warn", f"{name!r} resolves to {found}, which is not this machine", advice
    return "pass", "resolves to this machine", ""


def _check_loopback() -> Answer:
    try:
        _loopback()
    except OSError as error:
        advice = "Ranks on one machine meet on 127.0.0.1: `sudo ip link set lo up`, "
        return (
            "fail",
            f"127.0.0.1 does not connect: {error}",
            advice + "and allow it in the firewall.",
        )
    try:
        _resolve("localhost")
    except OSError as error:
        advice = 'Add it to the hosts file: `echo "127.0.0.1 localhost" | sudo tee -a /etc/hosts`. '
        advice += "Or write 127.0.0.1 instead."
        return "warn", f"127.0.0.1 works, but localhost does not resolve: {error}", advice
    return "pass", "127.0.0.1 and localhost work", ""


def _check_interfaces() -> Answer:
    up = _interfaces()
    shown = [f"{name} ({kinds})" for name, kinds in up.items()]
    value = ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
    if not up:
        return "warn", "none is up with an address", "`sudo ip link set lo up` is enough here."
    wrong = {}
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wrong |= {variable: bad} if (bad := _missing(variable, up)) else {}
    if not wrong:
        return "pass", value, ""
    named = "; ".join(f"{variable} names {', '.join(bad)}" for variable, bad in wrong.items())
    advice = (
        f"No such interface is up, so a run would stop at its start: `unset {' '.join(wrong)}`."
    )
    return "warn", f"{named}; up here: {value}", advice


def _missing(variable: str, up: dict[str, str]) -> list[str]:
    """The interfaces that `variable` names in vain, quoted; none where a run can start."""
    setting = os.environ.get(variable, "")
    if variable.startswith("GLOO"):  # exact names, each must be there, and a space is no separator
        return [repr(name) for name in setting.split(",") if setting and name not in up]
    # nccl: one match is enough; a name is a prefix, `=` in front makes all exact, `^` excludes
    exact, names = setting.startswith("="), setting.removeprefix("=").split(",")
    if not setting or setting.startswith("^"):
        return []
    found = [n for n in names for u in up if u == n or (u.startswith(n) and not exact)]
    return [] if found else [repr(name) for name in names]


def _check_port() -> Answer:
    try:
        _free_port()
    except OSError as error:
        advice = "No run can start without one. See `ss -s`: end programs that hold thousands of "
        return "fail", f"none: {error}", advice + "connections, or allow sockets in this sandbox."
    return "pass", "the system gives one", ""


_RUN_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def _check_variables() -> Answer:
    left = [name for name in _RUN_VARIABLES if name in os.environ]
    if left and not _launched():
        advice = f"`unset {' '.join(left)}` and start again: init_process_group() would read them, "
        advice += "and wait for ranks that nobody starts."
        return "warn", f"{', '.join(left)} set, but no launcher started this process", advice
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        advice = "Use `export TORCH_DISTRIBUTED_DEBUG=INFO`: with DETAIL, DDP on gloo can crash."
        return "warn", "TORCH_DISTRIBUTED_DEBUG=DETAIL", advice
    return "pass", "a launcher's" if left else "nothing left over from another run", ""


def _launched() -> bool:
    """True inside a rank: of torchrun, of a multiprocessing launcher, or of a Slurm or MPI step."""
    step = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ
    marks = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK")
    return step or any(m in os.environ for m in marks) or bool(multiprocessing.parent_process())


# ------------------------------------------------------------------ public


def _row(name: str, question: Callable[..., Answer], *facts: Any) -> Check:
    try:
        status, value, advice = question(*facts)
    except Exception as error:  # a source is missing or broken: say so, and go on with the rest
        status, value = "warn", f"could not tell, because {type(error).__name__}: {error}"
        advice = "The course may well run. If a later step fails, look here first."
    return Check(name, status, " ".join(value.split()), advice)


def check_environment() -> EnvironmentReport:
    """Looks at this machine and says what data-parallel training will meet.

    Takes well under 2 s once torch is imported, changes nothing, and never touches CUDA. Raises
    nothing: a fact that cannot be had is a row `warn: could not tell, because ...`.
    """
    try:
        nvidia = _nvidia()
    except Exception as error:
        nvidia = _Nvidia(error=f"could not tell, because {type(error).__name__}: {error}")
    return EnvironmentReport(
        (
            _row("Linux", _check_system),
            _row("Python", _check_python),
            _row("PyTorch", _check_torch, nvidia),
            _row("GPUs", _check_gpus, nvidia),
            _row("Backends", _check_backends, nvidia),
            _row("CPU cores", _check_cores),
            _row("OMP_NUM_THREADS", _check_threads),
            _row("Memory", _check_memory),
            _row("/dev/shm", _check_shm),
            _row("Open files", _check_open_files),
            _row("Host name", _check_hostname),
            _row("Loopback", _check_loopback),
            _row("Network interfaces", _check_interfaces),
            _row("Free port", _check_port),
            _row("Leftover variables", _check_variables),
        )
    )


def usable_cpu_count() -> int:
    """Cores this process may really use, at least 1: its affinity, cut to the cgroup's CPU quota.

    Rounds a quota down: a thread that runs only part of the time holds up all the others.
    `os.cpu_count()` sees neither limit, and starts 64 threads in a container that has 2 cores.
    """
    affinity = _affinity()
    try:
        quota = _cpu_quota()
    except (OSError, ValueError):
        return affinity
    return max(1, math.floor(min(affinity, quota)))


def gpu_count() -> int:
    """GPUs that torch can use from here; 0 with a CPU build. Never initialises CUDA."""
    try:
        _, cuda, hip = _torch_build()
    except Exception:
        return 0
    if not (cuda or hip) or not _gpu_device_files():
        return 0
    import torch

    # torch.cuda.device_count() itself falls back to CUDA where NVML does not answer
    count = getattr(torch.cuda, "_device_count_nvml", lambda: -1)() if cuda else -1
    return count if count >= 0 else _count_in_child(os.environ.get("CUDA_VISIBLE_DEVICES"))


@functools.lru_cache
def _count_in_child(visible: str | None) -> int:
    """Asks CUDA in a process of its own (3 s); `visible` only keys the cache."""
    code = "import torch; print(torch.cuda.device_count())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def default_nprocs() -> int:
    """How many ranks to start when nobody says: one per GPU, and two where there are fewer."""
    return max(2, gpu_count())


def main_check(as_json: bool) -> int:
    """Prints the report, as text or as JSON. Returns the exit code: 1 if a row fails, else 0."""
    report = check_environment()
    print(report.to_json() if as_json else report)
    return 0 if report.ok else 1
