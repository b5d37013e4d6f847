"""What `memory_per_rank` says of a step on a GPU, beside torch.cuda.max_memory_allocated()."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddp_helpers import launch, process_group
from ddp_helpers.scaling import Holding, memory_per_rank, trace_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("no_process_left"),
]
WIDTH, BATCH = 1024, 2048


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(WIDTH), nn.GELU()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Block() for _ in range(6)), nn.Linear(WIDTH, 10)
        self.again = False

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.last(x)


def make_batch(size):
    return torch.randn(size, WIDTH), torch.randint(10, (size,))


def loss_of(output, target):
    return nn.functional.cross_entropy(output.float(), target)


def train(options):
    """The most that tensors held in a step, less the batch; and what is always there."""
    with process_group("nccl") as pg:
        torch.backends.cuda.matmul.allow_tf32 = True
        x, y = (each.to(pg.device) for each in make_batch(BATCH))
        batch = torch.cuda.memory_allocated()
        model = Model().to(pg.device)
        model.again = options["checkpointing"]
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16, enabled=options["autocast"]):
                loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        held = torch.cuda.memory_allocated() - batch
        return torch.cuda.max_memory_allocated() - batch, held


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_takes_what_was_planned(autocast, checkpointing):
    options = {"autocast": autocast, "checkpointing": checkpointing}
    most, held = launch(train, 1, args=(options,), echo=False, timeout=120).values[0]
    precision = "autocast" if autocast else "float32"
    model = trace_model(Model, make_batch, loss_function=loss_of, precision=precision)
    how = Holding(batch_size=BATCH, checkpointing=checkpointing, foreach=False)
    told = memory_per_rank(model, how)
    # the allocator rounds each tensor up to 512 bytes
    assert told.parameters + told.optimizer == pytest.approx(held, rel=0.01)
    assert told.total.value == pytest.approx(most, rel=0.1)
