"""Where in the reader's code a call comes from, and whether two such places exclude each other."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import operator
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any  # of two values that one operator compares

from ddp_helpers.evidence.frames import is_user_file

Place = tuple[str, int, str]  # file, line, function

_SKIPPED = ("contextlib.py", "c10d_logger.py", "_decorators.py", "threading.py")
_SANITIZER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_RANK = re.compile(r"rank|main|master|leader|primary|chief", re.I)
CLEAN_UP = "the clean-up of its process group"
_QUESTIONS = ("get_rank", "is_main_process", "get_world_size")
_UNKNOWN = object()
_PLAIN, _BOTH = (bool, int, float, str, type(None)), (True, False)
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


def user_frames(depth: int = 1) -> tuple[list[FrameType], str]:
    """The reader's own frames, outermost first, and the name of torch's function that was called.

    Where no frame is the reader's (a library drives the ranks), all but torch's and ours count.
    """
    own, others, called = [], [], ""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        filename, name = frame.f_code.co_filename, frame.f_code.co_name
        if is_user_file(filename):
            own.append(frame)
        # below the reader's innermost line: what that line called, under the last name seen
        elif not own and not filename.endswith(_SKIPPED) and _SANITIZER not in filename:
            if name == "cleanup_distributed":  # ours, so torch's name for it would mislead
                called = CLEAN_UP
            if "/torch/" not in filename:
                others.append(frame)
            elif not others:
                called = name
        frame = frame.f_back
    return (own or others)[::-1], called


def places(frames: Sequence[FrameType]) -> tuple[Place, ...]:
    """Frames as plain values that can travel."""
    return tuple((f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames)


def innermost(stack: Sequence[Place]) -> Place | None:
    """The line that made the call, or None where none is the reader's."""
    return stack[-1] if stack else None


def crossed(frames: Sequence[FrameType], mine: Sequence[Place], theirs: Sequence[Place]) -> bool:
    """True if two ranks stand at places that one of them comes by, too: their calls don't match.

    Two ranks may well make the same call at different lines: one under `if rank == 0`, the other
    under its `else`. That is fine as long as neither rank also comes by the other's line. Where
    it can't be told, the answer is False: silence rather than a false alarm.

    Args:
        frames: this rank's own frames, to look at the values that decide.
        mine, theirs: the two stacks, outermost first.
    """
    for depth, (here, there) in enumerate(zip(mine, theirs, strict=False)):
        if here == there:
            continue
        if (here[0], here[2]) != (there[0], there[2]):
            return False  # the same line calls one function here, and another one there
        if asks_for_rank(mine[depth + 1 :]) or asks_for_rank(theirs[depth + 1 :]):
            return False  # each passes the other's line, and may well skip what is in it
        frame = frames[depth] if depth < len(frames) else None
        return _do_cross(here[0], here[1], there[1], frame)
    return False


def _do_cross(filename: str, mine: int, theirs: int, frame: FrameType | None) -> bool:
    tree = _parse(filename)
    if tree is None:
        return False
    if _function(tree, mine) is not _function(tree, theirs):
        return False  # two methods of one name: neither comes by the other's lines
    (path, leaf), (other, other_leaf) = _path(tree, mine), _path(tree, theirs)
    if leaf is other_leaf:  # one statement over several lines
        return False
    # the blocks that both are in say nothing: what follows decides
    while path and other and path[0] == other[0]:
        path, other = path[1:], other[1:]
    if path and other and path[0][0] is other[0][0]:  # two blocks of one statement
        return not isinstance(path[0][0], ast.If | ast.Try)
    if path and other and isinstance(path[0][0], ast.match_case | ast.ExceptHandler):
        return False
    guards, their_guards = _guards(path), _guards(other)
    # both are under conditions of their own: does this rank take the other's, too?
    if guards and their_guards:
        return _holds(their_guards, frame) is True
    first = path if mine < theirs else other
    # whoever stands at the later line has passed the earlier one, if nothing guards that;
    # whoever stands at the earlier one comes by the later one, unless it leaves before
    return not _leaves(first)


