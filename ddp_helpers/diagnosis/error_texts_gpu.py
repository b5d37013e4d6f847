"""What CUDA, NCCL, checkpoints and disks print when something is wrong, and what it means."""

from __future__ import annotations

from ddp_helpers.diagnosis.rules import CUDA, NCCL, KnownError

GPU_AND_DISK: tuple[KnownError, ...] = (
    # ---- GPUs and NCCL
    KnownError(
        "shared-gpu",
        NCCL,
        r"Duplicate GPU detected ?: rank (\d+) and rank (\d+) both on CUDA device (\w+)",
        r"ranks \1 and \2 use the same GPU",
        "call torch.cuda.set_device(local_rank) before anything else, one rank per GPU",
    ),
    KnownError(
        "more-ranks-than-gpus",
        f"{CUDA}|ValueError",
        r"invalid device ordinal|with \d+ ranks, but this machine has \d+ GPUs",
        "a rank asked for a GPU that is not there: more ranks than GPUs, or RANK for LOCAL_RANK",
        "use one rank per GPU and torch.cuda.set_device(local_rank)",
    ),
    KnownError(
        "no-cuda",
        "AssertionError|RuntimeError|AcceleratorError",
        r"Torch not compiled with CUDA enabled|No CUDA GPUs are available|"
        r"Found no NVIDIA driver on your system",
        "CUDA was asked for, and this machine or this PyTorch build has none",
        'use device="cpu", or pg.device, which picks what is there',
    ),
    KnownError(
        "gpu-out-of-memory",
        f"OutOfMemoryError|{CUDA}",
        r"CUDA out of memory|CUDA error: out of memory|Cuda failure \d* ?'out of memory'",
        "a GPU ran out of memory",
        "use a smaller batch, or load checkpoints with map_location",
    ),
    KnownError(
        "device-assert",
        CUDA,
        r"device-side assert triggered",
        "a check inside a GPU kernel failed, most often a label or index out of range",
        "run the same step on the CPU, or with CUDA_LAUNCH_BLOCKING=1, to see the line",
    ),
    KnownError(
        "nccl-network",
        NCCL,
        r"(?:unhandled system error|ncclSystemError|\[WARN\])[^\n]*(?:\n[^\n]*){0,3}"
        r"(?:Connection refused|No route to host|Connection timed out|"
        r"no socket interface found|Bootstrap : no)",
        "NCCL could not open a connection between the ranks",
        "name the right interface with NCCL_SOCKET_IFNAME, and see that no firewall is between",
    ),
    KnownError(
        "nccl-system",
        NCCL,
        r"unhandled system error|ncclSystemError",
        "a call of NCCL to the system failed: network, shared memory or permissions",
        "run with NCCL_DEBUG=WARN, which names the call; check NCCL_SOCKET_IFNAME and /dev/shm",
    ),
    KnownError(
        "nccl-cuda",
        NCCL,
        r"unhandled cuda error|ncclUnhandledCudaError",
        "a CUDA call inside NCCL failed; an earlier CUDA error of the same rank may be the cause",
        "read the line after `Last error:`, and run with NCCL_DEBUG=WARN",
    ),
    # ---- checkpoints and disks
    KnownError(
        "checkpoint-incomplete",
        "RuntimeError|EOFError|UnpicklingError",
        r"PytorchStreamReader failed reading (?:zip archive|file)|"
        r"unexpected EOF, expected \d+ more bytes|pickle data was truncated",
        "the checkpoint is not whole: read while it was written, or cut off by a stop or full disk",
        "write to a temporary file and rename it; let the ranks wait in a barrier before they read",
    ),
    KnownError(
        "module-prefix",
        "RuntimeError",
        r"Error\(s\) in loading state_dict(?s:.*?)(?:Missing|Unexpected) key\(s\)[^\n]*\"module\.",
        "the checkpoint was saved with DDP's wrapper and is loaded without it, or the reverse",
        "save ddp.module.state_dict(), and load into the plain model before the wrap",
    ),
    KnownError(
        "disk-full",
        "OSError|RuntimeError",
        r"No space left on device",
        "the disk is full",
        "free some space, or write elsewhere",
    ),
)
