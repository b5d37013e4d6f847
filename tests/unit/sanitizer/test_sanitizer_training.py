"""Real training in one process, watched; the other rank of its world is a mirror of this one."""

import sys
from array import array
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from one_process import Mirror
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset
from torch_age import needs_torch

from ddp_helpers.sanitizer.checks import slow
from ddp_helpers.sanitizer.checks.first_steps import FirstStepsRecord
from ddp_helpers.sanitizer.checks.slow import UsedCount
from ddp_helpers.sanitizer.checks.unwrapped import LooseRecord
from ddp_helpers.sanitizer.compare.records import CallRecord, Edits, PassEnd, StepCount, StepRecord
from ddp_helpers.sanitizer.compare.samples import encode_indices
from ddp_helpers.sanitizer.compare.shares import ShareRecord
from ddp_helpers.sanitizer.talk.channel import Channel
from ddp_helpers.sanitizer.talk.session import Options, SanitizerError, Session
from ddp_helpers.sanitizer.watch.ddp_calls import BACKWARD, BUFFERS, WRAP
from ddp_helpers.sanitizer.wiring import watch


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of this process alone; the sanitizer takes it for one of two ranks."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def watched(monkeypatch):
    """Begin to watch as a rank; returns the session, the mirror and the parts."""
    begun = []
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(slow, "usable_cores", lambda: 64)

    def begin(rank=1, **options):
        session, mirror = Session(Options(**options)), Mirror(rank)
        session.rank, session.world_size, session.timeout = rank, 2, 1.0
        session.channel = Channel(mirror, rank, 2)
        begun.append(session)
        return session, mirror, watch(session)

    yield begin
    for session in begun:
        session.patches.undo()


def model(**changes):
    torch.manual_seed(3)
    return torch.nn.Linear(3, 2, **changes)


def train(
    steps=3, ddp=None, optimizer=None, forward=None, before_step=lambda step: None, data=None
):
    """A few steps; returns the wrapper."""
    ddp = DistributedDataParallel(model()) if ddp is None else ddp
    optimizer = optimizer or torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(steps):
        x = torch.randn(4, 3) if data is None else data[step]
        optimizer.zero_grad()
        loss = (forward or ddp)(x).pow(2).mean()
        loss.backward()
        before_step(step)
        optimizer.step()
    return ddp


def found_by(call):
    with pytest.raises(SanitizerError) as error:
        call()
    return error.value.finding


def kinds(session):
    return [finding.kind for finding in session.findings]


def calls(mirror, op):
    return [record for record in mirror.records("call", CallRecord) if record.op == op]


def states(change):
    """A change of the model's state that comes with a backward."""

    def changed(record):
        if record.backward is None:
            return record
        made = {number: change(state) for number, state in record.backward.models.items()}
        return replace(record, backward=replace(record.backward, models=made))

    return changed


# ---- what is told


def test_a_training_that_is_right(watched):
    session, mirror, parts = watched()
    train(4)
    session.group_ends()
    assert kinds(session) == []
    assert session.step == 4
    (wrapped,) = parts.registry.models
    assert (wrapped.steps, wrapped.synced, wrapped.number) == (4, 4, 0)
    assert wrapped.names == ["weight", "bias"]
    steps = mirror.records("step", StepRecord)
    assert [record.step for record in steps] == [0, 1, 2, 3]
    assert [record.synced for record in steps] == [1, 2, 3, 4]
    assert [(record.since, record.elsewhere) for record in steps] == [(1, 0)] * 4
    assert all(record.which == (0, 1) and not record.in_no_sync for record in steps)
    assert all(record.edits == Edits() and record.optimizer == "SGD" for record in steps)
    assert steps[0].settings[0]["lr"] == 0.1
    assert steps[3].after == wrapped.fingerprint()
    assert len({record.grads for record in steps}) == 4
    assert steps[0].stack[-1][2] == "train"


