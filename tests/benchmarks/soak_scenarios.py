"""The soak's rounds: what may happen to a launch, and what must come of it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

from soak_hosts import Reply

SIGNALS = ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT")
EXITS = ("sys.exit", "os._exit(5)", "os._exit(0)", "exception")
HANGS = ("hang in sleep", "hang in a loop", "hang in C", "SIGSTOP")
INTERRUPTS = ("interrupt", "two interrupts")
ENDS_OF_THE_HOST = ("host SIGTERM", "host SIGKILL", "kernel restart")
STANDBY = ("standby SIGKILL", "standby SIGSTOP")
AT_A_PROMPT = ("c at a prompt", "q at a prompt", "interrupt at a prompt", "SIGKILL at a prompt")
PROMPTS = (*AT_A_PROMPT, "no keyboard at a prompt")
# a session's rank is killed between two commands; nobody closes a session, and its host ends
LEFT_OPEN = ("left open", "left open and SIGKILL")
IN_SESSIONS = ("idle SIGKILL", *LEFT_OPEN)
EVENTS = (
    "none",
    *SIGNALS,
    *EXITS,
    *HANGS,
    *INTERRUPTS,
    *ENDS_OF_THE_HOST,
    "server SIGKILL",
    *STANDBY,
    *PROMPTS,
    *IN_SESSIONS,
)
IN_KERNELS = ("kernel restart", *STANDBY, *AT_A_PROMPT)
GO_ON = ("none", *STANDBY, "c at a prompt", "no keyboard at a prompt", *LEFT_OPEN)
LONGEST = 300.0  # seconds of a launch that is to end by itself, on the busiest of machines
HABITS = (
    *(["plain"] * 3),
    "flood",
    "children",
    "closes stdout",
    "closes sys.stdout",
    "loader",
    "loader with files",
)
TEXTS = {
    "sys.exit": "called sys.exit(4)",
    "os._exit(5)": "ended with exit code 5 before its function returned",
    "os._exit(0)": "ended with exit code 0 before its function returned",
    "exception": "failed: ValueError: planned",
    "idle SIGKILL": "was ended by SIGKILL",
}


@dataclass(frozen=True)
class Scenario:
    """One round, whole: what happens, to whom, and when."""

    number: int
    host: str
    fresh: bool
    start_method: str
    nprocs: int
    habit: str
    event: str
    moment: str
    victim: int
    delay: float
    again: float
    group: bool
    steps: int
    timeout: float
    echo: bool
    live: bool
    stays: bool
    """In a session of its own, in place of a launch."""


def draw(seed: int, number: int, start_method: str) -> Scenario:
    """The scenario of one round; the same for the same seed."""
    dice = random.Random(f"{seed}/{number}")
    event = dice.choice(EVENTS)
    fresh = dice.random() < 0.2
    habit = dice.choice(HABITS)
    if event in PROMPTS and habit.startswith("closes"):  # pdb could not say anything
        habit = "plain"
    moments = ["function", "collective"] + (["start"] if event in SIGNALS else [])
    nprocs = dice.choice((2, 2, 3, 4))
    host = dice.choice(("script", "kernel"))
    if event in IN_KERNELS or event == "no keyboard at a prompt":
        host = "kernel" if event in IN_KERNELS else "script"
    method = dice.choice(("forkserver", "forkserver", "forkserver", "spawn"))
    return Scenario(
        number=number,
        host=host,
        fresh=fresh,
        start_method=method if start_method == "both" else start_method,
        nprocs=nprocs,
        habit=habit,
        event=event,
        moment=dice.choice(moments),
        victim=dice.randrange(nprocs),
        delay=round(dice.choice((0.02, 0.2, 1.0, 4.0 if fresh else 1.0)) * dice.random(), 4),
        again=round(dice.choice((0.0, 0.003, 0.03, 0.2)) * dice.random(), 4),
        group=dice.random() < 0.5,
        steps=dice.randrange(20, 80),
        timeout=round(dice.uniform(0.5, 4.0), 2) if event in HANGS else LONGEST,
        echo=dice.random() < 0.7,
        live=dice.random() < 0.4,
        stays=dice.random() < 0.3 or event in IN_SESSIONS,
    )


def plan(scenario: Scenario) -> dict:
    """What the ranks are told; what comes from outside they do not know."""
    inside = scenario.event in (*SIGNALS, *EXITS, *HANGS, *PROMPTS, *IN_SESSIONS)
    inside = inside and scenario.moment != "start"
    names = ("habit", "event", "moment", "delay", "steps")
    told = {name: value for name, value in asdict(scenario).items() if name in names}
    return told | {"victim": scenario.victim if inside else -1}


def code(scenario: Scenario) -> str:
    """The cell, or the line of the script."""
    options = {
        name: getattr(scenario, name) for name in ("start_method", "timeout", "echo", "live")
    }
    limit = options.pop("timeout") if scenario.stays else None
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    if scenario.stays:
        name = "left_open" if scenario.event in LEFT_OPEN else "in_session"
        return f"result = {name}({scenario.nprocs}, {plan(scenario)!r}, {limit!r}, {text})"
    return f"result = launch(work, {scenario.nprocs}, args=({plan(scenario)!r},), {text})"


def judge(scenario: Scenario, reply: Reply) -> list[str]:
    """What is wrong with how the launch ended."""
    event, outside = scenario.event, scenario.moment == "start"
    expected = [[rank, sum(range(scenario.nprocs + 1))] for rank in range(scenario.nprocs)]
    if reply.ename == "" and not reply.died:
        if event == "q at a prompt" and reply.answer == [None] * scenario.nprocs:
            return []
        if reply.answer != expected:
            return [f"values {reply.answer}, expected {expected}"]
        from_outside = (*INTERRUPTS, *ENDS_OF_THE_HOST, "server SIGKILL")
        may = event in GO_ON or outside or event in from_outside
        return [] if may or late(scenario) else ["ended well, though a rank did not"]
    if event in (*ENDS_OF_THE_HOST, "SIGKILL at a prompt"):
        return [] if reply.died else [f"{event}, but {reply.ename}: {reply.evalue}"]
    if reply.died:
        return ["the launching process died"]
    return judge_error(scenario, reply)


def late(scenario: Scenario) -> bool:
    """True if the ranks may have ended before it happened."""
    return scenario.delay > scenario.steps * 0.01 and scenario.moment == "collective"


def judge_error(scenario: Scenario, reply: Reply) -> list[str]:
    """What is wrong with the error, or with its report."""
    event, lines = scenario.event, reply.evalue.splitlines()
    if event in (*INTERRUPTS, "interrupt at a prompt"):
        return [] if reply.ename == "KeyboardInterrupt" else [f"{reply.ename}: {reply.evalue}"]
    kind = "LaunchTimeoutError" if event in HANGS else "LaunchError"
    if event == "server SIGKILL" and "fork server ended" in reply.evalue:
        return []  # before any rank had begun
    if reply.ename != kind:
        return [f"expected a {kind}, got {reply.ename}: {reply.evalue}"]
    problems = []
    if len(lines) > 20 or "Connection closed" in "".join(lines[:3]):
        problems.append(f"a report of {len(lines)} lines: {reply.evalue}")
    text = event if event in SIGNALS else TEXTS.get(event, "")
    who = "" if scenario.moment == "start" or event in HANGS else f"rank {scenario.victim} "
    first = lines[0] if lines else ""
    if event != "server SIGKILL" and not (first.startswith(who) and text in first):
        problems.append(f"expected the cause `{who}... {text}`, got: {reply.evalue}")
    return problems
