"""Everything that can happen to a launch, at random moments: nothing may stay behind.

    python tests/benchmarks/soak_launch.py --rounds 300 --seed 0
    python tests/benchmarks/soak_launch.py --seed 0 --only 17      # one round again
    python tests/benchmarks/soak_launch.py --correct 500           # correct launches in a row
    python tests/benchmarks/soak_launch.py --kernels 30            # that many kernels at once

A round is a launch, or a command of a session, in a script or in a notebook's kernel, where ranks
stand by. Of the correct launches half are in a script, half in a kernel.

After each round: no process of the launch runs, /dev/shm and the temporary folder are as before,
the launching process has no file open that it had not before, and its next launch is right.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from soak_hosts import (
    PATIENCE,
    Host,
    KernelHost,
    MemoryWatch,
    Reply,
    ScriptHost,
    private_memory,
)
from soak_scenarios import (
    AT_A_PROMPT,
    ENDS_OF_THE_HOST,
    INTERRUPTS,
    LEFT_OPEN,
    SIGNALS,
    STANDBY,
    Scenario,
    code,
    draw,
    judge,
)

LONGEST_HOST = 25  # rounds
KILLS = ("host SIGTERM", "host SIGKILL", "SIGKILL at a prompt")
HOSTS: dict[str, type[Host]] = {"script": ScriptHost, "kernel": KernelHost}
LONGEST_CLOSE = 15.0  # seconds
MOST_PRIVATE = 15.0  # MB of a rank that stands by
largest_standby, most_standby = 0.0, 0


def disturb(scenario: Scenario, host: Host) -> None:
    """Do what comes from outside the ranks."""
    event = scenario.event
    if scenario.moment == "start" and event in SIGNALS:
        kill_one_that_starts(scenario, host)
        return
    if event not in (*INTERRUPTS, *ENDS_OF_THE_HOST, "server SIGKILL"):
        return
    time.sleep(scenario.delay)
    if event in INTERRUPTS:
        host.interrupt(scenario.group)
    if event == "two interrupts":
        time.sleep(scenario.again)
        host.interrupt(scenario.group)
    if event.startswith("host "):
        host.kill(getattr(signal, event.split()[1]), scenario.group)
    if event == "server SIGKILL":
        kill_fork_server(host)
    if event == "kernel restart":
        host.restart(now=scenario.group)
        host.told()  # ipykernel complains when a cell runs on while it shuts down


def answer_prompt(scenario: Scenario, host: Host) -> None:
    """Do what the reader does at a prompt, a moment later."""
    time.sleep(scenario.delay * 0.1)
    what = scenario.event.split()[0]
    if what == "interrupt":
        host.interrupt(scenario.group)
    elif what == "SIGKILL":
        host.kill(signal.SIGKILL, scenario.group)
    else:
        host.type(what)


def disturb_standby(scenario: Scenario, host: Host) -> None:
    """Kill or pause some of those that stand by, just before the launch would take them."""
    for pid in host.standby()[: scenario.victim + 1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, scenario.event.split()[1]))
    time.sleep(scenario.delay * 0.1)


def kill_fork_server(host: Host) -> None:
    """As if memory had run out there."""
    # they look like their server
    ranks = [rank.pid for rank in host.ranks()] + host.standby()
    for pid, command in host.processes().items():
        if "forkserver import main" in command and pid not in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_one_that_starts(scenario: Scenario, host: Host) -> None:
    """Send the signal to a rank as soon as there is one, or a random moment later."""
    limit = time.monotonic() + PATIENCE
    while len(ranks := host.ranks()) <= scenario.victim and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(scenario.delay * 0.1)
    with contextlib.suppress(Exception):
        ranks[scenario.victim].send_signal(getattr(signal, scenario.event))


def play(scenario: Scenario, host: Host) -> tuple[list[str], bool]:
    """One round; the problems found, and whether the host lives on."""
    host.used += 1
    if scenario.event in STANDBY:
        disturb_standby(scenario, host)
    if scenario.event in AT_A_PROMPT:
        host.at_prompt = lambda: answer_prompt(scenario, host)
    host.start(code(scenario), "result.values")
    disturb(scenario, host)
    reply = Reply(died=True)
    if scenario.event != "kernel restart":
        try:
            reply = host.reply(scenario.timeout + PATIENCE)
        except TimeoutError:
            return [f"no end within {scenario.timeout + PATIENCE} s"], False
    problems = judge(scenario, reply)
    host.at_prompt = None
    if scenario.event in KILLS and not reply.died:
        if scenario.event == "SIGKILL at a prompt":  # the launch was over before there was one
            host.kill(signal.SIGKILL, scenario.group)
        reply.died = host.dies()  # the launch was over before the signal came
    if reply.died and scenario.event != "kernel restart":
        return problems + host.left(False, ""), False
    if scenario.event in LEFT_OPEN:
        return problems + end_with_a_session(scenario, host), False
    found, alive = launch_again(host, scenario.start_method)
    if told := host.told():
        problems.append(f"on stderr: {told[:1500]}")
    return problems + found, alive


def end_with_a_session(scenario: Scenario, host: Host) -> list[str]:
    """End a host whose session is still open; what is left of it."""
    if scenario.event == "left open":
        host.end()
    else:
        host.kill(signal.SIGKILL, scenario.group)
        host.dies()
    told = host.told() if scenario.event == "left open" else ""
    return host.left(False, "") + ([f"on stderr: {told[:1500]}"] if told else [])


def launch_again(host: Host, start_method: str) -> tuple[list[str], bool]:
    """A correct launch, and a look at what the host has kept; whether the host is still of use."""
    check = host.run(f"values = sums(2, {start_method!r})", "[values, state()]")
    if check.ename or check.died:
        return [f"the next launch: {check}"], False
    values, state = check.answer
    problems = host.left(True, state["folder"]) + too_large(host)
    if values != [[0, 3.0], [1, 3.0]]:
        problems.append(f"the next launch gave {values}")
    return problems + grown(host, state), True


def too_large(host: Host) -> list[str]:
    """Those that stand by and need more memory of their own than they may."""
    global largest_standby, most_standby
    ready = host.standby()
    sizes = [private_memory(pid) for pid in ready]
    most_standby = max(most_standby, len(ready))
    largest_standby = max([largest_standby, *sizes])
    return [f"one that stands by needs {size:.0f} MB" for size in sizes if size > MOST_PRIVATE]


def tell_memory(memory: MemoryWatch) -> None:
    """Print what those that stood by needed, and all together."""
    print(f"at most {most_standby} ranks stood by, the largest with {largest_standby:.1f} MB")
    print(f"peak memory {memory.peak / 1024:.1f} GB (PSS) in {memory.most_processes} processes")


def grown(host: Host, state: dict) -> list[str]:
    """Open files and threads that the host had not after its first launch, and keeps.

    zmq closes the socket of a prompt's thread a moment after ipykernel has: it is looked at again.
    """
    before, limit = host.baseline, time.monotonic() + LONGEST_CLOSE
    while (problems := more_than(before, state)) and time.monotonic() < limit:
        time.sleep(1)
        state = host.run("pass", "state()").answer or state
    if before is None or problems or bool(before["server"]) != bool(state["server"]):
        host.baseline = state
    return problems


def more_than(before: dict | None, state: dict) -> list[str]:
    """What a state has more of than an earlier one."""
    if before is None or bool(before["server"]) != bool(state["server"]):
        return []  # the pipe that ties a fork server to this process is one file more
    problems = []
    if len(state["fds"]) > len(before["fds"]):
        more = collections.Counter(state["fds"]) - collections.Counter(before["fds"])
        told = ", ".join(f"{number} {kind}" for kind, number in more.items())
        problems.append(f"{len(state['fds'])} files open, at first {len(before['fds'])}: {told}")
    if len(state["threads"]) > len(before["threads"]):
        new = [name for name in state["threads"] if name not in before["threads"]]
        problems.append(f"{len(state['threads'])} threads, {len(before['threads'])} first: {new}")
    return problems


def soak(options: argparse.Namespace) -> int:
    """Random rounds; prints each that is not clean, then the counts."""
    with MemoryWatch() as memory:
        clean, played = rounds(options)
    tell_memory(memory)
    print(f"{played} rounds, {clean} clean")
    return 0 if clean == played == len(options.only or range(options.rounds)) else 1


def rounds(options: argparse.Namespace) -> tuple[int, int]:
    """Play them; how many were clean, and how many there were."""
    hosts: dict[str, Host] = {}
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    started = time.monotonic()
    numbers = options.only or range(options.rounds)
    clean = played = 0
    try:
        for number in numbers:
            if time.monotonic() > started + options.limit:
                print(f"stopped at the limit of {options.limit:g} s")
                break
            scenario = draw(options.seed, number, options.start_method)
            problems = one_round(scenario, hosts)
            played += 1
            clean += not problems
            for name in (
                scenario.event,
                f"habit: {scenario.habit}",
                f"host: {scenario.host}",
                "session" if scenario.stays else "launch",
            ):
                counts[name][0] += 1
                counts[name][1] += not problems
            if options.verbose:
                print(f"{time.monotonic() - started:7.1f} s  {scenario}", flush=True)
            tell(problems, f"round {number} seed {options.seed}", scenario)
        for host in hosts.values():
            host.end()
            left = host.left(False, "")
            clean -= bool(left)
            tell(left, "after the normal end", host.kind)
    finally:
        for host in hosts.values():
            host.close()
    for name, (total, good) in sorted(counts.items()):
        print(f"{name:<24} {total:4} rounds {good:4} clean")
    print(f"{time.monotonic() - started:.0f} s")
    return clean, played


def tell(problems: list[str], where: str, scenario: object) -> None:
    """Print what is needed to see it again."""
    for problem in problems:
        print(f"{where}: {problem}", flush=True)
    if problems:
        print(f"    {scenario}", flush=True)


def one_round(scenario: Scenario, hosts: dict[str, Host]) -> list[str]:
    """Play a round in a host that lives already, or in a new one."""
    problems: list[str] = []
    host = hosts.pop(scenario.host, None)
    if host and (scenario.fresh or host.used >= LONGEST_HOST):
        host.end()
        problems += [f"after a normal end: {left}" for left in host.left(False, "")]
        host.close()
        host = None
    host = host or HOSTS[scenario.host]()
    alive = False
    try:
        found, alive = play(scenario, host)
        return problems + found
    finally:
        if alive:
            hosts[scenario.host] = host
        else:
            host.close()


def correct(options: argparse.Namespace) -> int:
    """Correct launches in a row: half of them in a script, half in a kernel."""
    started, clean, seconds = time.monotonic(), 0, []
    half = options.correct // 2
    with MemoryWatch() as memory:
        for kind, number in (("script", half), ("kernel", options.correct - half)):
            good, took = in_a_row(kind, number, started + options.limit)
            clean, seconds = clean + good, seconds + took
    median, longest = statistics.median(seconds), max(seconds)
    print(f"median {median:.3f} s, longest {longest:.2f} s, with the look at what is left")
    print(f"{time.monotonic() - started:.0f} s")
    tell_memory(memory)
    print(f"{len(seconds)} correct launches, {clean} clean")
    return 0 if clean == options.correct else 1


def in_a_row(kind: str, number: int, limit: float) -> tuple[int, list[float]]:
    """So many launches from one process: how many were clean, and what each took."""
    host, clean, seconds = HOSTS[kind](), 0, []
    try:
        while len(seconds) < number and time.monotonic() < limit:
            begun = time.monotonic()
            problems, alive = launch_again(host, "forkserver")
            seconds.append(time.monotonic() - begun)
            told = host.told()
            problems += [f"on stderr: {told[:1500]}"] if told else []
            clean += not problems
            tell(problems, f"launch {len(seconds)}", kind)
            if not alive:
                host.close()
                host = HOSTS[kind]()
        host.end()
        left = host.left(False, "")
        tell(left, "after the normal end", kind)
    finally:
        host.close()
    return clean - bool(left), seconds


def kernels(options: argparse.Namespace) -> int:
    """Many kernels at once, as in a class; each launches again and again, and has a session."""
    together = threading.Barrier(options.kernels)
    started = time.monotonic()
    hosts: list[KernelHost] = []

    def learn(number: int) -> tuple[list[str], float]:
        host = KernelHost(patience=options.limit)
        hosts.append(host)
        together.wait(options.limit)
        begun = time.monotonic()
        cell = f"values = seat({options.launches})"
        reply = host.run(cell, "[values, state()]", options.limit)
        took = time.monotonic() - begun
        if reply.ename or reply.died:
            return [str(reply)], took
        right = [[[0, 3.0], [1, 3.0]]] * (options.launches + 2)
        wrong = [] if reply.answer[0] == right else [f"values {reply.answer[0]}"]
        return wrong + host.left(True, reply.answer[1]["folder"]) + too_large(host), took

    try:
        with MemoryWatch() as memory, ThreadPoolExecutor(options.kernels) as pool:
            done = list(pool.map(learn, range(options.kernels)))
            for host in hosts:
                host.end()
        left = [text for host in hosts for text in host.left(False, "")]
    finally:
        for host in hosts:
            host.close()
    for number, (problems, _) in enumerate(done):
        tell(problems, f"kernel {number}", f"{options.kernels} kernels")
    tell(left, "after the normal end", "")
    good = sum(not problems for problems, _ in done)
    print(
        f"a session and {options.launches} launches took {min(s for _, s in done):.1f} s in the "
        f"first kernel, {max(s for _, s in done):.1f} s in the last"
    )
    tell_memory(memory)
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{options.kernels} kernels at once, {good} clean")
    return 0 if good == options.kernels and not left else 1


def main() -> int:
    """Command line; exit code 1 if not all was clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="play these rounds alone")
    parser.add_argument("--start-method", default="both", choices=("both", "forkserver", "spawn"))
    parser.add_argument("--correct", type=int, metavar="N", help="N correct launches in a row")
    parser.add_argument("--kernels", type=int, metavar="N", help="N Jupyter kernels at once")
    parser.add_argument("--launches", type=int, default=5, help="of each of these kernels")
    parser.add_argument("--limit", type=float, default=3 * 3600, help="seconds")
    parser.add_argument("--verbose", action="store_true", help="a line for each round")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # end the hosts too
    if options.correct:
        return correct(options)
    return kernels(options) if options.kernels else soak(options)


if __name__ == "__main__":
    sys.exit(main())
