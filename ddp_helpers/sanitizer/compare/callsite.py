"""Where in the reader's code a call comes from, and whether two such places exclude each other."""

from __future__ import annotations

import ast
import functools
import linecache
import os
import re
import sys
from collections.abc import Sequence
from types import FrameType

from ddp_helpers.evidence.frames import is_user_file

Place = tuple[str, int, str]  # file, line, function

_SKIPPED = ("contextlib.py", "c10d_logger.py", "_decorators.py", "threading.py")
_SANITIZER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_RANK = re.compile(r"rank|main|master|leader|primary|chief", re.I)
CLEAN_UP = "the clean-up of its process group"
_QUESTIONS = ("get_rank", "is_main_process", "get_world_size", "get_local_rank")
_UNKNOWN = object()


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


Part = ast.stmt | ast.ExceptHandler | ast.match_case


def _inner(node: ast.AST, line: int) -> tuple[str, Part] | None:
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, field, None)
        for statement in block if isinstance(block, list) else []:
            first, last = _lines(statement)
            if first <= line <= last:
                return field, statement
    return None


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
    """The value of a plain condition in this frame, without any side effect, or _UNKNOWN."""
    if frame is None:
        return _UNKNOWN
    for part in ast.walk(node):
        call = isinstance(part, ast.Call) and _is_question(part)
        plain = isinstance(
            part,
            ast.Name
            | ast.Attribute
            | ast.Constant
            | ast.Compare
            | ast.BoolOp
            | ast.UnaryOp
            | ast.BinOp
            | ast.boolop
            | ast.cmpop
            | ast.unaryop
            | ast.operator
            | ast.expr_context
            | ast.Tuple
            | ast.List
            | ast.Set,
        )
        if not (plain or call):
            return _UNKNOWN
    try:  # names, attributes and comparisons only; even a property may raise
        code = compile(ast.Expression(node), "<condition>", "eval")
        return bool(eval(code, frame.f_globals, dict(frame.f_locals)))
    except Exception:
        return _UNKNOWN


def _is_question(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name in _QUESTIONS and not call.args and not call.keywords


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
