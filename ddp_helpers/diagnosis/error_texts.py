"""What torch, gloo and Python print when ranks start, meet and talk, and what it means."""

from __future__ import annotations

from ddp_helpers.diagnosis.error_texts_gpu import GPU_AND_DISK
from ddp_helpers.diagnosis.rules import DIST, NCCL, KnownError

KNOWN_ERRORS: tuple[KnownError, ...] = (
    # ---- ranks that try to meet
    KnownError(
        "port-taken",
        f"{DIST}|OSError",
        r"EADDRINUSE|Address already in use",
        "the port is taken by another program, or by a run that was left over",
        "leave init_method out under launch(), or choose another port; `ss -ltnp` shows who has it",
    ),
    KnownError(
        "port-forbidden",
        f"{DIST}|OSError|PermissionError",
        r"failed to listen [^\n]*EACCES",
        "the port is not yours to use: those below 1024 belong to the system",
        "choose a port above 1023",
    ),
    KnownError(
        "unknown-host",
        f"{DIST}|ValueError|OSError|gaierror",
        r"Name or service not known|Temporary failure in name resolution|"
        r"No address associated with hostname|host \"\S+\" can't be resolved",
        "the address of rank 0 names a machine that nobody knows",
        "check the spelling of MASTER_ADDR or --rdzv-endpoint, or give an IP address",
    ),
    KnownError(
        "address-unreachable",
        DIST,
        r"client socket has (?:timed out|failed)[^\n]* to \((?:\[)?([^\s,\]]+)\]?, (\d+)\)",
        r"nobody answered at \1, port \2: rank 0 does not run there, or a firewall is between",
        "check MASTER_ADDR and MASTER_PORT, start rank 0 too, and try `getent hosts` and `nc -vz`",
    ),
    KnownError(
        "no-such-interface",
        DIST,
        r"Unable to find address for: (\S+)",
        r"the network interface \1 does not exist, or has no address",
        "unset GLOO_SOCKET_IFNAME, or name an interface that `ip -brief address` shows",
    ),
    KnownError(
        "rank-missing",
        DIST,
        r"(\d+)/(\d+) clients joined",
        r"only \1 of \2 ranks came",
        "start as many ranks as world_size says; let torchrun or launch() count them",
    ),
    KnownError(
        "rank-missing",
        DIST,
        r"wait timeout after \d+ms, keys: \S*default_pg\S*/(\d+)(?!\S)",
        r"rank \1 never came to the start of the process group",
        "start as many ranks as world_size says; let torchrun or launch() count them",
    ),
    KnownError(
        "rank-missing",
        "RuntimeError",
        r"rank \d+ of (\d+): not all ranks came",
        r"not all of the \1 ranks came to the start of the process group",
        "start as many ranks as world_size says; let torchrun or launch() count them",
    ),
    KnownError(
        "rendezvous-failed",
        "RendezvousTimeoutError|RendezvousClosedError|RendezvousConnectionError",
        "",
        "the machines did not meet: a node is missing, or they disagree on --rdzv-endpoint, "
        "--rdzv-id or --nnodes",
        "give every node the same endpoint, id and number of nodes, and see that the endpoint's "
        "host and port can be reached from each",
    ),
    KnownError(
        "environment-not-set",
        "ValueError",
        r"environment variable (\w+) expected, but not set",
        r"\1 is not set, so the ranks can't find one another",
        "start with `torchrun --standalone --nproc-per-node 2 SCRIPT` or launch(), which set it",
    ),
    KnownError(
        "environment-not-set",
        "KeyError",
        r"(?<=KeyError: )'((?:LOCAL_)?RANK|(?:LOCAL_)?WORLD_SIZE|MASTER_ADDR|MASTER_PORT)'(?:\n|$)",
        r"\1 is not set: a script for several ranks was started as a single process",
        "start with `torchrun --standalone --nproc-per-node 2 SCRIPT` or launch(), which set it",
    ),
    KnownError(
        "environment-not-set",
        "ValueError",
        r"((?:RANK|WORLD_SIZE|MASTER_\w+)(?: and \w+)?) not set, so",
        r"\1 not set: a script for several ranks was started as a single process",
        "start with `torchrun --standalone --nproc-per-node 2 SCRIPT` or launch(), which set it",
    ),
    # ---- the process group
    KnownError(
        "no-process-group",
        "ValueError|RuntimeError",
        r"Default process group has not been initialized",
        "a collective was called before the process group was started, or after it ended",
        "put it inside `with process_group():`",
    ),
    KnownError(
        "started-twice",
        "ValueError|RuntimeError",
        r"trying to initialize the default process group twice|a process group is already running",
        "the process group was started twice",
        "start it once, or call dist.destroy_process_group() in between",
    ),
    KnownError(
        "no-nccl",
        "RuntimeError|ValueError",
        r"doesn't have NCCL built in|PyTorch build has no NCCL|"
        r"ProcessGroupNCCL is only supported with GPUs, no GPUs found",
        "NCCL can't work here: this PyTorch build has none, or the machine shows no GPU",
        'use backend="gloo", or leave the backend out of process_group()',
    ),
    KnownError(
        "wrong-device",
        "RuntimeError|ValueError",
        r"No backend type associated with device type (\w+)|Tensors must be CUDA and dense",
        "a tensor lies on a device that the group's backend can't send from",
        "move it first (nccl: x.cuda(); gloo: x.cpu())",
    ),
    # ---- collectives and models that do not match
    KnownError(
        "collective-mismatch",
        f"{DIST}|EnforceNotMet",
        r"Received data size doesn't match expected size|preamble\.length <= |"
        r"Detected mismatch between collectives",
        "the ranks called collectives that do not match: another shape, dtype or order",
        "print tensor.shape and tensor.dtype on each rank just before the collective",
    ),
    KnownError(
        "rank-did-not-come",
        DIST,
        r"Rank (\d+) failed to pass monitoredBarrier",
        r"rank \1 did not come to the barrier",
        r"look at what rank \1 does instead: an `if rank == ...`, an error, or slow work",
    ),
    KnownError(
        "peer-failed",
        "RuntimeError",
        r"DDP expects same model across all ranks.* inconsistent 0 params",
        "the models could not be compared: another rank was late, or had failed",
        "look for the first error of another rank",
    ),
    KnownError(
        "different-models",
        "RuntimeError",
        r"DDP expects same model across all ranks|"
        r"appears not to match (?:sizes|strides) of the same param",
        "the ranks wrapped different models",
        "build the same model on every rank before DistributedDataParallel(...)",
    ),
    KnownError(
        "unused-parameters",
        "RuntimeError",
        r"Expected to have finished reduction in the prior iteration",
        "some parameters took no part in the loss, so their gradients were never ready",
        "use every parameter in forward, or pass find_unused_parameters=True",
    ),
    KnownError(
        "ready-twice",
        "RuntimeError",
        r"Expected to mark a variable ready only once",
        "a parameter took part twice in one backward: checkpointing inside, or a shared layer",
        "use checkpoint(..., use_reentrant=False), or static_graph=True if the graph never changes",
    ),
    KnownError(
        "changed-in-place",
        "RuntimeError",
        r"one of the variables needed for gradient computation has been modified by an inplace",
        "a tensor that backward needs was changed in between; under DDP, a second forward before "
        "backward does so to BatchNorm's buffers",
        "call backward after each forward, or turn DDP's buffer broadcast off "
        "(forward_sync_buffers=False)",
    ),
    # ---- processes that start processes
    KnownError(
        "no-main-guard",
        "RuntimeError",
        r"An attempt has been made to start a new process before the\s+current process has "
        r"finished its bootstrapping phase",
        "each new process runs the script again, and starts processes itself",
        'put the starting lines under `if __name__ == "__main__":`',
    ),
    KnownError(
        "function-not-importable",
        "AttributeError",
        r"Can't get attribute '(\w+)' on <module '__main__' \(built-in\)>",
        r"a new process can't import \1: it was defined in a notebook or typed at a prompt",
        "use launch(), which sends the function itself, or put the function in a file",
    ),
    KnownError(
        "cannot-pickle",
        "AttributeError|PicklingError|TypeError",
        r"Can't (?:pickle|get) local object|Can't pickle <|cannot pickle '",
        "something for another process can't be pickled: a lambda, a function inside a function, "
        "or an open file, lock or generator",
        "use a function at the top of a file, and create such objects in the process itself; "
        "launch() takes lambdas and closures",
    ),
    KnownError(
        "cuda-in-fork",
        "RuntimeError",
        r"Cannot re-initialize CUDA in forked subprocess",
        "CUDA was used before the process was forked",
        'start ranks with launch() or mp.spawn, never with "fork"',
    ),
    KnownError(
        "shm-full",
        f"{NCCL}|OSError",
        r"killed by signal: Bus error|/dev/shm\S*[^\n]*No space left|/torch_\d[^\n]*No space left|"
        r"unable to (?:write to|mmap|allocate|resize)[^\n]*/torch_\d",
        "the shared memory in /dev/shm is full",
        "docker run --shm-size=2g, fewer loader workers, or num_workers=0",
    ),
    KnownError(
        "loader-worker-died",
        "RuntimeError",
        r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:exited unexpectedly|is killed by signal)",
        "a loader's worker process was killed, often because memory ran out",
        "try num_workers=0 to see its own error; then fewer workers, or a smaller batch",
    ),
    KnownError(
        "too-many-files",
        "RuntimeError|OSError",
        r"Too many open files",
        "the process ran out of file handles",
        "raise `ulimit -n`, or torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    *GPU_AND_DISK,
)
PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "connectFullMesh failed",
    "Software caused connection abort",
    "remote process exited or there was a network error",
    "ncclRemoteError",
    "failed to recv, got 0 bytes",
)
CONSEQUENCES: tuple[KnownError, ...] = (
    KnownError(
        "peer-did-not-come",
        f"{DIST}|IoException|TimeoutException",
        r"Timed out waiting \d+ ?ms|Socket Timeout|Watchdog caught collective operation timeout",
        "another rank did not come to the same collective in time",
        "look at what the other ranks did: an error, slow work, or one collective less",
    ),
    KnownError(
        "peer-gone",
        f"{DIST}|IoException",
        "|".join(PEER_IS_GONE),
        "another rank ended first; this error is only the consequence",
        "look for the first error of another rank, or for a rank that made fewer collectives",
    ),
)
