"""How functions, values and errors get from one process to another.

A function goes by value (cloudpickle), so that one from a cell, a closure or a lambda works. Values
come back so that a process without a GPU can read them, errors as plain text.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import pickle
import re
import sys
import time
import traceback
from collections import ChainMap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from ddp_helpers.evidence.frames import is_launcher_file, make_frame
from ddp_helpers.evidence.records import Frame, RankError
from ddp_helpers.ranks.notebook import ipython_shell

# ---- by value


def _dump(value: object, main: dict | None = None) -> bytes:
    file = io.BytesIO()
    writer = pickler()(file)
    if main is not None:
        for space in _main_globals():  # cloudpickle would make new ones for each pickle
            writer.globals_ref[id(space)] = main
    writer.dump(value)
    return file.getvalue()


def _main_globals() -> list[dict]:
    """The global names of the reader's own script or notebook."""
    shell = ipython_shell()
    return [vars(sys.modules["__main__"])] + ([shell.user_ns] if shell is not None else [])


@cache
def pickler() -> type:
    """cloudpickle's pickler, but code keeps the name of its file.

    Since 3.1.3 cloudpickle writes `<dynamic-code>` in its place: a traceback from a rank would
    show neither the reader's cell nor a line of it.
    """
    import cloudpickle

    theirs = cloudpickle.Pickler.dispatch_table

    def reduce_code(code: CodeType) -> tuple[Callable, tuple]:
        make, parts = theirs[CodeType](code)[:2]
        return _code_of_file, (code.co_filename, make, parts)

    table = ChainMap({CodeType: reduce_code}, theirs)
    return type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})


def _code_of_file(filename: str, make: Callable[..., CodeType], parts: tuple) -> CodeType:
    return make(*parts).replace(co_filename=filename)


# ---- to a rank


def pack(fn: Callable | str, args: tuple, kwargs: dict, main: dict | None = None) -> bytes:
    """A call by value.

    Args:
        main: stands for the global names of the reader's functions, in place of new ones.

    Raises:
        TypeError: it can't travel; the text names the part that can't.
    """
    try:
        return _dump((fn, args, kwargs), main)
    except Exception as error:
        raise TypeError(
            f"{_culprit(fn, args, kwargs)} can't travel to the ranks ({error}): create it inside "
            "the function, on each rank"
        ) from None


def _culprit(fn: Callable | str, args: tuple, kwargs: dict) -> str:
    """Name the argument or outer variable that can't be pickled."""
    parts = {f"argument {i}": value for i, value in enumerate(args)}
    parts |= {f"argument {name}=": value for name, value in kwargs.items()}
    with contextlib.suppress(TypeError):
        outer = inspect.getclosurevars(fn)  # type: ignore[arg-type]  # a text raises TypeError
        used = {**outer.globals, **outer.nonlocals}
        parts |= {f"the variable `{name}` that the function uses": used[name] for name in used}
    for name, value in parts.items():
        try:
            _dump(value)
        except Exception:
            return f"{name} ({type(value).__name__})"
    return f"{fn!r}"


def unpack(data: bytes) -> tuple[Callable, tuple, dict]:
    """The call again; a text `path/script.py:name` has become that function."""
    fn, args, kwargs = pickle.loads(data)
    return load_function(fn), args, kwargs


def load_function(fn: Callable | str) -> Callable:
    """The function itself, or the one that `path/script.py:name` names."""
    if not isinstance(fn, str):
        return fn
    path, _, name = fn.rpartition(":")
    module_name = Path(path).stem
    sys.argv = [path, *sys.argv[1:]]
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # spawned helpers (DataLoader workers) import it by name
    spec.loader.exec_module(module)
    return getattr(module, name)


# ---- and back


def dump_value(value: object) -> bytes:
    """Pickle a value so that it can be read in a process that never touches a GPU."""
    import torch

    base = pickler()

    class Pickler(base):  # type: ignore[valid-type, misc]  # made on its first use
        def reducer_override(self, obj: Any) -> Any:
            plain = type(obj) in (torch.Tensor, torch.nn.Parameter)
            if plain and (obj.is_cuda or _is_small_view(obj)):
                return obj.detach().cpu().clone().requires_grad_(obj.requires_grad).__reduce_ex__(2)
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _is_small_view(tensor: Any) -> bool:
    """A slice drags its whole storage along; copy it first."""
    if tensor.layout is not sys.modules["torch"].strided:
        return False
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


Loaded = tuple[Any, RankError | None]


def load_value(data: bytes) -> Loaded:
    """The value, or why it can't be had here."""
    try:
        return pickle.loads(data), None
    except Exception as raised:
        return None, describe(raised, {})


def cannot_travel(value: object, raised: Exception) -> RankError:
    """The error of a rank whose function returned what can't leave it."""
    kind = type(value)
    return RankError(
        "TypeError",
        f"the function returned a {kind.__module__}.{kind.__qualname__}, which can't leave its "
        f"rank ({raised}): return plain values, tensors, or model.state_dict() instead",
        traceback.format_exc(),
        at=time.monotonic(),
    )


def describe(raised: BaseException, names: dict[str, str]) -> RankError:
    """An exception as text, without the launcher's own lines at its top."""
    trace = raised.__traceback__
    while trace and trace.tb_next and is_launcher_file(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(raised), raised, trace)
    except Exception as failure:  # an exception whose own __str__ raises
        lines = [f"{type(raised).__name__}: (no text: {failure!r})\n"]
    text = "".join(lines)
    for filename, name in names.items():
        text = text.replace(f'File "{filename}"', name)
    return RankError(
        type(raised).__name__, _text(raised), text, tuple(_frames(trace, names)), time.monotonic()
    )


def _text(raised: BaseException) -> str:
    """The message, without the place in torch's own C++ sources that gloo puts in front."""
    try:
        return re.sub(r"^\[(enforce fail at )?/__w/[^\]]*\]\s*", "", str(raised))
    except Exception:
        return "(its text can't be shown)"


def _frames(trace: TracebackType | None, names: dict[str, str]) -> list[Frame]:
    return [
        make_frame(entry.filename, entry.lineno or 0, entry.name, names, entry.line or "")
        for entry in traceback.extract_tb(trace)
    ]
