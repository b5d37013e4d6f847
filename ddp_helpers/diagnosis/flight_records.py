"""Dumps of torch's flight recorder, one a rank, side by side: who has not come to which call.

nccl's watchdog writes them where TORCH_FR_DUMP_TEMP_FILE says (in older torch
TORCH_NCCL_DEBUG_INFO_TEMP_FILE): PREFIX0, PREFIX1, ... They are pickles of plain values, and
nothing else is loaded from them.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddp_helpers.diagnosis.rules import Diagnosis
from ddp_helpers.evidence.frames import is_user_file
from ddp_helpers.evidence.records import name_ranks
from ddp_helpers.torch_private import FLIGHT_RECORD

Dump = Mapping[str, Any]
Calls = dict[int, dict[int, Mapping[str, Any]]]  # by rank, then by the number of the collective
PICKLED = b"\x80"  # how a pickle begins
LIBRARY = re.compile(r"/(site|dist)-packages/|/ddp_helpers/evidence/")
SAME_CALLS = (
    "let all ranks make the same calls: look for one under `if rank == ...`, a loop of another "
    "length, or an early end"
)


def dump_flight_record(folder: str | Path, rank: int) -> None:
    """Write what the flight recorder of this rank holds; with nccl, torch's watchdog does it.

    Args:
        folder: the same for all ranks; the file is `rank_0` there.

    Raises:
        NotInThisTorch: this torch records nccl's calls only.
    """
    data = FLIGHT_RECORD.get()()
    Path(folder, f"rank_{rank}").write_bytes(data)


def read_dumps(folder: Path) -> dict[int, Dump]:
    """Each rank's dump among the files of a folder; files of another kind are passed over."""
    found = {}
    for path in sorted(folder.iterdir()):
        number = re.search(r"(\d+)(?:\.(?:json|pkl|pickle))?$", path.name)
        if number and path.is_file() and (dump := _read(path)) is not None:
            found[int(number[1])] = dump
    return found


def _read(path: Path) -> Dump | None:
    with path.open("rb") as file:
        if file.read(1) not in (PICKLED, b"{"):
            return None
        file.seek(0)
        data = file.read()
    try:
        dump = _Plain(io.BytesIO(data)).load() if data[:1] == PICKLED else json.loads(data)
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError):
        return None
    return dump if isinstance(dump, dict) and isinstance(dump.get("entries"), list) else None


class _Plain(pickle.Unpickler):
    """Loads dicts, lists, texts and numbers; to load anything else could run code of a stranger."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a flight record holds no {module}.{name}")


def diagnose_dumps(dumps: Mapping[int, Dump]) -> Diagnosis | None:
    """The first call in which the ranks of a group part, or which none of them has finished."""
    for group in _groups(dumps):
        calls = {rank: _calls(dump, group) for rank, dump in dumps.items()}
        members = _members(dumps, group) or [rank for rank in calls if calls[rank]]
        if found := _compare(group, {rank: calls.get(rank, {}) for rank in members}, dumps):
            return found
    return None


def _groups(dumps: Mapping[int, Dump]) -> list[str]:
    named = (entry["process_group"][0] for dump in dumps.values() for entry in dump["entries"])
    return list(dict.fromkeys(named))


def _members(dumps: Mapping[int, Dump], group: str) -> list[int]:
    """As torch tells; empty where it does not."""
    for dump in dumps.values():
        told = dump.get("pg_config", {}).get(group, {}).get("ranks", "")
        if ranks := [int(rank) for rank in re.findall(r"\d+", str(told))]:
            return ranks
    return []


def _calls(dump: Dump, group: str) -> dict[int, Mapping[str, Any]]:
    return {
        entry["collective_seq_id"]: entry
        for entry in dump["entries"]
        if entry["process_group"][0] == group and not entry.get("is_p2p")
    }


def _compare(group: str, calls: Calls, dumps: Mapping[int, Dump]) -> Diagnosis | None:
    dumped = {rank: made for rank, made in calls.items() if rank in dumps}
    for number in _numbers(dumped):
        entries = {rank: made[number] for rank, made in dumped.items() if number in made}
        absent = [rank for rank in dumped if rank not in entries]
        if absent:
            return _rank_missing(group, number, entries, absent, dumped)
        if len({_what(entry) for entry in entries.values()}) > 1:
            return _different(group, number, entries)
        if any(entry.get("state") == "started" for entry in entries.values()):
            lost = [rank for rank in calls if rank not in dumps]
            return _not_finished(group, number, entries, lost)
    return None


def _numbers(calls: Calls) -> Iterator[int]:
    """From the first that no rank's record has forgotten; the record keeps the last ones only."""
    begun = [min(made) for made in calls.values() if made]
    last = max((max(made) for made in calls.values() if made), default=-1)
    yield from range(max(begun, default=0), last + 1)


