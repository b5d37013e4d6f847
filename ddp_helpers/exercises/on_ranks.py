"""Run a learner's function on real ranks, watch what it sends, and compare what it gives.

All of it runs on the CPU with gloo, so five ranks fit on any machine.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ddp_helpers.evidence.records import LaunchResult, RankResult, name_ranks
from ddp_helpers.evidence.sent_calls import Call
from ddp_helpers.evidence.unwaited import Jobs
from ddp_helpers.exercises.core import NotYet
from ddp_helpers.group.lifetime import process_group
from ddp_helpers.ranks.conclusion import LaunchError, LaunchTimeoutError
from ddp_helpers.ranks.drawing import Draw
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.torch_private import DEFAULT_STORE

T = TypeVar("T")
GRACE = 1.0  # seconds between the verdicts of two ranks
SAID_ALREADY = (
    "the ranks did not end within",
    "full traceback:",  # of launch(): here there is no error object to look into
)
OF_LAUNCH = {  # which the learner has not called
    "no rank waits for another: the work itself takes longer than the limit": "no rank waits for "
    "another: what runs there does not come to an end",
    "what to do: give launch() a larger timeout=": "what to do: look for a loop that never ends; "
    "on a slow machine, give check() a larger seconds=",
    ", or give launch() a larger timeout=": "",
    "try again with a larger timeout=": "try again, with a larger seconds= of check()",
}
EXACT = 1e-6  # of float32: the tolerance for `fine_numbers`
LINES = 12  # of what the learner's function printed
SHOWN = 4  # numbers of a tensor


class Ranks:
    """Runs an answer on ranks, with a limit in seconds for each run."""

    def __init__(self, answer: Callable, limit: float, name: str) -> None:
        self.answer, self.limit, self.name = answer, limit, name
        self.tried: list[int] = []
        self.last_run: tuple[RankResult, ...] = ()
        """What the ranks of the last run have left; in a notebook with their calls."""
        self._last: tuple[Callable, tuple, bool, int] | None = None

    def run(self, on_rank: Callable, nprocs: int, *args: object, group: bool = True) -> list:
        """`on_rank(answer, *args)` on each rank, within a group; the values in rank order.

        Args:
            group: start a process group around it.

        Raises:
            NotYet: a rank failed, hung, died, or raised NotYet itself.
        """
        self._last = on_rank, args, group, nprocs
        self.last_run = ()
        try:
            result = self._launch(self.answer)
            self.last_run = result.ranks
        except LaunchError as error:
            self.last_run = error.result.ranks
            raise NotYet(self._in_words(error, nprocs), _printed(error.result)) from None
        except TypeError as error:  # the answer can't travel to the ranks
            raise NotYet(str(error)) from None
        values = result.values
        quit_early = [rank for rank, value in enumerate(values) if value is None]
        if quit_early:
            raise NotYet(
                f"{name_ranks(quit_early)} ended the whole process inside {self.name}: return "
                "instead of calling exit"
            )
        reasons = [reason for _, reason in values if reason]
        if reasons:
            raise NotYet(reasons[0], _printed(result))
        self.tried.append(nprocs)
        return [got for got, _ in values]

    def repeat(self, answer: Callable) -> tuple[RankResult, ...]:
        """What the ranks leave that run another answer as they did the last one."""
        try:
            return self._launch(answer).ranks
        except LaunchError as error:
            return error.result.ranks

    def _launch(self, answer: Callable) -> LaunchResult:
        assert self._last is not None
        on_rank, args, group, nprocs = self._last
        return launch(
            functools.partial(_on_rank, on_rank, answer, args, group, random.randrange(2**31)),
            nprocs,
            timeout=self.limit,
            echo=False,
            draw=Draw.LATER if is_kernel() else False,
        )

    def _in_words(self, error: LaunchError, nprocs: int) -> str:
        errors = [rank.error for rank in error.result.ranks if rank.error]
        kinds = {each.type_name: each.message for each in sorted(errors, key=lambda e: e.at)}
        if next(iter(kinds), "") == "NotYet":
            return kinds["NotYet"]
        if "NotImplementedError" in kinds:
            return f"{self.name} is not written yet: fill in the part that raises the error"
        how = "failed"
        if isinstance(error, LaunchTimeoutError):
            how = f"did not end within {self.limit:g} s"
        report = self._without_our_lines(error.args[0])
        where = "in a run of 1 rank" if nprocs == 1 else f"in a run of {nprocs} ranks"
        return f"{self.name} {how} {where}:\n{report}"

    def _without_our_lines(self, report: str) -> str:
        """The report, without lines of the machinery that the learner has not written."""
        lines = [line for line in report.splitlines() if not line.startswith(SAID_ALREADY)]
        text = "\n".join(lines)
        for words, instead in OF_LAUNCH.items():
            text = text.replace(words, instead)
        file = r"\S*exercises/(?:on_ranks|e\d\d_\w+)\.py"
        if re.search(file, inspect.getfile(self.answer)):
            file = r"\S*exercises/on_ranks\.py"  # an answer of the exercise's own, as a test has
        text = re.sub(rf"\n  at {file}, line .*(\n    .*)?", "", text)
        text = re.sub(rf" was at {file}, line .*", f" was outside of {self.name}", text)
        text = re.sub(
            rf" at {file}, line \d+, in _on_rank.*", f", after {self.name} had returned there", text
        )
        return re.sub(rf" at {file}, line .*", f", outside of {self.name}", text)


def _on_rank(
    on_rank: Callable, answer: Callable, args: tuple, group: bool, seed: int
) -> tuple[object, str]:
    with process_group("gloo") if group else contextlib.nullcontext():
        if group:  # the same on all ranks, and another one in each check
            torch.manual_seed(seed)
        _hash_as_in_a_process_of_its_own(answer)
        before = _names(on_rank)
        with Jobs() as jobs:
            try:
                value = on_rank(answer, *args)
                _nothing_is_replaced(before, _names(on_rank))
                if left := jobs.left():
                    raise Unwaited(
                        f"the result is right, but nobody waits for {left}: keep what it returns, "
                        "and call its wait()"
                    )
                _all_are_done(0.0)
                return value, ""
            except NotYet as reason:
                text = str(reason)
                if (left := jobs.left()) and not isinstance(reason, Unwaited):
                    text += (
                        f"; and nobody waits for {left}: keep what it returns, and call its wait()"
                    )
                if not _all_are_done():
                    raise NotYet(text) from None  # the others wait for this rank, for ever
                return None, text


def _hash_as_in_a_process_of_its_own(answer: Callable) -> None:
    """Python's hash of a text is another one in each process, but not in these: they are forks."""
    call = answer if inspect.isfunction(answer) else type(answer).__call__
    own = os.environ["RANK"], os.getpid()
    salted = lambda value: hash((own, value) if isinstance(value, str | bytes) else value)
    getattr(call, "__globals__", {}).setdefault("hash", salted)


