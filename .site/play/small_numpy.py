"""The few lines of numpy that the cost model calls, for a page's Python, which has no numpy.

Single numbers and rows of them only. Every operation is the one of IEEE 754 that numpy does too, so
the pictures are the same; a test moves them in a browser and compares.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

inf = math.inf


class ndarray:
    """A number, or a row of numbers."""

    __array_priority__ = 1

    def __init__(self, items: Sequence[Any], shape: tuple[int, ...]) -> None:
        self.items, self.shape = list(items), shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def dtype(self) -> SimpleNamespace:
        kinds = {bool: "b", int: "i"}
        found = {kinds.get(type(each), "f") for each in self.items}
        return SimpleNamespace(kind="f" if "f" in found or not found else max(found))

    def astype(self, kind: type) -> ndarray:
        return ndarray([kind(each) for each in self.items], self.shape)

    def reshape(self, shape: tuple[int, ...]) -> ndarray:
        return ndarray(self.items, shape)

    def tolist(self) -> Any:
        return list(self.items) if self.shape else self.items[0]

    def item(self) -> Any:
        return self.items[0]

    def min(self) -> Any:
        return min(self.items)

    def all(self) -> bool:
        return builtins.all(self.items)

    def any(self) -> bool:
        return builtins.any(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, ndarray):
            return ndarray([self.items[each] for each in at.items], at.shape)
        return self.items[at]

    def __float__(self) -> float:
        return float(self.items[0])

    def __bool__(self) -> bool:
        return bool(self.items[0])

    def __format__(self, how: str) -> str:
        return format(self.items[0], how)

    def __neg__(self) -> ndarray:
        return each_of(operator.neg, self)

    def __hash__(self) -> int:
        return id(self)


def each_of(do: Callable[..., Any], *given: Any) -> ndarray:
    """`do` for each number of rows that are as long, or single."""
    arrays = [asarray(each) for each in given]
    rows = [each.shape for each in arrays if each.shape]
    if not rows:
        return ndarray([do(*(each.items[0] for each in arrays))], ())
    (shape,) = set(rows)
    spread = [each.items if each.shape else each.items * shape[0] for each in arrays]
    return ndarray([do(*numbers) for numbers in zip(*spread, strict=True)], shape)


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if not a or math.isnan(a) else math.copysign(inf, a) * math.copysign(1, b)


def _operators() -> None:
    kinds = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": _divide}
    kinds |= {"pow": operator.pow, "and": operator.and_}
    for name, do in kinds.items():
        setattr(ndarray, f"__{name}__", lambda a, b, do=do: each_of(do, a, b))
        setattr(ndarray, f"__r{name}__", lambda a, b, do=do: each_of(do, b, a))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        compare = getattr(operator, name)
        setattr(ndarray, f"__{name}__", lambda a, b, do=compare: each_of(do, a, b))


_operators()


def asarray(given: Any, dtype: type | None = None) -> ndarray:
    if not isinstance(given, ndarray):
        row = isinstance(given, list | tuple)
        given = ndarray(given if row else [given], (len(given),) if row else ())
    return given.astype(dtype) if dtype else given


array = asarray


def _function(do: Callable[..., Any]) -> Callable[..., ndarray]:
    return lambda *given: each_of(do, *given)


def _whole(do: Callable[[float], int]) -> Callable[[float], float]:
    return lambda x: float(do(x)) if math.isfinite(x) else x


ceil, floor = _function(_whole(math.ceil)), _function(_whole(math.floor))
log2, isfinite = _function(math.log2), _function(math.isfinite)
where = _function(lambda which, yes, no: yes if which else no)
minimum, maximum = _function(min), _function(max)
clip = _function(lambda x, low, high: min(max(x, low), high))


def _reduce(do: Callable[[Any, Any], ndarray]) -> Callable[[Sequence[Any]], ndarray]:
    def reduced(arrays: Sequence[Any]) -> ndarray:
        found = asarray(arrays[0])
        for each in arrays[1:]:
            found = do(found, each)
        return found

    return reduced


minimum.reduce, maximum.reduce = _reduce(minimum), _reduce(maximum)


def all(given: Any) -> bool:
    return asarray(given).all()


def any(given: Any) -> bool:
    return asarray(given).any()


def ndim(given: Any) -> int:
    return asarray(given).ndim


def shape(given: Any) -> tuple[int, ...]:
    return asarray(given).shape


def ones(shape: tuple[int, ...]) -> ndarray:
    return ndarray([1.0] * math.prod(shape), shape)


def atleast_1d(given: Any) -> ndarray:
    found = asarray(given)
    return found if found.shape else found.reshape((1,))


def broadcast_arrays(*given: Any) -> list[ndarray]:
    return [each_of(lambda *numbers, at=at: numbers[at], *given) for at in range(len(given))]


def linspace(start: float, stop: float, number: int) -> ndarray:
    step = (stop - start) / max(number - 1, 1)
    found = [start + at * step for at in range(number)]
    return ndarray([*found[:-1], float(stop)] if number > 1 else found, (number,))


def unique(given: Any, return_inverse: bool = False) -> Any:
    values = asarray(given)
    each = sorted(set(values.items))
    found = ndarray(each, (len(each),))
    if not return_inverse:
        return found
    places = {value: at for at, value in enumerate(each)}
    return found, ndarray([places[value] for value in values.items], values.shape)
