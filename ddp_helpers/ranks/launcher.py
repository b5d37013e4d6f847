"""Run a function on several ranks, each a real process, from a notebook or a script.

The function gets exactly the environment that torchrun gives a script (RANK, LOCAL_RANK,
WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so what runs here runs there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from ddp_helpers.environment.check import default_nprocs
from ddp_helpers.environment.facts import check_before_torch
from ddp_helpers.evidence.records import LaunchResult
from ddp_helpers.ranks.conclusion import conclude, getting_ready
from ddp_helpers.ranks.drawing import Draw, check_draw, show_run
from ddp_helpers.ranks.given import check_call, check_env, check_options, watching
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.ranks.readiness import check_open_files, check_tasks, open_standard_files
from ddp_helpers.ranks.starting import make_job, prepare, rendezvous_store
from ddp_helpers.ranks.supervisor import Supervisor
from ddp_helpers.ranks.travel import pack
from ddp_helpers.ranks.view import PanelView, TextView, View
from ddp_helpers.sanitizer.talk.session import Options as Watching

if TYPE_CHECKING:
    from ddp_helpers.ranks.hosts import HostsRun

R = TypeVar("R")


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
    run: Supervisor | HostsRun
    with contextlib.ExitStack() as store:
        with getting_ready():
            packed = pack(fn, tuple(args), dict(kwargs or {}))
            if names:
                from ddp_helpers.ranks.host_task import make_task
                from ddp_helpers.ranks.hosts import HostsRun

                task = make_task(fn, packed, nprocs, timeout, threads_per_rank, start_method, env)
                task = replace(task, sanitize=every, ignore=ignore)
                run = HostsRun(names, task, make_view(len(names) * nprocs, echo, live))
            else:
                check_open_files(nprocs)
                check_tasks(nprocs)
                port = store.enter_context(rendezvous_store())
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


def make_view(nprocs: int, echo: bool, live: bool | View) -> View | None:
    """What the reader sees while ranks run."""
    if not isinstance(live, bool):
        return live
    if live and is_kernel():
        return PanelView(nprocs)
    return TextView() if echo or live else None