class Unwaited(NotYet):
    """That is all that is wrong."""


def _names(on_rank: Callable) -> dict[str, object]:
    """What the names stand for that answers call, and by which they are judged."""
    owners: list[Any] = [torch, dist, torch.Tensor, sys.modules[on_rank.__module__]]
    return {
        f"{owner.__name__}.{name}": value for owner in owners for name, value in vars(owner).items()
    }


def _nothing_is_replaced(before: dict[str, object], after: dict[str, object]) -> None:
    changed = [name for name, value in before.items() if after.get(name) is not value]
    if changed:
        raise NotYet(
            f"your function has put something else in place of {changed[0]}: leave torch and the "
            "check as they are, and use only what they give you"
        )


def _all_are_done(seconds: float = GRACE) -> bool:
    """Tell the others that this rank has its verdict, and wait a little for theirs."""
    if not dist.is_initialized():
        return True
    store = DEFAULT_STORE.get()()
    key = f"verdict of rank {dist.get_rank()}"
    store.set(key, "here")
    limit = time.monotonic() + seconds
    keys = [f"verdict of rank {rank}" for rank in range(dist.get_world_size())]
    while not (done := store.check(keys)) and time.monotonic() < limit:
        time.sleep(0.01)
    return done


def _printed(result: LaunchResult) -> str:
    for rank in result.ranks:
        # gloo in torch 2.8 greets at each start, and that would stand for what the ranks said
        told = rank.output.strip().splitlines()
        lines = [line for line in told if not line.startswith("[Gloo] Rank")]
        if lines:
            return "\n".join([f"\nrank {rank.rank} printed:", *lines[-LINES:]])
    return ""


# ------------------------------------------------------------------ for use on a rank


def only(calls: Collection[Call], *allowed: str) -> None:
    """Raise NotYet if anything else was called, or nothing at all."""
    if not calls:
        raise NotYet(
            f"rank {dist.get_rank()} of {dist.get_world_size()} exchanges nothing with the others; "
            f"build it from {' and '.join(allowed)}"
        )
    others = {call.name for call in calls} - set(allowed)
    if others:
        raise NotYet(
            f"you called {' and '.join(sorted(others))}: this exercise is about building it from "
            f"{' and '.join(allowed)} alone"
        )


def exchanged(calls: Collection[Call]) -> None:
    """Raise NotYet if a right result came without any exchange, as from a look into the check."""
    if not calls:
        raise NotYet(
            f"the result is right, but rank {dist.get_rank()} exchanges nothing with the others: "
            "ask them, not the check"
        )


