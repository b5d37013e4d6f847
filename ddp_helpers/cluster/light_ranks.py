"""Start the ranks of one host as `torchrun` does, with a third of the memory.

    python -m ddp_helpers.cluster.light_ranks --nnodes=2 --node-rank=0 --nproc-per-node=2 \\
        --master-addr=10.99.0.1 --master-port=29500 script.py ...

One process loads torch and then forks the ranks, so that they share its pages. It does so before
anything has started a thread, which would not survive the fork, and before CUDA. For what learners
run on a small machine: it restarts nothing, and writes no logs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import runpy
import signal
import sys
import traceback

_PR_SET_PDEATHSIG = 1


def main(words: list[str] | None = None) -> int:
    """Command line; the exit code of the first rank that failed, else 0."""
    options = _options(words)
    sys.path.insert(0, os.path.dirname(os.path.abspath(options.script)))
    _load_torch()
    parent = os.getpid()
    ranks = []
    for local_rank in range(options.nproc_per_node):
        pid = os.fork()
        if pid == 0:
            os._exit(_run(options, local_rank, parent))  # without what the parent has to tidy up
        ranks.append(pid)
    return _wait(ranks)


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--nnodes", "--node-rank", "--nproc-per-node"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--master-addr", "--master-port"):
        parser.add_argument(name, required=True)
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    if options.nproc_per_node < 1:
        parser.error(f"--nproc-per-node={options.nproc_per_node}: expected 1 or more")
    if not 0 <= options.node_rank < options.nnodes:
        parser.error(
            f"--node-rank={options.node_rank}: expected 0 to {options.nnodes - 1}, "
            f"as --nnodes={options.nnodes}"
        )
    return options


def _load_torch() -> None:
    """All that a rank with DDP loads sooner or later, once for all of them."""
    import torch._dynamo  # DDP's constructor asks it something
    import torch.distributed.device_mesh
    import torch.nn.parallel  # noqa: F401

    gc.collect()
    gc.freeze()  # else the first collection of each rank writes to every page


def _run(options: argparse.Namespace, local_rank: int, parent: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we could ask
        return 1
    each = options.nproc_per_node
    os.environ |= {
        "RANK": str(options.node_rank * each + local_rank),
        "LOCAL_RANK": str(local_rank),
        "GROUP_RANK": str(options.node_rank),
        "WORLD_SIZE": str(options.nnodes * each),
        "LOCAL_WORLD_SIZE": str(each),
        "MASTER_ADDR": options.master_addr,
        "MASTER_PORT": options.master_port,
    }
    sys.argv = [options.script, *options.args]
    code = 0
    try:
        runpy.run_path(options.script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _wait(ranks: list[int]) -> int:
    """The first failure, after which the others are ended; 0 if there is none."""
    failure = 0
    left = set(ranks)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failure:
            failure = code if code > 0 else 128 - code
            for other in left:
                os.kill(other, signal.SIGKILL)
    return failure


if __name__ == "__main__":
    sys.exit(main())
