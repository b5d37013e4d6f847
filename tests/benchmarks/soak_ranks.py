"""What the soak's ranks do, and the long-living process that launches them.

The soak runs this text in each of its hosts: as a script (`python soak_ranks.py --host FD`), or as
the first cell of a Jupyter kernel. So its functions always travel from `__main__`, by value.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import torch
import torch.distributed as dist

from ddp_helpers import Session, launch, process_group, report

STEP = 0.01  # seconds of a rank's step
LINE = "y" * 99
# the names of semaphores tell the soak's from other people's; children inherit the prefix
multiprocessing.current_process()._config["semprefix"] = "/soak"


def work(plan: dict) -> tuple[int, float]:
    """Run on each rank: take `steps` steps with an all_reduce each; one of the ranks misbehaves.

    Returns the rank and the sum of all ranks' numbers, which the soak knows beforehand.
    """
    rank = int(os.environ["RANK"])
    chosen = rank == plan["victim"]
    batches = take_habit(plan["habit"])
    next(batches)
    if chosen and plan["moment"] == "function":
        time.sleep(plan["delay"])
        misbehave(plan["event"])
    with process_group():
        strike_at = time.monotonic() + plan["delay"]
        strikes = chosen and plan["moment"] == "collective"
        if strikes and hasattr(signal, plan["event"]):  # in the middle of a call, not between two
            later = threading.Timer(plan["delay"], misbehave, (plan["event"],))
            later.daemon = True
            later.start()
        for step in range(plan["steps"]):
            total = torch.tensor([rank + 1.0])
            if strikes and time.monotonic() > strike_at:
                strikes = False
                misbehave(plan["event"])
            dist.all_reduce(total)
            next(batches)
            report(step=step + 1, total=plan["steps"], loss=1 / (step + 1))
    return rank, total.item()


def take_habit(habit: str):
    """What a rank does besides its work; a generator that is asked once a step."""
    if habit == "children":
        subprocess.Popen(["sleep", "300"])
        subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 300 & sleep 300"])
    if habit == "closes stdout":
        os.close(1)
        os.close(2)
    if habit == "closes sys.stdout":
        sys.stdout.close()
    if habit.startswith("loader"):
        if habit == "loader with files":
            torch.multiprocessing.set_sharing_strategy("file_system")
        return loaded()
    return flood() if habit == "flood" else pause()


def pause():
    """Let a moment pass."""
    while True:
        time.sleep(STEP)
        yield


def flood():
    """Write a quarter of a megabyte a step, with and without newlines."""
    while True:
        for _ in range(1250):
            print(LINE)
        os.write(2, LINE.encode() * 1250)
        yield


def loaded():
    """Draw batches from two worker processes, for ever."""
    data = torch.utils.data.TensorDataset(torch.arange(64.0))
    loader = torch.utils.data.DataLoader(data, 4, num_workers=2, persistent_workers=True)
    while True:
        for _ in loader:
            time.sleep(STEP)
            yield


def misbehave(event: str) -> None:
    """Do what the soak asks this rank to do."""
    if hasattr(signal, event):
        os.kill(os.getpid(), getattr(signal, event))
    elif event == "sys.exit":
        sys.exit(4)
    elif event.startswith("os._exit"):
        os._exit(int(event[-2]))
    elif event == "exception":
        raise ValueError("planned")
    elif event.endswith("at a prompt"):
        breakpoint()
    elif event == "hang in sleep":
        time.sleep(1000)
    elif event == "hang in a loop":
        while True:
            pass
    elif event == "hang in C":
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock


def state() -> dict:
    """What must not grow in a process that launches again and again."""
    from multiprocessing import forkserver, process

    gc.collect()
    fds = []
    of_standby = standby_files()
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) in of_standby:  # of these there are as many as the last launches needed
            continue
        try:
            fds.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the listing itself
    for _ in range(kernels_own()):
        fds.remove("anon_inode:[eventfd]")
    return {
        "fds": sorted(fds),
        "threads": sorted(thread_names()),
        "folder": os.path.basename(process.current_process()._config.get("tempdir") or ""),
        "server": forkserver._forkserver._forkserver_pid,
    }


def standby_files() -> set[int]:
    """The files through which this process holds the ranks that stand by."""
    from ddp_helpers.ranks.standby import standby

    return {file for process in standby._ready for file in process.files()}


def kernels_own() -> int:
    """Files that ipykernel holds for threads that have ended: of prompts; it looks all 10 s."""
    pipes = getattr(getattr(sys.stdout, "pub_thread", None), "_event_pipes", {})
    return sum(not thread.is_alive() for thread in pipes)


def thread_names() -> list[str]:
    """What the system calls this process's threads, and Python's own names for its own."""
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(f"{file.read().strip()} {known.get(int(task), '')}")
        except OSError:
            continue  # it has just ended
    return names


def sums(nprocs: int, start_method: str) -> list:
    """A correct launch."""
    plan = {"victim": -1, "habit": "", "event": "", "moment": "", "delay": 0, "steps": 1}
    return launch(work, nprocs, args=(plan,), start_method=start_method, echo=False).values


def in_session(nprocs: int, plan: dict, timeout: float, **options):
    """The same work as the second command of ranks that stay, which end after it."""
    with Session(nprocs, **options) as ranks:
        numbers = ranks.run(os.getpid).values
        if plan["event"] == "idle SIGKILL":
            os.kill(numbers[plan["victim"]], signal.SIGKILL)
        return ranks.run(work, (plan,), timeout=timeout)


def left_open(nprocs: int, plan: dict, timeout: float, **options):
    """The same work in a session that nobody closes, and a launch beside it."""
    global kept
    kept = Session(nprocs, **options)
    result = kept.run(work, (plan,), timeout=timeout)
    assert sums(2, "forkserver") == [(0, 3.0), (1, 3.0)]
    return result


def seat(launches: int) -> list:
    """What one of many kernels does: two commands of a session, then launches."""
    plan = {"victim": -1, "habit": "", "event": "", "moment": "", "delay": 0, "steps": 1}
    with Session(2, echo=False) as ranks:
        values = [ranks.run(work, (plan,)).values for _ in range(2)]
    return values + [sums(2, "forkserver") for _ in range(launches)]


def serve(answers: int) -> None:
    """Obey commands from stdin, one JSON text a line; Ctrl-C counts only while one runs."""
    os.set_inheritable(answers, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(answers, "w", buffering=1) as out:
        for line in sys.stdin:
            reply = obey(json.loads(line))
            out.write(json.dumps(reply) + "\n")


def obey(command: dict) -> dict:
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            exec(command["code"], globals())
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return {"ename": "", "answer": json.dumps(eval(command["answer"], globals()))}
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return {"ename": type(error).__name__, "evalue": str(error)}


if __name__ == "__main__" and "--host" in sys.argv:
    serve(int(sys.argv[2]))
