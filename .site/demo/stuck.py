import time

import torch
import torch.distributed as dist


def train():
    dist.init_process_group("gloo")
    for step in range(4):
        time.sleep(0.6)  # forward and backward
        dist.all_reduce(torch.ones(1000))
        if step == 2 and dist.get_rank() == 0:
            dist.barrier()
    dist.destroy_process_group()
