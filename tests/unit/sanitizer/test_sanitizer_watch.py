"""What the training does, seen from outside: orders, workers, loaders, wrapped models."""

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from one_process import sessions
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data._utils import fetch

from ddp_helpers.sanitizer.checks import slow
from ddp_helpers.sanitizer.checks.slow import SlowChecker, count_buckets
from ddp_helpers.sanitizer.compare.records import Edit, Edits
from ddp_helpers.sanitizer.talk.codec import decode
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.order import Order
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.worker_watch import BATCHES, ROOM, WorkerInit, WorkerRecord
from ddp_helpers.sanitizer.watch.wrapped import Registry, SinceStep, Wrapped

# ---- order


class Group:
    def __init__(self, name="world", size=2):
        self.group_name, self._size = name, size

    def size(self):
        return self._size


METHODS = ("allreduce", "broadcast", "reduce", "barrier", "send")


@pytest.fixture
def order(monkeypatch):
    """A rank's order, and the methods that count."""
    session = sessions(2)[0]
    for name in METHODS:
        monkeypatch.setattr(dist.ProcessGroup, name, lambda *_: "work")
    made = Order(session)
    made.put_patches()
    yield made
    session.patches.undo()


def options(asynchronous=False, root=None):
    made = SimpleNamespace(asyncOp=asynchronous)
    if root is not None:
        made.rootRank = root
    return made


def test_collectives_order_all_ranks(order):
    group = Group()
    assert dist.ProcessGroup.allreduce(group, [], options()) == "work"
    assert dist.ProcessGroup.barrier(group, options()) == "work"
    now = order.now()
    assert (now.entered, now.left, now.roots, now.loose) == ({"world": 2}, {"world": 2}, {}, 0.0)
    assert now.clock > 0
    dist.ProcessGroup.broadcast(group, [], options(root=1))
    now = order.now()
    assert (now.entered, now.left) == ({"world": 3}, {"world": 2})
    assert (now.roots, now.loose) == ({"world/1": 3}, 0.0)
    order.reset()
    now = order.now()
    assert (now.entered, now.left, now.roots, now.loose) == ({}, {}, {}, 0.0)


@pytest.mark.parametrize(
    ("name", "group", "given", "entered"),
    [
        ("send", Group(), ([], 1), 0),
        ("reduce", Group(), ([], options(root=0)), 0),
        ("allreduce", Group(size=1), ([], options()), 1),
        ("allreduce", Group(), ([], options(asynchronous=True)), 1),
    ],
)
def test_what_orders_ranks_in_another_way(order, name, group, given, entered):
    getattr(dist.ProcessGroup, name)(group, *given)
    now = order.now()
    assert (now.entered.get("world", 0), now.left, now.roots) == (entered, {}, {})
    assert 0 < now.loose <= now.clock


def test_nothing_is_counted_without_a_channel(order):
    order.session.channel = None
    assert dist.ProcessGroup.allreduce(Group(), [], options()) == "work"
    assert order.now().entered == {}


def test_what_ddp_does_orders_ranks(order):
    ddp = SimpleNamespace(process_group=Group(), require_backward_grad_sync=True, training=True)
    order.wrapped(ddp)
    assert (order.now().entered, order.now().left) == ({"ddp/world": 1}, {"ddp/world": 1})
    order.went_back([])
    assert order.now().entered == {"ddp/world": 1}  # no forward came before
    order.forward(ddp, (), {})
    order.went_back([])
    order.went_back([])
    assert (order.now().entered, order.now().left) == ({"ddp/world": 2}, {"ddp/world": 2})
    for changes in ({"require_backward_grad_sync": False}, {"training": False}):
        order.forward(SimpleNamespace(**{**vars(ddp), **changes}), (), {})
        order.went_back([])
    with torch.no_grad():
        order.forward(ddp, (), {})
        order.went_back([])
    assert order.now().entered == {"ddp/world": 2}
    assert order.now().loose == 0.0
    order.wrapped(SimpleNamespace(process_group=Group(size=1)))
    assert order.now().entered == {"ddp/world": 2}
    assert order.now().loose > 0


# ---- workers


