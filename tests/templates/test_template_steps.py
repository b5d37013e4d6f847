"""Each rung of the ladder is short, differs from the one before by little, and says where.

The docstring, blank lines and comments do not count: they explain each rung in its own words. A
line is marked when it ends in `# NEW` (and perhaps a word why); `# NEW` alone on a line marks all
below it, down to the next blank or less indented line.
"""

import ast
import collections
import difflib
import io
import itertools
import sys
import tokenize

import pytest
from template_runner import LADDER, TEMPLATES

PAIRS = [*itertools.pairwise(LADDER)]
LINES = 119  # of a file
CHANGED = 40  # lines that a rung adds or takes away


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


def changed_lines(before: str, after: str) -> tuple[set[int], set[int]]:
    """Numbers of the lines of `before` that are gone, and of those of `after` that are new."""
    old, new = code_lines(before), code_lines(after)
    matcher = difflib.SequenceMatcher(None, [*old.values()], [*new.values()], autojunk=False)
    gone, added = set(), set()
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind != "equal":
            gone |= {*[*old][i:i_end]}
            added |= {*[*new][j:j_end]}
    return gone, added


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
    (_, added), marked = changed_lines(source(before), text), marked_lines(text)
    lines = text.splitlines()
    assert [lines[n - 1] for n in sorted(added - marked)] == [], "added but not marked"
    assert [lines[n - 1] for n in sorted(marked - added)] == [], "marked but not new"


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_the_step_is_small(before: str, after: str) -> None:
    gone, added = changed_lines(source(before), source(after))
    assert 0 < len(gone) + len(added) <= CHANGED


@pytest.mark.parametrize("step", LADDER)
def test_the_file_is_short(step: str) -> None:
    assert len(source(step).splitlines()) <= LINES


def test_the_first_step_has_no_mark() -> None:
    assert not marked_lines(source(LADDER[0]))


def test_a_missing_mark_would_be_seen() -> None:
    text = source("ddp_one_rank").replace(
        "sampler.set_epoch(epoch)  # NEW", "sampler.set_epoch(epoch)  #"
    )
    missing = changed_lines(source("data_parallel"), text)[1] - marked_lines(text)
    assert [text.splitlines()[n - 1].split()[0] for n in missing] == ["sampler.set_epoch(epoch)"]


def function(step: str, name: str) -> str:
    return next(
        ast.unparse(n) for n in ast.parse(source(step)).body if getattr(n, "name", "") == name
    )


@pytest.mark.parametrize("name", ["train", "count_right", "build_model"])
def test_every_way_to_start_trains_by_the_same_code(name: str) -> None:
    ways = ("ddp_one_rank", "ddp_spawn", "ddp_torchrun")
    assert len({function(step, name) for step in ways}) == 1


@pytest.mark.parametrize("step", LADDER)
def test_the_data_takes_three_lines(step: str) -> None:
    statements = ast.parse(function(step, "train")).body[0].body
    words = [ast.unparse(one) for one in statements]
    first = next(n for n, text in enumerate(words) if "torch.load(DATA" in text)
    assert words[first + 1].startswith("train_set = ")
    assert words[first + 2].startswith("held_out = ")
    named = [line for line in code_lines(source(step)).values() if "DATA" in line]
    assert len(named) == 2, "DATA = ..., and the line that reads it"


@pytest.mark.parametrize("step", [*LADDER, "ray_train"])
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


@pytest.mark.parametrize("step", [*LADDER, "ray_train"])
def test_the_docstring_opens_with_the_command(step: str) -> None:
    first, blank, command, *_ = ast.get_docstring(ast.parse(source(step))).splitlines()
    assert first.endswith(".")
    assert not blank
    torchrun = "torchrun --standalone --nproc_per_node=2"
    starter = torchrun if step in ("ddp_torchrun", "ddp_resume") else "python"
    assert command == f"    {starter} {step}.py" or command.startswith(f"    {starter} {step}.py ")


def test_a_mend_is_at_most_three_edits() -> None:
    """No definition of more than five lines stands in more than three templates."""
    files = collections.defaultdict(set)
    for path in TEMPLATES.glob("[!_]*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found = tuple(code_lines(f"0\n{ast.get_source_segment(text, node)}").values())
                files[found].add(path.name)
    shared = {found: names for found, names in files.items() if len(names) > 1}
    assert shared
    assert not [names for found, names in shared.items() if len(found) > 5 and len(names) > 3]