def test_what_is_told_of_a_wrap(watched):
    _, mirror, _ = watched()
    made = model()
    made.bias.requires_grad_(False)
    DistributedDataParallel(made)
    (record,) = calls(mirror, WRAP)
    told = [(p.name, p.shape, p.dtype, p.trainable) for p in record.signature]
    assert told == [("weight", (2, 3), "float32", True), ("bias", (2,), "float32", False)]
    assert (record.called, record.model, record.step) == ("DistributedDataParallel(...)", 0, 0)
    assert record.stack[-1][2] == "test_what_is_told_of_a_wrap"
    DistributedDataParallel(model())
    assert [record.model for record in calls(mirror, WRAP)] == [0, 1]


def test_what_is_told_of_a_backward(watched):
    _, mirror, _ = watched()
    train(2)
    (first, second) = calls(mirror, BACKWARD)
    assert first.called == "backward of a DDP model"
    assert [(term.count, term.weight) for term in first.backward.terms] == [(8, 1 / 8)]
    assert list(first.backward.models) == [0]
    assert first.backward.models[0].steps == 0
    assert first.backward.models[0].last == 0
    assert second.backward.models[0].steps == 1
    assert second.backward.models[0].last != 0
    assert first.backward.models[0].weights != second.backward.models[0].weights
    assert second.before.op == BACKWARD


def test_what_is_told_of_buffers(watched):
    _, mirror, _ = watched(every=2)
    net = torch.nn.Sequential(model(), torch.nn.BatchNorm1d(2))
    ddp = DistributedDataParallel(net)
    train(3, ddp)
    ddp.eval()
    ddp(torch.randn(4, 3))
    ddp(torch.randn(4, 3))
    told = [(record.mode, record.model) for record in calls(mirror, BUFFERS)]
    assert told == [("training", 0)] * 2 + [("evaluation", 0)]


def test_a_scaled_loss_and_a_gradient_that_is_given(watched):
    _, mirror, _ = watched()
    ddp = DistributedDataParallel(model())
    loss = ddp(torch.randn(4, 3)).mean()
    loss.backward(torch.tensor(0.5))
    ddp(torch.randn(4, 3)).backward(torch.ones(4, 2))
    terms = [record.backward.terms for record in calls(mirror, BACKWARD)]
    assert [(t.count, t.weight) for t in terms[0]] == [(8, 1 / 16)]
    assert terms[1] == ()


def test_a_hook_takes_the_averaging_into_its_own_hands(watched):
    _, mirror, _ = watched()
    ddp = DistributedDataParallel(model())
    ddp.register_comm_hook(None, lambda state, bucket: _future(bucket.buffer()))
    train(1, ddp)
    assert calls(mirror, BACKWARD)[0].backward.terms is None


def _future(tensor):
    future = torch.futures.Future()
    future.set_result(tensor)
    return future


def test_now_and_then_only(watched):
    session, mirror, _ = watched(every=3)
    train(7)
    assert [record.step for record in mirror.records("step", StepRecord)] == [0, 3, 6]
    assert len(calls(mirror, BACKWARD)) == 3
    session.group_ends()
    assert kinds(session) == []


# ---- what differs


def test_settings_that_differ(watched):
    session, mirror, _ = watched()
    mirror.change("step", StepRecord, lambda r: replace(r, settings=({"lr": 0.2},)))
    mirror.change("call", CallRecord, states(lambda s: replace(s, last=s.last + 1)))
    found = found_by(train)
    assert (found.kind, found.ranks) == ("different-learning-rates", (0, 1))
    assert "0.2 on rank 0" in found.cause
    assert kinds(session) == ["different-learning-rates"]


def test_a_step_that_is_known_to_be_alike_is_not_compared(watched):
    session, mirror, _ = watched()
    mirror.change("step", StepRecord, lambda r: replace(r, settings=({"lr": 0.2},)))
    train(3)
    assert found_by(session.group_ends).step == 2  # the last one has no backward after it


def test_weights_that_differ(watched):
    _, mirror, _ = watched()
    other = states(lambda s: replace(s, weights="x" + s.weights))
    mirror.change("call", CallRecord, other)
    found = found_by(train)
    assert (found.kind, found.ranks) == ("weights-differ", (0, 1))
    assert "from the wrap on; the first is `weight`" in found.cause


def test_weights_that_differ_after_a_step(watched):
    _, mirror, _ = watched()
    later = lambda s: replace(s, weights=s.weights.replace(",", ",x")) if s.steps else s
    mirror.change("call", CallRecord, states(later))
    found = found_by(train)
    assert "since optimizer step 0" in found.cause
    assert "`bias`" in found.cause
    assert found.step == 1


