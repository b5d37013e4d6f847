"""launch() beside the other ways to run ranks from a notebook, each in a live Jupyter kernel.

    python tests/benchmarks/bench_launch.py                      everything, 3 rounds
    python tests/benchmarks/bench_launch.py --quick              one round, to see that it works
    python tests/benchmarks/bench_launch.py --only launch mp.spawn --parts speed --json speed.json

Three parts: how long the first and later runs take, what a failing rank costs and shows, and how
64 ranks fare under launch(). The alternatives come from requirements.txt beside this file, in a
virtual environment of their own. Rounds go through all alternatives in turn, each in a fresh
kernel, so that a machine that slows down slows all of them; ratios are taken within a round.
Every kernel and all that it started is ended, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
TORCH = "2.13.0"
PARTS = ("speed", "failure", "many")
FUNCTION_NAMES = ("reduce", "plain")
RUN_LIMIT = 120.0  # seconds for a cell that is expected to end
FAILURE_LIMIT = 20.0
MOST_LATER_RUNS = 10  # in one kernel; fewer where they take long
PAUSE = 0.3  # seconds before each of these: a reader looks at what came, if only for a moment
LATER_SECONDS = 6.0
LATE_OUTPUT = 0.5  # seconds in which a cell's last output may still arrive
RANKS = 4
MANY = 64
CAUSE = "shard 42 is empty"
COMPLAINT = re.compile(r"Error on Rank|Error executing distributed")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PR_SET_CHILD_SUBREAPER = 36

# The same text for all: where an alternative has already started a group, it is used.
FUNCTIONS = """
def plain():
    import os
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", -1)))

def reduce():
    import torch, torch.distributed as dist
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    n = dist.get_world_size()
    assert total.item() == n * (n + 1) / 2, total
    if mine:
        dist.barrier()
        dist.destroy_process_group()
    return n

def broken():
    import time, torch, torch.distributed as dist
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        with open("RAISED_AT", "w") as file:
            file.write(repr(time.time()))
        raise ValueError(f"shard {40 + 2} is empty")
    dist.all_reduce(torch.ones(1))
"""
SPAWNED = """
def with_rank(rank, name, nprocs, port):
    import os
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nprocs),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    globals()[name]()
"""
FREE_PORT = """
def free_port():
    import socket
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
"""
WEIGH = """
def weigh():
    import time, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == dist.get_world_size()
    dist.barrier()
    with open("/proc/self/smaps_rollup") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    dist.barrier()
    dist.destroy_process_group()
    return kib * 1024 / 1e6
