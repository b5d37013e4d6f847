"""The offline dataset: 5,000 digits, checked each time they are read."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ddp_helpers.data.folder import data_root

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
_WAY_OUT = (
    "bring the file back with `git checkout -- data/mnist_5k` in the repository (or make it again "
    "as data/README.md says), else with `pip install --force-reinstall --no-deps ddp_helpers`; or "
    "set DDP_HELPERS_DATA to the folder that holds mnist_5k/"
)


class DatasetError(RuntimeError):
    """A data file is there but damaged, or not what its name says."""


def load_mnist_5k(train: bool = True, root: str | Path | None = None) -> TensorDataset:
    """Load the 4,000 training digits, or with `train=False` the 1,000 held-out ones.

    Args:
        train: which part.
        root: the folder that holds mnist_5k/. By default the environment variable
            DDP_HELPERS_DATA, else the data that came with the package.

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