def expect(got: object, wanted: torch.Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Raise NotYet unless `got` is a tensor like `wanted`; `what` names it to the learner."""
    place = f"on rank {dist.get_rank()} of {dist.get_world_size()}, {what}"
    got = a_tensor(got, place).detach().clone()  # a job that nobody waits for may still write it
    if got.shape != wanted.shape:
        raise NotYet(f"{place} has the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    same = torch.isclose(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)
    if not same.all():
        first = int(same.flatten().logical_not().nonzero()[0])
        is_now, should_be = show(got, first), show(wanted, first)
        text = f"{place} is {is_now}, expected {should_be}"
        times = _times(got, wanted)
        if times > 1:
            text += f", {times} times too large: a sum for a mean, or summed twice?"
        if times < -1:
            text += f", {-times} times too small: is it divided where it should not be, or twice?"
        if tolerance == EXACT and torch.allclose(got.double(), wanted.double(), rtol=0.02):
            text += ", and so nearly right: is it rounded on its way?"
        raise NotYet(text)


def a_tensor(got: object, place: str) -> torch.Tensor:
    """`got`, or raise NotYet if it is no tensor."""
    if isinstance(got, int | float):
        why = ".item(), .tolist() or float() has taken it out of its tensor"
        raise NotYet(f"{place} should be a tensor, but it is the number {got:g}: {why}")
    if not isinstance(got, torch.Tensor):
        raise NotYet(f"{place} should be a tensor, but it is {show(got)}")
    return got


def numbers(*shape: int) -> list[torch.Tensor]:
    """`numbers_of` each rank, the same list on all of them."""
    return by_rank(lambda rank: numbers_of(rank, *shape))


def numbers_of(rank: int, *shape: int) -> torch.Tensor:
    """Whole numbers, of rank 0 from 1 to 9, of rank 1 from 10 to 90, and so on.

    So a sum such as 327 shows which ranks are in it, and how often.
    """
    return torch.randint(1, 10, shape).float() * 10**rank


def fine_numbers(*shape: int) -> list[torch.Tensor]:
    """One for each rank, with eighths: no whole number, float16 or bfloat16 holds them.

    float32 does, and sums of them, exactly: compare with `EXACT`.
    """
    return by_rank(lambda _: torch.randint(10_000, 80_000, shape) / 8)


def in_place(tensor: torch.Tensor, address: int, what: str) -> None:
    """Raise NotYet if a tensor is no longer where it was, as after `tensor.data = other`."""
    if tensor.data_ptr() != address:
        raise NotYet(
            f"{what} was given other memory: change it in place, as copy_() does, so that whoever "
            "has a view of it sees the change, too"
        )


def _times(got: torch.Tensor, wanted: torch.Tensor) -> int:
    """By what number such as that of the ranks all of it is too large, or (below 0) too small."""
    is_now, should_be = got.double(), wanted.double()
    for times in range(2, 11):
        if torch.allclose(is_now, should_be * times, rtol=1e-3):
            return times
        if torch.allclose(is_now * times, should_be, rtol=1e-3):
            return -times
    return 0


def show(value: object, first: int = 0) -> str:
    """A value in a few characters; of a large tensor those around the place `first`."""
    if isinstance(value, torch.Tensor):
        start = 0 if first < SHOWN else first
        numbers = [f"{n:.5g}" for n in value.detach().flatten()[start : start + SHOWN].tolist()]
        if start:
            numbers.insert(0, "...")
        if start + SHOWN < value.numel():
            numbers.append("...")
        return f"[{', '.join(numbers)}]"
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def plain(value: object) -> object:
    """Nested lists of Python's numbers, where a range, a tensor or a generator says the same."""
    if hasattr(value, "tolist"):  # of torch or numpy
        return value.tolist()
    if isinstance(value, list | tuple | range | Iterator):
        return [plain(item) for item in value]
    return value


def are_numbers(value: object, *kinds: type) -> bool:
    """Whether it is a list of such numbers, such as int."""
    return isinstance(value, list) and all(
        isinstance(item, kinds) and not isinstance(item, bool) for item in value
    )


class Gate:
    """A point that one rank reaches, and for which another waits before it goes on.

    A rank that comes late on purpose shows whether the others stand still for it: so no time has
    to be measured, and no busy machine spoils the verdict.
    """

    PATIENCE = 5.0  # seconds; a rank that stands still for the late one never comes to the point

    def __init__(self, name: str) -> None:
        self.store, self.key = DEFAULT_STORE.get()(), f"gate {name}"

    def reached(self) -> None:
        """This rank is at the point."""
        self.store.set(self.key, "here")

    def wait(self) -> bool:
        """Whether it was reached in time."""
        limit = time.monotonic() + self.PATIENCE
        while not (there := self.store.check([self.key])) and time.monotonic() < limit:
            time.sleep(0.002)
        return there


def by_rank(make: Callable[[int], T]) -> list[T]:
    """`make(rank)` for all ranks, the same list on each: nobody has to ask."""
    return [make(rank) for rank in range(dist.get_world_size())]


def different(values: list) -> tuple[int, int] | None:
    """The first two ranks whose tensors differ, or None."""
    for one, other in itertools.combinations(range(len(values)), 2):
        if not torch.equal(torch.as_tensor(values[one]), torch.as_tensor(values[other])):
            return one, other
    return None
