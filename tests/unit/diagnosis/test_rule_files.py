"""The records of the rule files are whole, and each rule is the first to know its own texts."""

import dataclasses
import re
import signal
import subprocess
import sys
import tomllib
from itertools import pairwise

import pytest

from ddp_helpers.diagnosis.log_causes import read_chains
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.rule_files import (
    FOLDER,
    consequences,
    known_errors,
    known_lines,
    known_rules,
    peer_is_gone,
)
from ddp_helpers.diagnosis.rules import ONLY, TYPE_SETS, KnownError, KnownLine, recognise
from ddp_helpers.troubleshooting.examples import read_examples

FORMS = {
    "errors.toml": KnownError,
    "errors_gpu.toml": KnownError,
    "errors_tools.toml": KnownError,
    "lines.toml": KnownLine,
    "consequences.toml": KnownError,
}
LISTS = {"types", "message", "line", "examples"}
RECORDS = [
    pytest.param(name, record, id=f"{name} {number} {record.get('kind')}")
    for name in FORMS
    for number, record in enumerate(tomllib.loads((FOLDER / name).read_text())["rule"], 1)
]


def mistakes(record, form):
    """What is wrong with a record of a rule file, in words."""
    fields = {field.name: field for field in dataclasses.fields(form)}
    found = [
        f"unknown key {key}: known are {', '.join(fields)}" for key in record if key not in fields
    ]
    for name, field in fields.items():
        if name not in record:
            found += [f"no {name}"] if field.default is dataclasses.MISSING else []
            continue
        values = record[name] if name in LISTS else [record[name]]
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            found.append(
                f"{name} is {record[name]!r}: expected {'texts' if name in LISTS else 'a text'}"
            )
        elif not values or not all(each.strip() for each in values):
            found.append(f"{name} is empty")
    return found or [*_wrong_patterns(record), *_wrong_names(record)]


def _wrong_patterns(record):
    for key in ("message", "line"):
        for piece in record.get(key, []):
            try:
                groups = re.compile(piece).groups
            except re.error as error:
                yield f"{key} {piece!r} is no regular expression: {error}"
                continue
            asked = [int(n) for n in re.findall(r"\\(\d)", record["cause"] + record["advice"])]
            if max(asked, default=0) > groups:
                yield f"{key} {piece!r} has {groups} groups, and \\{max(asked)} is asked for"


def _wrong_names(record):
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", record["kind"]):
        yield f"kind {record['kind']!r}: expected small letters and hyphens"
    for name in record.get("types", []):
        if name not in TYPE_SETS and not re.fullmatch(r"\w*[a-z]\w*", name):
            yield f"type {name!r} is neither an exception nor one of {', '.join(TYPE_SETS)}"
    if record.get("comes", "first") not in ("first", "after", "consequence", "last", "note"):
        yield f"comes {record['comes']!r} is no time: see errors.toml"
    if record.get("only", "") not in ONLY:
        yield f"only {record['only']!r} is nobody: known are {', '.join(ONLY)}"
    if record.get("signal", "SIGKILL") not in signal.Signals.__members__:
        yield f"signal {record['signal']!r} is none of this system"
    for key in ("cause", "advice"):
        if "\n" in record[key] or record[key].endswith("."):
            yield f"{key}: expected one line without a full stop: {record[key]!r}"


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_each_record_is_whole(name, record):
    assert mistakes(record, FORMS[name]) == []


def test_no_rule_file_is_left_out():
    assert {path.name for path in FOLDER.glob("*.toml")} == set(FORMS)
    assert len(known_rules()) == len(RECORDS)


GOOD = {
    "kind": "port-taken",
    "group": "Ranks that try to meet",
    "types": ["DIST", "OSError"],
    "message": [r"port (\d+) in use"],
    "cause": r"port \1 is taken",
    "advice": "choose another",
    "examples": ["OSError: port 80 in use"],
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"text": ["x"]}, "unknown key text"),
        ({"message": ["x("]}, "is no regular expression"),
        ({"message": ["port in use"]}, r"has 0 groups, and \1 is asked for"),
        ({"message": "in use"}, "message is 'in use': expected texts"),
        ({"examples": []}, "examples is empty"),
        ({"examples": ["\n"]}, "examples is empty"),
        ({"examples": None}, "no examples"),
        ({"advice": None}, "no advice"),
        ({"cause": ["a", "b"]}, "cause is ['a', 'b']: expected a text"),
        ({"advice": "choose another."}, "without a full stop"),
        ({"kind": "Port taken"}, "expected small letters"),
        ({"types": ["DISTT"]}, "type 'DISTT' is neither"),
        ({"comes": "soon"}, "comes 'soon' is no time"),
        ({"only": "me"}, "only 'me' is nobody"),
    ],
)
def test_a_wrong_record_is_told_in_words(change, told):
    record = {key: value for key, value in (GOOD | change).items() if value is not None}
    found = mistakes(record, KnownError)
    assert found == [] if told is None else len(found) == 1 and told in found[0]


def test_a_signal_that_is_none_is_told():
    record = {**GOOD, "line": ["x"], "cause": "y", "signal": "SIGNONE"}
    del record["types"], record["message"]
    assert mistakes(record, KnownLine) == ["signal 'SIGNONE' is none of this system"]


@pytest.mark.parametrize("rules", [known_errors(), consequences()], ids=["causes", "consequences"])
def test_each_rule_is_the_first_to_know_its_own_texts(rules):
    for rule in rules:
        for text in rule.examples:
            (chain, *_) = read_chains(read_text(text))
            taken = recognise(chain.errors[0], rules)
            assert taken is not None, f"{rule.kind} misses\n{text}"
            assert rule.match(chain.errors[0]) == taken, f"{taken} comes first for\n{text}"
            assert taken.kind == rule.kind