def test_a_worker_writes_what_it_drew(tmp_path):
    path = tmp_path / "draws"
    path.write_bytes(b"\0" * 2 * ROOM)
    called = []
    original = fetch._MapDatasetFetcher.fetch
    WorkerInit(called.append, str(path))(1)
    assert called == [1]
    assert fetch._MapDatasetFetcher.fetch is not original

    class Data:
        def __getitem__(self, index):
            return torch.rand(5)[0]

    loader = fetch._MapDatasetFetcher(Data(), True, torch.stack, False)
    torch.manual_seed(3)
    for number in range(1, BATCHES + 3):
        assert len(loader.fetch([0, 1])) == 2
        record = decode(path.read_bytes()[ROOM:].strip(b" \0"), WorkerRecord)
        assert len(record.batches) == min(number, BATCHES)
    assert fetch._MapDatasetFetcher.fetch is original
    assert path.read_bytes()[:ROOM] == b"\0" * ROOM  # that is another worker's
    assert path.stat().st_size == 2 * ROOM
    assert [batch.size for batch in record.batches] == [2] * BATCHES
    assert [batch.draws["torch"][1] for batch in record.batches[1:]] == [10] * (BATCHES - 1)
    assert [batch.draws["random"][1] for batch in record.batches] == [0] * BATCHES
    assert len({batch.draws["torch"][0] for batch in record.batches}) == BATCHES


def test_a_worker_that_cannot_write_goes_on(tmp_path):
    original = fetch._MapDatasetFetcher.fetch
    WorkerInit(None, str(tmp_path / "no" / "file"))(0)
    loader = fetch._MapDatasetFetcher([1, 2], False, lambda data: data, False)
    assert loader.fetch(1) == 2
    assert fetch._MapDatasetFetcher.fetch is original


# ---- passes

DATA = TensorDataset(torch.arange(12.0))


@pytest.fixture
def passes():
    session = sessions(2)[0]
    made = PassRecorder(session)
    made.put_patches()
    made.begun, made.ended = [], []
    made.on_begin.append(made.begun.append)
    made.on_end.append(made.ended.append)
    yield made
    session.patches.undo()


def test_samplers_of_loaders(passes):
    own = RandomSampler(DATA)
    inner = BatchSampler(own, 3, False)
    plain = [[0, 1], [2]]
    loaders = [
        DataLoader(DATA, 4),
        DataLoader(DATA, 4, sampler=own),
        DataLoader(DATA, batch_sampler=inner),
        DataLoader(DATA, batch_sampler=plain),
        DataLoader(DATA, batch_size=None),
    ]
    for loader in loaders:
        list(loader)
    found = [done.sampler for done in passes.ended]
    assert type(found[0]) is SequentialSampler
    assert found[1:4] == [own, own, plain]
    assert type(found[4]) is SequentialSampler
    assert [done.sizes for done in passes.ended[2:]] == [[3] * 4, [2, 1], [1] * 12]
    assert all(done.complete and done.indices is not None for done in passes.ended)


def test_indices_of_another_kind(passes):
    data = {"a": torch.ones(1), "b": torch.ones(1)}
    list(DataLoader(data, 1, sampler=["a", "b"]))
    (done,) = passes.ended
    assert (done.indices, done.consumed, done.batches, done.complete) == (None, None, 2, True)


def test_an_iterator_that_is_kept_after_its_end(passes):
    iterator = iter(DataLoader(DATA, 6))
    assert len(list(iterator)) == 2
    with pytest.raises(StopIteration):
        next(iterator)
    assert len(passes.ended) == 1
    passes.close_all()
    assert len(passes.ended) == 1


def test_a_pass_that_is_over_counts_no_more(passes):
    loader = DataLoader(DATA, 4)
    first = iter(loader)
    next(first)
    iter(loader)
    (done,) = passes.ended
    next(first)
    assert (done.batches, done.sizes) == (1, [4])
    passes.went_back([])
    assert passes.current is done
    assert done.backwards == 1
    passes.forget_all()
    passes.went_back([])
    assert (passes.current, done.backwards) == (None, 1)


