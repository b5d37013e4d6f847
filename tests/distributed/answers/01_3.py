import torch
import torch.distributed as dist


# right
def my_all_reduce(tensor):
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    right, left = (rank + 1) % size, (rank - 1) % size
    for step in range(size - 1):
        out, into = chunks[(rank - step) % size], chunks[(rank - step - 1) % size]
        got = torch.empty_like(into)
        jobs = [dist.isend(out, right), dist.irecv(got, left)]
        for job in jobs:
            job.wait()
        into += got
    for step in range(size - 1):
        out, into = chunks[(rank + 1 - step) % size], chunks[(rank - step) % size]
        jobs = [dist.isend(out, right), dist.irecv(into, left)]
        for job in jobs:
            job.wait()


# right
def my_all_reduce(tensor):
    """Padded to equal chunks, with batch_isend_irecv."""
    rank, size = dist.get_rank(), dist.get_world_size()
    length = -(-tensor.numel() // size)
    padded = torch.zeros(length * size, dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor
    rows = padded.view(size, length)

    def trade(out, into):
        ops = [
            dist.P2POp(dist.isend, rows[out % size].clone(), (rank + 1) % size),
            dist.P2POp(dist.irecv, into, (rank - 1) % size),
        ]
        for job in dist.batch_isend_irecv(ops):
            job.wait()

    got = torch.empty(length)
    for step in range(size - 1):
        trade(rank - step, got)
        rows[(rank - step - 1) % size] += got
    for step in range(size - 1):
        trade(rank - step + 1, got)
        rows[(rank - step) % size] = got
    tensor.copy_(padded[: tensor.numel()])
    return tensor


# right
def my_all_reduce(tensor):
    """Even ranks send first, odd ones receive first; blocking."""
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = torch.chunk(tensor.clone(), size)
    chunks = [*chunks, *[tensor[:0]] * (size - len(chunks))]
    chunks = [c.clone() for c in chunks]

    def shift(out, into):
        if rank % 2 == 0 and rank != size - 1:
            dist.send(out, (rank + 1) % size)
            dist.recv(into, (rank - 1) % size)
        elif rank % 2 == 1:
            dist.recv(into, (rank - 1) % size)
            dist.send(out, (rank + 1) % size)
        else:
            job = dist.isend(out, (rank + 1) % size)
            dist.recv(into, (rank - 1) % size)
            job.wait()

    for i in range(2 * size - 2):
        into = chunks[(rank - i - 1) % size]
        got = torch.zeros_like(into)
        shift(chunks[(rank - i) % size], got)
        into.copy_(got if i >= size - 1 else into + got)
    tensor.copy_(torch.cat(chunks))


# wrong: you called all_reduce
def my_all_reduce(tensor):
    dist.all_reduce(tensor)


# wrong: on 3 ranks: at most 46; you: 60
def my_all_reduce(tensor):
    """Whole tensors around the ring: too many bytes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    travelling = tensor.clone()
    for _ in range(size - 1):
        got = torch.empty_like(travelling)
        job = dist.isend(travelling, (rank + 1) % size)
        dist.recv(got, (rank - 1) % size)
        job.wait()
        tensor += got
        travelling = got


# wrong: of 3 calls send with rank
def my_all_reduce(tensor):
    """All-to-all: each chunk straight to its owner, and straight back."""
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    mine = chunks[rank]
    jobs = [dist.isend(chunks[r].clone(), r) for r in range(size) if r != rank]
    for r in range(size):
        if r != rank:
            got = torch.empty_like(mine)
            dist.recv(got, r)
            mine += got
    [job.wait() for job in jobs]
    jobs = [dist.isend(mine, r) for r in range(size) if r != rank]
    for r in range(size):
        if r != rank:
            dist.recv(chunks[r], r)
    [job.wait() for job in jobs]


# wrong: calls send with rank
def my_all_reduce(tensor):
    """To rank 0 and back."""
    if dist.get_rank() == 0:
        for r in range(1, dist.get_world_size()):
            got = torch.empty_like(tensor)
            dist.recv(got, r)
            tensor += got
        for r in range(1, dist.get_world_size()):
            dist.send(tensor, r)
    else:
        dist.send(tensor, 0)
        dist.recv(tensor, 0)


# wrong: with 8 elements, the tensor is
def my_all_reduce(tensor):
    """Only the first half of the ring."""
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    for step in range(size - 1):
        into = chunks[(rank - step - 1) % size]
        got = torch.empty_like(into)
        job = dist.isend(chunks[(rank - step) % size], (rank + 1) % size)
        dist.recv(got, (rank - 1) % size)
        job.wait()
        into += got


# wrong: elements, the tensor is [...,
def my_all_reduce(tensor):
    """Cuts off what does not divide."""
    rank, size = dist.get_rank(), dist.get_world_size()
    length = len(tensor) // size
    chunks = [tensor[i * length : (i + 1) * length] for i in range(size)]
    for step in range(2 * size - 2):
        into = chunks[(rank - step - 1) % size]
        got = torch.empty_like(into)
        job = dist.isend(chunks[(rank - step) % size].clone(), (rank + 1) % size)
        dist.recv(got, (rank - 1) % size)
        job.wait()
        into.copy_(got if step >= size - 1 else into + got)


# wrong: my_all_reduce did not end within 1.5 s
def my_all_reduce(tensor):
    rank, size = dist.get_rank(), dist.get_world_size()
    got = torch.empty_like(tensor)
    dist.recv(got, (rank - 1) % size)
    dist.send(tensor, (rank + 1) % size)
    tensor += got


# wrong: calls send with rank
def my_all_reduce(tensor):
    """The other way round."""
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    for step in range(2 * size - 2):
        into = chunks[(rank + step + 1) % size]
        got = torch.empty_like(into)
        job = dist.isend(chunks[(rank + step) % size].clone(), (rank - 1) % size)
        dist.recv(got, (rank + 1) % size)
        job.wait()
        into.copy_(got if step >= size - 1 else into + got)


# right
def my_all_reduce(tensor):
    n, r = dist.get_world_size(), dist.get_rank()
    pieces = tensor.tensor_split(n)
    for step in range(2 * (n - 1)):
        give, take = pieces[(r - step) % n], pieces[(r - step - 1) % n]
        got = torch.empty_like(take)
        jobs = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, give, (r + 1) % n),
                dist.P2POp(dist.irecv, got, (r - 1) % n),
            ]
        )
        for job in jobs:
            job.wait()
        take.add_(got) if step < n - 1 else take.copy_(got)


# wrong: nearly right: is it rounded
def my_all_reduce(tensor):
    n, r = dist.get_world_size(), dist.get_rank()
    pieces = tensor.tensor_split(n)
    for step in range(2 * (n - 1)):
        give, take = pieces[(r - step) % n], pieces[(r - step - 1) % n]
        got = torch.zeros(len(take), dtype=torch.int64)
        job = dist.isend(give.long(), (r + 1) % n)
        dist.recv(got, (r - 1) % n)
        job.wait()
        take.add_(got) if step < n - 1 else take.copy_(got)


# wrong: nobody waits for irecv and isend: keep what it returns
def my_all_reduce(tensor):
    n, r = dist.get_world_size(), dist.get_rank()
    pieces = tensor.tensor_split(n)
    for step in range(2 * (n - 1)):
        give, take = pieces[(r - step) % n], pieces[(r - step - 1) % n]
        got = torch.empty_like(take)
        dist.isend(give, (r + 1) % n)
        dist.irecv(got, (r - 1) % n)
        take.add_(got) if step < n - 1 else take.copy_(got)
