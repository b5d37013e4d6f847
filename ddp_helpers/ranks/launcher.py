"""Run a function on several ranks, each a real process, from a notebook or a script.

The function gets exactly the environment that torchrun gives a script (RANK, LOCAL_RANK,
WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so what runs here runs there.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from ddp_helpers.arguments import check_positive, check_whole
from ddp_helpers.environment.check import default_nprocs, usable_cpu_count
from ddp_helpers.environment.facts import check_before_torch
from ddp_helpers.evidence.records import LaunchResult, RankResult
from ddp_helpers.ranks import fork_server, surroundings
from ddp_helpers.ranks.drawing import Draw, check_draw, show_run
from ddp_helpers.ranks.notebook import ipython_shell, is_kernel, notebook_cells
from ddp_helpers.ranks.readiness import (
    check_loopback,
    check_open_files,
    check_tasks,
    open_standard_files,
)
from ddp_helpers.ranks.standby import standby
from ddp_helpers.ranks.supervisor import Ending, Supervisor
from ddp_helpers.ranks.temporary import PREFIX, socket_folder, socket_parent
from ddp_helpers.ranks.tracebacks import keep_tracebacks
from ddp_helpers.ranks.travel import pack
from ddp_helpers.ranks.view import PanelView, TextView, View, show
from ddp_helpers.ranks.wire import Job
from ddp_helpers.sanitizer.marks import every_asked, ignore_asked
from ddp_helpers.sanitizer.talk.closing import closing_line
from ddp_helpers.sanitizer.talk.session import Options as Watching
from ddp_helpers.torch_private import torch_version
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.ranks.hosts import HostsRun

R = TypeVar("R")
START_METHODS = ("forkserver", "spawn")
INSIDE_A_RANK = "DDP_HELPERS_INSIDE_A_RANK"
WARM_UP = "DDP_HELPERS_WARM_UP"  # "0": in a notebook, wait for the first launch
STORE_BACKLOG = 1024  # calls that may wait: all ranks of a big machine call at once
STORE_PATIENCE = timedelta(seconds=60)  # for an answer of a store in this very process


class LaunchError(RuntimeError):
    """A rank failed, or the ranks did not end in time. `.result` holds what each rank left."""

    def __init__(self, report: str, result: LaunchResult[Any]) -> None:
        super().__init__(report)
        self.result = result

    def __str__(self) -> str:
        return shown(self.args[0])

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the launcher's own stack."""
        return [f"{type(self).__name__}: {self}"]


class LaunchTimeoutError(LaunchError):
    """The ranks did not end within launch()'s timeout."""


class LaunchStopped(KeyboardInterrupt):
    """The reader pressed the stop button of the live view. `.result` holds what each rank left."""

    def __init__(self, report: str, result: LaunchResult[Any]) -> None:
        super().__init__(report)
        self.result = result

    def __str__(self) -> str:
        return shown(self.args[0])

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def _interrupted(report: str, result: LaunchResult[Any]) -> KeyboardInterrupt:
    """What a Ctrl-C raises: with `.result`, and in IPython without the launcher's own stack.

    No class of its own: after an exact KeyboardInterrupt Python ends by SIGINT, and only then does
    a loop of the shell end as well.
    """
    stop = KeyboardInterrupt(report)
    lines = [f"KeyboardInterrupt: {shown(report)}"]
    vars(stop).update(result=result, _render_traceback_=lambda: lines)
    return stop


