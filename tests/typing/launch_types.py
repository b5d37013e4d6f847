"""What a type checker knows of a launch; `make lint` reads this file, and nobody runs it."""

from typing import Any, assert_type

from ddp_helpers import launch
from ddp_helpers.evidence.records import LaunchResult, RankResult


def count() -> int:
    return 3


def named(name: str, *, size: float = 1.0) -> dict[str, float]:
    return {name: size}


async def later() -> int:
    return 3


result = launch(count, 2)
assert_type(result, LaunchResult[int])
assert_type(result.values, list[int])
assert_type(result[0], RankResult[int])
assert_type(result[0].value, int)
assert_type(launch(named, args=("a",), kwargs={"size": 2.0}).values, list[dict[str, float]])
assert_type(launch(count, hosts=["a", "b"], nprocs_per_host=2).values, list[int])
assert_type(launch(lambda: "text", 2, echo=False, timeout=10).values, list[str])
assert_type(launch("script.py:main", 2).values, list[Any])
# what a frozen record holds may be read as something wider
wider: LaunchResult[object] = result
launch(count, nproc=2)  # type: ignore[call-overload]  # a typing error is seen before the run
launch(3)  # type: ignore[call-overload]  # and so is what can't be run
