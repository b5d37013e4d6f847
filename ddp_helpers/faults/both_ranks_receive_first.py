"""Every rank waits for a message before it sends its own.

Point-to-point calls need one side that sends first. Two ranks with the same lines, each beginning
with `recv`, look at each other politely for ever.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Both ranks receive first",
    group="hangs",
    says="Timed out waiting",
    cause="Each rank waits for a message that the other sends only afterwards.",
    mend="Let even ranks send first and odd ranks receive first, or use batch_isend_irecv.",
    kind="all-wait",
    timeout=2.0,
)


def faulty():
    dist.init_process_group("gloo")
    other, theirs = 1 - dist.get_rank(), torch.zeros(1)
    dist.recv(theirs, src=other)  # FAULT: nobody has sent yet
    dist.send(torch.ones(1), dst=other)
    dist.destroy_process_group()


def fixed():
    dist.init_process_group("gloo")
    other, theirs = 1 - dist.get_rank(), torch.zeros(1)
    sending = dist.isend(torch.ones(1), dst=other)  # MENDED: on its way while we receive
    dist.recv(theirs, src=other)
    sending.wait()
    dist.barrier()
    dist.destroy_process_group()
    return theirs.item()