def _rank_missing(
    group: str, number: int, entries: Mapping[int, Any], absent: list[int], calls: Calls
) -> Diagnosis:
    here = next(iter(entries.values()))
    verb = "has" if len(absent) == 1 else "have"
    cause = (
        f"{name_ranks(absent)} {verb} not come to {_name(here)}, call {number} of group {group}, "
        f"where {name_ranks(list(entries))} {'wait' if len(entries) > 1 else 'waits'}"
    )
    seen = [_line(rank, entry) for rank, entry in entries.items()]
    for rank in absent:
        last = max(calls[rank], default=None)
        seen.append(
            f"rank {rank}: made no call in this group"
            if last is None
            else f"{_line(rank, calls[rank][last])}, call {last}, its last one"
        )
    return Diagnosis("rank-did-not-come", cause, SAME_CALLS, tuple(seen))


def _different(group: str, number: int, entries: Mapping[int, Any]) -> Diagnosis:
    cause = f"the ranks make different calls, from call {number} of group {group} on"
    seen = tuple(_line(rank, entry) for rank, entry in entries.items())
    return Diagnosis("different-collective", cause, SAME_CALLS, seen)


def _not_finished(
    group: str, number: int, entries: Mapping[int, Any], lost: list[int]
) -> Diagnosis:
    here = next(iter(entries.values()))
    cause = (
        f"all ranks with a dump came to {_name(here)}, call {number} of group {group}, and "
        "none is through"
    )
    if lost:
        cause += f"; there is no dump of {name_ranks(lost)}"
        advice = f"see what became of {name_ranks(lost)}: a rank that has ended leaves no dump"
    else:
        advice = (
            "the code is not the cause: look at the network and the GPUs (NCCL_DEBUG=INFO, `dmesg` "
            "for Xid), or give the collective more time if a slow rank started it late"
        )
    seen = tuple(_line(rank, entry) for rank, entry in entries.items())
    return Diagnosis("collective-not-finished", cause, advice, seen)


# ---- words


def _what(entry: Mapping[str, Any]) -> tuple:
    """What must be alike on all ranks; who scatters has more to bring than the others."""
    name = _name(entry)
    uneven = name in ("scatter", "gather", "all_to_all", "all_to_all_single", "barrier")
    return name, *(() if uneven else (str(entry["input_sizes"]), str(entry.get("input_dtypes"))))


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["profiling_name"]).rpartition(":")[2]


def _line(rank: int, entry: Mapping[str, Any]) -> str:
    sizes = ", ".join(str(tuple(size)) for size in entry["input_sizes"] or ())
    dtypes = " ".join(dict.fromkeys(entry.get("input_dtypes") or ()))
    of = f" of {dtypes} {sizes}".rstrip() if sizes else ""
    return f"rank {rank}: {_name(entry)}{of}{_place(entry)}"


def _place(entry: Mapping[str, Any]) -> str:
    for frame in entry.get("frames") or ():
        filename = str(frame["filename"])
        # the dump may come from another machine, whose libraries lie elsewhere
        if is_user_file(filename) and not LIBRARY.search(filename):
            return f" at {filename}, line {frame['line']}, in {frame['name']}"
    return ""
