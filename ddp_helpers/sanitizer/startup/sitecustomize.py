"""Runs at the start of each Python under `python -m ddp_helpers sanitize`: it stands on PYTHONPATH.

It waits until this process calls `init_process_group`, however it came to be a rank, and has the
sanitizer watch it from there. Until then nothing of ddp_helpers or torch is loaded, so launchers,
loaders' workers and other programs go on as they are. This file may run in any Python.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # a name that type checkers know; `typing` would be loaded for it
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
C10D = "torch.distributed.distributed_c10d"
START = "init_process_group"
# a script may have imported these by name before the sanitizer begins; all else it finds anyway
NAMES = (START, "destroy_process_group", "new_group")


def begin() -> None:
    """Leave a mark, and have torch's functions looked after once torch is imported."""
    mark("python")
    sys.meta_path.insert(0, Finder())


def mark(name: str) -> bool:
    """Let the command know that a process has come so far; True in the first one.

    On another machine there is no such folder: then nobody can be told.
    """
    try:
        path = os.path.join(os.environ["DDP_HELPERS_SANITIZE_MARKS"], name)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except (OSError, KeyError):
        return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    return True


def tell(error: Exception) -> None:
    """Say that the sanitizer is off and why, once for all processes; the program goes on."""
    import contextlib

    with contextlib.suppress(Exception):  # there may be no stderr
        if mark("off"):
            why = f"{type(error).__name__}: {error}"
            print(f"the sanitizer is off in {sys.executable}: {why}", file=sys.stderr, flush=True)


class Finder:
    """Finds one module, once: the one in which torch defines what starts a process group."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the other finders find, whose loader calls us when the module is whole."""
        if name != C10D:
            return None
        try:
            sys.meta_path.remove(self)
            found = (finder.find_spec(name, path, target) for finder in sys.meta_path)
            spec: Any = next(spec for spec in found if spec is not None)
            spec.loader.exec_module = look_after(spec.loader.exec_module)
            return spec
        except Exception as error:
            tell(error)
            return None


def look_after(execute: Callable) -> Callable:
    """Executes the module, then puts functions of ours in its place."""

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            mark("torch")
            Hook(module)
        except Exception as error:
            tell(error)

    return exec_module


class Hook:
    """Stands in for torch's functions until a process group starts, and passes calls on."""

    def __init__(self, c10d: ModuleType) -> None:
        self.c10d = c10d
        self.originals = {name: getattr(c10d, name) for name in NAMES}
        self.tried = self.watching = False
        for name in NAMES:
            setattr(c10d, name, self.stand_in(name))

    def stand_in(self, name: str) -> Callable:
        """The function that goes to where the other has been imported from."""
        import functools

        original = self.originals[name]

        @functools.wraps(original)
        def call(*args: object, **kwargs: object) -> object:
            if name == START and not self.tried:
                self.start()
            # by the module's name: there the sanitizer has put its own
            return (getattr(self.c10d, name) if self.watching else original)(*args, **kwargs)

        return call

    def start(self) -> None:
        """Have this process watched, unless `launch()` or `with sanitize()` does it already."""
        try:
            script, switch = ours("script"), ours("switch")
            if switch.is_watched():
                return
            self.tried = True
            for name, original in self.originals.items():
                setattr(self.c10d, name, original)
                setattr(sys.modules["torch.distributed"], name, original)
            script.watch_script(int(os.environ["DDP_HELPERS_SANITIZE_EVERY"]))
            self.watching = True
        except Exception as error:
            self.tried = True
            tell(error)


def ours(name: str) -> ModuleType:
    """A module of the sanitizer that this file belongs to, installed in this Python or not."""
    import importlib.util

    package = os.path.dirname(os.path.dirname(HERE))
    init = os.path.join(package, "__init__.py")
    spec: Any = importlib.util.find_spec("ddp_helpers")
    if spec is None:
        spec = importlib.util.spec_from_file_location("ddp_helpers", init)
        module = sys.modules["ddp_helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif os.path.realpath(spec.origin or "") != os.path.realpath(init):
        raise ImportError(f"here ddp_helpers is {spec.origin}, and the command's is {init}")
    return importlib.import_module(f"ddp_helpers.sanitizer.{name}")


def run_the_readers_own() -> None:
    """Import the sitecustomize that comes next on the path, as if this one were not there."""
    del sys.modules[__name__]
    sys.path.remove(HERE)
    try:
        # if there is none, it raises the ImportError that Python expects then
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  # the reader's
    finally:
        sys.path.insert(0, HERE)  # a program may hand on its sys.path as a PYTHONPATH


if __name__ == "sitecustomize" and HERE in sys.path:
    if "DDP_HELPERS_SANITIZE_MARKS" in os.environ:
        begin()
    run_the_readers_own()