def test_passes_of_one_loop_are_numbered(passes):
    for _ in range(3):
        list(DataLoader(DATA, 6))
    list(DataLoader(DATA, 6))
    keys = [done.key for done in passes.ended]
    assert [key.rpartition("#")[2] for key in keys] == ["0", "1", "2", "0"]
    assert len({done.loop for done in passes.ended[:3]}) == 1
    assert passes.ended[3].loop != passes.ended[0].loop
    assert passes.begun == passes.ended


def test_a_loader_without_a_channel(passes):
    passes.session.channel = None
    assert len(list(DataLoader(DATA, 6))) == 2
    assert passes.begun == []


# ---- wrapped models


def wrapped(count=3, hooks=()):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(count)]
    ddp = SimpleNamespace(_comm_hooks=list(hooks))
    made = Wrapped(
        0, "world", [0, 1], [f"p{n}" for n in range(count)],
        [weakref.ref(p) for p in parameters], {id(p) for p in parameters}, lambda: ddp,
    )  # fmt: skip
    made.weights = made.fingerprint()
    return made, parameters


def test_edits_are_noted():
    model, parameters = wrapped(25)
    assert model.note_edits() == model.weights
    assert model.edits() == Edits()
    with torch.no_grad():
        for parameter in parameters[1:]:
            parameter += 1
    model.edit = Edit("load_state_dict", ("x.py", 1, "f"))
    assert model.note_edits() == model.fingerprint() != model.weights
    assert model.edited == list(range(1, 25))
    assert model.edits() == Edits(tuple(range(1, 21)), model.edit)
    model.edited, model.steps = [], 1  # the weights are those of an older step
    model.note_edits()
    assert model.edited == []


def test_hooks_that_let_ranks_drift_apart():
    def post_localSGD_hook(state, bucket):
        """As torch's own is named."""

    class LocalSGD:
        def __call__(self, state, bucket):
            """A hook may be any object."""

    def other(state, bucket):
        """One that averages."""

    for hook, drifts in ((post_localSGD_hook, True), (LocalSGD(), True), (other, False)):
        model, _ = wrapped(hooks=[(hook, None)])
        assert model.is_local_sgd() is drifts
        assert model.has_hook()
    model, _ = wrapped()
    assert not model.is_local_sgd()
    assert not model.has_hook()
    model.ddp = lambda: None
    assert not model.is_local_sgd()


def test_a_model_after_a_join():
    model, _ = wrapped()
    model.steps, model.synced, model.buffer_syncs = 3, 4, 5
    model.since.local = 2
    assert model.key == "world/0/0"
    model.start_anew()
    assert model.key == "world/0/1"
    assert (model.steps, model.synced, model.buffer_syncs, model.weights_at) == (0, 0, 0, None)
    assert model.since == SinceStep()


def test_an_empty_registry():
    registry = Registry()
    assert registry.next_number("world") == 0
    assert registry.find(torch.ones(1)) is None
    assert registry.of(object()) is None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert registry.stepped_by(optimizer) == []


# ---- what is slow


@pytest.mark.parametrize(
    ("sizes", "cap", "count"),
    [([10, 5], 15, 1), ([5, 10], 10, 2), ([10, 5], 10, 1), ([1], 10, 1), ([10], 10, 1), ([], 1, 0)],
)
def test_buckets_are_filled_from_the_last_parameter(sizes, cap, count):
    assert count_buckets(sizes, cap) == count


@pytest.mark.parametrize(("workers", "cores", "told"), [(5, 4, True), (4, 4, False), (1, 0, False)])
def test_loader_workers_that_are_too_many(monkeypatch, workers, cores, told):
    monkeypatch.setattr(slow, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    session = Session()
    session.world_size = 2
    checker = SlowChecker(session)
    loader = DataLoader(DATA, num_workers=workers)
    for _ in range(2):
        checker.pass_begins(SimpleNamespace(loader=lambda: loader))
    checker.pass_begins(SimpleNamespace(loader=lambda: None))
    if not told:
        assert session.findings == []
        return
    (found,) = session.findings
    assert (found.kind, found.serious, found.ranks) == ("too-many-workers", False, (0, 1))
    assert found.cause == "2 ranks with 5 loader workers each share 4 cores"
    assert found.advice == "num_workers=2 is as fast here, or faster"
    assert (found.step, found.place, found.details) == (None, None, ())
