"""A contrastive loss over all ranks' features.

SimCLR and CLIP compare each sample with all others of the batch. With the features of one's own
rank alone, eight ranks of 32 learn from 32 negatives instead of 256. So gather the features of
all ranks, with torch.distributed.nn, whose all_gather carries gradients back: the plain
dist.all_gather does not, and then most of the gradient is missing without a word.

Each rank computes the loss of its own rows. The batch must be dealt evenly: the part that is over
in the last step of an epoch is left out, on all ranks alike. More samples than
--batch-size-per-rank are compared in pieces, so raise that flag rather than accumulate.
"""

CHANGES = (
    (
        """\
    def __getitem__(self, index: int):
        shift = torch.randint(-self.most, self.most + 1, (2,)).tolist()
        return self.x[index, None].float().div(255).roll(shift, dims=(1, 2)), int(self.y[index])
""",
        """\
    def view(self, index: int):
        shift = torch.randint(-self.most, self.most + 1, (2,)).tolist()
        return self.x[index, None].float().div(255).roll(shift, dims=(1, 2))

    def __getitem__(self, index: int):
        return self.view(index), self.view(index)
""",
    ),
    (
        'BETTER = ("accuracy", max)',
        'BETTER = ("held_out_loss", min)',
    ),
    (
        """\
    x, y = batch
    return nn.functional.cross_entropy(model(x).float(), y, reduction="sum"), len(y)
""",
        """\
    from torch.distributed.nn.functional import all_gather

    smallest = torch.tensor(len(batch[0]), device=batch[0].device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)  # all ranks gather equal parts
    both = torch.cat([view[:smallest] for view in batch])
    first, second = nn.functional.normalize(model(both).float(), dim=1).chunk(2)
    others = torch.cat(all_gather(second)) if model.training else second
    alike = first @ others.T / 0.1
    mine = torch.arange(len(first), device=first.device)
    if model.training:
        mine += dist.get_rank() * len(first)
    return nn.functional.cross_entropy(alike, mine, reduction="sum"), len(first)
""",
    ),
    (
        """\
    x, y = batch
    return {"accuracy": ((model(x).argmax(dim=1) == y).sum(), len(y))}
""",
        """\
    return {}
""",
    ),
)
