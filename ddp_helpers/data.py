"""The offline dataset, and loaders that give each rank its own share of it."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

# mean and standard deviation of MNIST's training pixels, as in pytorch/examples/mnist
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

# sha256 of each file's content after gunzip; data/README.md lists them with their source
_CONTENT_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "162f32ffb06c7836d5bc30ff131fe8ad974faa2c43b084daa8825eab2def753d"
    ),
    "train-labels-idx1-ubyte.gz": (
        "8eab0d09931ec3c25fe3719da327fdca2c25f9fbf0b386b0126680d02b0c9bf8"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "26ba29b72a4b20a310a24f491eb78e1c949af005675def8e6883f1d873c02421"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "c2b416695b457d92f1a12892a345f196110ae5512d9c1613af60317e04b642f9"
    ),
}
_LOADER_TIMEOUT_S = 120
_WAY_OUT = (
    "bring the file back with `git checkout -- data/mnist_5k` (or make it again as data/README.md "
    "says), or set DDP_HELPERS_DATA to the folder that holds mnist_5k/"
)


class DatasetError(RuntimeError):
    """A data file is there but damaged, or not what its name says."""


def load_mnist_5k(train: bool = True, root: str | Path | None = None) -> TensorDataset:
    """Load the 4,000 training digits, or with `train=False` the 1,000 held-out ones.

    Args:
        train: which part.
        root: the folder that holds mnist_5k/. By default the environment variable
            DDP_HELPERS_DATA, else data/ next to the package.

    Returns:
        (image, label) pairs: float32 of shape (1, 28, 28), scaled to 0..1 and then normalised
        with MNIST_MEAN and MNIST_STD, and int64. All images at once are `dataset.tensors[0]`.

    Raises:
        FileNotFoundError: a file is missing.
        DatasetError: a file is cut short, changed, or something else.
    """
    folder = data_root(root) / "mnist_5k"
    name = "train" if train else "t10k"
    images = read_idx(_checked(folder / f"{name}-images-idx3-ubyte.gz"))
    labels = read_idx(_checked(folder / f"{name}-labels-idx1-ubyte.gz"))
    images = (images.float() / 255 - MNIST_MEAN) / MNIST_STD
    return TensorDataset(images.unsqueeze(1), labels.long())


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds mnist_5k/: `root`, else DDP_HELPERS_DATA, else the repository's."""
    if root is None:
        root = os.environ.get("DDP_HELPERS_DATA") or Path(__file__).parent.parent / "data"
    return Path(root).expanduser()


def read_idx(source: str | Path | bytes) -> Tensor:
    """Read one IDX file, gzipped (a path) or already unpacked (bytes).

    The format: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each size as a
    big-endian 32-bit number, then the values.

    Returns:
        A uint8 tensor of the shape that the header gives.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: the file is cut short or no IDX file of unsigned bytes.
    """
    content = source if isinstance(source, bytes) else _gunzip(Path(source))
    where = "the content" if isinstance(source, bytes) else str(source)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DatasetError(f"{where} starts with {content[:4]!r}: expected an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise DatasetError(
            f"{where} holds {len(content) - start} values, but its header says {shape}: {_WAY_OUT}"
        )
    if 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    # a copy, because a tensor over read-only bytes could be written to
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def exact_split(n: int, rank: int, world_size: int) -> range:
    """The indices of `rank` when every one of `n` samples goes to exactly one rank.

    No sample is repeated to even out the shares, as DistributedSampler does: a repeated sample
    counts twice in an accuracy. Shares differ by at most one sample, and may be empty.

    Raises:
        ValueError: n < 0, world_size < 1, or rank outside 0 .. world_size - 1.
    """
    _check_ranks(rank, world_size)
    _check_whole("n", n, least=0)
    return range(rank, n, world_size)


