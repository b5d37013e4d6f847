"""Which backend follows from what the ranks tell of their GPUs: a rule, tried on made-up machines.

No GPU is needed: what a rank sees is given. The agreement over a store is tried with real ones.
"""

import json
import socket
import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.group import devices, lifetime
from ddp_helpers.group.devices import Decision, Seen, agree, decide, look, visible_gpus


def machine(host, gpus_of_ranks, first=0, **more):
    """A rank for each entry: the GPUs that it sees."""
    return [
        Seen(first + local, local, host, tuple(gpus), **more)
        for local, gpus in enumerate(gpus_of_ranks)
    ]


@st.composite
def clusters(draw):
    """Machines with GPUs, of which each rank sees any, in any order."""
    told = []
    for host in range(draw(st.integers(1, 3))):
        names = [f"GPU-{host}-{n}" for n in range(draw(st.integers(0, 4)))]
        for local in range(draw(st.integers(1, 4))):
            seen = draw(st.permutations(names))[: draw(st.integers(0, len(names)))]
            told.append(Seen(len(told), local, f"node{host}", tuple(seen)))
    return told


@given(clusters(), st.sampled_from([None, "nccl", "gloo"]), st.randoms())
def test_nccl_exactly_where_each_rank_has_a_gpu_of_its_own(told, backend, chance):
    told = [replace(seen, backend=backend) for seen in told]
    chosen = [seen.gpu for seen in told]
    own = None not in chosen and len(set(chosen)) == len(chosen)
    decision = decide(told)
    if backend == "gloo":
        assert decision == Decision("gloo")
    elif own:
        assert decision == Decision("nccl")
    elif backend == "nccl":
        assert decision.error.startswith('backend="nccl"')
        assert decision.error.endswith('backend="gloo"')
    else:
        assert decision.backend == "gloo"
        assert not decision.error
        # a GPU that is there and not used is told
        assert bool(decision.note) == any(seen.gpus for seen in told)
    assert "\n" not in decision.note + decision.error
    # how machines and GPUs are called decides nothing
    renamed = [replace(s, host=f"x{s.host}", gpus=tuple(f"{gpu}!" for gpu in s.gpus)) for s in told]
    assert decide(renamed).backend == decision.backend


@given(st.integers(1, 8), st.integers(1, 4))
def test_one_gpu_for_each_task_is_that_of_the_task(ranks, hosts):
    told = []
    for host in range(hosts):
        one_each = [[f"GPU-{host}-{local}"] for local in range(ranks)]
        told += machine(f"node{host}", one_each, first=len(told))
    assert decide(told) == Decision("nccl")
    assert {seen.index for seen in told} == {0}
    shared = [replace(seen, gpus=("GPU-0-0",)) for seen in told]
    expected = "gloo" if len(told) > 1 else "nccl"
    assert decide(shared).backend == expected


@given(st.integers(1, 8), st.integers(0, 8))
def test_where_all_ranks_see_all_gpus_the_local_rank_is_the_number(ranks, spare):
    names = [f"GPU-{n}" for n in range(ranks + spare)]
    told = machine("node", [names] * ranks)
    assert decide(told) == Decision("nccl")
    assert [seen.index for seen in told] == list(range(ranks))