@functools.lru_cache(maxsize=256)
def _parse_text(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:  # a cell with a magic, for instance
        return None


def _parse(filename: str) -> ast.Module | None:
    text = "".join(linecache.getlines(filename))
    return _parse_text(text) if text else None


Block = tuple[ast.AST, str]  # a statement, and which of its blocks is entered


def _path(tree: ast.Module, line: int) -> tuple[list[Block], ast.AST]:
    """The blocks from the innermost function that holds this line down to it; its statement."""
    path: list[Block] = []
    node: ast.AST = tree
    while (found := _inner(node, line)) is not None:
        field, child = found
        path.append((node, field))
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            path = []  # what is around a definition does not decide whether its body runs
        node = child
    return path, node


def _function(tree: ast.Module, line: int) -> ast.AST:
    """The innermost function that holds this line, or the module."""
    node: ast.AST = tree
    found: ast.AST = tree
    while (inner := _inner(node, line)) is not None:
        node = inner[1]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = node
    return found


Part = ast.stmt | ast.ExceptHandler | ast.match_case


def _inner(node: ast.AST, line: int) -> tuple[str, Part] | None:
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, field, None)
        for statement in block if isinstance(block, list) else []:
            first, last = _lines(statement)
            if first <= line <= last:
                return field, statement
    return None


def lines_of_statement(filename: str, line: int) -> list[str]:
    """The text of the statement at a line, of a loop or a condition only its head."""
    text = linecache.getlines(filename)
    tree = _parse(filename)
    first = last = line
    if tree is not None and (found := _path(tree, line)[1]) is not tree:
        first, last = _lines(found)  # type: ignore[arg-type]  # no module, so a statement
        body = getattr(found, "body", None)
        if isinstance(body, list) and body:
            last = max(line, _lines(body[0])[0] - 1)
    return text[first - 1 : last]


def _lines(node: Part) -> tuple[int, int]:
    """First and last line; a match's case has no numbers of its own."""
    if isinstance(node, ast.match_case):
        return node.pattern.lineno, node.body[-1].end_lineno or node.body[-1].lineno
    return node.lineno, node.end_lineno or node.lineno


def _guards(path: Sequence[Block]) -> list[Block]:
    """The conditions on the way, each with the arm that is taken."""
    return [block for block in path if isinstance(block[0], ast.If | ast.match_case)]


def _leaves(path: Sequence[Block]) -> bool:
    """True if one of the arms on the way ends in return, raise, break or continue."""
    ends = ast.Return | ast.Raise | ast.Break | ast.Continue
    return any(isinstance(getattr(node, arm)[-1], ends) for node, arm in _guards(path))


def asks_for_rank(stack: Sequence[Place]) -> bool:
    """True if a condition on the rank decides, further inside, whether the call is made."""
    for filename, line, _ in stack:
        tree = _parse(filename)
        guards = _guards(_path(tree, line)[0]) if tree else []
        tests = [ast.unparse(node.test) for node, _ in guards if isinstance(node, ast.If)]
        if any(_RANK.search(test) for test in tests):
            return True
    return False


def _holds(guards: Sequence[tuple[ast.AST, str]], frame: FrameType | None) -> bool | None:
    """Whether this rank takes all these arms; None if that can't be told."""
    for node, arm in guards:
        value = _value(node.test, frame) if isinstance(node, ast.If) else _UNKNOWN
        if value is _UNKNOWN:
            return None
        if bool(value) != (arm == "body"):
            return False
    return True


def _value(node: ast.expr, frame: FrameType | None) -> object:
    """The value of a plain condition in this frame, or _UNKNOWN.

    Nothing of the reader's runs: neither a property nor a comparison of a class of its own.
    """
    if frame is None:
        return _UNKNOWN
    value = _read(node, frame)
    return bool(value) if type(value) in _PLAIN else _UNKNOWN


