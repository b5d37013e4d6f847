"""Does DDP on n ranks do what one process does with the whole batch? For any training.

    python -m ddp_helpers verify script.py:main -n 2
    verdict = verify(train, nprocs=2)

The training runs a few steps on n ranks, then on one rank that gets the same batches, united, and
begins with the same weights. Losses, gradients and weights are compared step by step. What is
wrong in the same way on every rank shows only here: the sanitizer compares rank with rank.

What counts as equal is measured: one rank trains once more, with its weights moved by a rounding
and each batch turned round. Parts is what differs by more than a few times as much.

From outside, without a change to the script: dropout is off, loaders load in the rank itself,
torch.compile does nothing, and draws after a batch are alike on all ranks. Samples are noted as
the dataset gave them, so streams and random augmentations can be compared.

What can't be compared is said, with what to do: no optimizer.step(), draws for each sample in the
loop, weights in pieces (FSDP), a function that one rank can't run, and batches that the script
makes without a DataLoader from a size for each rank.
"""

from ddp_helpers.verifier.records import Verdict
from ddp_helpers.verifier.run import verify

__all__ = ["Verdict", "verify"]
