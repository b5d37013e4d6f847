"""What NVIDIA's driver says of itself and its GPUs, from its files and from `nvidia-smi`.

Facts only: check.py says what they mean. Nothing here touches CUDA. It asks a subprocess, not
nvidia-ml-py: that loads the driver's library here, where a hung driver would hold this process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

SMI_LIMIT_S = 10.0  # eight GPUs without persistence mode really need several seconds
KILL_WAIT_S = 0.5  # a process that can be killed is gone within milliseconds

# Read below these, so that a test can put made-up trees in their place.
PROC, DEV = Path("/proc"), Path("/dev")


@dataclass(frozen=True)
class Findings:
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
        """True when anything at all speaks for an NVIDIA GPU in this machine."""
        return bool(self.gpus) or self.device_file or self.driver_loaded


def look() -> Findings:
    """Asks the driver's files and nvidia-smi; `Findings.error` says when that gave no answer."""
    traces = Findings(
        device_file=any(DEV.glob("nvidia[0-9]*")),
        driver_loaded=(PROC / "driver/nvidia/version").exists(),
    )
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        (code, listed), (_, banner), (_, matrix) = _nvidia_smi(query, [], ["topo", "-m"])
    except FileNotFoundError:
        return replace(traces, error="nvidia-smi was not found", smi_found=False)
    except OSError as error:
        return replace(traces, error=f"nvidia-smi did not start: {error}")
    if code != 0 or not listed.strip():
        return replace(traces, error=f"nvidia-smi says: {listed.strip() or 'nothing'}")
    # driver 610 renamed the banner's "CUDA Version" to "CUDA UMD Version"
    version = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", banner)
    cuda = (int(version[1]), int(version[2])) if version else None
    gpus = tuple(_gpu_name(line) for line in listed.strip().splitlines())
    return replace(traces, gpus=gpus, links=gpu_links(matrix), cuda=cuda)


def _nvidia_smi(*questions: list[str]) -> list[tuple[int, str]]:
    """(exit code, output) of nvidia-smi for each list of arguments, asked all at once."""
    deadline = time.monotonic() + SMI_LIMIT_S
    asked: list[subprocess.Popen[str]] = []
    try:
        for question in questions:
            asked.append(_start(question))
        return [_answer(process, deadline) for process in asked]
    finally:
        for process in asked:
            _end(process)


def _start(question: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["nvidia-smi", *question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its children can be ended with it
    )


def _answer(process: subprocess.Popen[str], deadline: float) -> tuple[int, str]:
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
            process.wait(KILL_WAIT_S)
    if process.stdout:
        process.stdout.close()


def _gpu_name(line: str) -> str:
    """`NVIDIA A100-SXM4-40GB, 40960` (MiB) to `NVIDIA A100-SXM4-40GB (40 GiB)`."""
    name, _, mib = (part.strip() for part in line.rpartition(","))
    return f"{name} ({round(int(mib) / 1024)} GiB)" if mib.isdigit() else name or line.strip()


_LINKS = {
    "PIX": "PCIe switch",
    "PXB": "PCIe switch",
    "PHB": "PCIe",
    "NODE": "PCIe",
    "SYS": "PCIe across CPU sockets",
    "SOC": "PCIe across CPU sockets",
}


def gpu_links(matrix: str) -> str:
    """How the pairs of GPUs are joined, from the table of `nvidia-smi topo -m`; empty for none."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)  # the header is underlined
    lines = [line.split() for line in plain.splitlines() if line.startswith("GPU")]
    rows = [cells[1:] for cells in lines if "X" in cells]  # X: the GPU itself; the header has none
    pairs = [row[j] for i, row in enumerate(rows) for j in range(i + 1, min(len(rows), len(row)))]
    kinds = Counter("NVLink" if re.match(r"NV\d", p) else _LINKS.get(p, p) for p in pairs)
    if len(kinds) < 2:
        return "".join(kinds)
    return ", ".join(f"{kind} ({n} pair{'s' * (n > 1)})" for kind, n in kinds.most_common())