ALL = ["A", "B"]
BLIND = {"hidden_by": ""}


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            machine("n", [ALL] * 3),
            "note: 3 ranks, but this machine has 2 GPUs: all ranks take gloo on the CPU; for nccl "
            "use 2 ranks",
        ),
        (
            machine("n", [["A"]] * 2),
            "note: 2 ranks, but this machine has 1 GPU: all ranks take gloo on the CPU; for nccl "
            "use 1 rank",
        ),
        (
            machine("a", [ALL] * 2) + machine("b", [["C"]] * 2, first=2),
            "note: 2 ranks, but b has 1 GPU: all ranks take gloo on the CPU; for nccl use 1 rank "
            "there",
        ),
        (
            machine("n", [ALL, []]),
            "note: rank 1 sees no GPU: all ranks take gloo on the CPU; for nccl use a GPU for each "
            "rank (Slurm: --gpus-per-task=1)",
        ),
        (
            machine("n", [["A", "B", "C"], [], []], **BLIND),
            "note: ranks 1 and 2 see no GPU (CUDA_VISIBLE_DEVICES='' hides them): all ranks take "
            "gloo on the CPU; for nccl use a GPU for each rank (Slurm: --gpus-per-task=1)",
        ),
        (
            machine("n", [["A", "B"], ["B", "A"]]),
            "note: ranks 0 and 1 would share the GPU A: all ranks take gloo on the CPU; for nccl "
            "use the same CUDA_VISIBLE_DEVICES in all of them, or another GPU in each",
        ),
        (
            [*machine("n", [["A"]]), Seen(1, 1, "n", (), has_nccl=False)],
            "note: rank 1's PyTorch build has no NCCL: all ranks take gloo on the CPU",
        ),
        (
            machine("n", [[]], trouble="CUDA driver version is insufficient"),
            "note: rank 0 can't ask its GPUs (CUDA driver version is insufficient): all ranks take "
            "gloo on the CPU; for nccl use a driver that works (nvidia-smi tells)",
        ),
        (machine("n", [[], []]), ""),
    ],
)
def test_unused_gpus_are_told_with_the_reason_and_the_way_out(told, text):
    assert decide(told) == Decision("gloo", note=text)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            machine("n", [ALL] * 3, backend="nccl"),
            'backend="nccl" with 3 ranks, but this machine has 2 GPUs: use 2 ranks, or '
            'backend="gloo"',
        ),
        (
            machine("n", [[]], backend="nccl"),
            'backend="nccl" with 1 rank, but this machine has 0 GPUs: use backend="gloo"',
        ),
        (
            machine("n", [[]], backend="nccl", hidden_by=""),
            "backend=\"nccl\" with 1 rank, but this machine has 0 GPUs (CUDA_VISIBLE_DEVICES='' "
            'hides them): use the GPUs after `unset CUDA_VISIBLE_DEVICES`, or backend="gloo"',
        ),
        (
            machine("n", [[]], backend="nccl", has_nccl=False),
            'backend="nccl", but this PyTorch build has no NCCL: use backend="gloo"',
        ),
        (
            [*machine("n", [["A"]], backend="nccl"), Seen(1, 1, "n", ("B",), backend="gloo")],
            'rank 1 asks for backend="gloo", rank 0 asks for backend="nccl": give all ranks the '
            "same",
        ),
    ],
)
def test_what_was_asked_for_and_can_not_be_had_is_an_error(told, text):
    assert decide(told).error == text


def test_who_asks_for_nothing_takes_what_another_asks_for():
    told = [*machine("n", [["A"]], backend="nccl"), Seen(1, 1, "n", ("B",))]
    assert decide(told) == Decision("nccl")
    told[0] = replace(told[0], backend="gloo")
    assert decide(told) == Decision("gloo")


# ---- what a rank tells


