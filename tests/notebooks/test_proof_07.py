"""Notebook 07's judge, with the notebook's own functions on real ranks.

Each way of sharing a training equals one process; with one mistake in it, it does not get through.
"""

import ast

import build
import nbformat
import pytest

from ddp_helpers import launch

PATH = build.NOTEBOOKS / "07_when_it_does_not_fit.ipynb"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
pytestmark = pytest.mark.usefixtures("no_process_left")


def definitions(*changes):
    """What the notebook imports and defines, with pieces of its text replaced."""
    names = {"__name__": "lesson_07"}
    done = set()
    for cell in nbformat.read(PATH, as_version=4).cells:
        if cell.cell_type == "code":
            text = cell.source
            for old, new in changes:
                done |= {old} if old in text else set()
                text = text.replace(old, new)
            tree = ast.parse(text)
            tree.body = [node for node in tree.body if is_definition(node)]
            exec(compile(tree, PATH.name, "exec"), names)
    assert done == {old for old, _ in changes}, "the notebook's text has changed"
    return names


def is_definition(node):
    """Of assignments those of constants; the others run something, or need its results."""
    if isinstance(node, ast.Assign):
        name = ast.unparse(node.targets[0])
        return name.isupper() or name in ("wait_for_gpu", "reduce_scatter")
    return isinstance(node, DEFINITIONS)


@pytest.fixture(scope="module")
def alone():
    """The weights of one process: before, after three steps, and after four."""
    lesson = definitions()
    start = lesson["joined"](lesson["make_model"]().parameters())
    three, four, _ = run(lesson, "on_one", 1)[0]
    return start, three, four


def run(lesson, function, nprocs, *args):
    return launch(
        lesson[function], nprocs, args=args, timeout=60, echo=False, threads_per_rank=1
    ).values


def judge(lesson, alone, found, wanted=None):
    lesson |= {"start": alone[0], "alone": alone[1]}
    lesson["same_as_one"]("it", found, wanted)


def ddp(lesson):
    return [weights for weights, _ in run(lesson, "with_ddp", 2)]


def zero(lesson):
    return [weights for weights, _ in run(lesson, "with_zero", 2, lesson["SharedAdam"])]


def torchs_zero(lesson):
    return [weights for weights, _ in run(lesson, "with_zero", 2, lesson["torchs_zero"])]


def fsdp_by_hand(lesson):
    return [weights for weights, _, _ in run(lesson, "with_parts", 2)]


def fully_shard(lesson):
    needs_fsdp(lesson)
    return [weights for weights, _ in run(lesson, "with_fully_shard", 2)]


def tensor_parallel_by_hand(lesson):
    ranks = run(lesson, "with_half_blocks", 2)
    return [lesson["joined"](lesson["put_together"]([weights for weights, _ in ranks]))]


def tensor_parallel(lesson):
    return [weights for weights, _ in run(lesson, "with_plan", 2)]


def gpipe(lesson):
    ranks = run(lesson, "pipeline", 2, lesson["WIDTH"], 64, 4)
    return [lesson["torch"].cat([weights for weights, _, _ in ranks])]


def mesh(lesson):
    needs_fsdp(lesson)
    return [weights for weights, _, _ in run(lesson, "on_a_mesh", 4)]


def needs_fsdp(lesson):
    if not lesson["CAN_SHARD"]:
        pytest.skip("torch 2.6 has fully_shard for GPUs only")


WAYS = [ddp, zero, torchs_zero, fsdp_by_hand, fully_shard]
WAYS += [tensor_parallel_by_hand, tensor_parallel, gpipe, mesh]
MISTAKES = [
    (ddp, "nn.parallel.DistributedDataParallel(make_model().to(pg.device))", "make_model()"),
    (zero, "dist.broadcast(weight.detach(), src=who)", "pass"),
    (zero, "dist.broadcast(weight.detach(), src=who)", "dist.broadcast(weight.detach(), src=0)"),
    (torchs_zero, "torch.optim.Adam, lr=1e-3, eps", "torch.optim.SGD, lr=1e-3) #"),
    (fsdp_by_hand, " / len(self.slots)", ""),
    (
        fsdp_by_hand,
        "reduce_scatter(self.mine.grad, sums)",
        "self.mine.grad.copy_(sums.chunk(len(self.slots))[dist.get_rank()])",
    ),
    (fully_shard, "divisor=sum_or_mean(mesh))\n        weights", "divisor=2)\n        weights"),
    (tensor_parallel_by_hand, "SumBack.apply(x)", "x"),
    (
        tensor_parallel_by_hand,
        "SumForth.apply(F.linear(hidden, self.down))",
        "F.linear(hidden, self.down)",
    ),
    (
        tensor_parallel,
        "make_adam(model.parameters()), *part_of_batch(0, 1, pg.device)",
        "make_adam(model.parameters()), *part_of_batch(pg.rank, 2, pg.device)",
    ),
    (gpipe, "(pieces if adds_up else 1)", "(1 if adds_up else pieces)"),
    (mesh, "part_of_batch(machine, 2, pg.device)", "part_of_batch(pg.rank % 2, 2, pg.device)"),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_way_equals_one_process(way, alone):
    lesson = definitions()
    judge(lesson, alone, way(lesson))


@pytest.mark.parametrize(
    ("way", "right", "wrong"),
    MISTAKES,
    ids=[f"{m[0].__name__}-{i}" for i, m in enumerate(MISTAKES)],
)
def test_a_mistake_is_caught(way, right, wrong, alone):
    lesson = definitions((right, wrong))
    with pytest.raises(AssertionError, match="not the same training"):
        judge(lesson, alone, way(lesson))


@pytest.mark.parametrize("readers", [1, 4])
def test_what_two_ranks_saved_goes_on(readers, alone, tmp_path):
    lesson = definitions()
    needs_fsdp(lesson)
    saved = run(lesson, "save_or_go_on", 2, str(tmp_path), True)[0]
    values = run(lesson, "save_or_go_on", readers, str(tmp_path), False)
    assert all(lesson["torch"].equal(found, saved) for found, _ in values)
    judge(lesson, alone, [after for _, after in values], alone[2])


def test_without_the_optimizers_state_it_does_not_go_on(alone, tmp_path):
    lesson = definitions(("dcp.load(states,", "dcp.load({'model': states['model']},"))
    needs_fsdp(lesson)
    run(lesson, "save_or_go_on", 2, str(tmp_path), True)
    values = run(lesson, "save_or_go_on", 2, str(tmp_path), False)
    with pytest.raises(AssertionError, match="not the same training"):
        judge(lesson, alone, [after for _, after in values], alone[2])


def test_checkpointing_keeps_less_and_the_same_gradients():
    kept, gradients, _ = run(definitions(), "kept_and_timed", 1, 1)[0]
    assert kept["checkpointed"] < kept["plain"] / 4
    assert (gradients["plain"] - gradients["checkpointed"]).abs().max() < 1e-8