"""


@dataclass(frozen=True)
class Alternative:
    """One way to run ranks from a notebook, as the cells that a learner would write."""

    name: str
    imports: str
    call: str
    """Runs `FN` on `N` ranks; leaves what came back in `got`, where the alternative returns it."""
    group: str | None = None
    """What stands for `GROUP` in the call of a function that needs a process group."""
    prepare: str = ""
    """Once a kernel, after the functions are defined; counts as part of the first run."""
    in_file: bool = False
    kernel: tuple[str, ...] = ("ipykernel_launcher",)
    ranks_are_kernels: bool = False
    notes: tuple[str, ...] = ()

    def code(self, text: str, fn: str, nprocs: int) -> str:
        group = self.group if fn != "plain" else None
        values = {"GROUP": repr(group), "FN": fn, "N": str(nprocs)}
        return re.sub(r"\b(GROUP|FN|N)\b", lambda match: values[match[1]], text)


IN_FILE = "the function has to be in a file (%%writefile): one from a cell can't travel"
KEPT = "the same processes serve every run: no fresh start, no protection from what a run left"
GIVEN = "starts the group itself, also for the function that needs none"
ALTERNATIVES = (
    Alternative(
        "launch",
        "from ddp_helpers import launch\nimport torch",
        "got = launch(FN, N).values",
        notes=("forkserver, the default",),
    ),
    Alternative(
        "launch-spawn",
        "from ddp_helpers import launch\nimport torch",
        'got = launch(FN, N, start_method="spawn").values',
        notes=('start_method="spawn"',),
    ),
    Alternative(
        "mp.spawn",
        "import torch\nimport torch.multiprocessing as mp",
        'mp.spawn(with_rank, args=("FN", N, free_port()), nprocs=N)',
        in_file=True,
        notes=(IN_FILE, "returns no values"),
    ),
    Alternative(
        "elastic_launch",
        "import torch\nfrom torch.distributed.launcher.api import LaunchConfig, elastic_launch",
        "config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=N, "
        'rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=str(free_port()))\n'
        "got = [value for _, value in sorted(elastic_launch(config, FN)().items())]",
        in_file=True,
        notes=(IN_FILE,),
    ),
    Alternative(
        "torchrunx",
        "import torch\nimport torchrunx",
        "got = torchrunx.Launcher(hostnames=['localhost'], workers_per_host=N, "
        "backend=GROUP).run(FN).results['localhost']",
        group="gloo",
        notes=("starts the group itself where one is asked for",),
    ),
    Alternative(
        "accelerate",
        "import torch\nfrom accelerate import notebook_launcher",
        "notebook_launcher(FN, num_processes=N, use_port=str(free_port()))",
        notes=("fork of the kernel", "returns no values"),
    ),
    Alternative(
        "Fabric",
        "import torch\nfrom lightning_fabric import Fabric",
        'fabric = Fabric(accelerator="cpu", devices=N, strategy="ddp_notebook")\n'
        "fabric.launch(lambda fabric: FN())",
        notes=("fork of the kernel", GIVEN, "returns rank 0's value only"),
    ),
    Alternative(
        "session",
        "from ddp_helpers import Session\nimport torch",
        "got = ranks.run(FN).values",
        prepare="ranks = Session(N)",
        notes=(KEPT, "the group is its own, started once"),
    ),
    Alternative(
        "ipyparallel",
        "import torch\nimport ipyparallel",
        "got = engines[:].apply_sync(FN)",
        prepare="cluster = ipyparallel.Cluster(n=N, log_level=40)\n"
        "engines = cluster.start_and_connect_sync()\n"
        "def set_rank(r, port):\n"
        "    import os\n"
        "    os.environ.update(RANK=str(r), WORLD_SIZE='N', MASTER_ADDR='127.0.0.1', "
        "MASTER_PORT=port)\n"
        "port = str(free_port())\n"
        "for r in range(N):\n"
        "    engines[r].apply_sync(set_rank, r, port)",
        notes=(KEPT,),
    ),
    Alternative(
        "nbdistributed",
        'import torch\nshell = get_ipython()\nshell.run_line_magic("load_ext", "nbdistributed")',
        'shell.run_cell_magic("distributed", "", "FN()")',
        prepare='shell.run_line_magic("dist_init", "-n N")\n'
        'shell.run_line_magic("dist_mode", "--disable")\n'
        'manager = shell.magics_manager.registry["DistributedMagic"]._comm_manager\n'
        "answers = {}\n"
        "while len(answers) < N:\n"  # what it sends to a worker that still starts is lost
        "    try:\n"
        '        answers = manager.send_to_all("get_status", {}, timeout=1)\n'
        "    except TimeoutError:\n"
        "        pass\n"
        'shell.run_cell_magic("distributed", "", FUNCTIONS)',
        notes=(KEPT, "the group is its own, started once", "returns no values"),
    ),
    Alternative(
        "jupyter-distributed",
        "import torch",
        "got = FN()",
        kernel=("jupyter_distributed.kernel",),
        ranks_are_kernels=True,
        notes=(KEPT, "each rank is a kernel: the first run counts from the kernel's start"),
    ),
)


# ---- the benchmark's own virtual environment


def enter_environment(folder: Path, script: Path = Path(__file__)) -> None:
    """Go on inside the virtual environment with the alternatives; make it where it is missing."""
    python = folder / "bin" / "python"
    sources = [HERE / "requirements.txt", REPOSITORY / "constraints.txt"]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    ready = folder / "ready"
    if not ready.is_file() or ready.read_text() != wanted:
        if folder.is_dir() and any(folder.iterdir()) and not ready.exists():
            sys.exit(f"--venv {folder}: it is no environment of the benchmarks")
        print(f"installing the alternatives into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        ready.touch()
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pinned = ["-c", str(REPOSITORY / "constraints.txt")]
        subprocess.run([*pip, f"torch=={TORCH}"], check=True)
        subprocess.run([*pip, *pinned, "-e", str(REPOSITORY)], check=True)
        subprocess.run([*pip, *pinned, "-r", str(HERE / "requirements.txt")], check=True)
        ready.write_text(wanted)
    if Path(sys.prefix) != folder:
        os.execv(python, [str(python), str(script.resolve()), *sys.argv[1:]])


# ---- processes


def adopt_orphans() -> None:
    """Become the parent of whatever our kernels leave behind, so that it can be found and ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kill every process that this one started, directly or not, until none is left."""
    import psutil

    limit = time.monotonic() + 20
    while (living := psutil.Process().children(recursive=True)) and time.monotonic() < limit:
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(living, timeout=1)
    if living:
        raise RuntimeError(f"these processes could not be ended: {[p.pid for p in living]}")


# ---- a live kernel


class BenchmarkError(RuntimeError):
    """An alternative did not do what it was asked."""


@dataclass(frozen=True)
class Cell:
    """What one executed cell did."""

    returned: bool
    seconds: float
    """By the kernel's clock, from busy to idle; or the limit, if it did not return."""
    inside: float
    """Measured by the cell itself around its own lines."""
    got: str
    text: str
    failed: bool
    ended_at: float


