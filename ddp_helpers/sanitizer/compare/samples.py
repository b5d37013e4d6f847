"""What stands for data when ranks compare it: hashes of contents, compressed sets of indices."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch.utils.data import Dataset

KEPT = 16  # samples of a pass whose contents are compared
MOST_INDICES = 1 << 20  # of a dataset; of a larger one every so many are looked at
MOST_ELEMENTS = 1 << 16  # of a tensor that go into its hash
FEW_ELEMENTS = 4096  # of a tensor or a text where many are hashed
LONGEST_PATH = 4096  # that Linux takes
RICH = 4  # whole numbers in a sample that are too many to agree by chance, as a label may
FEW_VALUES = 2  # different values of a tensor that tell nothing: a mask, ones, zeros
MOST_COLUMNS = 8  # tensors of a batch whose samples are compared
LOOKED_AT = 64  # items of a list that go into a fingerprint
LONG_TEXT = 512  # characters that make a text data, as for a model of language
DATA = 8  # items that make a list data; fewer may be settings, as a mean for each colour


def digest(*parts: bytes) -> str:
    """A short hash."""
    return hashlib.blake2b(b"|".join(parts), digest_size=8).hexdigest()


def leaves(value: object, depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors in a batch, in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item, depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__"):
        yield from leaves(vars(value), depth - 1)


def tensor_sample(tensor: torch.Tensor, most: int = MOST_ELEMENTS) -> torch.Tensor | None:
    """Up to `most` elements, evenly spaced, on the CPU; None for a tensor that can't be read."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not plain or tensor.layout is not torch.strided or tensor.device.type == "meta":
        return None
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // most))].cpu().contiguous()


def tensor_bytes(tensor: torch.Tensor, most: int = MOST_ELEMENTS) -> bytes | None:
    """Shape, dtype and the sampled elements, so that equal tensors give equal bytes."""
    sample = tensor_sample(tensor, most)
    if sample is None:
        return None
    size = sample.numel() * sample.element_size()
    raw = ctypes.string_at(sample.data_ptr(), size) if size else b""
    return f"{tuple(tensor.shape)}{tensor.dtype}".encode() + raw


def contents_hash(value: object) -> str | None:
    """A hash of all tensors in there; None if there is none, or only constant ones."""
    parts, varied = [], False
    for leaf in leaves(value):
        part, sample = tensor_bytes(leaf), tensor_sample(leaf, FEW_ELEMENTS)
        if part is None or sample is None:
            return None
        parts.append(part)
        varied = varied or sample.unique().numel() > FEW_VALUES
    return digest(*parts) if varied else None


def mix(index: int) -> int:
    """Spread indices evenly over 32 bits, the same way on every rank."""
    value = (index * 2654435761) & 0xFFFFFFFF
    return ((value >> 15) ^ value) * 0x2C1B3C6D & 0xFFFFFFFF


def mix_all(indices: torch.Tensor) -> torch.Tensor:
    """`mix` of each."""
    value = (indices * 2654435761) & 0xFFFFFFFF
    return ((value >> 15) ^ value) * 0x2C1B3C6D & 0xFFFFFFFF


class SampledContents:
    """The contents of a few samples of a pass, chosen by index: the same ones on every rank."""

    def __init__(self) -> None:
        self.hashes: dict[int, list[str]] = {}
        self._limit = 1 << 32

    def add(self, indices: Sequence[int], batch: object) -> None:
        """Look at one batch; a sample's hash begins with `r` if it is too rich for chance."""
        chosen = [at for at, index in enumerate(indices) if mix(index) < self._limit]
        if not chosen:
            return
        tensors = [
            leaf for leaf in leaves(batch) if leaf.ndim > 0 and leaf.shape[0] == len(indices)
        ]
        for at in chosen:
            self.hashes[indices[at]] = [_sample_hash(leaf[at]) for leaf in tensors[:MOST_COLUMNS]]
        if len(self.hashes) > KEPT:
            kept = sorted(self.hashes, key=mix)[:KEPT]
            self.hashes = {index: self.hashes[index] for index in kept}
            self._limit = mix(kept[-1])


def _sample_hash(leaf: torch.Tensor) -> str:
    part = tensor_bytes(leaf, FEW_ELEMENTS)
    rich = leaf.is_floating_point() or leaf.numel() >= RICH
    return "?" if part is None else ("r" if rich else "") + digest(part)


# ---- sets of indices


@dataclass(frozen=True)
class IndexSet:
    """A set of indices, packed."""

    every: int
    """Only one of so many indices was looked at."""
    narrow: bool
    """Each step fits into a byte."""
    steps: str
    """From each index to the next, compressed."""


