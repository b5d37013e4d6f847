"""Flight records of real ranks, read from a folder: who has not come to which call."""

import contextlib
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from torch_age import needs

from ddp_helpers import launch, process_group
from ddp_helpers.cli import main
from ddp_helpers.diagnosis.flight_records import diagnose_dumps, dump_flight_record, read_dumps
from ddp_helpers.torch_private import FLIGHT_RECORD

pytestmark = [pytest.mark.usefixtures("no_process_left"), needs(FLIGHT_RECORD)]


def recorded(folder, calls, record):
    """Make some calls; then, before the group ends, write what the recorder holds."""
    with process_group("gloo", timeout=2) as pg:
        dist.broadcast(torch.ones(5), src=0)
        with contextlib.suppress(RuntimeError):
            calls(pg)
        if pg.rank in record:
            dump_flight_record(folder, pg.rank)


def found_in(tmp_path, calls, nprocs=2, record=(0, 1, 2)):
    with contextlib.suppress(Exception):  # how the run itself ends is another matter
        launch(recorded, nprocs, args=(tmp_path, calls, record), timeout=20, echo=False)
    return diagnose_dumps(read_dumps(tmp_path))


def one_too_many(pg):
    if pg.rank == 0:
        dist.all_reduce(torch.ones(1))
    dist.all_gather([torch.ones(3)] * pg.world_size, torch.ones(3))


def one_leaves(pg):
    if pg.rank != 1:
        dist.all_reduce(torch.ones(2))


def in_a_smaller_group(pg):
    pair = dist.new_group([0, 2])
    for _ in range({0: 2, 1: 0, 2: 1}[pg.rank]):  # rank 1 is none of the pair
        dist.all_reduce(torch.ones(2), group=pair)


def alike(pg):
    dist.all_reduce(torch.ones(2))
    parts = [torch.ones(1)] * pg.world_size if pg.rank == 0 else None
    dist.scatter(torch.zeros(1), parts, src=0)


def of_two_sizes(pg):
    dist.all_reduce(torch.ones(1 + pg.rank), async_op=True)


def test_different_calls(tmp_path):
    found = found_in(tmp_path, one_too_many)
    assert found.kind == "different-collective"
    assert found.cause == "the ranks make different calls, from call 2 of group 0 on"
    assert found.seen[0].startswith(f"rank 0: all_reduce of Float (1,) at {__file__}, line ")
    assert found.seen[0].endswith("in one_too_many")
    assert found.seen[1].startswith("rank 1: all_gather of Float (3,) at ")


def test_a_rank_that_has_not_come(tmp_path):
    found = found_in(tmp_path, one_leaves, nprocs=3)
    assert found.kind == "rank-did-not-come"
    assert found.cause == (
        "rank 1 has not come to all_reduce, call 2 of group 0, where ranks 0 and 2 wait"
    )
    assert found.seen[-1].startswith("rank 1: broadcast of Float (5,) at ")
    assert found.seen[-1].endswith("call 1, its last one")
    assert "under `if rank == ...`" in found.advice


def test_a_group_of_some_ranks(tmp_path):
    found = found_in(tmp_path, in_a_smaller_group, nprocs=3)
    assert found.kind == "rank-did-not-come"
    assert found.cause.startswith(
        "rank 2 has not come to all_reduce, call 2 of group 1, where rank 0"
    )


def test_different_sizes(tmp_path):
    found = found_in(tmp_path, of_two_sizes)
    assert found.kind == "different-collective"
    assert ["(1,)" in found.seen[0], "(2,)" in found.seen[1]] == [True, True]


def test_ranks_that_agree(tmp_path):
    assert found_in(tmp_path, alike, nprocs=3) is None


def test_all_came_and_the_network_is_to_blame(tmp_path):
    """nccl alone tells that a call has begun and is not done: two real records, so changed."""
    assert found_in(tmp_path, alike) is None
    dumps = read_dumps(tmp_path)
    for dump in dumps.values():
        dump["entries"][1]["state"] = "started"
        dump["pg_config"]["0"] = {"ranks": "[0, 1, 2]"}
    found = diagnose_dumps(dumps)
    assert found.kind == "collective-not-finished"
    assert "came to all_reduce, call 2 of group 0, and none is through" in found.cause
    assert "there is no dump of rank 2" in found.cause
    for dump in dumps.values():
        dump["pg_config"]["0"] = {"ranks": "[0, 1]"}
    assert "look at the network and the GPUs" in diagnose_dumps(dumps).advice


def test_other_files_are_passed_over_and_nothing_in_them_is_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "rank_0").write_bytes(pickle.dumps({"entries": [Harm()]}))
    (tmp_path / "rank_1").write_bytes(pickle.dumps({"entries": []})[:-3])
    (tmp_path / "rank_2").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "slurm-17").write_text("a log")
    (tmp_path / "rank_4.json").write_text('{"entries": []}')
    (tmp_path / "attempt_5").mkdir()
    assert read_dumps(tmp_path) == {4: {"entries": []}}
    assert not (tmp_path / "harm").exists()


def test_the_command_reads_a_folder_of_records(tmp_path, capsys):
    found_in(tmp_path, one_too_many)
    assert main(["diagnose", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "why: the ranks make different calls, from call 2 of group 0 on [different-collective]"
    )
    assert printed[1].startswith("  rank 0: all_reduce of Float (1,) at ")
    assert printed[3].startswith("what to do: let all ranks make the same calls")
    assert len(printed) == 4