class Notebook:
    """A live Jupyter kernel for one alternative; `with` ends it and all that it started."""

    def __init__(self, alternative: Alternative, nprocs: int) -> None:
        self.alternative = alternative
        self.nprocs = nprocs

    def __enter__(self) -> Notebook:
        from jupyter_client import KernelManager

        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self.manager = KernelManager()
        module = self.alternative.kernel
        self.manager.kernel_spec.argv = [sys.executable, "-m", *module, "-f", "{connection_file}"]
        began = time.monotonic()
        try:
            with open(self.folder / "kernel.log", "wb") as log:
                self.manager.start_kernel(
                    env=self._environment(), cwd=str(self.folder), stdout=log, stderr=log
                )
            self.client = self.manager.client()
            self.client.start_channels()
            self.client.wait_for_ready(timeout=RUN_LIMIT)
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError, RuntimeError):
            self.client.stop_channels()
        end_descendants()
        self.manager.cleanup_resources()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        # nbdistributed runs pkill with patterns that fit other people's processes too
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "pkill").write_text("#!/bin/sh\n")
        (tools / "pkill").chmod(0o755)
        path = [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
        folder = str(self.folder)
        return os.environ | {
            "PATH": os.pathsep.join(path),
            "TMPDIR": folder,
            "IPYTHONDIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "JUPYTER_DISTRIBUTED_WORLD_SIZE": str(self.nprocs),
        }

    def define(self) -> None:
        """The functions, in a cell; or in a file, for an alternative that can't take them there."""
        functions = FUNCTIONS.replace("RAISED_AT", str(self.folder / "raised_at"))
        if self.alternative.in_file:
            self.run(f"%%writefile ranks.py\n{functions}{SPAWNED}", timed=False)
            self.run("from ranks import *", timed=False)
        else:
            self.run(functions, timed=False)
        self.run(f"{FREE_PORT}{WEIGH}FUNCTIONS = {functions!r}", timed=False)

    def call(self, fn: str, nprocs: int, limit: float = RUN_LIMIT) -> Cell:
        return self.run(self.alternative.code(self.alternative.call, fn, nprocs), limit)

    def run(self, code: str, limit: float = RUN_LIMIT, *, timed: bool = True) -> Cell:
        """Execute a cell and gather what the reader would see."""
        if timed:
            code = (
                "import time as _time; _began = _time.perf_counter(); _inside = None; got = None\n"
                f"{code}\n_inside = _time.perf_counter() - _began"
            )
        asked = {"inside": "_inside", "got": "got"} if timed else {}
        request = self.client.execute(code, user_expressions=asked)
        screen = _Screen()
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                screen.take(self.client.get_iopub_msg(timeout=left), request)
            if screen.idle_at and until > time.monotonic() + LATE_OUTPUT:
                until = time.monotonic() + LATE_OUTPUT if screen.failed else 0.0
        reply = self._reply(request) if screen.idle_at else {}
        values = {
            name: value["data"]["text/plain"]
            for name, value in reply.get("user_expressions", {}).items()
            if value.get("status") == "ok"
        }
        seconds = screen.idle_at - screen.busy_at if screen.idle_at else limit
        inside = values.get("inside", "None")
        return Cell(
            returned=bool(screen.idle_at),
            seconds=seconds,
            inside=seconds if inside == "None" else float(inside),
            got=values.get("got", "None"),
            text=screen.text(),
            failed=screen.failed,
            ended_at=screen.idle_at,
        )

    def _reply(self, request: str) -> dict:
        while True:
            message = self.client.get_shell_msg(timeout=10)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]


