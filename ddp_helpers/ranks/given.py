"""What a caller gives to a launch, looked at before anything is started."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Mapping
from pathlib import Path

from ddp_helpers.arguments import check_positive, check_whole
from ddp_helpers.ranks.messages import INSIDE_A_RANK
from ddp_helpers.sanitizer.marks import every_asked, ignore_asked
from ddp_helpers.sanitizer.talk.session import Options as Watching

START_METHODS = ("forkserver", "spawn")


def check_options(nprocs: object, timeout: float, threads: int | None, start_method: str) -> None:
    """Refuse what no launch can be made with, and any launch within a rank."""
    if INSIDE_A_RANK in os.environ:
        raise RuntimeError(
            "launch() was called inside a rank: call it from the notebook, or in a script under "
            '`if __name__ == "__main__":`'
        )
    check_whole("nprocs", nprocs, least=1)
    check_positive("timeout", timeout, "seconds")
    if threads is not None:
        check_whole("threads_per_rank", threads, least=1)
    if start_method not in START_METHODS:
        why = ": threads and CUDA do not survive it" if start_method == "fork" else ""
        raise ValueError(f'start_method="{start_method}"{why}; expected "forkserver" or "spawn"')


def check_call(fn: object, args: object) -> None:
    """Refuse what can't be called on a rank."""
    if isinstance(fn, str):
        _check_script(fn)
    elif not callable(fn):
        raise TypeError(
            f"fn={fn!r}: expected a function, or a text like 'script.py:main'; pass the function "
            "itself, without calling it: launch(train), not launch(train())"
        )
    elif inspect.iscoroutinefunction(fn):
        name = getattr(fn, "__name__", fn)
        raise TypeError(f"{name} is an async function: pass a plain function")
    if not isinstance(args, tuple | list):  # a text would be spread, a letter an argument
        raise TypeError(
            f"args={args!r}: expected a tuple; one of a single value has a comma: args=({args!r},)"
        )


def check_env(env: Mapping[str, str] | None) -> None:
    """Refuse variables that are no texts."""
    for name, value in (env or {}).items():
        if not isinstance(value, str):
            raise TypeError(f"env[{name!r}]={value!r}: expected a text")


def watching(sanitize: object) -> tuple[int, tuple[str, ...]]:
    """How closely to look, 0 is off, and what is accepted.

    Under the command `sanitize` it is on for a program that is not to be changed.
    """
    if isinstance(sanitize, Watching):
        return sanitize.every, (*sanitize.ignore, *ignore_asked())
    if not isinstance(sanitize, int) or sanitize < 0:
        raise ValueError(
            f"sanitize={sanitize!r}: expected True, False, a number n to look at each n-th step, "
            "or ddp_helpers.sanitizer.Options(...)"
        )
    return int(sanitize) or every_asked(), ignore_asked()


def _check_script(target: str) -> None:
    path, colon, name = target.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise ValueError(f'"{target}": expected path/script.py:function')
    if not Path(path).is_file():
        raise ValueError(f'"{target}": there is no file {path} in {os.getcwd()}')
    tree = ast.parse(Path(path).read_text(encoding="utf-8"), path)
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    if name not in functions and name not in _assigned(tree):
        known = ", ".join(functions) or "none"
        raise ValueError(f'"{target}": {path} defines no function {name}; it has: {known}')


def _assigned(tree: ast.Module) -> set[str]:
    """Names that a script imports or assigns at its top level: they may be functions too."""
    names = {alias.asname or alias.name for node in tree.body for alias in _aliases(node)}
    targets = [target for node in tree.body for target in getattr(node, "targets", [])]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


def _aliases(node: ast.stmt) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
