"""Logs as they come: files of any coding, packed or not, whole folders, and what is piped in."""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from ddp_helpers.diagnosis.log_marks import Line, read
from ddp_helpers.diagnosis.log_sieve import sift

CHUNK = 1 << 20  # bytes read at once
# how a packed file begins, and what opens it; not every Python has every one
PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "lzma",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "compression.zstd",
}
MOST_FILES = 5_000  # in a folder
NO_LOGS = re.compile(
    r"\.(?:pt|pth|ckpt|safetensors|bin|npz?|png|jpe?g|pdf|whl|zip|tar|so|pyc?|ipynb|parquet|"
    r"ya?ml|toml|md|csv|distcp|pkl|h5|tfevents.*)$"
)
# a file or a folder that is called after its rank: torchrun's attempt_0/1/stderr.log, rank_3.log
RANK_IN_PATH = re.compile(
    r"attempt_\d+/(\d+)/|(?:^|[/_.-])(?:rank|task|proc)[-_.]?(\d+)(?=[/_.-]|$)", re.IGNORECASE
)
NUMBER = re.compile(r"\d+")


def read_folder(folder: Path) -> list[Line]:
    """All logs in a folder, each line with the rank that its file belongs to.

    The file of the rank that failed first comes first, where torchrun left the times.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()][:MOST_FILES]
    files = [path for path in files if not NO_LOGS.search(path.name)]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    ranks = _ranks(list(names.values()))
    errors = {path.parent: _read_error(path) for path in files if path.name == "error.json"}
    files.sort(key=lambda path: (errors.get(path.parent, _NO_ERROR)[0], names[path]))
    lines: list[Line] = []
    for path in files:
        if path.suffix == ".json":
            continue  # error.json's texts stand in stderr.log, too
        with suppress(OSError, EOFError):  # one that can't be read does not hide the others
            lines += read_log(path, names[path], ranks[names[path]])
    return lines or [
        line
        for parent, (_, text) in errors.items()
        for line in read(enumerate(text.splitlines(), 1), rank=ranks[names[parent / "error.json"]])
    ]


def read_log(path: Path, name: str = "", rank: str = "") -> list[Line]:
    """The lines of a file that are worth a look.

    Raises:
        OSError: it can't be read.
    """
    rank = rank or _rank_of(path.absolute().as_posix())
    with path.open("rb") as file:
        start = file.read(8)
    if path.name == "error.json":
        return read(enumerate(_read_error(path)[1].splitlines(), 1), name, rank)
    with _open(path, start) as opened:
        return read_stream(opened, name, rank)


def _open(path: Path, start: bytes) -> IO[bytes]:
    module = next((each for magic, each in PACKED.items() if start.startswith(magic)), None)
    if module is None:
        return path.open("rb")
    try:
        opened = importlib.import_module(module).open(path)
    except ImportError as missing:
        raise OSError(
            f"{path}: this Python can't unpack it ({missing}): unpack it first"
        ) from missing
    return cast("IO[bytes]", opened)


def read_stream(file: IO[bytes], name: str = "", rank: str = "") -> list[Line]:
    """The lines of an open file that are worth a look."""
    return read(sift(_in_utf8(iter(lambda: file.read(CHUNK), b""))), name, rank)


def read_text(text: str) -> list[Line]:
    """The lines of a text that are worth a look."""
    pieces = (text[at : at + CHUNK] for at in range(0, len(text), CHUNK))
    return read(sift(piece.encode("utf-8", "replace") for piece in pieces))


def _in_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same in UTF-8: PowerShell's `>` writes UTF-16."""
    first = next(chunks, b"")
    coding = _coding(first[:4000])
    if coding is None:
        yield first
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(coding)("replace")
    yield decoder.decode(first).lstrip("\ufeff").encode()
    for chunk in chunks:
        yield decoder.decode(chunk).encode()


def _coding(start: bytes) -> str | None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    # without a mark: every second byte of plain English is 0
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > len(start) // 5:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


_NO_ERROR = (float("inf"), "")


def _read_error(path: Path) -> tuple[float, str]:
    """When an error was written to torchrun's error.json, and its text."""
    try:
        told = json.loads(path.read_text(encoding="utf-8", errors="replace"))["message"]
        if isinstance(told, str):
            return (*_NO_ERROR[:1], told)
        more = told.get("extraInfo", {})
        text = f"{more.get('py_callstack', '')}\n{told.get('message', '')}"
        return float(more.get("timestamp", "inf")), text
    except (ValueError, KeyError, AttributeError, OSError):
        return _NO_ERROR


def _rank_of(name: str) -> str:
    told = RANK_IN_PATH.search(name)
    return (told[1] or told[2]) if told else ""


def _ranks(names: Iterable[str]) -> dict[str, str]:
    """The rank that each file belongs to, or ""; of Slurm's %t only if they count from 0."""
    names = list(names)
    ranks = {}
    for name in names:
        ranks[name] = _rank_of(name)
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for name in (name for name in names if not ranks[name]):
        if numbers := list(NUMBER.finditer(name)):
            last = numbers[-1]
            alike.setdefault((name[: last.start()], name[last.end() :]), {})[name] = last[0]
    for group in alike.values():
        if sorted(map(int, group.values())) == list(range(len(group))) and len(group) > 1:
            ranks |= {name: str(int(number)) for name, number in group.items()}
    return ranks