class Options(TypedDict, total=False):
    """What `launch()` takes besides the function and the number of ranks, for type checkers."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, object] | None
    env: Mapping[str, str] | None
    timeout: float
    threads_per_rank: int | None
    start_method: str
    echo: bool
    live: bool | View
    sanitize: bool | int | Watching
    post_mortem: bool
    draw: bool | str | Path | Draw
    hosts: Sequence[str] | None
    nprocs_per_host: int | None


@overload
def launch(
    fn: Callable[..., R], nprocs: int | None = None, **options: Unpack[Options]
) -> LaunchResult[R]: ...


@overload
def launch(fn: str, nprocs: int | None = None, **options: Unpack[Options]) -> LaunchResult[Any]: ...


def launch(
    fn: Callable[..., Any] | str,
    nprocs: int | None = None,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    threads_per_rank: int | None = None,
    start_method: str = "forkserver",
    echo: bool = True,
    live: bool | View = False,
    sanitize: bool | int | Watching = False,
    post_mortem: bool = False,
    draw: bool | str | Path | Draw = False,
    hosts: Sequence[str] | None = None,
    nprocs_per_host: int | None = None,
) -> LaunchResult[Any]:
    """Run `fn(*args, **kwargs)` on `nprocs` ranks and return what each one left.

    Args:
        fn: any function (from a cell, a closure, a lambda), or a text `path/script.py:function`.
        nprocs: number of ranks; by default one per GPU, or 2 where there are fewer than two.
        args, kwargs: the same for every rank; a rank asks the environment who it is.
        env: extra environment variables for the ranks.
        timeout: limit of the run in seconds; then a report says where each rank stands. It counts
            from the moment that ranks can start: a first launch loads torch before.
        threads_per_rank: CPU threads of each rank; by default cores // nprocs, at least 1.
        start_method: "forkserver" (fast, torch is shared) or "spawn" (a fresh interpreter).
        echo: show each rank's output as it comes, tagged with its rank.
        live: in a notebook, a panel per rank instead: output, and what it tells with `report()`;
            or a `View` of your own.
        sanitize: watch the run for what goes wrong without telling (weights that drift apart,
            repeated shuffles, crossed collectives). A number n compares weights and data on each
            n-th step only, which costs less; `sanitizer.Options(every=n, ignore=[kind])` accepts
            findings, too.
        post_mortem: where a rank raises, open a prompt (pdb) at its line before the run ends.
        draw: show in the notebook who called what, who waited for whom, and which call is missing;
            also of a run that fails or hangs. Or the name of an .svg file to write.
        hosts: machines to run on, in place of this one: names that `ssh` reaches without a
            password or, in an allocation of Slurm, names of its nodes ("slurm" for all), which srun
            reaches. Each needs this Python at the same path, with the same torch and ddp_helpers.
            Rank 0 is on the first. Prompts (`breakpoint()`) are for one machine only.
        nprocs_per_host: number of ranks on each host, in place of `nprocs`.

    `breakpoint()`, `torch.distributed.breakpoint(rank)` and `input()` in a rank ask here, under the
    cell or in the terminal, one rank after the other. The other ranks and `timeout` wait meanwhile;
    `q` ends the run.

    Returns:
        `result.values` in rank order; `result[rank].output` holds what a rank printed. After `q` at
        a prompt the ranks have no values, and `result.quit_by` is that prompt's rank.

    Raises:
        ValueError, TypeError: an argument is wrong, or can't travel to another process.
        OSError: this machine, or one of `hosts`, is in no state to start ranks; the text says what
            to mend.
        LaunchError: a rank failed, or the sanitizer found something serious; the text names the
            rank, the line and what to do.
        LaunchTimeoutError: the ranks did not end within `timeout`.
        LaunchStopped: the stop button of the live view was pressed.
        KeyboardInterrupt: Ctrl-C, or JupyterLab's own stop button; the text says where each rank
            stood.
    """
    open_standard_files()
    check_before_torch()
    on_hosts = hosts is not None or nprocs_per_host is not None
    names = _hosts(hosts, nprocs_per_host, nprocs, post_mortem) if on_hosts else []
    nprocs = nprocs_per_host if names else default_nprocs() if nprocs is None else nprocs
    check_options(nprocs, timeout, threads_per_rank, start_method)
    assert nprocs is not None
    check_call(fn, args)
    check_draw(draw, one_machine=not names)
    check_env(env)
    every, ignore = watching(sanitize)
    packed = pack(fn, tuple(args), dict(kwargs or {}))
    run: Supervisor | HostsRun
    if names:
        from ddp_helpers.ranks.host_task import make_task
        from ddp_helpers.ranks.hosts import HostsRun

        task = make_task(fn, packed, nprocs, timeout, threads_per_rank, start_method, env)
        task = replace(task, sanitize=every, ignore=ignore)
        run = HostsRun(names, task, make_view(len(names) * nprocs, echo, live))
        ranks = tuple(run.run())
    else:
        check_open_files(nprocs)
        check_tasks(nprocs)
        with rendezvous_store() as port:
            job = make_job(packed, nprocs, port, threads_per_rank, env, start_method)
            job = replace(
                job, post_mortem=post_mortem, sanitize=every, ignore=ignore, draw=bool(draw)
            )
            prepare(start_method)
            run = Supervisor(job, start_method, timeout, make_view(nprocs, echo, live))
            ranks = tuple(run.run())
    show_run(ranks, draw)
    try:
        return conclude(run, ranks, echo=echo)
    except BaseException as error:  # a traceback shows one line of ours, and then the reader's
        raise error.with_traceback(None) from None


def _hosts(hosts: object, nprocs_per_host: object, nprocs: object, post_mortem: bool) -> list[str]:
    from ddp_helpers.ranks.reach import checked_hosts

    if post_mortem:
        raise ValueError("post_mortem=True with hosts=: a prompt opens on one machine only")
    return checked_hosts(hosts, nprocs_per_host, nprocs)


def conclude(
    run: Supervisor | HostsRun,
    ranks: tuple[RankResult[Any], ...],
    *,
    echo: bool,
    last_line: str = "",
) -> LaunchResult[Any]:
    """What ranks have left as a result; or as the error that tells how they failed.

    Args:
        last_line: added to a report.

    Raises:
        LaunchError, LaunchTimeoutError, LaunchStopped, KeyboardInterrupt: as of `launch()`.
    """
    result = LaunchResult(ranks, run.seconds, run.start_method, run.quit_by)
    if run.quit_by is not None:
        told = f"ended at the prompt of rank {run.quit_by}, and so have all ranks"
        show(f"{shown(told)}\n")
        return result
    stopped = run.ending in (Ending.STOPPED, Ending.INTERRUPTED)
    if all(rank.ok for rank in ranks) and not stopped:
        _print_notes(result, echo)
        return result
    from ddp_helpers.diagnosis.failure_report import failure_report, stopped_report

    if stopped:
        report = stopped_report(ranks, result.seconds)
        kind = LaunchStopped if run.ending is Ending.STOPPED else _interrupted
        raise kind(_with_last(report, last_line), result) from None
    late = run.ending is Ending.TIMED_OUT
    stranded = run.ending is Ending.STRANDED
    report = failure_report(
        ranks,
        timeout=run.timeout if late else None,
        stranded=stranded,
        kept_in=keep_tracebacks(ranks) if echo else None,
    )
    raise (LaunchTimeoutError if late else LaunchError)(
        _with_last(report, last_line), result
    ) from None


def _with_last(report: str, line: str) -> str:
    """One line more, without more lines in all than a reader sees at once."""
    from ddp_helpers.diagnosis.failure_report import MOST_LINES

    lines = report.splitlines()
    if not line:
        return report
    most = MOST_LINES - 1
    return "\n".join([*(lines if len(lines) <= most else lines[: most - 1] + lines[-1:]), line])


def finished(result: LaunchResult[R]) -> LaunchResult[R]:
    """The result itself, for who can't go on without its values.

    Raises:
        LaunchStopped: the reader has ended the run at a prompt.
    """
    if result.quit_by is not None:
        raise LaunchStopped(f"ended at the prompt of rank {result.quit_by}", result)
    return result


def make_job(
    function: bytes,
    nprocs: int,
    port: int,
    threads_per_rank: int | None,
    env: Mapping[str, str] | None,
    start_method: str,
) -> Job:
    """What the ranks are told, in the surroundings of this very call."""
    threads = threads_per_rank or max(1, usable_cpu_count() // nprocs)
    sources, names = notebook_cells()
    return Job(
        function=function,
        nprocs=nprocs,
        env=_environment(port, threads, env),
        cwd=os.getcwd(),
        argv=list(sys.argv) if ipython_shell() is None else [""],  # not the kernel's own flags
        threads=threads,
        sources=sources,
        names=names,
        temporary=_temporary_folder(start_method, nprocs),
        own_temporary=start_method == "spawn",
        surroundings=surroundings.look(),
    )


def prepare(start_method: str) -> None:
    """Have a fork server that can fork at once, or be ready to spawn.

    Raises:
        KeyboardInterrupt, LaunchTimeoutError: as of `launch()`.
    """
    try:
        _prepare(start_method)
    except KeyboardInterrupt:
        raise _interrupted("stopped before a rank had started", LaunchResult(())) from None


def _prepare(start_method: str) -> None:
    fork_server.tidy_up()
    if start_method == "spawn":
        fork_server.start_resource_tracker()
        return
    if fork_server.is_stale():
        standby.let_go()
        fork_server.end()
    fork_server.warm_up()
    if not fork_server.wait_until_ready(fork_server.LONGEST_START):
        raise LaunchTimeoutError(
            f"no rank has started: after {fork_server.LONGEST_START:g} s the fork server still "
            "loads torch; the machine or its disk is very busy: launch again",
            LaunchResult(()),
        )


def _temporary_folder(start_method: str, nprocs: int) -> str:
    """This process's folder for sockets, which the fork server removes if this process can't.

    Without a fork server: what the names of the ranks' own folders begin with.
    """
    if start_method == "forkserver":
        return socket_folder()
    parent = socket_parent(f"{PREFIX}{nprocs}")
    return os.path.join(parent, f"{PREFIX}{secrets.token_hex(4)}")


def warm_up_in_a_kernel() -> None:
    """In a notebook, start the fork server while the reader still reads; elsewhere do nothing.

    DDP_HELPERS_WARM_UP=0, set before the import, leaves it to the first launch: for notebooks that
    start their ranks in another way, or on a machine with little memory.
    """
    if is_kernel() and INSIDE_A_RANK not in os.environ and os.environ.get(WARM_UP) != "0":
        fork_server.warm_up()


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


def _print_notes(result: LaunchResult[Any], echo: bool) -> None:
    for finding in result.findings if echo else []:
        told = shown(f"sanitizer, a note: {finding}")
        show(f"{told}\n")
    seen = [rank.watched for rank in result.ranks if rank.watched is not None]
    if echo and seen:
        kinds = {finding.kind for finding in result.findings}
        show(f"{shown(closing_line(seen, kinds))}\n")


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


def make_view(nprocs: int, echo: bool, live: bool | View) -> View | None:
    """What the reader sees while ranks run."""
    if not isinstance(live, bool):
        return live
    if live and is_kernel():
        return PanelView(nprocs)
    return TextView() if echo or live else None


@contextlib.contextmanager
def rendezvous_store(address: str = "127.0.0.1") -> Iterator[int]:
    """The store where ranks meet, on a port that the system picks: no two launches can clash.

    Args:
        address: of this machine, where ranks may call; nothing for all of them.
    """
    check_loopback()
    from torch.distributed import TCPStore

    # torch's own socket would take IPv6 too: open to the network, and each rank that calls has
    # an address (::ffff:127.0.0.1) whose name torch asks the name server for, 5 s if it is slow
    listener = socket.create_server((address, 0), backlog=STORE_BACKLOG)
    store = TCPStore(
        "127.0.0.1",
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=STORE_PATIENCE,
        master_listen_fd=listener.detach(),
        use_libuv=torch_version() >= (2, 7),  # before, libuv's store takes no socket of ours
    )
    yield store.port
    del store


def _environment(port: int, threads: int, extra: Mapping[str, str] | None) -> dict[str, str]:
    ours = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "OMP_NUM_THREADS": str(threads),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": f"launch-{port}",
        "PYTHONUNBUFFERED": "1",
        INSIDE_A_RANK: "1",
    }
    # on one machine the loopback always works; a VPN's or a firewall's address may not
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if os.path.exists("/sys/class/net/lo") else {}
    check_env(extra)
    return {**loopback, **os.environ, **ours, **(extra or {})}