def test_a_step_that_explains_what_differs(watched):
    _, mirror, _ = watched()
    later = lambda s: replace(s, weights="x", last=1) if s.steps else s
    mirror.change("call", CallRecord, states(later))
    mirror.change("step", StepRecord, lambda r: replace(r, grads="x,y", in_no_sync=True))
    assert found_by(train).kind == "ended-inside-no-sync"


def test_the_next_step_tells_a_cause_that_was_not_looked_at(watched):
    _, mirror, parts = watched(every=2)
    later = lambda s: replace(s, weights="x,y") if s.steps else s
    mirror.change("call", CallRecord, states(later))
    mirror.change("step", StepRecord, lambda r: replace(r, settings=()) if r.step > 1 else r)
    train(3)
    assert not parts.session.findings
    (wrapped,) = parts.registry.models
    assert not wrapped.look_closely  # the third step was looked at


def test_numbers_of_steps_that_differ(watched):
    _, mirror, _ = watched()
    mirror.change("call", CallRecord, states(lambda s: replace(s, steps=s.steps + 1)))
    found = found_by(train)
    assert (found.kind, found.ranks) == ("steps-differ", (1,))
    assert "1 on rank 0, 0 on rank 1" in found.cause


def test_numbers_of_steps_at_the_end(watched):
    session, mirror, _ = watched()
    train(2)
    mirror.change("step/end", StepCount, lambda record: replace(record, steps=5))
    found = found_by(session.group_ends)
    assert found.kind == "steps-differ"
    assert "5 on rank 0, 2 on rank 1" in found.cause
    assert mirror.records("step/end", StepCount) == [StepCount(2, 2, 2)]


def test_weights_that_were_edited(watched):
    _, mirror, _ = watched()
    made = model()
    ddp = DistributedDataParallel(made)
    train(1, ddp)
    made.load_state_dict(torch.nn.Linear(3, 2).state_dict())
    mirror.change("call", CallRecord, states(lambda s: replace(s, weights="x,y", edits=Edits())))
    found = found_by(lambda: train(1, ddp))
    assert (found.kind, found.ranks) == ("changed-after-wrap", (1,))
    assert "rank 1 only (by load_state_dict)" in found.cause
    assert found.details[0].startswith("rank 1: load_state_dict at ")


def test_an_edit_by_torchs_init(watched):
    _, mirror, parts = watched()
    ddp = DistributedDataParallel(model())
    torch.nn.init.ones_(ddp.module.bias)
    (wrapped,) = parts.registry.models
    assert wrapped.edit.what == "torch.nn.init.ones_"
    assert wrapped.edit.place[2] == "test_an_edit_by_torchs_init"
    train(1, ddp)
    (record,) = calls(mirror, BACKWARD)
    assert record.backward.models[0].edits.edited == (1,)
    assert mirror.records("step", StepRecord)[0].edits.edited == (1,)
    assert (wrapped.edit, wrapped.edited) == (None, [])  # the step is over


def test_models_that_differ(watched):
    _, mirror, _ = watched()

    def smaller(record):
        return replace(record, signature=record.signature[:1])

    mirror.change("call", CallRecord, smaller)
    found = found_by(lambda: DistributedDataParallel(model()))
    assert found.kind == "different-models"
    assert "parameter 1, `bias`" in found.cause


def test_a_fault_makes_the_check_quiet(watched):
    session, mirror, parts = watched()
    parts.registry.stepped_by = lambda optimizer: 1 / 0
    train(2)
    assert set(kinds(session)) == {"sanitizer-fault"}
    assert "weights-off/1" in mirror.values
    assert "quiet/1" in mirror.values


def test_a_rank_whose_check_is_off_is_no_difference(watched):
    session, mirror, _ = watched()
    mirror.change("call", CallRecord, states(lambda s: replace(s, weights="x,y")))
    mirror.values["weights-off/1"] = b"true"
    train(2)
    assert kinds(session) == []


# ---- backward passes


