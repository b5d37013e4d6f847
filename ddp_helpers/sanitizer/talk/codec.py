"""Records as text: a dataclass travels as the JSON list of its fields' values, in their order.

Names of fields would be most of a record's bytes, and all ranks run the same code. What a field
holds is told by its annotation: plain values, tuples, dicts and further dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")
Convert = Callable[[Any], Any]  # None instead of one: the value travels as it is
PLAIN = (str, int, float, bool, object, type(None))
# records are trees that we made ourselves: no look for circles, no blanks
_write = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def encode(record: object) -> str:
    """The text of a dataclass, or of a plain value."""
    kind: Any = type(record)
    pack = _packer(kind)
    return _write(pack(record) if pack else record)


def decode(text: str | bytes, kind: type[R]) -> R:
    """The record of this kind that was encoded; lists come back as the tuples that they were."""
    hint: Any = kind
    unpack = _unpacker(hint)
    value = json.loads(text)
    return unpack(value) if unpack else value


@functools.cache
def _packer(hint: Any) -> Convert | None:
    """What turns a value into lists and dicts; None if JSON takes it as it is."""
    if dataclasses.is_dataclass(hint):
        hints = _hints_of(hint)
        packers = [_packer(field) for field in hints.values()]
        return _each(_reader(list(hints)), packers) if any(packers) else _reader(list(hints))
    inner = _inner(hint)
    pack = _packer(inner) if inner is not None else None
    if pack is None:
        return None
    if typing.get_origin(hint) is dict:
        return lambda value: {key: pack(item) for key, item in value.items()}
    if typing.get_origin(hint) is tuple:
        return lambda value: [pack(item) for item in value]
    return lambda value: None if value is None else pack(value)


@functools.cache
def _unpacker(hint: Any) -> Convert | None:
    """What makes a value of lists and dicts; None if it is what JSON gives."""
    if dataclasses.is_dataclass(hint):
        unpackers = [_unpacker(field) for field in _hints_of(hint).values()]
        return _made(hint, unpackers)
    origin, inner = typing.get_origin(hint), _inner(hint)
    unpack = _unpacker(inner) if inner is not None else None
    if origin is tuple:
        return (lambda value: tuple(map(unpack, value))) if unpack else tuple
    if origin is dict:
        return _dict_of(typing.get_args(hint)[0], unpack)
    if unpack is None:
        return None
    return lambda value: None if value is None else unpack(value)


def _reader(names: list[str]) -> Convert:
    """What gives a record's values as a tuple; attrgetter gives that only for several."""
    (first, *more) = names
    if more:
        return operator.attrgetter(*names)
    return lambda record: (getattr(record, first),)


def _each(read: Convert, packers: list[Convert | None]) -> Convert:
    needed = [(place, pack) for place, pack in enumerate(packers) if pack]

    def pack_all(record: object) -> list[object]:
        values = list(read(record))
        for place, pack in needed:
            values[place] = pack(values[place])
        return values

    return pack_all


def _made(kind: Any, unpackers: list[Convert | None]) -> Convert:
    needed = [(place, unpack) for place, unpack in enumerate(unpackers) if unpack]

    def unpack_all(values: list[object]) -> object:
        for place, unpack in needed:
            values[place] = unpack(values[place])
        return kind(*values)

    return unpack_all


def _dict_of(key: type, unpack: Convert | None) -> Convert | None:
    """JSON has only texts as keys."""
    if key is str and unpack is None:
        return None
    of_value = unpack or (lambda value: value)
    return lambda value: {key(name): of_value(item) for name, item in value.items()}


def _inner(hint: Any) -> Any:
    """What a tuple, a dict or an optional holds, of one kind; None for a plain value."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        kinds = set(inside) - {Ellipsis}
        if kinds <= set(PLAIN):
            return object
        if len(kinds) == 1:
            return next(iter(kinds))
    elif origin is dict:
        return inside[1]
    elif origin in (types.UnionType, typing.Union):
        kinds = set(inside) - {type(None)}
        if len(kinds) == 1:
            return next(iter(kinds))
    elif hint in PLAIN:
        return None
    raise TypeError(f"{hint} in a record: expected {PLAIN_NAMES}, or a dataclass of such")


PLAIN_NAMES = "str, int, float, bool, object, X | None, tuple[...], dict[str or int, ...]"


def _hints_of(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
