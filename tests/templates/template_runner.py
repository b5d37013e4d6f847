"""Runs templates the way a learner does, and sees every process they leave behind."""

import importlib.util
import os
import runpy
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from torch_age import without_greeting
from warm_python import WarmPython

from ddp_helpers import launch
from ddp_helpers.ranks import fork_server

TEMPLATES = Path(__file__).parents[2] / "ddp_helpers" / "templates"
LADDER = (
    *("single_process", "data_parallel", "ddp_one_rank"),
    *("ddp_spawn", "ddp_torchrun", "ddp_resume"),
)
OUTPUT = ("out.txt", "err.txt")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def torchrun(ranks: int) -> list[str]:
    """The command in front of a script, as `torchrun --standalone` but of this Python."""
    module = [sys.executable, "-m", "torch.distributed.run"]
    return [*module, "--standalone", f"--nproc_per_node={ranks}"]


@dataclass
class Started:
    """A started template; its processes are of its session, or carry `token` where they left it."""

    process: subprocess.Popen | WarmPython
    token: str
    folder: Path
    begin: float = field(default_factory=time.monotonic)

    def left(self) -> list[psutil.Process]:
        """Every living process of this run, orphans too."""
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            ours = os.getsid(process.pid) == self.process.pid
            return ours or process.environ().get("TEMPLATE_RUN") == self.token
        except (psutil.Error, OSError):
            return False

    def wait_until_none_left(self, seconds: float) -> None:
        """Fail with the command lines of what is still there after `seconds`."""
        limit = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not left, f"left running: {[process.pid for process in left]}"

    def end_within(self, seconds: float) -> int:
        """Its exit code; what it printed and the stack of each process, if that does not come."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            texts = [(self.folder / name).read_text() for name in ("out.txt", "err.txt")]
            stacks = [stack_of(process.pid) for process in self.left()]
            command = " ".join(self.process.args)
            words = [f"no end after {seconds} s, of {os.getloadavg()} load: {command}"]
            raise AssertionError("\n".join([*words, *texts, *stacks])) from None

    def wait_for(self, text: str, seconds: float = 150) -> str:
        """What it printed so far, once that holds `text`."""
        limit = time.monotonic() + seconds
        while text not in (seen := (self.folder / "out.txt").read_text()):
            assert self.process.poll() is None, (self.folder / "err.txt").read_text()
            assert time.monotonic() < limit, f"no {text!r} after {seconds} s: {seen}"
            time.sleep(0.05)
        return seen


@dataclass(frozen=True)
class Finished:
    """What a run left: its exit code, its text, the seconds it took, and its folder."""

    code: int
    out: str
    err: str
    seconds: float
    folder: Path


@dataclass
class Runner:
    """Starts templates in folders of their own."""

    root: Path
    runs: list[Started] = field(default_factory=list)

    def start(self, *command: object, folder: Path | None = None) -> Started:
        """Start `command` (a script first gets this Python) in a process group of its own."""
        token, folder, environment = self._place(folder)
        words = [str(word) for word in command]
        words = [sys.executable, *words] if words[0].endswith(".py") else words
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.runs.append(Started(process, token, folder))
        return self.runs[-1]

    def start_warm(self, script: object, *flags: object, folder: Path | None = None) -> Started:
        """The same in a process that has torch already, and so have those that it spawns.

        It takes a tenth of the time. For what a template does, not for how Python starts it.
        """
        token, folder, environment = self._place(folder)
        out, err = (folder / name for name in ("out.txt", "err.txt"))
        for file in (out, err):
            file.write_text("")
        process = WarmPython((script, *flags), cwd=folder, env=environment, stdout=out, stderr=err)
        self.runs.append(Started(process, token, folder))
        return self.runs[-1]

    def _place(self, folder: Path | None) -> tuple[str, Path, dict[str, str]]:
        """The token, the folder and the environment of a new run."""
        token = uuid.uuid4().hex
        folder = folder or self.root / token
        folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k not in TORCHRUN_VARIABLES}
        return token, folder, environment | {"TEMPLATE_RUN": token}

    def finish(self, started: Started, seconds: float = 150) -> Finished:
        """Wait for its end, and for the end of all its processes."""
        code = started.end_within(seconds)
        took = time.monotonic() - started.begin
        started.wait_until_none_left(3)
        texts = [without_greeting((started.folder / name).read_text()) for name in OUTPUT]
        return Finished(code, *texts, seconds=took, folder=started.folder)

    def run(self, *command: object, folder: Path | None = None) -> Finished:
        """Start it and wait for its end."""
        return self.finish(self.start(*command, folder=folder))

    def run_warm(self, script: object, *flags: object, folder: Path | None = None) -> Finished:
        """Start it warm and wait for its end."""
        return self.finish(self.start_warm(script, *flags, folder=folder))

    def on_ranks(
        self,
        ranks: int,
        script: Path,
        *flags: object,
        folder: Path | None = None,
        sanitize: bool = False,
    ) -> Finished:
        """The same on ranks forked from a process that has torch already, as torchrun's would be.

        It takes a tenth of the time. For what a template does, not for how it starts. An exit
        code other than 0 raises, and so does what the sanitizer finds.
        """

        def start(*args: object) -> None:
            launch(_run_script, ranks, args=args, echo=False, timeout=150, sanitize=sanitize)

        return self._collect(start, script, flags, folder)

    def under_agent(
        self, ranks: int, script: Path, *flags: object, folder: Path | None = None
    ) -> Finished:
        """The same with torchrun's own agent and its rendezvous, here instead of in a process."""
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        fork_server.warm_up()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            start_method="forkserver",
            max_restarts=0,
        )
        return self._collect(elastic_launch(config, _run_script), script, flags, folder)

    def _collect(
        self, start: Callable, script: Path, flags: tuple, folder: Path | None
    ) -> Finished:
        folder = folder or self.root / uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("out.txt", "err.txt"):
            (folder / name).write_text("")
        begin = time.monotonic()
        start([str(script), *map(str, flags)], str(folder))
        took = time.monotonic() - begin
        texts = [without_greeting((folder / name).read_text()) for name in OUTPUT]
        return Finished(0, *texts, seconds=took, folder=folder)

    def end(self) -> None:
        """Kill what a failed test left."""
        for started in self.runs:
            for process in started.left():
                process.send_signal(signal.SIGKILL)


def _run_script(words: list[str], folder: str) -> None:
    """On a rank: a script as a program, with its output in the files of its run."""
    os.chdir(folder)
    for name, descriptor in (("out.txt", 1), ("err.txt", 2)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def stack_of(pid: int) -> str:
    """Where each thread of a process is, as py-spy sees it."""
    py_spy = Path(sys.executable).with_name("py-spy")
    command = [py_spy, "dump", "--native", "--pid", str(pid)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return run.stdout + run.stderr


def load_template(step: str):
    """The template as a module; its `__main__` parts do not run."""
    spec = importlib.util.spec_from_file_location(f"template_{step}", TEMPLATES / f"{step}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