def test_accumulation_without_no_sync(watched):
    session, mirror, _ = watched()
    ddp = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(2):
        assert kinds(session) == []
        for _ in range(3):
            ddp(torch.randn(2, 3)).mean().backward()
        optimizer.step()
    (found,) = session.findings
    assert (found.kind, found.serious, found.step) == ("accumulation-without-no-sync", False, 1)
    assert found.cause.startswith("each of 3 backward passes before one optimizer step averages")
    assert "`with ddp.no_sync():`" in found.advice
    assert found.place.function == "test_accumulation_without_no_sync"
    assert [record.since for record in mirror.records("step", StepRecord)] == [3, 3]


def test_accumulation_within_no_sync(watched):
    session, mirror, parts = watched()
    ddp = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        with ddp.no_sync():
            ddp(torch.randn(2, 3)).mean().backward()
            assert parts.registry.models[0].since.local == 1
        ddp(torch.randn(2, 3)).mean().backward()
        optimizer.step()
    assert kinds(session) == []
    assert [record.since for record in mirror.records("step", StepRecord)] == [1] * 3
    with ddp.no_sync():
        ddp(torch.randn(2, 3)).mean().backward()
    optimizer.step()
    last = mirror.records("step", StepRecord)[-1]
    assert (last.in_no_sync, last.since) == (True, 0)


def test_a_forward_past_the_wrapper(watched):
    session, mirror, _ = watched()
    ddp = DistributedDataParallel(model())
    train(2, ddp, forward=lambda x: ddp.module(x))
    records = mirror.records("step", StepRecord)
    assert [(record.since, record.elsewhere) for record in records] == [(0, 1), (0, 1)]
    assert calls(mirror, BACKWARD) == []
    mirror.change("step", StepRecord, lambda r: replace(r, grads="x,y"))
    found = found_by(lambda: train(1, ddp, forward=lambda x: ddp.module(x)))
    assert found.kind == "forward-skipped-ddp"
    assert session.step == 2


class Partly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = model(), model()

    def forward(self, x):
        return self.used(x)


def test_parameters_that_are_not_used(watched):
    session, _, _ = watched()
    found = found_by(lambda: train(1, DistributedDataParallel(Partly())))
    assert (found.kind, found.ranks) == ("unused-parameters", (0, 1))
    assert found.cause == (
        "2 parameters of the wrapped model took no part in the loss on ranks 0 and 1: "
        "`unused.weight`, `unused.bias`; DDP waits for a gradient of each"
    )
    assert "find_unused_parameters=True" in found.advice
    assert (found.step, found.place.function) == (0, "train")
    assert session.findings == [found]


def test_unused_parameters_are_looked_for_now_and_then(watched):
    session, _, _ = watched(every=2)
    ddp = DistributedDataParallel(Partly())
    train(1, ddp, forward=lambda x: ddp(x) + ddp.module.unused(x))
    assert kinds(session) == []
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        train(2, ddp)  # DDP itself complains before our next look
    assert kinds(session) == []


@needs_torch(2, 7, "init_sync")
def test_init_sync_is_not_waited_for(watched):
    """Whoever wraps without a first broadcast need not come together."""
    session, mirror, _ = watched()
    mirror.change("call", CallRecord, lambda record: None)
    DistributedDataParallel(model(), init_sync=False)
    assert kinds(session) == []
    assert len(calls(mirror, WRAP)) == 1


def test_weights_that_drift_apart_on_purpose(watched):
    session, mirror, _ = watched()
    ddp = DistributedDataParallel(model())

    def post_localSGD_hook(state, bucket):
        return _future(bucket.buffer())

    ddp.register_comm_hook(None, post_localSGD_hook)
    train(2, ddp)
    session.group_ends()
    assert [c.backward.models[0].weights for c in calls(mirror, BACKWARD)] == ["", ""]
    assert mirror.records("step", StepRecord) == []
    assert kinds(session) == []


def test_unused_parameters_that_are_allowed(watched):
    session, _, _ = watched()
    train(2, DistributedDataParallel(Partly(), find_unused_parameters=True))
    frozen = Partly()
    frozen.unused.requires_grad_(False)
    train(2, DistributedDataParallel(frozen))
    assert kinds(session) == []


