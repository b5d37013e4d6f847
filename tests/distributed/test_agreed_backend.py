"""Real ranks that see different GPUs take the same backend, however they meet."""

import re
import socket
import subprocess
import sys

import pytest

from ddp_helpers import LaunchError, launch, process_group

pytestmark = pytest.mark.usefixtures("no_process_left")


def meet(gpus_of_ranks, backend=None, **options):
    """The backend of this rank, whose GPUs are made up, and a sum over all ranks."""
    import os

    import torch
    import torch.distributed as dist

    from ddp_helpers.group import devices

    rank = int(os.environ["RANK"])
    devices.visible_gpus = lambda: tuple(gpus_of_ranks[rank])
    devices.has_nccl = lambda: True
    torch.cuda.device_count = lambda: len(gpus_of_ranks[rank])
    with process_group(backend, **options) as pg:
        total = torch.ones(1)
        dist.all_reduce(total)
        return pg.backend, str(pg.device), total.item()


@pytest.mark.parametrize("way", ["env", "tcp", "file"])
def test_ranks_with_one_gpu_between_them_all_take_gloo_and_rank_0_says_why(tmp_path, way):
    options = {}
    if way == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            options = {"init_method": f"tcp://127.0.0.1:{probe.getsockname()[1]}"}
    if way == "file":
        options = {"init_method": f"file://{tmp_path}/store"}
    result = launch(meet, 3, args=([["A"], ["A"], []],), kwargs=options, threads_per_rank=1)
    assert result.values == [("gloo", "cpu", 3.0)] * 3
    (note,) = result[0].output.splitlines()
    assert note.startswith("note: 3 ranks, but this machine has 1 GPU: all ranks take gloo on the")
    assert result[1].output == result[2].output == ""


def test_nccl_that_can_not_be_had_is_one_error_on_all_ranks():
    with pytest.raises(LaunchError) as caught:
        launch(meet, 2, args=([["A"], ["A"]], "nccl"), threads_per_rank=1)
    text = str(caught.value)
    assert (
        'backend="nccl" with 2 ranks, but this machine has 1 GPU: use 1 rank, or backend=' in text
    )
    assert "ranks 0 and 1 failed: ValueError" in text


def stay_away(seconds):
    import os
    import time

    if os.environ["RANK"] == "1":
        return time.sleep(seconds)
    with process_group("gloo"):
        return None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "rank 0 waited in init_process_group.*why: rank 1 finished while rank 0 still waited"),
        (60, "rank 0 waited in init_process_group.*why: rank 0 waits in init_process_group, and"),
    ],
)
def test_a_report_says_that_a_rank_waits_for_another_to_start(seconds, text):
    with pytest.raises(LaunchError) as caught:
        launch(stay_away, 2, args=(seconds,), timeout=8, threads_per_rank=1)
    assert re.search(text, str(caught.value), re.DOTALL)


def test_a_rank_that_never_comes_is_told_within_the_limit(tmp_path):
    code = (
        "import sys\n"
        "from ddp_helpers import process_group\n"
        "with process_group('gloo', sys.argv[1], 2, 0, timeout=2):\n"
        "    pass\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        tcp = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    for method in (tcp, f"file://{tmp_path}/store"):
        done = subprocess.run(
            [sys.executable, "-c", code, method], capture_output=True, text=True, timeout=60
        )
        assert "rank 0 of 2: not all ranks came within 2 s: start 2 ranks with" in done.stderr
