"""DDP, ZeRO, FSDP or tensor parallel: which, and ZeRO in three lines.

AdamW holds, for each weight, 4 bytes of weight, 4 of gradient and 8 of averages.

- It fits: DDP. Nothing is faster or simpler.
- The averages are what is too much: ZeroRedundancyOptimizer, below. Each rank keeps the averages
  of its share of the weights, 8 bytes by the number of ranks; each step it sends the weights.
- Weights and gradients are too much as well: FSDP, starter_fsdp.py. All is dealt out, and each
  layer is gathered when its turn comes. Activations: checkpointing, there too.
- One layer alone is too much, or the batch can't be split further: tensor parallel on top of it,
  inside one machine with NVLink (torch.distributed.tensor.parallel).

To save, all ranks' averages are brought together on rank 0: ask for that before the others leave.
"""

CHANGES = (
    (
        """\
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        )
""",
        """\
        self.optimizer = ZeroRedundancyOptimizer(
            self.model.parameters(),
            optimizer_class=torch.optim.AdamW,
            lr=args.lr,
            weight_decay=args.weight_decay,
        )
""",
    ),
    (
        """\
from torch.nn.parallel import DistributedDataParallel
""",
        """\
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
""",
    ),
    (
        """\
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
""",
        """\
        self.optimizer.consolidate_state_dict(to=0)  # all ranks send rank 0 their part
        states = {"model": self.model.state_dict()}
        if self.rank == 0:
            states["optimizer"] = self.optimizer.state_dict()
""",
    ),
)