def test_parameters_that_became_trainable(watched):
    watched()
    made = model()
    made.bias.requires_grad_(False)
    ddp = DistributedDataParallel(made)
    made.bias.requires_grad_(True)
    found = found_by(lambda: train(1, ddp))
    assert found.kind == "trainable-after-wrap"
    assert "steps 1 parameters that became trainable, or were added, after the wrap" in found.cause
    assert "`bias`" in found.cause


def test_parameters_that_were_added(watched):
    session, _, _ = watched()
    ddp = DistributedDataParallel(model())
    ddp.module.extra = torch.nn.Parameter(torch.ones(2))
    forward = lambda x: ddp(x) * ddp.module.extra
    session.step = 3
    found = found_by(lambda: train(1, ddp, forward=forward))
    assert found.kind == "trainable-after-wrap"
    assert "`extra`" in found.cause
    assert (found.step, found.ranks, found.place.function) == (3, (), "train")
    assert session.findings == [found]


def test_a_collective_within_a_loss(watched):
    session, _, _ = watched()
    ddp = DistributedDataParallel(model())

    def forward(x):
        out = ddp(x) * 1
        dist.all_reduce(out)
        return out

    found = found_by(lambda: train(1, ddp, forward=forward))
    assert found.kind == "no-gradient-through-collective"
    assert found.cause.startswith("a backward goes through the result of all")
    assert found.place.function == "forward"
    assert session.step == 0


@pytest.mark.skipif("mutmut" in sys.modules, reason="its own frames stand between")
def test_a_collective_has_the_name_by_which_the_reader_called_it(watched):
    _, mirror, _ = watched()
    dist.all_reduce(torch.ones(1))
    dist.broadcast(torch.ones(1), src=0)
    dist.barrier()
    called = [record.called for record in mirror.records("call", CallRecord)]
    assert called == ["all_reduce", "broadcast", "barrier"]


def test_what_is_told_of_collectives(watched):
    _, mirror, _ = watched()
    dist.all_reduce(torch.ones(2, 3), op=dist.ReduceOp.MAX)
    dist.broadcast(torch.ones(4, dtype=torch.int64), src=0)
    dist.all_gather([torch.ones(5)], torch.ones(5))
    dist.barrier()
    told = mirror.records("call", CallRecord)
    assert [record.reduce for record in told] == ["MAX", None, None, None]
    assert [record.root for record in told] == [None, 0, None, None]
    kinds_told = [[(each.dtype, each.shape) for each in record.tensors] for record in told]
    assert kinds_told == [[("float32", (2, 3))], [("int64", (4,))], [("float32", (5,))], []]


def test_an_asynchronous_call_is_not_waited_for(watched, monkeypatch):
    session, mirror, _ = watched()
    mirror.change("call", CallRecord, lambda record: None)  # the other rank does not come
    monkeypatch.setattr("ddp_helpers.sanitizer.talk.sequence.ASYNC_PATIENCE", 0.0)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    assert kinds(session) == []
    session.timeout = 0.01
    found = found_by(work.wait)
    assert (found.kind, found.ranks) == ("rank-did-not-come", (0,))


def test_a_loss_that_is_reduced_to_be_printed(watched):
    session, _, _ = watched()
    ddp = DistributedDataParallel(model())

    def show(step):
        shown = loss[0].detach().clone()
        dist.all_reduce(shown)

    loss = []

    def forward(x):
        loss[:] = [ddp(x)]
        return loss[0]

    train(2, ddp, forward=forward, before_step=show)
    assert kinds(session) == []


def test_gathered_tensors_in_a_loss(watched):
    session, _, _ = watched()
    ddp = DistributedDataParallel(model())

    def forward(x):
        out = ddp(x)
        parts = [torch.zeros_like(out)]
        dist.all_gather(parts, out)
        return torch.cat(parts) @ out.t()

    session.step = 3
    found = found_by(lambda: train(1, ddp, forward=forward))
    assert found.kind == "no-gradient-through-collective"
    assert "goes through the result of all" in found.cause
    assert (found.step, found.ranks) == (3, ())
    assert "torch.distributed.nn.functional" in found.advice


# ---- models that nothing averages


def plain(steps, optimizer=None):
    made = model()
    optimizer = optimizer or torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        made(torch.randn(4, 3)).pow(2).mean().backward()
        optimizer.step()
    return made, optimizer


