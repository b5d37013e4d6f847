"""Several machines: the torchrun line for each, and a check of their network before it is run.

`python -m ddp_helpers torchrun` writes the lines. `python -m ddp_helpers preflight`, started on
every machine, tells in one line each what would stop them, and the way out.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ddp_helpers.environment.cards import UNKNOWN, card_of, cards, own_address, variables_for
from ddp_helpers.environment.facts import taken_too
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from torch.distributed import TCPStore

CLOCK_DIFFERENCE = 5.0  # seconds; more than this makes logs and time limits hard to compare
ANSWER_S = 10  # for the last word of a machine that has come: it takes milliseconds
COMPARED = ("python", "torch", "nccl")


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found and, if that is no good, the way out."""

    name: str
    found: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """True if there is nothing to mend."""
        return not self.advice

    def __str__(self) -> str:
        found = shown(self.found)
        return (
            f"ok: {shown(self.name)}: {found}"
            if self.ok
            else f"error: {found}: {shown(self.advice)}"
        )


def torchrun_line(
    script: str,
    arguments: Sequence[str] = (),
    *,
    nnodes: int,
    node_rank: int,
    nproc_per_node: int | str,
    master_addr: str,
    master_port: int = 29500,
    interface: str | None = None,
) -> str:
    """The command for one machine, as text for a shell.

    Args:
        script: the training script, and `arguments` are its flags.
        nnodes: how many machines; 1 needs no meeting place.
        node_rank: the number of the machine that the line is for; number 0 is `master_addr`.
        nproc_per_node: ranks on each machine, or "gpu".
        interface: the network card that leads to the others, if it must be named.

    Raises:
        ValueError: a number that can't be; the text says which, and what was expected.
    """
    _check_numbers(nnodes, node_rank, nproc_per_node, master_port)
    start = ["torchrun", f"--nproc-per-node={nproc_per_node}"]
    if nnodes == 1:
        return shlex.join([*start, "--standalone", script, *arguments])
    # the static rendezvous: node_rank 0 listens, and has rank 0, which writes the checkpoints
    start += [f"--nnodes={nnodes}", f"--node-rank={node_rank}"]
    start += [f"--master-addr={master_addr}", f"--master-port={master_port}"]
    variables = [_variables(interface)] if interface else []
    return " ".join([*variables, shlex.join([*start, script, *arguments])])


def preflight(
    *, nnodes: int, node_rank: int, master_addr: str, master_port: int = 29500, seconds: float = 60
) -> list[Check]:
    """Look at all that machines need to meet; started on each of them within `seconds`.

    The checks stop at the first that fails, because the later ones would fail for its reason.
    """
    _check_numbers(nnodes, node_rank, 1, master_port)
    checks = [resolve(master_addr, nnodes)]
    if not checks[0].ok:
        return checks
    address = checks[0].found.split()[-1]
    checks.append(way_to(address, nnodes, node_rank, master_addr))
    if checks[-1].ok and nnodes > 1:
        here = cards()
        checks += named_cards(card_of(own_address(address), here), master_addr, [*here])
    if checks[-1].ok and node_rank == 0:
        checks.append(port_is_free(master_port))
    if checks[-1].ok and nnodes > 1:
        checks += meet(nnodes, node_rank, address, master_port, seconds)
    return checks


def resolve(host: str, nnodes: int) -> Check:
    """Whether the name means an address that the other machines can use as well."""
    try:
        address = _address_of(host)
    except OSError as problem:
        found = f"the name {host} can't be resolved ({problem.strerror})"
        return Check("name", found, "give its address, or add it to /etc/hosts on every machine")
    if address.startswith("127.") and nnodes > 1:
        found = f"{host} is {address} here, which every machine takes for itself"
        return Check("name", found, "give the address that the others see (ip addr)")
    return Check("name", f"{host} is {address}")


def way_to(address: str, nnodes: int, node_rank: int, master_addr: str) -> Check:
    """Which network card leads there, and whether the machine that is to listen is this one."""
    try:
        own = own_address(address)
    except OSError as problem:
        found = f"no way to {address} ({problem.strerror})"
        return Check("network", found, "see whether both machines are in one network (ip route)")
    here = own == address
    if here and node_rank > 0 and nnodes > 1 and not address.startswith("127."):
        found = f"--node-rank {node_rank} but {master_addr} is this machine"
        return Check("network", found, "give --node-rank 0 here, and 1 and up on the others")
    if not here and node_rank == 0:
        found = f"--node-rank 0 but {master_addr} ({address}) is not this machine ({own})"
        return Check("network", found, f"give --node-rank 0 on {master_addr}, or {own} as --master")
    card = card_of(own, cards())
    return Check("network", f"{own} on {card}; if ranks pick another card: {_variables(card)}")


def named_cards(leads: str, master_addr: str, cards: Sequence[str]) -> list[Check]:
    """Whether the variables that name a card, if set, name one that is here and leads out.

    gloo takes names, NCCL beginnings of names (=eth0: the whole name, ^eth0: all others):
    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = os.environ.get(variable, "")
        exact = leads if variable.startswith("GLOO") else f"'={leads}'"
        advice = f"unset it, or give {exact}, which leads to {master_addr}"
        whole = variable.startswith("GLOO") or value.startswith("=")
        for name in "" if value.startswith("^") else filter(None, value.lstrip("=").split(",")):
            here = name in cards if whole else any(card.startswith(name) for card in cards)
            if not here:
                found = f"{variable} is {value}, but the cards here are {', '.join(cards)}"
                return [Check("card", found, advice)]
            if name == "lo":
                found = f"{variable} is {value}, and lo leads to no other machine"
                return [Check("card", found, advice)]
        also = {} if variable.startswith("GLOO") else taken_too(value, cards)
        for name, more in also.items():
            found = f"{variable} is {value}, and so takes {', '.join(more)}, too"
            return [Check("card", found, f"give '={name}', which is this card alone")]
    return []


def _address_of(host: str) -> str:
    """The first IPv4 address that the name means; raises OSError if there is none."""
    address = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    return str(address)  # of the IPv4 that is asked for it is a text


def interface_to(host: str) -> str | None:
    """The card that leads to this machine from here; None if that can't be told."""
    try:
        card = card_of(own_address(_address_of(host)), cards())
    except OSError:
        return None
    return None if card in ("lo", UNKNOWN) else card


