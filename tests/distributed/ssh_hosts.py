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

from ddp_helpers.cluster.host import Host, Running
from ddp_helpers.cluster.two_hosts import TwoHosts

SSHD_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
SSHD = """
ListenAddress {address}
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
# b refuses what comes from nobody it knows; c has the address of nobody, d of no sshd
CLIENT = """
Host a
  HostName 10.99.0.1
Host b
  HostName 10.99.0.2
Host nobody
  HostName 10.99.0.77
Host stranger
  HostName 10.99.0.2
  User nobody
Host *
  IdentityFile {folder}/key
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking no
"""


def missing() -> str:
    """What is not installed here, or nothing."""
    names = ("sshd", "ssh", "ssh-keygen")
    return ", ".join(name for name in names if not shutil.which(name, path=SSHD_PATH))


@contextlib.contextmanager
def ssh_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Both of them, with a `ssh` first in PATH that knows the two names (`variables`)."""
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "client").write_text(CLIENT.format(folder=folder))
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
    wrapper.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd's helper is shut in
    with TwoHosts(folder / "hosts", "namespaces") as pair:
        for host in pair:
            start_sshd(host, folder)
        yield pair


def start_sshd(host: Host, folder: Path) -> Running:
    """Start a host's sshd, and wait until it listens."""
    config = folder / f"sshd-{host.name}"
    config.write_text(SSHD.format(address=host.address, folder=folder))
    sshd = host.start(shutil.which("sshd", path=SSHD_PATH), "-D", "-e", "-f", config)
    limit = time.monotonic() + 10
    while "Server listening" not in sshd.text("err.txt"):
        assert time.monotonic() < limit, sshd.text("err.txt")
        assert sshd.process.poll() is None, sshd.text("err.txt")
        time.sleep(0.02)
    return sshd


def variables(folder: Path) -> dict[str, str]:
    """The environment of a launcher."""
    path = os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), SSHD_PATH))
    return {"PATH": path}