@dataclass
class _Screen:
    """What a reader sees under a cell."""

    parts: list[str] = field(default_factory=list)
    displays: dict[str, int] = field(default_factory=dict)
    busy_at: float = 0.0
    idle_at: float = 0.0
    failed: bool = False

    def take(self, message: dict, request: str) -> None:
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != request:
            # late output of ranks may carry another cell's name, or none
            if kind == "stream":
                self.parts.append(content["text"])
            return
        if kind == "status":
            at = message["header"]["date"]
            at = at if isinstance(at, datetime) else datetime.fromisoformat(at)
            name = "busy_at" if content["execution_state"] == "busy" else "idle_at"
            setattr(self, name, at.timestamp())
        elif kind == "stream":
            self.parts.append(content["text"])
        elif kind == "error":
            lines = content["traceback"] or [f"{content['ename']}: {content['evalue']}"]
            self.parts.append("\n" + "\n".join(lines) + "\n")
            self.failed = True
        elif kind in ("display_data", "update_display_data", "execute_result"):
            self._display(content)

    def _display(self, content: dict) -> None:
        text = "\n" + content["data"].get("text/plain", "") + "\n"
        name = content.get("transient", {}).get("display_id", "")
        if name in self.displays:
            self.parts[self.displays[name]] = text
            return
        if name:
            self.displays[name] = len(self.parts)
        self.parts.append(text)

    def text(self) -> str:
        return ANSI.sub("", "".join(self.parts)).strip("\n")


@contextlib.contextmanager
def prepared(alternative: Alternative, nprocs: int) -> Iterator[tuple[Notebook, float, float]]:
    """A kernel that is ready to run ranks; seconds for its imports and for its preparation."""
    with Notebook(alternative, nprocs) as notebook:
        imports = _well(notebook.run(alternative.imports)).seconds
        notebook.define()
        prepare = notebook.start_seconds if alternative.ranks_are_kernels else 0.0
        if alternative.prepare:
            code = alternative.code(alternative.prepare, "", nprocs)
            prepare += _well(notebook.run(code)).seconds
        yield notebook, imports, prepare


def _well(cell: Cell) -> Cell:
    if not cell.returned:
        raise BenchmarkError(f"did not return within {cell.seconds:g} s")
    if cell.failed or COMPLAINT.search(cell.text):
        last = (cell.text.splitlines() or ["no text"])[-1]
        raise BenchmarkError(f"failed: {last[:100]}")
    return cell


# ---- part 1: speed


@dataclass(frozen=True)
class Speed:
    """One fresh kernel: its imports, its first run (preparation included), its later runs."""

    imports: float
    first: float
    later: tuple[float, ...]

    @property
    def to_first_result(self) -> float:
        return self.imports + self.first

    @property
    def later_median(self) -> float:
        return statistics.median(self.later)


def measure_speed(alternative: Alternative, fn: str, nprocs: int, pause: float) -> Speed:
    """Time the first and later runs of a function in a fresh kernel."""
    with prepared(alternative, nprocs) as (notebook, imports, prepare):
        first = _one_run(notebook, fn, nprocs)
        later: list[float] = []
        while len(later) < MOST_LATER_RUNS and sum(later) < LATER_SECONDS:
            time.sleep(pause)
            later.append(_one_run(notebook, fn, nprocs))
        return Speed(imports, prepare + first, tuple(later))