def port_is_free(port: int) -> Check:
    """Whether this machine, which is to listen, can."""
    try:
        socket.create_server(("", port)).close()
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else problem
        found = f"port {port} can't be listened on ({reason})"
        return Check("port", found, f"give another --master-port; ss -ltnp 'sport = :{port}'")
    return Check("port", f"{port} is free")


def facts() -> dict[str, str]:
    """What must be the same on all machines."""
    import torch

    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return versions | {"nccl": ".".join(map(str, nccl)) if nccl else "none"}


def compare(mine: Mapping[str, str], theirs: Mapping[str, str], who: str) -> Check:
    """Whether another machine runs the same versions."""
    for name in COMPARED:
        if mine[name] != theirs[name]:
            found = f"{name} is {mine[name]} here, {theirs[name]} on {who}"
            return Check("versions", found, "install the same on all machines")
    return Check("versions", f"as on {who}: " + ", ".join(f"{n} {mine[n]}" for n in COMPARED))


def clock(difference: float, error: float, who: str) -> Check:
    """Whether the clocks agree; `error` is half of the time that the question took, in seconds."""
    found = f"the clock of {who} is {difference:+.2f} s off (to within {error:.2f} s)"
    late = abs(difference) - error > CLOCK_DIFFERENCE
    return Check("clock", found, "let both set it by the network: timedatectl set-ntp true" * late)


def meet(nnodes: int, node_rank: int, address: str, port: int, seconds: float) -> list[Check]:
    """Meet the other machines at the port, and compare versions and clocks with number 0."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one line is enough, and it is ours
    from torch.distributed import DistError, TCPStore

    limit = timedelta(seconds=seconds)
    there = f"{address}:{port}"
    try:
        store = TCPStore(address, port, None, node_rank == 0, limit, wait_for_workers=False)
    except DistError:
        found = f"{there} did not answer within {seconds:g} s"
        return [Check("meeting", found, "start preflight on node 0 too, and open this port")]
    mine = facts()
    if node_rank > 0:
        return _ask_node_0(store, node_rank, mine, there, seconds)
    return _answer_all(store, nnodes, mine, there, seconds)


def _ask_node_0(
    store: TCPStore, node_rank: int, mine: Mapping[str, str], there: str, seconds: float
) -> list[Check]:
    from torch.distributed import DistError

    try:
        store.set(f"facts/{node_rank}", json.dumps(mine))
        theirs = json.loads(store.get("facts/0"))
        asked = time.time()
        store.set(f"ask/{node_rank}", "time")
        told = float(store.get(f"time/{node_rank}"))
        answered = time.time()
        store.set(f"done/{node_rank}", "done")
    except DistError:
        found = f"{there} did not answer within {seconds:g} s"
        return [Check("meeting", found, "see what preflight says on node 0")]
    difference, error = told - (asked + answered) / 2, (answered - asked) / 2
    checks = [Check("meeting", f"met node 0 at {there}"), compare(mine, theirs, "node 0")]
    return [*checks, clock(difference, error, "node 0")]


def _answer_all(
    store: TCPStore, nnodes: int, mine: Mapping[str, str], there: str, seconds: float
) -> list[Check]:
    from torch.distributed import DistError

    store.set("facts/0", json.dumps(mine))
    checks, end = [], time.monotonic() + seconds
    for other in range(1, nnodes):
        try:
            store.wait([f"ask/{other}"], timedelta(seconds=max(0.1, end - time.monotonic())))
            store.set(f"time/{other}", repr(time.time()))
            checks.append(compare(mine, json.loads(store.get(f"facts/{other}")), f"node {other}"))
            store.wait([f"done/{other}"], timedelta(seconds=ANSWER_S))
        except DistError:
            found = f"node {other} of {nnodes} did not come to {there} within {seconds:g} s"
            advice = f"start preflight there with --node-rank {other}, and let it reach this port"
            return [*checks, Check("meeting", found, advice)]
    return [Check("meeting", f"{nnodes - 1} more came to {there}"), *checks]


def _check_numbers(nnodes: int, node_rank: int, nproc_per_node: int | str, port: int) -> None:
    if nnodes < 1:
        raise ValueError(f"--nnodes is {nnodes}: expected 1 or more machines")
    if not 0 <= node_rank < nnodes:
        raise ValueError(
            f"--node-rank is {node_rank} with --nnodes {nnodes}: expected 0 to {nnodes - 1}"
        )
    if nproc_per_node != "gpu" and not (str(nproc_per_node).isdigit() and int(nproc_per_node) > 0):
        raise ValueError(f"--nproc-per-node is {nproc_per_node}: expected 1 or more, or gpu")
    if not 0 < port < 65536:
        raise ValueError(f"--master-port is {port}: expected 1 to 65535, such as 29500")


def _variables(card: str) -> str:
    """For a shell; zsh reads a bare =eth1 as a program."""
    quoted = {name: shlex.quote(value) for name, value in variables_for(card).items()}
    return " ".join(
        f"{name}='{value}'" if value.startswith("=") else f"{name}={value}"
        for name, value in quoted.items()
    )
