"""A stream: data that has no index, in shards over ranks and workers.

With an IterableDataset each rank and each of its workers runs the whole iterator, so without care
every sample comes ranks x workers times. Here each takes its own lines. And ranks must make the
same number of steps: the length is declared, and a share that ends early begins anew.

What a stream can't promise: exact resume. A continued run begins the stream again, with the right
weights, place in the schedule and averages. If your shards can be listed, a Dataset that opens a
shard by index keeps that promise.
"""

CHANGES = (
    (
        """\
def make_model() -> nn.Module:
""",
        '''\
class Stream(torch.utils.data.IterableDataset):
    """Every so-manieth sample: this rank's and worker's own, again and again."""

    def __init__(self, samples, length: int):
        self.samples, self.length = samples, length  # of all ranks together, an epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first = dist.get_rank() * workers + mine
        while True:  # open files here: each share reads its own
            for index in range(first, self.length, dist.get_world_size() * workers):
                yield self.samples[index]


def make_model() -> nn.Module:
''',
    ),
    (
        "    return Shifted(x, y, most=2), ",
        "    return Stream(Shifted(x, y, most=2), len(x)), ",
    ),
    (
        """\
        workers = self.args.workers
""",
        """\
        workers = self.args.workers
        if isinstance(samples, Stream):
            size = max(1, self.batches.step // self.ranks)
            self.batches.piece = size  # a batch for each step
            return DataLoader(
                samples,
                size,
                collate_fn=collate,
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,
                worker_init_fn=start_worker,
                pin_memory=self.device.type == "cuda",
            )
""",
    ),
)
