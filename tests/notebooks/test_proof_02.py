"""Notebook 02's proof, with the notebook's own functions on real ranks.

DDP on 2 and 4 ranks gives the gradients of one process; broken averaging does not get through.
"""

import ast
import re

import build
import nbformat
import pytest

from ddp_helpers import launch

PATH = build.NOTEBOOKS / "02_dataparallel_vs_ddp.ipynb"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
ON_2_AND_4_RANKS = pytest.mark.parametrize("nprocs", [2, 4])
pytestmark = pytest.mark.usefixtures("no_process_left")


@pytest.fixture(scope="module")
def code_cells():
    cells = nbformat.read(PATH, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def lesson(code_cells):
    """What the notebook imports and defines, without the lines that run something."""
    names = {"__name__": "lesson_02"}
    for cell in code_cells:
        tree = ast.parse(cell.source)
        tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS)]
        exec(compile(tree, PATH.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def whole(lesson):
    """The gradients of one process on the whole batch."""
    return lesson["gradients"](lesson["make_model"](), *lesson["whole_batch"]())


def on_ranks(fn, nprocs, *args):
    return launch(fn, nprocs, args=args, timeout=60, echo=False).values


@ON_2_AND_4_RANKS
def test_ddp_gives_the_gradients_of_one_process(lesson, whole, nprocs):
    ranks = on_ranks(lesson["ddp_gradients"], nprocs)
    assert len(ranks) == nprocs
    assert lesson["assert_same_gradients"](ranks, whole) < 1e-6


@ON_2_AND_4_RANKS
def test_a_hook_that_forgets_to_divide_is_caught(lesson, whole, nprocs):
    broken = on_ranks(lesson["ddp_gradients"], nprocs, lesson["forget_to_divide"])
    with pytest.raises(AssertionError, match="rank 0 is off by"):
        lesson["assert_same_gradients"](broken, whole)
    mended = [[gradient / nprocs for gradient in rank] for rank in broken]
    lesson["assert_same_gradients"](mended, whole)  # nothing but the division was wrong


@ON_2_AND_4_RANKS
def test_a_forward_past_the_wrapper_is_caught(lesson, whole, nprocs):
    ranks = on_ranks(lesson["forgot_the_wrapper"], nprocs)
    with pytest.raises(AssertionError, match="rank 0 is off by"):
        lesson["assert_same_gradients"](ranks, whole)


def test_averaging_by_hand_gives_the_same(lesson, whole):
    lesson["assert_same_gradients"](on_ranks(lesson["gradients_by_hand"], 2), whole)


def test_the_check_looks_at_each_value_of_each_rank(lesson, whole):
    check = lesson["assert_same_gradients"]
    for wrong in (2e-6, float("nan")):
        other = [gradient.clone() for gradient in whole]
        other[-1].view(-1)[-1] += wrong
        with pytest.raises(AssertionError, match="rank 1 is off by"):
            check([whole, other], whole)
    with pytest.raises(ValueError, match="longer"):
        check([whole[:-1]], whole)
    assert whole[0].dtype == lesson["torch"].float64
    assert max(gradient.abs().max() for gradient in whole) > 1e-3  # not a comparison of zeros


def test_the_notebook_shows_the_proof_and_then_its_failure(code_cells):
    at = next(i for i, cell in enumerate(code_cells) if "def assert_same_gradients" in cell.source)
    proof, broken = code_cells[at : at + 2]
    shown = re.findall(r"on (\d) ranks.* difference (\S+)", proof.outputs[-1].text)
    assert [ranks for ranks, _ in shown] == ["2", "4"]
    assert all(float(difference) < 1e-6 for _, difference in shown)

    assert "raises-exception" in broken.metadata.tags
    assert broken.source.splitlines()[-1] == "assert_same_gradients(broken, whole)"
    assert broken.outputs[-1].ename == "AssertionError"
    assert "rank 0 is off by" in broken.outputs[-1].evalue