def _one_run(notebook: Notebook, fn: str, nprocs: int) -> float:
    cell = _well(notebook.call(fn, nprocs))
    expected = str([nprocs] * nprocs if fn == "reduce" else list(range(nprocs)))
    returns_values = (
        "got" in notebook.alternative.call and not notebook.alternative.ranks_are_kernels
    )
    shown = " ".join(cell.got.split())  # IPython breaks a long list into lines
    if returns_values and shown != expected:
        raise BenchmarkError(f"returned {cell.got}, expected {expected}")
    # a cell that runs inside the ranks can't see what its launcher adds
    return cell.seconds if notebook.alternative.ranks_are_kernels else cell.inside


# ---- part 2: failure


@dataclass(frozen=True)
class Failure:
    """Rank 1 raised while rank 0 sat in all_reduce."""

    returned: bool
    seconds: float
    after_raise: float | None
    lines: int
    cause_line: int | None
    text: str


def measure_failure(alternative: Alternative) -> Failure:
    """Let rank 1 of 2 raise, in a kernel that has already run ranks once."""
    with prepared(alternative, 2) as (notebook, _, _):
        _well(notebook.call("plain", 2))
        cell = notebook.call("broken", 2, FAILURE_LIMIT)
        raised_at = float((notebook.folder / "raised_at").read_text())
        lines = cell.text.splitlines()
        shown = [number for number, line in enumerate(lines, 1) if CAUSE in line]
        return Failure(
            cell.returned,
            cell.seconds,
            cell.ended_at - raised_at if cell.returned else None,
            len(lines),
            shown[0] if shown else None,
            cell.text,
        )


# ---- part 3: many ranks


@dataclass(frozen=True)
class Many:
    """64 ranks, one all_reduce: its time, and in another run the memory of each rank."""

    seconds: float
    pss_mean: float
    pss_max: float


def measure_many(alternative: Alternative) -> Many:
    """Run many ranks once for the time, and once more for their memory."""
    with prepared(alternative, MANY) as (notebook, _, _):
        _well(notebook.call("plain", 2))
        seconds = _one_run(notebook, "reduce", MANY)
        weights = json.loads(_well(notebook.call("weigh", MANY)).got)
        return Many(seconds, statistics.mean(weights), max(weights))


# ---- rounds and tables


Results = dict[str, list]  # by a row's name, one entry a round: a record, or the text of a failure


def in_rounds(
    names: Sequence[str], rounds: int, measure: Callable[[str], object], title: str
) -> Results:
    """A B C, A B C, ...: each round measures everything once."""
    results: Results = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            print(f"\r\x1b[K{title}: round {number + 1}/{rounds}: {name}", end="", file=sys.stderr)
            try:
                results[name].append(measure(name))
            except (BenchmarkError, RuntimeError, OSError, ValueError, queue.Empty) as error:
                results[name].append(f"{type(error).__name__}: {error}")
    print("\r\x1b[K", end="", file=sys.stderr)
    return results


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and from the least to the greatest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def paired_ratio(ours: list, theirs: list, value: Callable) -> float | None:
    """The median of their value over ours, taken within each round that both have finished."""
    pairs = [(value(a), value(b)) for a, b in zip(ours, theirs, strict=True) if _both(a, b)]
    return statistics.median(b / a for a, b in pairs) if pairs else None


def _both(*records: object) -> bool:
    return not any(isinstance(record, str) for record in records)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def print_speed(results: Results, nprocs: int, pause: float) -> None:
    header = ["alternative", "function", "imports", "to first result", "x launch", "of it the run"]
    header += ["x launch", "later runs", "x launch"]
    rows = []
    for key, records in results.items():
        name, fn = key.split()
        good = [record for record in records if _both(record)]
        if not good:
            rows.append([name, fn, records[0], *[""] * 6])
            continue
        ours = results.get(f"launch {fn}")
        row = [name, fn, spread([r.imports for r in good], 2)]
        for value, all_values in (
            (lambda r: r.to_first_result, [r.to_first_result for r in good]),
            (lambda r: r.first, [r.first for r in good]),
            (lambda r: r.later_median, [seconds for r in good for seconds in r.later]),
        ):
            ratio = paired_ratio(ours, records, value) if ours else None
            row += [spread(all_values), f"{ratio:.2f}" if ratio else ""]
        bad = len(records) - len(good)
        rows.append(row if not bad else [f"{name} ({bad} failed)", *row[1:]])
    title = (
        f"{nprocs} ranks, gloo, {pause:g} s between runs, s: median (least-greatest), "
        "median of the ratios within rounds"
    )
    print_table(title, header, rows)