def test_a_model_that_is_not_wrapped(watched):
    session, mirror, _ = watched()
    mirror.change("loose", LooseRecord, lambda r: replace(r, now="x" + r.now))
    found = found_by(lambda: plain(12))
    assert (found.kind, found.ranks, found.step) == ("unwrapped-model", (0, 1), 8)
    assert "SGD steps parameters that no DDP wrapper" in found.cause
    assert (
        "the ranks' copies drift apart; the first that differs is `weight` of a Linear"
        in found.cause
    )
    assert "`model = DistributedDataParallel(model)`" in found.advice
    records = mirror.records("loose", LooseRecord)
    assert [record.steps for record in records] == list(range(9))
    assert records[0].shapes == ((2, 3), (2,))
    assert records[1].seen == records[0].now != records[1].now
    assert {record.first for record in records} == {records[0].now}
    assert all(record.alone and not record.gone for record in records)
    assert session.step == 8
    assert found.place.function == "plain"


def test_loose_parameters_now_and_then(watched):
    session, mirror, _ = watched(every=4)
    kept = plain(10)
    records = mirror.records("loose", LooseRecord)
    assert [record.steps for record in records] == [0, 4, 8]
    session.group_ends()
    last = mirror.records("loose", LooseRecord)[-1]
    assert (last.steps, last.gone) == (10, False)
    assert last.stack == records[-1].stack  # that of the last step, not of the end
    assert kept


def test_parameters_that_are_gone_at_the_end(watched):
    session, mirror, _ = watched()
    plain(3)
    session.group_ends()
    last = mirror.records("loose", LooseRecord)[-1]
    assert (last.gone, last.now) == (True, last.seen)
    assert kinds(session) == []


def test_signs_of_ranks_that_work_together(watched):
    _, mirror, _ = watched()
    kept = [plain(1), DistributedDataParallel(model()), plain(1)]
    assert [record.alone for record in mirror.records("loose", LooseRecord)] == [True, False]
    assert kept


def test_models_that_were_never_alike(watched):
    session, mirror, _ = watched()
    mirror.change("loose", LooseRecord, lambda r: replace(r, now="x,y", seen="x,y", first="x,y"))
    plain(12)
    session.group_ends()
    (found,) = session.findings
    assert "were never alike, and are kept so by nothing" in found.cause
    assert not found.serious  # each rank may train a model of its own


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r,
        lambda r: replace(r, now="x,y", shapes=((2, 4), (2,))),  # a model of its own
        lambda r: replace(r, now="x,y", synchronised=True),
        lambda r: replace(r, now="x,y", first="x,y", alone=False),
    ],
)
def test_models_that_may_differ(watched, change):
    session, mirror, _ = watched()
    mirror.change("loose", LooseRecord, change)
    kept = plain(12)
    session.group_ends()
    assert kinds(session) == []
    assert kept


def test_a_short_run_is_judged_at_its_end(watched):
    session, mirror, _ = watched()
    mirror.change("loose", LooseRecord, lambda r: replace(r, now="x,y"))
    kept = plain(2)
    assert kinds(session) == []
    assert found_by(session.group_ends).kind == "unwrapped-model"
    assert kept


def test_gradients_that_the_program_averages_itself(watched):
    session, mirror, _ = watched()
    mirror.change("loose", LooseRecord, lambda r: replace(r, now="x,y", synchronised=False))
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        made(torch.randn(4, 3)).mean().backward()
        for parameter in made.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
    assert kinds(session) == []


# ---- what is slow


def test_parameters_that_are_always_used(watched):
    session, mirror, _ = watched()
    train(4, DistributedDataParallel(model(), find_unused_parameters=True))
    session.group_ends()
    (found,) = session.findings
    assert (found.kind, found.serious) == ("needless-find-unused", False)
    assert "in 4 backwards every parameter was used" in found.cause
    assert mirror.records("unused", UsedCount) == [UsedCount(4, 0)]


@pytest.mark.parametrize("other", [UsedCount(2, 0), UsedCount(9, 1)])
def test_find_unused_that_is_needed_elsewhere(watched, other):
    session, mirror, _ = watched()
    mirror.change("unused", UsedCount, lambda record: other)
    train(4, DistributedDataParallel(model(), find_unused_parameters=True))
    session.group_ends()
    assert kinds(session) == []


