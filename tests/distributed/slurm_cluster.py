"""A real Slurm on loopback, of one node or more, set up in a folder and taken down again."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

# No cgroups, no accounting, no users but this one: it works in a container too. cred_expire is
# how long a requeued job must wait at least; Slurm's own 120 s are there for a real network. Ranks
# meet at a port that follows from the job's number: two such clusters on one machine differ in it.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
FirstJobId={ports[0]}
KillWait=60
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"


def missing_programs() -> list[str]:
    """What Debian's packages munge and slurm-wlm would bring."""
    return [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=PATH)]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


def wait_until(true: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"not within {seconds} s: {what()}"
        time.sleep(0.1)


@dataclass
class Cluster:
    """Its folder holds everything: configuration, logs, state, and the jobs' own files."""

    folder: Path
    others: tuple[str, ...] = ()
    """Names of nodes besides the one that is called like this machine."""
    daemons: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: object, cwd: Path | None = None, **variables: str) -> str:
        """Run one of Slurm's commands; returns what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment | variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol tells about a job: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, number: str, *states: str, seconds: float = 90) -> dict[str, str]:
        """Wait for one of the states; returns what scontrol tells then."""
        wait_until(
            lambda: self.job(number)["JobState"] in states, seconds, lambda: str(self.job(number))
        )
        return self.job(number)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this cluster: daemons, steps and ranks."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
                # a job's own watcher overwrites its environment, but stays where slurmd started
                watcher = process.name() == "slurmstepd" and process.cwd() == str(self.folder)
                if (ours or watcher) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The living ranks of the job that runs."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("python"):
                    found[int(process.environ()["SLURM_PROCID"])] = process
        return found

    def start(self) -> None:
        """Start the three daemons, and wait until the node can take a job."""
        host = socket.gethostname().split(".")[0]
        names = [host, *self.others]
        ports = free_ports(1 + len(names))
        words = {"host": host, "user": getpass.getuser(), "ports": ports}
        words["nodes"] = "\n".join(
            NODE.format(name=name, host=host, port=port)
            for name, port in zip(names, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, **words))
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o400)
        for name in ("state", *(f"spool-{name}" for name in names)):
            (self.folder / name).mkdir()
        munge = {"socket": "munge.socket", "key-file": "key", "pid-file": "munge.pid"}
        munge |= {"log-file": "munge.log", "seed-file": "seed"}
        flags = [f"--{flag}={self.folder / name}" for flag, name in munge.items()]
        self._start("munged", "--foreground", "--force", *flags)
        wait_until((self.folder / "munge.socket").exists, 10, self.logs)
        self._start("slurmctld", "-D")
        for name in names:
            self._start("slurmd", "-D", "-N", name)
        wait_until(self._idle, 30, self.logs)

    def _start(self, *command: str) -> None:
        with (self.folder / "daemons.txt").open("a") as log:
            daemon = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)

    def _idle(self) -> bool:
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.split() == ["idle"]  # a line for each state that a node is in

    def logs(self) -> str:
        """The last lines of every daemon, for a failed test."""
        files = [*self.folder.glob("*.log"), self.folder / "daemons.txt"]
        return "\n".join(f"{file.name}:\n{file.read_text()[-1500:]}" for file in files)

    def end(self) -> None:
        """End the daemons, and all that they started."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for daemon in self.daemons:
            daemon.wait(10)


@contextlib.contextmanager
def slurm_cluster(folder: Path, *others: str) -> Iterator[Cluster]:
    """A cluster for the length of a `with` block; it ends in every case."""
    cluster = Cluster(folder, others)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()
    assert not cluster.processes()