def print_failures(results: Results) -> None:
    header = ["alternative", "seconds", "after the raise", "lines", "line of the cause"]
    rows = []
    for name, records in results.items():
        good = [record for record in records if _both(record)]
        if not good:
            rows.append([name, records[0], "", "", ""])
            continue
        back = [record for record in good if record.returned]
        lost = len(good) - len(back)
        seconds = spread([r.seconds for r in back], 2) if back else ""
        if lost:
            seconds = f"did not return in {FAILURE_LIMIT:g} s ({lost} of {len(good)}) {seconds}"
        after = spread([r.after_raise for r in back], 2) if back else ""
        causes = sorted({str(r.cause_line or "not shown") for r in good})
        lines = statistics.median(r.lines for r in good)
        rows.append([name, seconds, after, f"{lines:g}", ", ".join(causes)])
    print_table("Rank 1 of 2 raises while rank 0 sits in all_reduce", header, rows)


def print_many(records: list) -> None:
    rows = [
        [f"{r.seconds:.2f}", f"{r.pss_mean:.1f}", f"{r.pss_max:.1f}"] if _both(r) else [r, "", ""]
        for r in records
    ]
    header = ["seconds", "PSS mean, MB a rank", "PSS max"]
    print_table(f"launch(): {MANY} ranks complete an all_reduce", header, rows)


def print_notes(alternatives: Sequence[Alternative]) -> None:
    print("\nNotes")
    for alternative in alternatives:
        print(f"  {alternative.name}: {'; '.join(alternative.notes)}")


def main() -> None:
    """Measure what was asked for, print the tables, and leave no process."""
    arguments = parse_arguments()
    enter_environment(arguments.venv.resolve())
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = {"machine": describe_machine(), "load before": os.getloadavg()}
    try:
        results = measure_parts(arguments)
    finally:
        end_descendants()
    report["load after"] = os.getloadavg()
    print(json.dumps(report))
    if arguments.json:
        text = json.dumps(report | results, indent=1, default=asdict)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def measure_parts(arguments: argparse.Namespace) -> dict[str, Results]:
    known = {alternative.name: alternative for alternative in ALTERNATIVES}
    names = arguments.only or list(known)
    rounds = 1 if arguments.quick else arguments.runs
    results: dict[str, Results] = {}
    if "speed" in arguments.parts:
        keys = [f"{name} {fn}" for fn in FUNCTION_NAMES for name in names]
        results["speed"] = in_rounds(
            keys,
            rounds,
            lambda key: measure_speed(
                known[key.split()[0]], key.split()[1], arguments.ranks, arguments.pause
            ),
            "speed",
        )
        print_speed(results["speed"], arguments.ranks, arguments.pause)
    if "failure" in arguments.parts:
        results["failure"] = in_rounds(
            names, min(rounds, 3), lambda name: measure_failure(known[name]), "failure"
        )
        print_failures(results["failure"])
    if "many" in arguments.parts:
        results["many"] = in_rounds(
            ["launch"], min(rounds, 3), lambda name: measure_many(known[name]), "many ranks"
        )
        print_many(results["many"]["launch"])
    print_notes([known[name] for name in names])
    return results


def describe_machine() -> dict[str, object]:
    import torch

    with open("/proc/cpuinfo") as file:
        found = re.search(r"model name\s*:\s*(.+)", file.read())
    return {
        "processor": found[1] if found else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def parse_arguments() -> argparse.Namespace:
    names = [alternative.name for alternative in ALTERNATIVES]
    parser = argparse.ArgumentParser(description="launch() beside its alternatives")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ranks", type=int, default=RANKS, help=f"for speed (default: {RANKS})")
    parser.add_argument(
        "--pause", type=float, default=PAUSE, help=f"seconds between later runs (default: {PAUSE})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, also raw ones")
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv-bench")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs}: expected at least 1")
    return arguments


if __name__ == "__main__":
    main()
