# ruff: noqa: E402, F401
"""What the fork server imports once, so that each rank starts with it in memory.

Nothing here may start a thread or touch CUDA: neither survives a fork.
"""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import socket

TIDY_AFTER = 0.2  # seconds

with contextlib.suppress(OSError):
    os.setsid()  # a kernel that is killed takes its process group along; stay to tidy up

server_pid = os.getpid()
# all that is imported here stays, and the collector would look through it again and again: half a
# second in two
gc.disable()


@atexit.register  # the first one here is the last one to be called
def end() -> None:
    """Remove this server's socket, for a killed kernel can't, and end at once.

    At an ordinary end a library that was only loaded for the ranks could print what it leaked
    (triton does, from torch 2.15 on), into the reader's terminal.
    """
    from multiprocessing import forkserver

    server = forkserver._forkserver
    address = server._forkserver_address  # type: ignore[attr-defined]  # it has no public name
    # each rank is a fork of this process, and has inherited this function: it must not clear up
    if os.getpid() != server_pid:
        return
    if isinstance(address, str):
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)
    os._exit(0)


# else multiprocessing would drop the error and the rest of this file with it, and nobody would hear
# that the server is ready; a rank imports them again, and can tell what is missing
with contextlib.suppress(ImportError):
    import cloudpickle
    import torch
    import torch._dynamo  # the first optimizer imports it, a second and a half in each rank
    import torch.distributed
    import torch.nn.parallel
    import torch.optim
    import torch.utils.data

import ddp_helpers.group.lifetime
import ddp_helpers.ranks.worker
from ddp_helpers.ranks import fork_server
from ddp_helpers.ranks.huge_pages import collapse

with contextlib.suppress(NameError, AttributeError):
    # what _dynamo has noted at its import, each start of a process group drops: in a rank that
    # takes a millisecond, and a copy of every page that the notes lie in
    torch._dynamo.trace_rules.clear_lru_cache()

# a fork shares each page of memory until one side writes to it. The collector writes a count into
# every object that it looks at, but leaves frozen ones alone
gc.freeze()
gc.enable()


is_tidy = False


def tidy_memory(number: int, frame: object) -> None:
    """Have each fork that comes from now on cost less; not while a rank shares what would move."""
    global is_tidy
    if is_tidy or os.getpid() != server_pid or fork_server.has_children(server_pid):
        return
    is_tidy = True
    with contextlib.suppress(OSError):
        collapse()


# a launch that waits already is not to wait for this, too: its ranks are forked before
signal.signal(fork_server.TIDY_SIGNAL, tidy_memory)
signal.setitimer(signal.ITIMER_REAL, TIDY_AFTER)

with (  # tell whoever started this server that it is ready
    contextlib.suppress(OSError, KeyError),
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call,
):
    call.connect("\0" + os.environ["DDP_HELPERS_READY"])
