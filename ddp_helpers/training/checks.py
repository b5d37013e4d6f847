"""What can be wrong with a training run before it starts; each error says the way out."""

from __future__ import annotations

from torch import nn
from torch.utils.data import DataLoader

from ddp_helpers.arguments import check_whole
from ddp_helpers.checkpoints.file import unwrap
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.group.lifetime import get_world_size


def check_shares(global_batch_size: int, world_size: int) -> None:
    check_whole("global_batch_size", global_batch_size, least=1)
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise ValueError(
            f"global_batch_size={global_batch_size} can't be shared equally by {world_size} "
            f"ranks: use a multiple of {world_size}, for instance {max(share, 1) * world_size}"
        )


def check_wrapped(model: nn.Module) -> None:
    """A wrapper of one's own (with `.module`) and FSDP are welcome too."""
    world_size = get_world_size()
    bare = unwrap(model) is model and not hasattr(model, "module")
    if world_size > 1 and bare and not type(model).__name__.startswith("FSDP"):
        raise ValueError(
            f"the model is bare, but {world_size} ranks are training: each would go its own way; "
            "wrap it with DistributedDataParallel(model)"
        )


def check_loader(loader: DataLoader, accumulation_steps: int) -> None:
    check_whole("accumulation_steps", accumulation_steps, least=1)
    try:
        batches = len(loader)
    except TypeError as error:
        raise ValueError(
            f"the training loader has no length ({error}): give its dataset a __len__, the same "
            "on all ranks, or share it out by index"
        ) from None
    if batches == 0:
        raise ValueError("the training loader has no batch: use a smaller batch_size_per_rank")
    cut = getattr(getattr(loader, "batch_sampler", None), "accumulation_steps", accumulation_steps)
    if cut != accumulation_steps:
        raise ValueError(
            f"accumulation_steps={accumulation_steps}, but the loader was made for {cut}: "
            "give both the same number"
        )


def check_epochs(
    epochs: int, start_epoch: int, save_every: int | None, checkpoints: CheckpointFolder | None
) -> None:
    if epochs < 1 or not 0 <= start_epoch <= epochs:
        raise ValueError(
            f"epochs={epochs}, start_epoch={start_epoch}: expected epochs of at least 1 and "
            "start_epoch from 0 to epochs"
        )
    if save_every is not None:
        check_whole("save_every", save_every, least=1)
        if checkpoints is None:
            raise ValueError(f"save_every={save_every}: pass checkpoints=CheckpointFolder(...) too")