def test_find_unused_that_is_needed(watched):
    session, mirror, _ = watched()
    train(4, DistributedDataParallel(Partly(), find_unused_parameters=True))
    session.group_ends()
    assert kinds(session) == []
    assert mirror.records("unused", UsedCount) == [UsedCount(4, 4)]


def test_tiny_buckets(watched):
    session, _, _ = watched()
    layers = torch.nn.Sequential(*[torch.nn.Linear(30, 30) for _ in range(4)])
    DistributedDataParallel(layers, bucket_cap_mb=0.001)
    (found,) = session.findings
    assert (found.kind, found.serious, found.ranks) == ("tiny-buckets", False, (0, 1))
    assert "where 1 would do: bucket_cap_mb is" in found.cause


def test_threads_and_workers(watched, monkeypatch):
    session, _, _ = watched()
    monkeypatch.setattr(slow, "usable_cores", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    train(2)
    (found,) = session.findings
    assert found.kind == "too-many-threads"
    assert found.cause == "2 ranks with 2 threads each share 2 cores"
    assert found.advice == "torch.set_num_threads(1), or OMP_NUM_THREADS"


# ---- data

DATA = TensorDataset(torch.randn(24, 3, generator=torch.Generator().manual_seed(1)))


def epoch(loader, ddp=None, optimizer=None):
    ddp = ddp or DistributedDataParallel(model())
    optimizer = optimizer or torch.optim.SGD(ddp.parameters(), lr=0.1)
    for (x,) in loader:
        optimizer.zero_grad()
        ddp(x).pow(2).mean().backward()
        optimizer.step()
    return ddp, optimizer


def test_a_pass_over_a_loader(watched):
    session, _, parts = watched()
    seen = []
    parts.passes.on_end.append(seen.append)
    sampler = DistributedSampler(DATA, 2, 1, seed=7)
    epoch(DataLoader(DATA, 5, sampler=sampler))
    (done,) = seen
    assert list(done.indices) == list(sampler)
    assert done.consumed == done.indices
    assert (done.sizes, done.batches, done.steps, done.backwards) == ([5, 5, 2], 3, 3, 3)
    assert (done.complete, done.joined, done.closed, done.workers) == (True, False, True, 0)
    assert (done.epoch, done.sampler) == (0, sampler)
    assert done.place[2] == "epoch"
    assert done.key.startswith("TensorDataset@")
    assert done.key.endswith("#0")
    assert done.loop == done.key[:-2]
    assert parts.passes.current is done
    assert kinds(session) == []


def test_a_pass_that_is_left_in_the_middle(watched):
    session, _, parts = watched()
    seen = []
    parts.passes.on_end.append(seen.append)
    loader = DataLoader(DATA, 4)
    for _ in loader:
        break
    assert seen == []
    for _ in loader:
        break
    assert [done.complete for done in seen] == [False]
    assert (seen[0].batches, seen[0].delivered, len(seen[0].indices)) == (1, 4, 4)
    session.group_ends()
    assert [done.complete for done in seen] == [False, False]
    assert [done.key[-2:] for done in seen] == ["#0", "#0"]


def test_the_same_data_on_every_rank(watched):
    _, mirror, _ = watched(rank=0)
    loader = DataLoader(DATA, 5)
    found = found_by(lambda: [epoch(loader), epoch(loader)])
    assert found.kind == "same-data-on-every-rank"
    assert mirror.records("first-steps", FirstStepsRecord)


def test_shares_that_are_right(watched):
    session, mirror, _ = watched(rank=0)
    sampler, other = (DistributedSampler(DATA, 2, rank) for rank in range(2))
    ours = list(other)
    mirror.change("first-steps", FirstStepsRecord, lambda record: None)

    def share(record):
        packed = encode_indices(array("q", ours), len(DATA))
        split = replace(record.samples.sampler, replicas=(2, 1))
        samples = replace(
            record.samples, outer=packed, inner=packed, order="x", contents={}, sampler=split
        )
        return replace(record, samples=samples)

    mirror.change("shares", ShareRecord, share)
    epoch(DataLoader(DATA, 4, sampler=sampler))
    session.group_ends()
    assert kinds(session) == []
    (record,) = mirror.records("shares", ShareRecord)
    assert (record.batches, record.steps, record.complete) == (3, 3, True)


def test_the_first_steps(watched):
    session, mirror, _ = watched(rank=0)
    mirror.change("shares", ShareRecord, lambda record: None)
    found = found_by(lambda: epoch(DataLoader(DATA, 4)))
    assert found.kind == "same-data-on-every-rank"
    assert found.cause.startswith("the model got the same inputs on all ranks")
    (record,) = mirror.records("first-steps", FirstStepsRecord)
    assert [step.size for step in record.steps] == [4] * 4
    assert len({step.inputs for step in record.steps}) == 4
    assert record.steps[0].drawn.keys() == {"load", "between", "forward"}
    assert record.place[2] == "epoch"
    assert session.step == 3


def test_random_numbers_that_are_the_same(watched):
    session, mirror, _ = watched(rank=0)
    mirror.change("shares", ShareRecord, lambda record: None)

    def other_inputs(record):
        return replace(record, steps=tuple(replace(s, inputs="x") for s in record.steps))

    mirror.change("first-steps", FirstStepsRecord, other_inputs)

    class Augmented(TensorDataset):
        def __getitem__(self, index):
            return (super().__getitem__(index)[0] + torch.randn(3),)

    found = found_by(lambda: epoch(DataLoader(Augmented(*DATA.tensors), 4)))
    assert found.kind == "identical-random-draws"
    assert "torch's default generator while a batch was loaded" in found.cause
    assert session.findings == [found]


def test_a_shuffle_that_repeats(watched):
    session, _, _ = watched()
    sampler = DistributedSampler(DATA, 2, 1)
    loader = DataLoader(DATA, 4, sampler=sampler)
    ddp, optimizer = epoch(loader)
    sampler.set_epoch(1)
    epoch(loader, ddp, optimizer)
    epoch(loader, ddp, optimizer)
    assert not session.findings  # two passes for one set_epoch may be meant
    epoch(loader, ddp, optimizer)
    (found,) = session.findings
    assert (found.kind, found.serious) == ("epoch-not-advanced", False)
    assert "its epoch stayed 1" in found.cause
    assert found.step == 9  # at the first step of the fourth pass


def test_a_shuffle_whose_epoch_is_never_set(watched):
    session, _, _ = watched()
    loader = DataLoader(DATA, 4, sampler=DistributedSampler(DATA, 2, 1))
    ddp, optimizer = epoch(loader)
    found = found_by(lambda: epoch(loader, ddp, optimizer))
    assert (found.kind, found.serious) == ("epoch-not-advanced", True)
    assert "its epoch stayed 0" in found.cause
    assert session.step == 3  # at the first step of the second pass


def test_the_weights_at_the_end_of_a_pass(watched):
    _, mirror, _ = watched()
    mirror.change("pass", PassEnd, lambda r: replace(r, weights="x,y", edits=Edits((0,))))
    found = found_by(lambda: epoch(DataLoader(DATA, 8, sampler=RandomSampler(DATA))))
    assert (found.kind, found.ranks) == ("changed-after-wrap", (0,))
    (record,) = mirror.records("pass", PassEnd)
    assert (record.steps, record.step, record.edits) == (3, 3, Edits())


def test_workers_that_draw(watched):
    """Two processes load; what they drew with their first batches comes along."""
    _, mirror, _ = watched(rank=0)
    mirror.change("shares", ShareRecord, lambda record: None)
    mirror.change("first-steps", FirstStepsRecord, lambda record: None)

    class Augmented(TensorDataset):
        def __getitem__(self, index):
            return (super().__getitem__(index)[0] + torch.randn(3),)

    epoch(DataLoader(Augmented(*DATA.tensors), 4, num_workers=2, multiprocessing_context="fork"))
    (record,) = mirror.records("first-steps", FirstStepsRecord)
    assert len(record.workers) == 2
    for batches in record.workers:
        assert batches
        assert all(batch.size == 4 for batch in batches)
        assert all(batch.draws["torch"][1] >= 4 * 3 for batch in batches)
        assert all(batch.draws["random"][1] == 0 for batch in batches)
