"""SyncBatchNorm: statistics of the whole batch instead of each rank's part.

BatchNorm normalises with the mean and variance of what its own rank sees. With 32 samples or more
on each rank that trains as well as one process does; leave it. With 2 to 16, as in detection or
segmentation, the statistics are too noisy: let all ranks compute them together.

It costs one more all-reduce for each layer and pass, and works on GPUs only: on the CPU the model
stays as it is. If you can choose the layer, GroupNorm needs no statistics of a batch at all.
"""

CHANGES = (
    (
        """\
        self.model = make_model().to(device)
""",
        """\
        self.model = make_model().to(device)
        if device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
""",
    ),
)
