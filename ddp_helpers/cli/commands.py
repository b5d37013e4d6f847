"""The command line: python -m ddp_helpers check | train | run | torchrun | preflight | ..."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.cli import bench as bench_command
from ddp_helpers.cli import explain as explain_command
from ddp_helpers.cluster import network as cluster
from ddp_helpers.data.folder import data_root
from ddp_helpers.diagnosis.causes import diagnose_text
from ddp_helpers.environment import check as environment

TEMPLATES = Path(__file__).parent / "templates"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    ours = words.index("--") if "--" in words else len(words)
    options = _parser(words[:1]).parse_args(words[:ours])
    options.arguments = words[ours + 1 :]
    try:
        return options.command(options)
    except LaunchError as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def check(options: argparse.Namespace) -> int:
    """Tell what this machine can do, with advice; exit code 1 if something must be mended."""
    return environment.main_check(options.json)


def train(options: argparse.Namespace) -> int:
    """Train the course's small CNN on the shipped digits, with real ranks."""
    from ddp_helpers.plots import runs as plots

    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = str((folder / "checkpoint.pt").resolve())
    result = launch(
        _train_on_this_rank,
        options.nprocs,
        kwargs={"epochs": options.epochs, "seed": options.seed, "checkpoint_path": checkpoint},
        timeout=options.timeout,
    )
    records = result.values[0]
    last = records[-1]
    figure = folder / "training.png"
    plots.save(plots.plot_training(records), figure, alt="Loss and accuracy of each epoch")
    print(
        f"accuracy {last.test_accuracy:.2%} on the held-out digits after {len(records)} "
        f"epoch{'s' * (len(records) != 1)}, "
        f"{last.world_size} ranks, {result.seconds:.1f} s\nfigure: {figure}"
    )
    return 0


def _train_on_this_rank(**settings: object) -> list:
    from ddp_helpers.training.loop import train_mnist_5k

    with process_group() as pg:
        return train_mnist_5k(device=pg.device, **settings)


def run(options: argparse.Namespace) -> int:
    """Run a function of a script on several ranks; what follows -- goes to the script."""
    script, _, _ = options.target.rpartition(":")
    sys.argv = [script, *options.arguments]
    launch(
        options.target,
        options.nprocs,
        timeout=options.timeout,
        start_method=options.start_method,
        threads_per_rank=options.threads_per_rank,
        sanitize=options.sanitize,
    )
    return 0


