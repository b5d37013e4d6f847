"""A rank that stays: it runs one command after another in one namespace. session.py sends them."""

from __future__ import annotations

import ast
import builtins
import contextlib
import linecache
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Command, Job, Outcome
from ddp_helpers.ranks.travel import cannot_travel, dump_value, unpack

namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
"""What the cells and functions of a session share: their global names."""
_link: socket.socket
_outcome: int
_names: dict[str, str]


def connect(link: socket.socket, outcome: int, job: Job) -> None:
    """Hear commands through this socket; the worker calls it once."""
    global _link, _outcome, _names
    _link, _outcome, _names = link, outcome, job.names


def namespace_of_rank() -> dict[str, Any]:
    """In a pickled function: its global names are the session's."""
    return namespace


def serve() -> None:
    """What a session's rank does: join the group, then obey until the session ends."""
    import torch
    import torch.distributed as dist

    from ddp_helpers.group.lifetime import cleanup_distributed, init_distributed_mode, keep_group

    group = init_distributed_mode()
    keep_group(group)
    namespace.update(torch=torch, dist=dist, rank=group.rank, world_size=group.world_size)
    _tell(None, 0.0)
    while (command := wire.receive_command(_link)) is not None:
        started = time.monotonic()
        _learn(command.sources, command.names)
        value = _obey(command)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the command may have closed it
                stream.flush()
        _tell(value, time.monotonic() - started)
    keep_group(None)
    cleanup_distributed()


def _obey(command: Command) -> object:
    if command.function is not None:
        fn, args, kwargs = unpack(command.function)
        return fn(*args, **kwargs)
    _run_cell(command.code, command.filename)
    return None


def _run_cell(code: str, filename: str) -> None:
    """Statements, as in a notebook: a last line that has a value shows it."""
    tree = ast.parse(code, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, filename, "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), filename, "eval"), namespace)
        if value is not None:
            namespace["_"] = value
            print(repr(value))


def _learn(sources: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Cells that have been run since the last command, for tracebacks."""
    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    _names.update(names)


def _tell(value: object, seconds: float) -> None:
    try:
        packed = dump_value(value)
    except Exception as raised:
        raise TypeError(cannot_travel(value, raised).message) from None
    wire.leave_outcome(Outcome(packed, None, 0, seconds, stays=True), _outcome, _link)
