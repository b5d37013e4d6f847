"""Where a rank takes the backend that fits the machine, its tensors must go to `pg.device`.

`process_group()` picks nccl on a machine with enough GPUs, and nccl sends nothing from the CPU. A
machine without GPUs can't show that, so the notebooks' and the package's code is read instead.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
MAKERS = {"tensor", "ones", "zeros", "full", "arange", "randn", "empty"}
MAKERS |= {"DistributedDataParallel"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
MODULES = sorted((ROOT / "ddp_helpers").glob("**/*.py"))


def free_groups(source: str) -> Iterator[ast.With]:
    """Each `with process_group(...)` that leaves the backend open."""
    for node in ast.walk(ast.parse(source)):
        for item in getattr(node, "items", []) if isinstance(node, ast.With) else []:
            call = item.context_expr
            if (
                isinstance(call, ast.Call)
                and getattr(call.func, "id", getattr(call.func, "attr", "")) == "process_group"
                and not call.args
                and not any(word.arg == "backend" for word in call.keywords)
            ):
                yield node


def on_the_cpu(source: str) -> list[str]:
    """Such groups that make tensors or wrap a model, and name no device at all."""
    found = []
    for group in free_groups(source):
        calls = [node.func for node in ast.walk(group) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
        if names & MAKERS and "device" not in ast.unparse(group):
            found.append(ast.unparse(group))
    return found


def test_it_finds_what_stays_on_the_cpu():
    source = "with process_group() as pg:\n    x = torch.ones(1)"
    assert on_the_cpu(source) == [source]
    assert on_the_cpu(source.replace("(1)", "(1, device=pg.device)")) == []
    assert on_the_cpu(source.replace("group()", "group('gloo')")) == []
    assert on_the_cpu(source.replace("group()", "group(backend='gloo')")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_moves_its_tensors(path):
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    found = {number: on_the_cpu(cell) for number, cell in enumerate(cells)}
    assert not {number: lines for number, lines in found.items() if lines}


def test_the_package_moves_its_tensors():
    found = {path.name: on_the_cpu(path.read_text()) for path in MODULES}
    assert not {name: lines for name, lines in found.items() if lines}