def _read(node: ast.expr, frame: FrameType) -> object:
    """What an expression of names, attributes and numbers stands for; it is not evaluated."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return frame.f_locals.get(node.id, frame.f_globals.get(node.id, _UNKNOWN))
    if isinstance(node, ast.Attribute):
        return inspect.getattr_static(_read(node.value, frame), node.attr, _UNKNOWN)
    if isinstance(node, ast.Call):
        return _answer(node)
    if isinstance(node, ast.UnaryOp | ast.BoolOp | ast.Compare):
        return _combined(node, frame)
    return _UNKNOWN


def _combined(node: ast.UnaryOp | ast.BoolOp | ast.Compare, frame: FrameType) -> object:
    if isinstance(node, ast.Compare):
        return _compared(node, frame)
    parts = [node.operand] if isinstance(node, ast.UnaryOp) else node.values
    values = [_value(part, frame) for part in parts]
    if isinstance(node, ast.UnaryOp):
        return not values[0] if isinstance(node.op, ast.Not) and values[0] in _BOTH else _UNKNOWN
    decides = isinstance(node.op, ast.Or)
    for value in values:  # as Python does: what comes after the one that decides does not count
        if value is _UNKNOWN or value is decides:
            return value
    return not decides


def _compared(node: ast.Compare, frame: FrameType) -> object:
    sides = [_items(side, frame) for side in (node.left, *node.comparators)]
    if any(side is _UNKNOWN for side in sides):
        return _UNKNOWN
    try:
        return all(
            _COMPARE[type(op)](first, second)
            for op, first, second in zip(node.ops, sides, sides[1:], strict=False)
        )
    except (KeyError, TypeError):  # `"a" < 1`
        return _UNKNOWN


def _items(node: ast.expr, frame: FrameType) -> object:
    """A plain value, or a tuple of such that stands there."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        items = [_read(item, frame) for item in node.elts]
        return tuple(items) if all(type(item) in _PLAIN for item in items) else _UNKNOWN
    value = _read(node, frame)
    return value if type(value) in _PLAIN else _UNKNOWN


def _answer(call: ast.Call) -> object:
    """What torch says to a question for the rank; the reader's function of that name isn't run."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in _QUESTIONS or call.args or call.keywords:
        return _UNKNOWN
    dist = sys.modules.get("torch.distributed")
    started = dist is not None and dist.is_initialized()
    if name == "get_world_size":
        return dist.get_world_size() if dist is not None and started else 1
    rank = dist.get_rank() if dist is not None and started else 0
    return rank == 0 if name == "is_main_process" else rank


def left_loop(trainer: Sequence[Place], other: Sequence[Place]) -> bool | None:
    """True if the trainer stands in a loop that the other rank is out of, and comes after.

    None if no loop is to be seen around the trainer's line: a library's, perhaps.

    Args:
        trainer, other: the stacks of two ranks, outermost first.
    """
    if not any(_loops(place) for place in trainer):
        return None
    for depth, (here, there) in enumerate(zip(trainer, other, strict=False)):
        if here == there:
            continue
        if (here[0], here[2]) != (there[0], there[2]):
            return False
        around, others = _loops(here), _loops(there)
        shared = [loop for loop in around if loop in others]
        after = there[1] > here[1] or bool(shared)  # a shared loop may have come round
        inner = len(around) > len(shared) or any(_loops(p) for p in trainer[depth + 1 :])
        return inner and after
    return False


def _loops(place: Sequence) -> list[ast.AST]:
    """The loops whose body holds a line, within its function."""
    tree = _parse(place[0])
    path = _path(tree, place[1])[0] if tree else []
    return [
        node
        for node, arm in path
        if isinstance(node, ast.For | ast.AsyncFor | ast.While) and arm == "body"
    ]