def encode_indices(indices: array, population: int) -> IndexSet:
    """Pack a set of indices; of more than MOST_INDICES only a share chosen by hash."""
    every = -(-population // MOST_INDICES)
    given = as_tensor(indices)
    if every > 1:
        given = given[mix_all(given) % every == 0]
    ordered = torch.unique(given)
    steps = torch.diff(ordered, prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
    narrow = bool(((steps >= 0) & (steps < 256)).all())
    raw = tensor_raw(steps.to(torch.uint8) if narrow else steps)
    text = base64.b64encode(zlib.compress(raw, 1)).decode()
    return IndexSet(every, narrow, text)


def decode_indices(packed: IndexSet) -> torch.Tensor:
    """The sorted set of indices, or the share of it that was kept."""
    raw = bytearray(zlib.decompress(base64.b64decode(packed.steps)))
    kind = torch.uint8 if packed.narrow else torch.int64
    if not raw:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(raw, dtype=kind).to(torch.int64).cumsum(0)


def as_tensor(indices: array) -> torch.Tensor:
    """Indices as int64 on the CPU, whatever the default device."""
    if not indices:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(indices, dtype=torch.int64)


def count_repeated(indices: array) -> int:
    """How many indices are there again."""
    return len(indices) - len(torch.unique(as_tensor(indices)))


def tensor_raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous CPU tensor."""
    size = tensor.numel() * tensor.element_size()
    return ctypes.string_at(tensor.data_ptr(), size) if size else b""


# ---- what a dataset holds


@dataclass(frozen=True)
class DatasetPrint:
    """What stands for a dataset."""

    hash: str
    data: bool
    """It holds the data itself, or the paths of files."""


def fingerprint(dataset: object) -> DatasetPrint:
    """A hash of what a dataset holds, and whether that is data at all.

    It reads attributes only: dataset[i] might draw random numbers. Ranks whose datasets differ
    here may each have a part of the data; where a rank's number is an attribute, they do.
    """
    found: list[bytes] = []
    holds = _describe(dataset, found, 4)
    return DatasetPrint(digest(*found), holds)


MOST_BYTES = 1 << 22  # of a tensor that are looked at item by item
WORD = 4  # bytes that are read at a time, where items are made of such
MOST_ITEMS = 20_000  # of a list


def bag_and_order(dataset: object) -> tuple[str, str] | None:
    """Two hashes of a dataset's samples: of them in whatever order, and of their order.

    None if it holds neither tensors nor lists of texts, or too many of them.
    """
    held = getattr(dataset, "tensors", None) or getattr(dataset, "__dict__", {}).values()
    found = [_item_hashes(value) for value in held if _is_column(value, dataset)]
    columns = [column for column in found if column is not None]
    if not columns or len(columns) < len(found):
        return None
    bag = [int(mix_all(column).sum()) for column in columns]
    return digest(repr(bag).encode()), digest(*(tensor_raw(column) for column in columns))


def _is_column(value: object, dataset: object) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) >= DATA
    is_tensor = isinstance(value, torch.Tensor) and value.ndim > 0
    return (is_list or is_tensor) and isinstance(value, Sized) and len(value) == size_of(dataset)


def size_of(dataset: object) -> int | None:
    """How many samples it has, or None where it does not say."""
    try:
        return len(dataset) if isinstance(dataset, Sized) else None
    except TypeError:  # a stream may have a len() that refuses to answer
        return None


def _item_hashes(value: torch.Tensor | Sequence) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        sample = tensor_sample(value, value.numel()) if len(value) else None
        if sample is None:
            return None
        rows = sample.view(torch.uint8).reshape(len(value), -1)
        if rows.shape[1] % WORD == 0:
            rows = rows.view(torch.int32)
        most = max(1, MOST_BYTES // len(value) // rows.element_size())
        rows = rows[:, :most].to(torch.int64)
        weights = mix_all(torch.arange(rows.shape[1], device="cpu")) | 1
        return (rows * weights).sum(1)
    plain = all(isinstance(item, str | int | tuple) for item in value[:LOOKED_AT])
    if not plain or len(value) > MOST_ITEMS:
        return None
    return torch.tensor([zlib.crc32(repr(item).encode()) for item in value], device="cpu")


def _describe(value: object, found: list[bytes], depth: int) -> bool:
    """Append what can be told about a value; True if it is data."""
    if isinstance(value, torch.Tensor):
        found.append(tensor_bytes(value, FEW_ELEMENTS) or b"?")
        return value.numel() >= DATA
    if isinstance(value, str | bytes | PurePath):
        text = str(value) if isinstance(value, PurePath) else value
        found.append(f"{len(text)}{text[:FEW_ELEMENTS]!r}".encode())
        is_path = isinstance(text, str) and _is_path(text)
        return is_path or len(text) >= LONG_TEXT
    if value is None or isinstance(value, int | float | complex):
        found.append(repr(value).encode())
        return False
    found.append(type(value).__qualname__.encode())
    if hasattr(value, "__array_interface__"):
        return _describe_array(value, found)
    if depth and isinstance(value, list | tuple | range | array | Mapping):
        return _describe_items(value, found, depth - 1)
    if depth and (isinstance(value, Dataset) or hasattr(value, "__getitem__")):
        return _describe_items(getattr(value, "__dict__", {}), found, depth - 1)
    return False


def _describe_items(value: Sequence | Mapping, found: list[bytes], depth: int) -> bool:
    items = list(value.items()) if isinstance(value, Mapping) else value
    found.append(str(len(items)).encode())
    chosen = items[:: max(1, len(items) // LOOKED_AT)]
    told = [_describe(item, found, depth) for item in chosen]
    return any(told) or (len(items) >= DATA and not isinstance(value, Mapping))


def _describe_array(value, found: list[bytes]) -> bool:
    flat = value.reshape(-1)
    sample = flat[:: max(1, -(-flat.size // FEW_ELEMENTS))]
    found.append(f"{value.shape}{value.dtype}".encode() + sample.tobytes())
    return flat.size >= DATA


def _is_path(text: str) -> bool:
    return (
        len(text) < LONGEST_PATH
        and "\0" not in text
        and os.path.sep in text
        and os.path.exists(text)
    )