def torchrun(options: argparse.Namespace) -> int:
    """Write the torchrun line for each machine; what follows -- goes to the script."""
    nodes = range(options.nnodes) if options.node_rank is None else [options.node_rank]
    for node_rank in nodes:
        line = cluster.torchrun_line(
            options.script,
            options.arguments,
            nnodes=options.nnodes,
            node_rank=node_rank,
            nproc_per_node=options.nproc_per_node,
            master_addr=options.master_addr,
            master_port=options.master_port,
            # only this machine's own card is known here
            interface=options.interface
            or (options.node_rank is not None and cluster.interface_to(options.master_addr))
            or None,
        )
        print(line)
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Start it on every machine: can they meet? 1 if something must be mended."""
    checks = cluster.preflight(
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        master_addr=options.master_addr,
        master_port=options.master_port,
        seconds=options.seconds,
    )
    for result in checks:
        print(result, file=sys.stdout if result.ok else sys.stderr)
    return int(not all(result.ok for result in checks))


def diagnose(options: argparse.Namespace) -> int:
    """Read the log of any run (torchrun, mp.spawn, Slurm) and name the cause; 1 if unknown."""
    if options.log == "-":
        text = sys.stdin.read()
    else:
        text = Path(options.log).read_text(encoding="utf-8", errors="replace")
    found = diagnose_text(text, options.exit_code)
    for diagnosis in found:
        print(f"why: {diagnosis.cause} [{diagnosis.kind}]\nwhat to do: {diagnosis.advice}")
    if not found:
        print("no error found in this log")
    return int(any(diagnosis.kind == "not-recognised" for diagnosis in found))


def explain(options: argparse.Namespace) -> int:
    """Tell what one message means, or which known ones are nearest to it; 1 if there is none."""
    return explain_command.run(options)


def plan(options: argparse.Namespace) -> int:
    """Predict step time, efficiency, hours and cost for more ranks, other links or buckets."""
    from ddp_helpers.cli import plan as plan_command

    return plan_command.run(options)


def bench(options: argparse.Namespace) -> int:
    """Measure how your own training scales, name what bounds it, and try what helps."""
    return bench_command.run(options)


def classroom(options: argparse.Namespace) -> int:
    """For instructors: `check` whether this machine can seat a class, `report` its progress."""
    from ddp_helpers.classroom import room as classroom

    if options.job == "check":
        seating = classroom.check(options.seats)
        print(seating)
        return int(not seating.ok)
    text, problems = classroom.report(options.files)
    print(text)
    for problem in problems:
        print(f"not read: {problem}", file=sys.stderr)
    return int(bool(problems))


def new(options: argparse.Namespace) -> int:
    """Copy a template."""
    source, target = template_files()[options.template], Path(options.name)
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    shutil.copy(source, target)  # a shell script stays executable
    print(f"{target} is yours; its first lines say how to start it")
    data = _data_of(source.read_text(encoding="utf-8"))
    if data is not None:
        print(f"to train it on the course's data, add --data {shlex.quote(str(data))}")
    return 0


def _data_of(template: str) -> Path | None:
    """The course's data that a template names, where it is on this machine."""
    for name in ("mnist_5k", "austen/pride_and_prejudice.txt"):
        if name in template and (data_root() / name).exists():
            return data_root() / name
    return None


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The commands and their options; `chosen` is the command, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m ddp_helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command, **options) -> argparse.ArgumentParser:
        doc = command.__doc__
        sub = commands.add_parser(command.__name__, help=doc, description=doc, **options)
        sub.set_defaults(command=command)
        return sub

    sub = add(check)
    sub.add_argument("--json", action="store_true", help="for a program to read")

    sub = add(train)
    _add_nprocs(sub)
    sub.add_argument("--epochs", type=int, default=6)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", default="runs/demo", help="folder for the checkpoint and figure")
    sub.add_argument("--timeout", type=float, default=1800.0, help="seconds for the whole run")

    sub = add(run)
    sub.add_argument("target", help="path/script.py:function")
    _add_nprocs(sub)
    sub.add_argument("--timeout", type=float, default=86_400.0, help="seconds for the whole run")
    sub.add_argument("--start-method", default="forkserver", choices=("forkserver", "spawn"))
    sub.add_argument("--threads-per-rank", type=int)
    sub.add_argument(
        "--sanitize",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="watch for silent mistakes; look at weights and data on each Nth step only",
    )

    sub = add(torchrun)
    _add_nodes(sub)
    sub.add_argument("--nproc-per-node", default="gpu", help="ranks on each machine")
    sub.add_argument("--interface", help="the network card that leads to the others")
    sub.add_argument("script", help="the training script")

    sub = add(preflight)
    _add_nodes(sub, node_rank=0)
    sub.add_argument("--seconds", type=float, default=60.0, help="how long to wait for the others")

    sub = add(diagnose)
    sub.add_argument("log", help="a file, or - to read what is piped in")
    sub.add_argument("--exit-code", type=int, help="how the command ended, if you know it")

    explain_command.add_arguments(add(explain))

    sub = add(plan)
    if "plan" in chosen:  # only this command's options need numpy
        from ddp_helpers.cli import plan as plan_command

        plan_command.add_arguments(sub)
    bench_command.add_arguments(add(bench))

    jobs = add(classroom).add_subparsers(dest="job", required=True)
    sub = jobs.add_parser("check", help="can this machine seat a class?")
    sub.add_argument("--seats", type=int, default=30, help="learners, with two ranks each")
    sub = jobs.add_parser("report", help="tables of what learners have done")
    sub.add_argument("files", nargs="+", help="progress files of learners, or folders with them")

    sub = add(new)
    sub.add_argument("name", help="file to write, such as train.py")
    sub.add_argument("--template", default="ddp_torchrun", choices=[*template_files()])
    return parser


def template_files() -> dict[str, Path]:
    """The templates that `new` can copy, by name: Python and shell."""
    kinds = (".py", ".sh", ".sbatch")
    files = [path for path in sorted(TEMPLATES.iterdir()) if path.suffix in kinds]
    return {path.stem: path for path in files if path.stem != "__init__"}


def _add_nodes(parser: argparse.ArgumentParser, node_rank: int | None = None) -> None:
    parser.add_argument("--nnodes", type=int, default=2, help="how many machines")
    parser.add_argument(
        "--node-rank", type=int, default=node_rank, help="this one's number, from 0"
    )
    parser.add_argument("--master-addr", required=True, help="name or address of machine 0")
    parser.add_argument("--master-port", type=int, default=29500)


def _add_nprocs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--nprocs", type=int, help="ranks; by default one per GPU, or 2 without GPUs"
    )
