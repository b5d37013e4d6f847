import torch
import torch.distributed as dist


# right
def run_pipeline(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    outputs = []
    for piece in pieces:
        if rank > 0:
            dist.recv(piece, src=rank - 1)
        outputs.append(stage(piece))
        if rank < last:
            dist.send(outputs[-1], dst=rank + 1)
    return outputs


# right
def through(stage, pieces):
    rank, jobs = dist.get_rank(), []
    for piece in pieces:
        if rank:
            dist.irecv(piece, rank - 1).wait()
        output = stage(piece)
        if rank + 1 < dist.get_world_size():
            jobs.append((output, dist.isend(output, rank + 1)))
        yield output
    for _, job in jobs:
        job.wait()


def run_pipeline(stage, pieces):
    return tuple(through(stage, pieces))


# wrong: nobody worked at the same time
def run_pipeline(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    outputs = []
    for piece in pieces:
        if rank > 0:
            dist.recv(piece, src=rank - 1)
        outputs.append(stage(piece))
    for output in outputs:
        if rank < last:
            dist.send(output, dst=rank + 1)
    return outputs


# wrong: output
def run_pipeline(stage, pieces):
    """In the wrong order."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    outputs = []
    for piece in pieces:
        if rank > 0:
            dist.recv(piece, src=rank - 1)
        outputs.insert(0, stage(piece))
        if rank < last:
            dist.send(outputs[0], dst=rank + 1)
    return outputs


# wrong: called its stage 1 times
def run_pipeline(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    whole = torch.stack(pieces)
    if rank > 0:
        dist.recv(whole, src=rank - 1)
    whole = stage(whole)
    if rank < last:
        dist.send(whole, dst=rank + 1)
    return list(whole)


# wrong: before piece 0 is on its way
def run_pipeline(stage, pieces):
    r, last = dist.get_rank(), dist.get_world_size() - 1
    outs, held = [], None
    for p in pieces:
        if r:
            dist.recv(p, r - 1)
        y = stage(p)
        outs.append(y)
        if r < last:
            if held is not None:
                dist.send(held, r + 1)
            held = y
    if held is not None:
        dist.send(held, r + 1)
    return outs


# wrong: nobody waits for isend
def run_pipeline(stage, pieces):
    r, last = dist.get_rank(), dist.get_world_size() - 1
    outs = []
    for p in pieces:
        if r:
            dist.recv(p, r - 1)
        y = stage(p)
        outs.append(y)
        if r < last:
            dist.isend(y, r + 1)
    return outs
