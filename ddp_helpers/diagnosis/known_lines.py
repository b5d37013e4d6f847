"""Lines of a log that are no exceptions, and yet tell the cause: signals, limits, watchdogs."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from ddp_helpers.diagnosis.rules import Diagnosis

KILLED = Diagnosis(
    "killed",
    "something outside killed a rank; very often it is the system, because memory ran out",
    "look for `oom-kill` in `dmesg | tail`; else for a `kill -9`, or a scheduler's limit",
)
OUT_OF_MEMORY = Diagnosis(
    "out-of-memory",
    "memory ran out, and the system killed the rank",
    "try a smaller batch, fewer ranks, or fewer loader workers",
)
CRASHED = Diagnosis(
    "crashed",
    "compiled code crashed (a bad memory access)",
    "set PYTHONFAULTHANDLER=1 to see the Python line; suspect mixed versions of libraries",
)
BUS_ERROR = Diagnosis(
    "shm-full",
    "a bad memory access (SIGBUS): most often /dev/shm is full",
    "docker run --shm-size=2g, fewer loader workers, or num_workers=0",
)
KNOWN_LINES: tuple[tuple[str, Diagnosis], ...] = (
    (
        r"api\.py:\d+\] failed \(exitcode: (?s:.*?)connectFullMesh failed[^\n]*Connection refused",
        Diagnosis(
            "stale-addresses",
            "torchrun started the ranks again, and they called the addresses of the attempt before",
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 with --max-restarts; mend the first error",
        ),
    ),
    (
        r"error: unrecognized arguments:(?: .*)? --local[-_]rank=\d+",
        Diagnosis(
            "local-rank-flag",
            "an old launcher passes --local-rank, and the script does not know it",
            'start with torchrun, and read int(os.environ["LOCAL_RANK"])',
        ),
    ),
    (
        r"^(?:ipykernel|colab_kernel)_launcher\.py: error: ",
        Diagnosis(
            "notebook-argv",
            "argparse read the notebook kernel's own command line",
            "use parser.parse_args([]), or parse_known_args(), in a notebook",
        ),
    ),
    (r"\[?Detected \d+ oom[_-]kill event|Out of memory: Killed process \d+", OUT_OF_MEMORY),
    (
        r"^slurmstepd: error: .* DUE TO TIME LIMIT",
        Diagnosis(
            "time-limit",
            "Slurm ended the job at its time limit",
            "ask for more with --time, or save checkpoints and resume",
        ),
    ),
    (
        r"Signal 9 \(SIGKILL\) received by PID \d+|terminated with signal SIGKILL|"
        r"^\s*exitcode\s*: -9\b|failed \(exitcode: -9\)|"
        r"^srun: error: \S+ tasks? [\d,-]+: Killed",
        KILLED,
    ),
    (
        r"Signal 11 \(SIGSEGV\) received by PID \d+|terminated with signal SIGSEGV|"
        r"^\s*exitcode\s*: -11\b|failed \(exitcode: -11\)|"
        r"^srun: error: \S+ tasks? [\d,-]+: Segmentation fault",
        CRASHED,
    ),
    (
        r"Signal 7 \(SIGBUS\) received by PID \d+|terminated with signal SIGBUS|"
        r"^\s*exitcode\s*: -7\b|failed \(exitcode: -7\)|"
        r"^srun: error: \S+ tasks? [\d,-]+: Bus error",
        BUS_ERROR,
    ),
)
WATCHDOG = re.compile(
    r"Rank (\d+)\] Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(\d+), OpType=(\w+)"
)
SIGNALS = {signal.SIGKILL: KILLED, signal.SIGSEGV: CRASHED, signal.SIGBUS: BUS_ERROR}


def recognise_lines(text: str) -> list[Diagnosis]:
    """The causes that single lines of a log tell."""
    found = [diagnosis for line, diagnosis in KNOWN_LINES if re.search(line, text, re.MULTILINE)]
    calls = {int(rank): (int(number), call) for rank, number, call in WATCHDOG.findall(text)}
    return ([_watchdog(calls)] if calls else []) + found


def recognise_exit_code(code: int | None) -> Diagnosis | None:
    """What an exit code alone tells: a signal as -9, or as a shell counts it, 128 + 9."""
    number = -code if code and code < 0 else (code or 0) - 128
    return SIGNALS.get(number)


def _watchdog(calls: Mapping[int, tuple[int, str]]) -> Diagnosis:
    """NCCL's watchdog says which collective each rank waited in, until the limit."""
    where = ", ".join(f"rank {rank} in {call} number {n}" for rank, (n, call) in calls.items())
    if len(set(calls.values())) > 1:
        return Diagnosis(
            "different-collective",
            f"the ranks waited in different collectives: {where}",
            "all ranks must make the same collectives in the same order",
        )
    return Diagnosis(
        "rank-did-not-come",
        f"not all ranks came to a collective: {where}",
        "look at what the silent ranks did: an error, an `if rank == ...`, or slow work",
    )
