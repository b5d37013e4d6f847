"""TensorBoard or Weights & Biases: the numbers of log.csv as curves.

track() is called on rank 0 alone, with what log.csv gets: a logger on every rank would write the
same curves many times over. A run that goes on after a stop writes to the same folder; what came
after the last checkpoint comes again.

For Weights & Biases put `wandb.init(project="mine", id="my-run", resume="allow")` in place of the
writer, and `wandb.log(values, step=step)` below it.
"""

CHANGES = (
    (
        '''\
def track(step: int, values: dict[str, float]):
    """On rank 0, with each line of log.csv: tell TensorBoard or W&B here."""
''',
        '''\
@functools.cache
def writer():
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter("run/tensorboard")


def track(step: int, values: dict[str, float]):
    """On rank 0, with each line of log.csv."""
    for name, value in values.items():
        writer().add_scalar(name, value, step)
''',
    ),
    (
        "import torch\nfrom torch import nn\nfrom torch.utils",
        "import functools\n\nimport torch\nfrom torch import nn\nfrom torch.utils",
    ),
)
