import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def train():
    dist.init_process_group("gloo")
    x = torch.linspace(0, 4, 64).chunk(2)[dist.get_rank()][:, None]  # a half for each rank
    ddp = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.02)
    for step in range(16):
        time.sleep(0.4)  # a larger model
        optimizer.zero_grad()
        loss = (ddp.module(x) - x**2).square().mean()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1:2}: loss {loss:.2f}, weight {ddp.module.weight.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    train()
