"""Findings that the reader accepts, and the line that ends a watched run."""

import linecache
import re
from pathlib import Path

import pytest

import ddp_helpers.sanitizer
from ddp_helpers.evidence.records import Finding, Frame, Watched
from ddp_helpers.sanitizer import Options, SanitizerError, Session
from ddp_helpers.sanitizer.compare.callsite import lines_of_statement
from ddp_helpers.sanitizer.kinds import KINDS, accepted_in, checked
from ddp_helpers.sanitizer.talk.closing import closing_line

FOLDER = Path(ddp_helpers.sanitizer.__file__).parent
# words with dashes that are no kinds: parts of names
OTHERS = {"first-steps", "sanitizer-workers", "weights-off"}


def test_the_list_of_kinds_is_whole():
    texts = [path.read_text() for path in FOLDER.rglob("*.py") if path.name != "kinds.py"]
    told = {word for text in texts for word in re.findall(r'"([a-z]+(?:-[a-z0-9]+)+)"', text)}
    assert told - OTHERS == set(KINDS)


def test_what_can_be_accepted():
    assert checked("ignore", ["steps-differ"]) == ("steps-differ",)
    assert checked("ignore", ()) == ()
    with pytest.raises(ValueError, match="no finding of the kind 'padded-evaluaton'; did you mean"):
        Options(ignore=["padded-evaluaton"])
    with pytest.raises(ValueError, match="ignore: there is no finding of the kind 3; each finding"):
        checked("ignore", [3])
    with pytest.raises(TypeError, match=r"expected a list of kinds, such as \['steps-differ'\]"):
        Options(ignore="steps-differ")


def test_comments():
    assert accepted_in(["x = 1  # ddp: ignore[steps-differ]"]) == {"steps-differ"}
    assert accepted_in(["#ddp:ignore[a, b]  # why", "y  # ddp: ignore[c]"]) == {"a", "b", "c"}
    assert accepted_in(["# ddp: ignore", "ddp: ignore[a]"]) == set()


CODE = """
for x in loader(  # ddp: ignore[missing-data]
    1,
):
    step(  # ddp: ignore[steps-differ]
        x,
    )
    other(x)
"""


def at(line):
    return Frame("<code>", line, "train")


@pytest.fixture
def code(monkeypatch):
    lines = CODE.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<code>", (len(CODE), None, lines, "<code>"))


def test_the_lines_of_a_statement(code):
    assert len(lines_of_statement("<code>", 3)) == 3  # the head of the loop
    assert len(lines_of_statement("<code>", 6)) == 3
    assert lines_of_statement("<code>", 8) == ["    other(x)\n"]
    assert lines_of_statement("<no such file>", 3) == []


def test_an_accepted_finding_neither_stops_nor_is_told(code, capsys):
    session = Session(Options(ignore=["padded-evaluation"]), {"<code>": "cell In[4]"})
    shown = Frame("cell In[4]", 6, "train")
    for kind, place in [
        ("padded-evaluation", None),
        ("padded-evaluation", at(8)),
        ("steps-differ", at(6)),
        ("steps-differ", shown),
        ("missing-data", at(2)),
    ]:
        session.found(Finding(kind, "cause", "advice", place=place))
    assert session.findings == []
    assert session.accepted == {"padded-evaluation": 2, "steps-differ": 2, "missing-data": 1}
    for kind, place in [("steps-differ", at(8)), ("missing-data", at(6)), ("steps-differ", None)]:
        with pytest.raises(SanitizerError):
            session.found(Finding(kind, "cause", "advice", place=place))
    session.print_findings()
    assert "padded-evaluation" not in capsys.readouterr().err


def test_the_closing_line():
    assert closing_line([Watched(2, 360, 3, 99)], ()) == (
        "sanitizer: watched 2 ranks, 360 steps, 3 passes over the data; nothing found"
    )
    one = closing_line([Watched(3, 1, 1)], ["b", "a"])
    assert one == "sanitizer: watched 3 ranks, 1 step, 1 pass over the data; found: a, b"
    assert closing_line([Watched(2, 5, 0, 9, (("a", 1), ("b", 3)))], ()) == (
        "sanitizer: watched 2 ranks, 5 steps; nothing else found; accepted: a (1 time), b (3 times)"
    )
    assert closing_line([Watched(2, 0, 0, 1)], ()) == (
        "sanitizer: watched 2 ranks, no optimizer step, 1 collective; nothing found"
    )
    assert closing_line([Watched(2)], ()).startswith("sanitizer: watched nothing: 2 ranks took no")
