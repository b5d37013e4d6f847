"""Two hosts, `a` and `b`, that reach each other by a real sshd; nothing of it is left after."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ddp_helpers.cluster.host import Host, Running
from ddp_helpers.cluster.two_hosts import TwoHosts, why_no_namespaces

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
SetEnv TMPDIR={tmp}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
CLIENT = """
Host a
  HostName 10.99.0.1
Host b
  HostName 10.99.0.2
Host silent
  HostName 10.99.0.2
  Port 23
Host stranger
  HostName 10.99.0.2
  PubkeyAuthentication no
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking no
"""


def why_no_hosts() -> str:
    """Why there can be none here, or nothing."""
    if missing := [name for name in ("sshd", "ssh") if not shutil.which(name, path=PATH)]:
        assert "CI" not in os.environ, f"no {missing}: .ci/run installs openssh-server"
        return f"no {', '.join(missing)} here: apt install openssh-server"
    if os.getuid() != 0:
        return "sshd logs other users in only as root"
    return why_no_namespaces()


class SshHosts:
    """Both of them, in a folder that holds their keys, and all that they leave."""

    def __init__(self, folder: Path, pair: TwoHosts) -> None:
        self.folder, self.pair = folder, pair
        self.a, self.b = pair
        (folder / "client").write_text(CLIENT.format(folder=folder))
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
        ssh.chmod(0o755)
        for host in pair:
            (folder / f"tmp-{host.name}").mkdir()
            self.start_sshd(host)

    def start_sshd(self, host: Host) -> None:
        """Start a host's sshd, and wait until it listens."""
        config = self.folder / f"sshd-{host.name}"
        tmp = self.folder / f"tmp-{host.name}"
        config.write_text(SSHD.format(address=host.address, folder=self.folder, tmp=tmp))
        sshd = host.start(shutil.which("sshd", path=PATH), "-D", "-e", "-f", config)
        limit = time.monotonic() + 10
        while "Server listening" not in sshd.text("err.txt"):
            assert time.monotonic() < limit, sshd.text("err.txt")
            assert sshd.process.poll() is None, sshd.text("err.txt")
            time.sleep(0.02)

    def launcher(self, *words: object, **variables: str) -> Running:
        """Start Python on `a`, with a ssh that knows the two names."""
        path = os.pathsep.join((str(self.folder / "bin"), PATH))
        return self.a.start(sys.executable, *words, PATH=path, **variables)

    def left(self) -> list[str]:
        """What still runs there, beside the two daemons; and files that stay behind."""
        processes = [process for host in self.pair for process in host.processes()]
        found = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if process.name() != "nsenter" and "[listener]" not in command:
                    found.append(command)
        # torch's own folder for what it compiles stays with every process that loads it
        return found + [str(file) for file in self.folder.glob("tmp-*/[!t]*")]

    def check_nothing_left(self, seconds: float = 30) -> None:
        """Wait until nothing is left; a fork server that just begins first loads torch."""
        limit = time.monotonic() + seconds
        while left := self.left():
            assert time.monotonic() < limit, left
            time.sleep(0.1)


@contextlib.contextmanager
def ssh_hosts(folder: Path) -> Iterator[SshHosts]:
    """Both hosts, for the length of a `with` block."""
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd's helper is shut in
    with TwoHosts(folder / "hosts", "namespaces") as pair:
        yield SshHosts(folder, pair)
