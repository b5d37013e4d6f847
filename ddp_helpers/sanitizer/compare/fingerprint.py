"""Numbers and texts that are alike on two ranks only if their weights or settings are."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.torch_private import FLATTEN

CHUNK = 1 << 20  # words at a time, which bounds the memory that a checksum takes
SMALL = 1 << 15  # elements: tensors below are laid side by side, as a call costs more than they do
SIDE_BY_SIDE = 1 << 18  # elements, at most, in about so many
_AS_WORDS = {8: torch.int32, 4: torch.int32, 2: torch.int16, 1: torch.int8}
_AS_THEY_LIE = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def fingerprint(tensors: Iterable[torch.Tensor | None]) -> str:
    """A checksum of each tensor, in order; two tensors that change places give another text.

    It is a weighted sum, modulo 2^32, of the tensor's bits read as whole numbers. Each word has
    an odd weight of its own, so no change of a single word goes unseen.
    """
    given = list(tensors)
    with torch.no_grad():
        totals = _totals_side_by_side(given)
        places = [p for p, tensor in enumerate(given) if tensor is not None and p not in totals]
        sums = [_sums(tensor) for p in places if (tensor := given[p]) is not None]
        numbers = iter(_on_host([part for parts in sums for part in parts]))
    for place, parts in zip(places, sums, strict=True):
        totals[place] = sum(next(numbers) * (2 * part + 1) for part in range(len(parts)))
    return ",".join(
        "-" if tensor is None else f"{totals[place] & 0xFFFFFFFF:x}"
        for place, tensor in enumerate(given)
    )


# ---- many small tensors


class _Group:
    """Some tensors of one dtype on one device."""

    def __init__(self) -> None:
        self.size = 0
        self.places: list[int] = []
        self.tensors: list[torch.Tensor] = []
        self.sizes: list[int] = []


def _totals_side_by_side(given: Sequence[torch.Tensor | None]) -> dict[int, int]:
    """The weighted sums of small tensors, by their place: a few calls for all of them."""
    filling: dict[tuple[torch.dtype, torch.device], _Group] = {}
    full: list[_Group] = []
    for place, tensor in enumerate(given):  # for each tensor of each step: no line too many
        if tensor is None or type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
            continue
        size = tensor.numel()
        if size > SMALL or not size:
            continue
        key = tensor.dtype, tensor.device
        group = filling.get(key)
        if group is None:
            if tensor.dtype not in _AS_THEY_LIE or tensor.is_meta:
                continue
            group = filling[key] = _Group()
        group.places.append(place)
        group.tensors.append(tensor)
        group.sizes.append(size)
        group.size += size
        if group.size >= SIDE_BY_SIDE:
            full.append(filling.pop(key))
    totals: dict[int, int] = {}
    for group in (*full, *filling.values()):
        totals.update(zip(group.places, _segment_sums(group), strict=True))
    return totals


def _segment_sums(group: _Group) -> list[int]:
    """The weighted sum of each; whole numbers of 32 bits lose nothing modulo 2^32."""
    flat = FLATTEN.get()(group.tensors)
    words = flat.view(_AS_WORDS[min(flat.element_size(), 8)])
    # a single tensor is not copied yet: its memory is still its own
    words = words.to(torch.int32, copy=len(group.tensors) == 1)
    wide = words.numel() // flat.numel()  # words of an element
    weights, ends = _layout(words.device, wide, tuple(group.sizes))
    # in the same memory: new memory for each step would cost as much as the numbers do
    sums = words.mul_(weights).cumsum_(0).take(ends).tolist()
    return [total - before for before, total in zip([0, *sums], sums, strict=False)]


@functools.lru_cache(maxsize=16)
def _layout(
    device: torch.device, wide: int, sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of tensors of these sizes side by side, and where each of them ends."""
    weights = _weights(device)
    ends = torch.tensor(sizes, device=device).cumsum(0) * wide - 1
    return torch.cat([weights[: wide * size] for size in sizes]), ends


# ---- each tensor for itself


def _sums(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The weighted sums of a tensor's pieces, on its device."""
    found = []
    for part in _parts(tensor.detach()):
        words = part.view(-1).view(_AS_WORDS[min(part.element_size(), 8)])
        if words.dtype is not torch.int32:
            words = words.to(torch.int32)
        count = words.numel()
        pieces = [words] if count <= CHUNK else words.split(CHUNK)
        found += [_weighted_sum(piece, piece.numel()) for piece in pieces if count]
    return found


def _on_host(sums: Sequence[torch.Tensor]) -> list[int]:
    """Their values; a GPU is asked once, not once for each of them."""
    if all(value.is_cpu for value in sums):
        return [int(value.item()) for value in sums]
    by_device: dict[torch.device, list[int]] = {}
    for place, value in enumerate(sums):
        by_device.setdefault(value.device, []).append(place)
    numbers = [0] * len(sums)
    for where in by_device.values():
        values = torch.stack([sums[place].to(torch.int64) for place in where]).tolist()
        for place, number in zip(where, values, strict=True):
            numbers[place] = number
    return numbers


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Plain tensors that hold all of its values, in an order that follows its shape."""
    if hasattr(tensor, "to_local"):  # a DTensor: this rank's piece
        tensor = tensor.to_local()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), *_parts(tensor.values())]
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return []
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return [tensor.contiguous()]


def _weighted_sum(words: torch.Tensor, count: int) -> torch.Tensor:
    weights = _weights(words.device)
    weights = weights if count == CHUNK else weights[:count]
    return torch.dot(words, weights) if words.is_cpu else (words * weights).sum(dtype=torch.int64)


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> torch.Tensor:
    numbers = torch.arange(CHUNK, dtype=torch.int64, device=device)
    return ((numbers * 0x9E3779B1 + 0x7F4A7C15) | 1).to(torch.int32)


def settings(optimizer: Optimizer) -> list[dict[str, object]]:
    """The numbers that an optimizer works with, one dict for each of its parameter groups."""
    return [
        {name: plain for name, value in group.items() if (plain := _plain(value)) is not None}
        for group in optimizer.param_groups
    ]


def _plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else None
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple | list) and all(isinstance(v, bool | int | float) for v in value):
        return list(value)
    return None


def first_setting(
    by_rank: Mapping[int, Sequence[Mapping[str, object]]],
) -> tuple[int, str] | None:
    """The first parameter group and the name of a setting that differ, or None."""
    for group, groups in enumerate(zip(*by_rank.values(), strict=False)):
        for name in groups[0]:
            if len({repr(g.get(name)) for g in groups}) > 1:
                return group, name
    return None


def first_difference(texts: Sequence[str]) -> int | None:
    """The first place where fingerprints differ, or None; one that is shorter ends the search."""
    for place, sums in enumerate(zip(*(text.split(",") for text in texts), strict=False)):
        if len(set(sums)) > 1:
            return place
    return None


def odd_ranks(values: Mapping[int, object]) -> tuple[int, ...]:
    """The ranks whose value is not that of most ranks; all of them where there is no most."""
    texts = {rank: repr(value) for rank, value in values.items()}
    counts = Counter(texts.values()).most_common(2)
    if len(counts) < 2:
        return ()
    if counts[0][1] == counts[1][1]:
        return tuple(sorted(texts))
    return tuple(sorted(rank for rank, text in texts.items() if text != counts[0][0]))