def test_each_line_knows_its_own_texts():
    for rule in known_lines():
        for text in rule.examples:
            plain = "\n".join(line.text for line in read_text(text))
            assert rule.match(plain) == rule.meaning, f"{rule.kind} misses\n{text}"


def test_the_page_places_each_kind_once_in_one_group():
    rules = known_rules()
    kinds = {rule.kind for rule in rules}
    assert {rule.page_after for rule in rules} - {""} <= kinds
    assert len({(rule.kind, rule.group) for rule in rules}) == len(kinds)
    told = [(example.kind, example.text) for example in read_examples()]
    assert sorted(told) == sorted((rule.kind, text) for rule in rules for text in rule.examples)
    groups = [example.group for example in read_examples()]
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes == len(set(groups)) - 1  # each group stands together


def test_a_kind_may_ask_to_stand_after_another_on_the_page():
    kinds = list(dict.fromkeys(example.kind for example in read_examples()))
    for rule in known_rules():
        if rule.page_after:
            assert kinds.index(rule.page_after) < kinds.index(rule.kind)
    assert kinds[kinds.index("killed") + 1] == "out-of-memory"


def test_the_pieces_of_a_lost_peer_are_plain_words():
    for piece in peer_is_gone():
        assert recognise(f"RuntimeError: [pair.cc:1] {piece} [::1]:1", consequences()).kind == (
            "peer-gone"
        )


def test_a_type_is_a_whole_name():
    rule = KnownError(**{key: tuple(v) if isinstance(v, list) else v for key, v in GOOD.items()})
    assert rule.match("OSError: port 80 in use").cause == "port 80 is taken"
    assert rule.match("DistStoreError: told:\nport 80 in use").cause == "port 80 is taken"
    assert rule.match("OSErrors: port 80 in use") is None
    assert rule.match("MyOSError: port 80 in use") is None
    assert rule.match("OSError, port 80 in use") is None


def test_each_piece_has_a_first_group_of_its_own():
    pieces = (r"port (\d+) in use", r"address (\S+) taken", r"(socket) is busy")
    rule = KnownError(**(GOOD | {"types": ("OSError",), "message": pieces, "examples": ()}))
    told = {"port 80 in use": "80", "address a:1 taken": "a:1", "the socket is busy": "socket"}
    for text, first_group in told.items():
        assert rule.match(f"OSError: {text}").cause == f"port {first_group} is taken"


@pytest.mark.parametrize("rule", known_errors(), ids=lambda rule: rule.kind)
def test_no_cause_has_a_hole(rule):
    for text in rule.examples:
        found = rule.match(read_chains(read_text(text))[0].errors[0])
        assert not re.search(r": ?$|: [.,]|  |(?<!\w)\(\)|''|``", found.cause), found.cause


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of rule files of a test's own: a function writes one, the others are empty."""
    reads = (known_errors, known_lines, consequences)

    def forget():
        for read in reads:
            read.cache_clear()

    for name in FORMS:
        (tmp_path / name).write_text("rule = []\n")
    monkeypatch.setattr("ddp_helpers.diagnosis.rule_files.FOLDER", tmp_path)
    forget()
    yield lambda name, text: (tmp_path / name).write_text(text, encoding="utf-8")
    forget()


WRITTEN = """
[[rule]]
kind = "port-taken"
group = "Ränge that meet"
types = ["OSError", "DIST"]
message = ['port (\\d+)', 'in use']
cause = 'port \\1'
advice = "another"
examples = [
'''
  OSError: port 80
    is taken
''',
'''
XX in use X''',
]
"""


def test_a_record_becomes_a_rule_as_it_is_written(files):
    files("errors_gpu.toml", WRITTEN)
    assert known_errors() == (
        KnownError(
            kind="port-taken",
            group="Ränge that meet",
            types=("OSError", "DIST"),
            message=(r"port (\d+)", "in use"),
            cause=r"port \1",
            advice="another",
            examples=("  OSError: port 80\n    is taken", "XX in use X"),
        ),
    )
    assert (known_lines(), consequences()) == ((), ())


def test_each_file_is_read_into_its_own_rules_in_order(files):
    named = {name: f"k{number}" for number, name in enumerate(FORMS)}
    for name, kind in named.items():
        text = WRITTEN.replace("port-taken", kind)
        if FORMS[name] is KnownLine:
            text = re.sub("types = .*", "", text).replace("message", "line")
        files(name, text + text.replace(kind, f"{kind}-second"))
    assert [rule.kind for rule in known_rules()] == [
        f"k{number}{which}" for number in range(5) for which in ("", "-second")
    ]
    assert [rule.kind for rule in known_errors()] == [
        f"k{number}{which}" for number in range(3) for which in ("", "-second")
    ]
    assert {type(rule) for rule in known_lines()} == {KnownLine}
    assert [rule.kind for rule in consequences()] == ["k4", "k4-second"]


def test_a_key_that_no_rule_has_is_not_passed_over(files):
    files("errors.toml", WRITTEN.replace("advice", "advise"))
    with pytest.raises(TypeError, match="advise"):
        known_errors()


def test_the_rules_are_read_once_and_only_when_something_failed():
    code = (
        "import ddp_helpers\nfrom ddp_helpers import launch\n"
        "from ddp_helpers.diagnosis import diagnose_text, rule_files\n"
        "read = lambda: rule_files.known_errors.cache_info().misses\n"
        "diagnose_text('KeyError: 1', exit_code=0)\n"
        "assert read() == 0\n"
        "diagnose_text('KeyError: 1')\n"
        "diagnose_text('KeyError: 1')\n"
        "assert read() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
