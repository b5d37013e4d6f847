"""What this machine can do for data-parallel training: one row per question, each with advice.

    check_environment()                 # a table in a notebook, text in a terminal
    check_environment()["/dev/shm"]     # one row: name, status, value, advice

pass: nothing to do. warn: the course runs, but slower or with a trap. fail: it cannot run.
The facts come from facts.py and nvidia.py, the table from report.py.
Nothing here touches CUDA: a process that has, can no longer fork safely, and holds GPU memory.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from ddp_helpers.environment import facts as machine
from ddp_helpers.environment import nvidia
from ddp_helpers.environment.report import Check, EnvironmentReport, Status
from ddp_helpers.evidence.cores import ranks_on_these_cores
from ddp_helpers.torch_private import TESTED, TESTED_FROM, TESTED_TO, torch_version

Answer = tuple[Status, str, str]  # status, value, advice

GIB = 1024**3
# Measured with torch 2.13: a rank holds 0.3 GiB after one DDP step, the process that starts
# the ranks 0.2 GiB. Below 0.5 GiB there is no room for even one of each: the kernel kills a rank.
# 2 GiB holds two ranks, the notebook server and a batch or two.
MEMORY_FAIL, MEMORY_WARN = GIB // 2, 2 * GIB
# Loader workers hand batches over in /dev/shm, and nccl keeps its buffers there (its manual asks
# for 1 GiB). Two workers, each two batches ahead, of 256 float32 images of 3x224x224 fill 0.6 GiB.
SHM_WARN = GIB
SHM_FREE_WARN = SHM_WARN // 4  # less is not enough for even one worker with such batches
# Each tensor a loader worker hands over holds one open file. 1024 is Linux's own default.
OPEN_FILES_WARN, OPEN_FILES_ENOUGH = 1024, 4096
# The process that starts ranks opens these. Measured as the least `ulimit -n` that 1, 2, 4 and 8
# ranks start with.
FILES, FILES_PER_RANK = 17, 9
# Two helpers of multiprocessing, the store's thread; a rank, and four threads in it.
TASKS, TASKS_PER_RANK = 3, 5
MOST_INTERFACES = 6  # shown by name: a host of containers has hundreds
PYTHON_MIN = (3, 11)  # the same as in pyproject.toml


# ------------------------------------------------------------------ public


def check_environment() -> EnvironmentReport:
    """Looks at this machine and says what data-parallel training will meet.

    Takes well under 2 s once torch is imported, changes nothing, and never touches CUDA. Raises
    nothing: a fact that cannot be had is a row `warn: could not tell, because ...`.
    """
    try:
        found = nvidia.look()
    except Exception as error:
        found = nvidia.Findings(error=f"could not tell, because {type(error).__name__}: {error}")
    return EnvironmentReport(
        (
            _row("Linux", check_system),
            _row("Python", check_python),
            _row("PyTorch", check_torch, found),
            _row("GPUs", check_gpus, found),
            _row("Backends", check_backends, found),
            _row("CPU cores", check_cores),
            _row("OMP_NUM_THREADS", check_threads),
            _row("Memory", check_memory),
            _row("/dev/shm", check_shm),
            _row("Open files", check_open_files),
            _row("Host name", check_hostname),
            _row("Loopback", check_loopback),
            _row("Network interfaces", check_interfaces),
            _row("Free port", check_port),
            _row("Leftover variables", check_variables),
        )
    )


def _row(name: str, question: Callable[..., Answer], *facts: Any) -> Check:
    try:
        status, value, advice = question(*facts)
    except Exception as error:  # a source is missing or broken: say so, and go on with the rest
        status, value = "warn", f"could not tell, because {type(error).__name__}: {error}"
        advice = "The course may well run. If a later step fails, look here first."
    return Check(name, status, " ".join(value.split()), advice)


def usable_cpu_count() -> int:
    """Cores this process may really use, at least 1: its affinity, cut to the cgroup's CPU quota.

    Rounds a quota down: a thread that runs only part of the time holds up all the others.
    `os.cpu_count()` sees neither limit, and starts 64 threads in a container that has 2 cores.
    """
    affinity = machine.affinity()
    try:
        quota = machine.cpu_quota()
    except (OSError, ValueError):
        return affinity
    return max(1, math.floor(min(affinity, quota)))


def gpu_count() -> int:
    """GPUs that torch can use from here; 0 with a CPU build. Never initialises CUDA."""
    try:
        _, cuda, hip = machine.torch_build()
    except Exception:
        return 0
    if not (cuda or hip) or not machine.gpu_device_files():
        return 0
    import torch

    # torch.cuda.device_count() itself falls back to CUDA where NVML does not answer
    count = getattr(torch.cuda, "_device_count_nvml", lambda: -1)() if cuda else -1
    if count >= 0:
        return count
    return machine.gpu_count_in_child(os.environ.get("CUDA_VISIBLE_DEVICES"))


def default_nprocs() -> int:
    """How many ranks to start when nobody says: one per GPU, and two where there are fewer."""
    return max(2, gpu_count())


def files_needed(nprocs: int) -> int:
    """The least limit on open files with which this process can start `nprocs` ranks."""
    return machine.files_in_use() + FILES + FILES_PER_RANK * nprocs


def main_check(as_json: bool) -> int:
    """Prints the report, as text or as JSON. Returns the exit code: 1 if a row fails, else 0."""
    report = check_environment()
    print(report.to_json() if as_json else report)
    return 0 if report.ok else 1


# ------------------------------------------------------------------ rows: system, Python, torch


def check_system() -> Answer:
    system, release, processor = machine.system()
    if system != "Linux":
        advice = "This course needs Linux: a server, a Docker container, or WSL2 on Windows."
        return "fail", f"{system} {release}", advice
    wsl = ", WSL2" if "microsoft" in release.lower() else ""
    return "pass", f"kernel {release.split('-')[0]}, {processor}{wsl}", ""


def check_python() -> Answer:
    version = machine.python()
    value = ".".join(map(str, version))
    oldest = ".".join(map(str, PYTHON_MIN))
    if version[:2] < PYTHON_MIN:
        return "fail", value, f"Use Python {oldest} or newer."
    return "pass", value, ""


_SMALLER = "No GPU is here. If none will be, the CPU build needs 0.8 GB, not 5, and starts sooner"
_INSTALL_CPU = "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"


def check_torch(found: nvidia.Findings) -> Answer:
    try:
        machine.check_before_torch()
    except (OSError, ValueError) as error:
        return "fail", "does not load as things stand", f"{error}."
    try:
        version, cuda, hip = machine.torch_build()
    except Exception as error:
        return _no_torch(error)
    build = f"CUDA {cuda} build" if cuda else f"ROCm {hip} build" if hip else "CPU build"
    value = f"{version}, {build}"
    answer: Answer = ("pass", f"{value}; the course is {TESTED}", "")
    if found.gpu_here and not hip:
        answer = _compare_cuda(value, cuda, found)
    if answer[0] != "pass":  # the driver is the worse trouble, so it is said first
        return answer
    if not TESTED_FROM <= torch_version(version) <= TESTED_TO:
        return "warn", answer[1], "If something fails, try one of the tested versions."
    if (cuda or hip) and not (found.gpu_here or machine.gpu_device_files()):
        return "warn", value, f"{_SMALLER}: `pip uninstall -y torch`, then {_INSTALL_CPU}."
    return answer


def _no_torch(error: Exception) -> Answer:
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        advice = f"The small CPU build is enough: {_INSTALL_CPU}. For GPUs: `pip install torch`."
        return "fail", "not installed", advice
    advice = f"Install it afresh: `pip uninstall -y torch`, then {_INSTALL_CPU}."
    return "fail", f"installed, but does not load: {type(error).__name__}: {error}", advice


def _compare_cuda(value: str, cuda: str | None, found: nvidia.Findings) -> Answer:
    """torch's CUDA against the driver's. Same major version is enough: NVIDIA calls this minor
    version compatibility (https://docs.nvidia.com/deploy/cuda-compatibility/)."""
    driver = "{}.{}".format(*found.cuda) if found.cuda else ""
    pick = f"a build for CUDA {driver} or older" if driver else "a CUDA build"
    pick = f"{pick} at `https://pytorch.org/get-started/locally/`"
    if cuda is None:
        advice = (
            "Everything runs on the CPU until you put in a CUDA build: "
            f"`pip uninstall -y torch`, then choose {pick}."
        )
        return "warn", f"{value}, on a machine with a GPU", advice
    if found.cuda is None:
        advice = "If torch says that the driver is too old, update the driver."
        why = found.error or "nvidia-smi does not print it"
        return "warn", f"{value}; could not tell the driver's CUDA version, because {why}", advice
    value = f"{value}, driver for CUDA {driver}"
    if found.cuda[0] < int(cuda.split(".")[0]):
        advice = f"The driver is too old for this build. Update the driver, or choose {pick}."
        return "fail", value, advice
    return "pass", value, ""


# ------------------------------------------------------------------ rows: GPUs and backends


def check_gpus(found: nvidia.Findings) -> Answer:
    if not found.gpus:
        return _no_gpus(found)
    value = ", ".join(f"{count} x {name}" for name, count in Counter(found.gpus).items())
    value += f"; links: {found.links}" if found.links else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "pass", value, ""
    value += f"; CUDA_VISIBLE_DEVICES={visible!r}"
    if visible.strip() in ("", "-1"):
        return "warn", value, "That hides every GPU: `unset CUDA_VISIBLE_DEVICES` to use them."
    return "pass", value, ""


def _no_gpus(found: nvidia.Findings) -> Answer:
    if found.device_file:
        advice = (
            "Make `nvidia-smi` work first: it comes with the driver, and after an update of "
            "the driver needs a restart."
        )
        return "warn", f"a GPU is here, but {found.error}", advice
    if found.driver_loaded:
        advice = "In Docker: `docker run --gpus all ...`. In Slurm: ask for GPUs with `--gpus`."
        return "warn", "the NVIDIA driver is loaded, but no GPU reaches this process", advice
    if found.smi_found:
        advice = "If this machine has a GPU, install or load its driver. "
        return "warn", found.error, advice + "If not: gloo runs on the CPU."
    return "pass", "none, and that is fine: gloo runs on the CPU", ""


def check_backends(found: nvidia.Findings) -> Answer:
    backends = machine.backends()
    if not backends:
        advice = "This torch was built without torch.distributed. "
        return "fail", "none", advice + f"Take the usual build: {_INSTALL_CPU}."
    value = ", ".join(backends)
    if "gloo" not in backends:
        return "warn", value, f"Cells that run on the CPU need gloo: {_INSTALL_CPU}."
    if "nccl" not in backends and found.gpu_here:
        return "warn", value, "GPUs need nccl, which comes with a CUDA build of torch on Linux."
    return "pass", value, ""


# ------------------------------------------------------------------ rows: cores, memory, files


def check_cores() -> Answer:
    affinity, quota, cores = machine.affinity(), machine.cpu_quota(), usable_cpu_count()
    value = f"{cores} core" if cores == 1 else f"{cores} cores"
    if quota < affinity:
        value += f" ({affinity} visible, but the cgroup's quota is {quota:.3g})"
    if cores == 1:
        # with one core the ranks are still real processes and still agree: only speed is lost
        advice = (
            "The ranks take turns: everything works, only slower. More cores: `docker run "
            "--cpus=2`, Slurm `--cpus-per-task=2`, or a larger machine."
        )
        return "warn", value, advice
    return "pass", value, ""


def check_threads() -> Answer:
    setting, cores = os.environ.get("OMP_NUM_THREADS"), usable_cpu_count()
    if setting is None:
        return "pass", "not set", ""
    ranks = ranks_on_these_cores()
    advice = f"For two ranks: `export OMP_NUM_THREADS={max(1, cores // 2)}` (cores / ranks)."
    if "SLURM_LOCALID" in os.environ:
        number, why = max(1, cores // ranks), "cores / ranks that share them"
        advice = f"For this task: `export OMP_NUM_THREADS={number}` ({why})."
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


def check_memory() -> Answer:
    free, total = machine.memory()
    value = f"{_size(free)} free of {_size(total)}"
    advice = "Close other programs, or raise the limit (`docker run --memory=4g`)."
    if free < MEMORY_FAIL:
        return "fail", value, f"One rank alone needs about 0.3 GiB. {advice}"
    if free < MEMORY_WARN:
        return "warn", value, f"Use two ranks and small batches: each rank takes 0.3 GiB. {advice}"
    return "pass", value, ""


def check_shm() -> Answer:
    try:
        free, total = machine.shm()
    except (FileNotFoundError, PermissionError) as error:
        # the locks and queues of torch.multiprocessing live there: no rank could start
        advice = (
            "torch.multiprocessing needs it: `sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm`."
        )
        return "fail", f"not usable: {error}", advice
    meanwhile = "Until then use `num_workers=0` in each DataLoader."
    if total < SHM_WARN:
        advice = (
            "Loader workers and nccl need more. In Docker: `docker run --shm-size=2g ...`, or "
            f"`--ipc=host`. Elsewhere: `sudo mount -o remount,size=2g /dev/shm`. {meanwhile}"
        )
        return "warn", _size(total), advice
    if free < SHM_FREE_WARN:
        advice = f"Nearly full: see `ls -l /dev/shm` for what ended runs left behind. {meanwhile}"
        return "warn", f"{_size(free)} free of {_size(total)}", advice
    return "pass", _size(total), ""


def check_open_files() -> Answer:
    soft, hard = machine.open_files()
    if soft >= OPEN_FILES_WARN:
        return "pass", "unlimited" if soft == math.inf else f"{soft}", ""
    needed = files_needed(default_nprocs())
    status: Status = "fail" if soft < needed else "warn"
    advice = "Many loader workers may end in `Too many open files`."
    if status == "fail":
        advice = f"{default_nprocs()} ranks can't start with less than {needed}."
    if hard > soft:
        advice += (
            f" `ulimit -n {min(OPEN_FILES_ENOUGH, hard)}` in the shell that starts Python or "
            "JupyterLab."
        )
    if hard < OPEN_FILES_WARN:
        # `ulimit -n 256` lowers the hard limit as well, and no later `ulimit` there can raise it
        advice += (
            f" The hard limit is {hard}. If you set it with `ulimit`, open a new shell. If "
            f"not, the administrator can raise it: `* - nofile {OPEN_FILES_ENOUGH}` in "
            "/etc/security/limits.conf and a new login, or "
            f"`docker run --ulimit nofile={OPEN_FILES_ENOUGH}`."
        )
    return status, f"{soft}", advice


# ------------------------------------------------------------------ rows: network, variables


def check_hostname() -> Answer:
    # warn, not fail: on one machine gloo falls back to loopback, after a line of complaint
    name = machine.hostname()
    advice = (
        'Add it to the hosts file: `echo "127.0.1.1 $(hostname)" | sudo tee -a /etc/hosts`. '
        "Or, if all ranks are on this machine: `export GLOO_SOCKET_IFNAME=lo`."
    )
    try:
        answers = machine.resolve(name)
    except OSError as error:
        return "warn", f"{name!r} does not resolve: {error}", advice
    if not any(machine.is_local(answer) for answer in answers):
        found = ", ".join(sorted({answer[4][0] for answer in answers}))
        return "warn", f"{name!r} resolves to {found}, which is not this machine", advice
    return "pass", "resolves to this machine", ""


def check_loopback() -> Answer:
    try:
        machine.loopback()
    except OSError as error:
        advice = (
            "Ranks on one machine meet on 127.0.0.1: `sudo ip link set lo up`, "
            "and allow it in the firewall."
        )
        return "fail", f"127.0.0.1 does not connect: {error}", advice
    try:
        machine.resolve("localhost")
    except OSError as error:
        advice = (
            'Add it to the hosts file: `echo "127.0.0.1 localhost" | sudo tee -a /etc/hosts`. '
            "Or write 127.0.0.1 instead."
        )
        return "warn", f"127.0.0.1 works, but localhost does not resolve: {error}", advice
    return "pass", "127.0.0.1 and localhost work", ""


def check_interfaces() -> Answer:
    up = machine.interfaces()
    if not up:
        return "warn", "none is up with an address", "`sudo ip link set lo up` is enough here."
    shown = [f"{name} ({kinds})" for name, kinds in up.items()]
    value, more = ", ".join(shown[:MOST_INTERFACES]), len(shown) - MOST_INTERFACES
    value += f" and {more} more" if more > 0 else ""
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    wrong = {v: names for v in variables if (names := machine.named_in_vain(v, up))}
    if not wrong and (more_taken := machine.taken_too(os.environ.get(variables[1], ""), up)):
        name, also = next(iter(more_taken.items()))
        value = f"{variables[1]}={name} takes {', '.join(also)}, too; up here: {value}"
        advice = f"It is a beginning of names: `export {variables[1]}='={name}'` is this one alone."
        return "warn", value, advice
    if not wrong:
        return "pass", value, ""
    named = "; ".join(f"{v} names {', '.join(map(repr, names))}" for v, names in wrong.items())
    unset = " ".join(wrong)
    advice = f"No such interface is up, so a run would stop at its start: `unset {unset}`."
    return "warn", f"{named}; up here: {value}", advice


def check_port() -> Answer:
    try:
        machine.free_port()
    except OSError as error:
        advice = (
            "No run can start without one. See `ss -s`: end programs that hold thousands of "
            "connections, or allow sockets in this sandbox."
        )
        return "fail", f"none: {error}", advice
    return "pass", "the system gives one", ""


_RUN_VARIABLES = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()


def check_variables() -> Answer:
    left = [name for name in _RUN_VARIABLES if name in os.environ]
    if left and not machine.launched():
        names = " ".join(left)
        advice = (
            f"`unset {names}` and start again: init_process_group() would read them, "
            "and stop, or wait for ranks that nobody starts."
        )
        return "warn", f"{', '.join(left)} set, but no launcher started this process", advice
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        advice = "Use `export TORCH_DISTRIBUTED_DEBUG=INFO`: with DETAIL, DDP on gloo can crash."
        return "warn", "TORCH_DISTRIBUTED_DEBUG=DETAIL", advice
    return "pass", "a launcher's" if left else "nothing left over from another run", ""