def test_gpus_are_named_by_their_uuid(monkeypatch):
    count = 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    asked = []

    def properties(index):
        asked.append(index)
        return SimpleNamespace(uuid=f"uuid-{index}")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(devices, "has_nccl", lambda: True)
    assert look(5, 1, None).gpus == ("uuid-0", "uuid-1")
    asked.clear()
    assert look(5, 1, "gloo").gpus == ()
    count = 0  # as with an empty CUDA_VISIBLE_DEVICES
    assert visible_gpus() == ()
    assert asked == []  # CUDA is not touched
    count = 1
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == (f"{socket.gethostname()}:0",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    assert visible_gpus() == (f"{socket.gethostname()}:6",)


def test_a_driver_that_does_not_answer_is_told_and_stops_nobody(monkeypatch):
    def broken():
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore lines")

    monkeypatch.setattr(devices, "visible_gpus", broken)
    monkeypatch.setattr(devices, "has_nccl", lambda: True)
    seen = look(0, 0, None)
    assert (seen.gpus, seen.trouble) == ((), "The NVIDIA driver on your system is too old")


def test_an_empty_cuda_visible_devices_hides_all_gpus(monkeypatch):
    for value in ("", " ", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == ()
        monkeypatch.setattr(devices, "has_nccl", lambda: True)
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=.* hides them.*unset CUDA_VIS"):
            lifetime.init_distributed_mode("nccl", rank=0, world_size=2)


# ---- the agreement


def agreed(stores, told, limit=5.0):
    """What each rank got, each in a thread of its own; or its error."""
    found = [None] * len(told)

    def run(seen):
        try:
            found[seen.rank] = agree(stores(), seen, len(told), timedelta(seconds=limit))
        except Exception as error:
            found[seen.rank] = error

    threads = [threading.Thread(target=run, args=(seen,)) for seen in told if seen is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize("ranks", [2, 5])
def test_all_ranks_get_what_rank_0_decides(tmp_path, ranks):
    for number, told in enumerate(
        [
            machine("n", [[f"GPU-{n}"] for n in range(ranks)]),
            machine("n", [["GPU-0"]] * ranks),
            machine("n", [["GPU-0"]] * ranks, backend="nccl"),
        ]
    ):
        path = str(tmp_path / str(number))
        found = agreed(lambda path=path: dist.FileStore(path, ranks), told)
        assert found == [decide(told)] * ranks


def test_the_rank_that_serves_the_store_does_not_leave_with_the_news(monkeypatch):
    """An error ends rank 0; the others must have read it by then."""
    told = machine("n", [["A"]] * 3, backend="nccl")
    slow = threading.Event()
    store = dist.HashStore()
    left = []

    def rank_0():
        agree(store, told[0], 3, timedelta(seconds=5))
        left.append(slow.is_set())

    thread = threading.Thread(target=rank_0)
    thread.start()
    others = dist.PrefixStore("gpus", store)
    for seen in told[1:]:
        others.set(str(seen.rank), json.dumps(vars(seen)))
    others.wait(["decision"], timedelta(seconds=5))
    assert agree(store, told[1], 3, timedelta(seconds=5)).error
    slow.set()
    assert agree(store, told[2], 3, timedelta(seconds=5)).error
    thread.join(10)
    assert left == [True]


def test_a_rank_that_never_comes_ends_the_wait(tmp_path):
    path = str(tmp_path / "store")
    told = [*machine("n", [["A"], ["B"]]), None]
    found = agreed(lambda: dist.FileStore(path, 3), told, limit=0.5)
    assert all(isinstance(error, dist.DistStoreError) for error in found[:2])


# ---- the rank's own GPU


@pytest.mark.parametrize(
    ("local_rank", "gpus", "index"), [(1, ("B",), 0), (1, ("A", "B"), 1), (2, ("C", "D"), 0)]
)
def test_under_nccl_the_device_is_the_gpu_that_was_told(
    monkeypatch, tmp_path, local_rank, gpus, index
):
    calls = {}
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(devices, "has_nccl", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(set=device))
    monkeypatch.setattr(
        dist, "init_process_group", lambda *args, **kw: calls.update(args=args, **kw)
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    path = str(tmp_path / "store")
    others = dist.PrefixStore("gpus", dist.FileStore(path, 2))
    others.set("decision", json.dumps({"backend": "nccl", "note": "", "error": ""}))
    group = lifetime.init_distributed_mode(
        init_method=f"file://{path}", rank=1, world_size=2, local_rank=local_rank, timeout=10
    )
    device = torch.device("cuda", index)
    assert (group.backend, group.device, group.gpu) == ("nccl", device, index)
    assert (calls["set"], calls["device_id"], calls["args"]) == (device, device, ("nccl",))
    mine = json.loads(others.get("1"))
    assert (mine["gpus"], mine["local_rank"]) == (list(gpus), local_rank)
