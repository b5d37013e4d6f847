"""Each template differs from the one before by little, and says where.

An added line is a line of code that the file before lacks. The docstring, blank lines and
comments do not count: they explain each step in its own words. A line is marked when it ends in
`# NEW` (and perhaps a word why); `# NEW` alone on a line marks all below it, down to the next
blank or less indented line.
"""

import ast
import difflib
import io
import itertools
import sys
import tokenize

import pytest
from template_runner import LONG_STEPS, STEPS, TEMPLATES

LADDER = (*STEPS, *LONG_STEPS)
BESIDE = (("ddp_minimal", "ray_train"), ("ray_train", "ray_restart"))  # they need Ray, too
PAIRS = [*itertools.pairwise(LADDER), *BESIDE]
ALL_STEPS = (*LADDER, *(step for _, step in BESIDE))
AT_MOST = 40  # added lines in a step


def source(step: str) -> str:
    return (TEMPLATES / f"{step}.py").read_text()


def code_lines(text: str) -> dict[int, str]:
    """Line number to code, without docstring of the file, comments and blank lines."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    start = ast.parse(text).body[0].end_lineno
    return {n: line.rstrip() for n, line in enumerate(lines, 1) if line.strip() and n > start}


def added_lines(before: str, after: str) -> set[int]:
    """Numbers of the lines of `after` that `before` lacks."""
    old, new = code_lines(before), code_lines(after)
    matcher = difflib.SequenceMatcher(None, [*old.values()], [*new.values()], autojunk=False)
    numbers = [*new]
    changes = [c for c in matcher.get_opcodes() if c[0] in ("insert", "replace")]
    return {number for *_, start, end in changes for number in numbers[start:end]}


def marked_lines(text: str) -> set[int]:
    """Numbers of the lines that carry the mark, by themselves or from above."""
    marked, block = set(), None
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if line.strip() == "# NEW":
            block = indent
            continue
        if not line.strip() or (block is not None and indent < block):
            block = None
        if block is not None or "  # NEW" in line:
            marked.add(number)
    return marked & code_lines(text).keys()


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_every_added_line_is_marked_and_no_other(before: str, after: str) -> None:
    text = source(after)
    added, marked = added_lines(source(before), text), marked_lines(text)
    lines = text.splitlines()
    assert [lines[n - 1] for n in sorted(added - marked)] == [], "added but not marked"
    assert [lines[n - 1] for n in sorted(marked - added)] == [], "marked but not new"


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_the_step_is_small(before: str, after: str) -> None:
    assert 0 < len(added_lines(source(before), source(after))) <= AT_MOST


def test_the_first_step_has_no_mark() -> None:
    assert not marked_lines(source(STEPS[0]))


def test_a_missing_mark_would_be_seen() -> None:
    text = source("ddp_minimal").replace(
        "sampler.set_epoch(epoch)  # NEW", "sampler.set_epoch(epoch)  #"
    )
    missing = added_lines(source("data_parallel"), text) - marked_lines(text)
    assert [text.splitlines()[n - 1].split()[0] for n in missing] == ["sampler.set_epoch(epoch)"]


def function(step: str, name: str) -> str:
    return next(
        ast.unparse(n) for n in ast.parse(source(step)).body if getattr(n, "name", "") == name
    )


@pytest.mark.parametrize("name", ["train", "evaluate", "build_model", "load_data"])
def test_every_way_to_start_trains_by_the_same_code(name: str) -> None:
    ways = ("ddp_minimal", "ddp_safe", "ddp_spawn", "ddp_torchrun", "ddp_slurm", "ddp_anywhere")
    assert len({function(step, name) for step in ways}) == 1


@pytest.mark.parametrize("step", ALL_STEPS)
def test_it_imports_torch_and_the_standard_library_only(step: str) -> None:
    names = set()
    for node in ast.walk(ast.parse(source(step))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.split(".")[0])
    allowed = {"torch", "ray"} if step.startswith("ray_") else {"torch"}
    assert names - sys.stdlib_module_names == allowed


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_docstring_opens_with_the_command(step: str) -> None:
    first, blank, command, *_ = ast.get_docstring(ast.parse(source(step))).splitlines()
    assert first.endswith(".")
    assert not blank
    starter = "torchrun --standalone --nproc_per_node=2" if step in STEPS[-2:] else "python"
    assert command == f"    {starter} {step}.py" or command.startswith(f"    {starter} {step}.py ")