def make_train_loader(
    dataset: Dataset,
    batch_size_per_rank: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    drop_last: bool = False,
    num_workers: int = 0,
) -> DataLoader:
    """A loader that shuffles and gives this rank its share; one code path for any world_size.

    Call `loader.sampler.set_epoch(epoch)` before each epoch. Batch k of all ranks together is
    batch k of one rank with the global batch size: the same samples, for the same seed.

    Args:
        dataset: map-style, at least one sample.
        batch_size_per_rank: samples in one batch of one rank.
        seed: the same on all ranks; it decides the order of the samples.
        drop_last: leave out the samples that do not fill a batch on every rank. Otherwise a few
            samples are repeated until all ranks have equally many.
        num_workers: loader processes of this rank, started with forkserver. Each rank and each
            worker gets its own random numbers, for augmentation.

    Raises:
        ValueError: an argument is out of range, or drop_last leaves no batch at all.
    """
    _check_ranks(rank, world_size)
    _check_loader(dataset, batch_size_per_rank, num_workers)
    _check_whole("seed", seed, least=0)
    sampler = DistributedSampler(
        dataset, world_size, rank, shuffle=True, seed=seed, drop_last=drop_last
    )
    if drop_last and len(dataset) < world_size * batch_size_per_rank:
        raise ValueError(
            f"drop_last=True leaves no batch: {len(dataset)} samples for {world_size} ranks with "
            f"batch_size_per_rank={batch_size_per_rank}: use a smaller batch, or drop_last=False"
        )
    return DataLoader(
        dataset,
        batch_size_per_rank,
        sampler=sampler,
        drop_last=drop_last,
        # one seed for all ranks would give every rank the same augmentations
        generator=torch.Generator().manual_seed(seed + rank),
        **_worker_options(num_workers),
    )


def make_eval_loader(
    dataset: Dataset, batch_size_per_rank: int, *, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """A loader over this rank's part of `exact_split`: each sample is seen by one rank, once.

    Ranks may have different numbers of batches, so the loop over it must hold no collective
    (no forward through a DDP wrapper): sum on each rank, then one all_reduce, as `evaluate` does.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_loader(dataset, batch_size_per_rank, num_workers=0)
    share = exact_split(len(dataset), rank, world_size)
    return DataLoader(Subset(dataset, share), batch_size_per_rank)


def _worker_options(num_workers: int) -> dict[str, object]:
    """fork would copy threads in mid-flight and freeze: workers start from a clean process."""
    if num_workers == 0:
        return {}
    return {
        "num_workers": num_workers,
        "multiprocessing_context": "forkserver",
        "persistent_workers": True,  # a start takes seconds: once a run, not once an epoch
        "timeout": _LOADER_TIMEOUT_S,  # a stuck worker must not hold all ranks for ever
    }


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, at least {least}")


def _check_ranks(rank: int, world_size: int) -> None:
    _check_whole("world_size", world_size, least=1)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ValueError(
            f"rank={rank!r} with world_size={world_size}: expected 0 to {world_size - 1}"
        )


def _check_loader(dataset: Dataset, batch_size_per_rank: int, num_workers: int) -> None:
    _check_whole("batch_size_per_rank", batch_size_per_rank, least=1)
    _check_whole("num_workers", num_workers, least=0)
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{type(dataset).__name__} has no length, so it can't be shared out by index: "
            "use a map-style Dataset, or split the stream by rank yourself"
        )
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: expected at least one sample")


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no file {path}: {_WAY_OUT}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a whole gzip file ({error}): {_WAY_OUT}") from error


def _checked(path: Path) -> bytes:
    """The unpacked content of one of the four files, if it is the one the course ships."""
    content = _gunzip(path)
    found = hashlib.sha256(content).hexdigest()
    if found != _CONTENT_SHA256[path.name]:
        raise DatasetError(
            f"{path} was changed: sha256 of its content is {found[:12]}..., expected "
            f"{_CONTENT_SHA256[path.name][:12]}...: {_WAY_OUT}"
        )
    return content
