"""A message is found although it was cut short or misspelt; the page holds all that is known."""

import io
import random
import re
from pathlib import Path

import pytest

from ddp_helpers import cli, faults
from ddp_helpers.cli.explain import explain
from ddp_helpers.troubleshooting import COMMAND, command, page, troubles
from ddp_helpers.troubleshooting.examples import read_examples
from ddp_helpers.troubleshooting.nearest import find_nearest
from ddp_helpers.words import VARIABLE

PAGE = Path(__file__).resolve().parents[3] / "notebooks" / "TROUBLESHOOTING.md"


def names(message):
    """The names of what is found, the nearest first."""
    text, _ = explain(message)
    known = {trouble.name for trouble in troubles()}
    return [line for block in text.split("\n\n") if (line := block.splitlines()[0]) in known]


# ---- the page


def test_the_committed_page_is_what_the_command_writes(capsys):
    assert cli.main(["explain", "--all"]) == 0
    written = capsys.readouterr().out
    assert written == page()
    assert PAGE.read_text(encoding="utf-8") == written, f"run {COMMAND}"


def test_the_page_holds_each_text_and_each_fault():
    text = page()
    for example in read_examples():
        assert all(line.rstrip() in text for line in example.text.splitlines())
    for name in faults.names():
        fault = faults.load(name).FAULT
        assert f"faults/{name}.py" in text
        assert fault.cause.replace("|", "\\|") in text
        assert fault.says in text


def test_no_name_stands_for_two_troubles():
    known = [trouble.name for trouble in troubles()]
    assert len(set(known)) == len(known)  # the texts of a kind stand together in the file


# ---- one message


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv(VARIABLE, "zh_CN")


def test_the_chinese_page_is_in_step_with_the_english_one(chinese):
    text = page()
    path = PAGE.parent / "zh_CN" / PAGE.name
    assert path.read_text(encoding="utf-8") == text, f"run {command()}"


def test_the_chinese_page_holds_the_same_and_says_it_in_chinese(chinese, monkeypatch):
    told = page()
    monkeypatch.delenv(VARIABLE)
    for pattern in (
        r"```[\s\S]*?```",
        r"^### .+$",
        r"\([./]+ddp_helpers/faults/\w+\.py\)",
        r"^#+ ",
    ):
        english, chinese = (
            [re.sub(r"(\.\./)+", "", each) for each in re.findall(pattern, text, flags=re.M)]
            for text in (page(), told)
        )
        assert english == chinese
    prose = re.sub(r"```.*?```|^### .+$|^<!--.*$|^\| -.*$", "", told, flags=re.S | re.M)
    behind = [
        line for line in prose.splitlines() if line and not re.search("[\u4e00-\u9fff]", line)
    ]
    assert behind == []


@pytest.mark.parametrize(
    "example",
    [each for each in read_examples() if len(each.text.split()) > 2],
    ids=lambda example: example.kind,
)
def test_half_a_text_with_slips_is_found(example):
    words, draws = example.text.split(), random.Random(0)
    half = max(4, len(words) // 2)
    for _ in range(4):
        start = draws.randrange(max(1, len(words) - half + 1))
        piece = " ".join(slip(word, draws) for word in words[start : start + half])
        assert example.kind in names(piece), piece


def slip(word, draws):
    """The word without one of its letters."""
    if len(word) < 6 or not word.isalpha():
        return word
    at = draws.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1 :]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("EADRINUSE", "port-taken"),
        ("adress alredy in use", "port-taken"),  # codespell:ignore adress,alredy
        ("cuda out of memry", "gpu-out-of-memory"),
        ("Broken pipe", "peer-gone"),
        ("timed out waiting", "peer-did-not-come"),
        ("module. missing keys in state dict", "module-prefix"),
        ("shuffle is the same in each epoch", "No set_epoch"),
        ("validation on rank 0 hangs", "peer-did-not-come"),
        ("SIGABRT", "gave-up"),
    ],
)
def test_a_few_words_are_enough(message, name):
    assert name in names(message)


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError",
        "KeyError: 'x'",
        "my cat sat on the keyboard",
        "ValueError: bad label 11",
        "IndexError: list index out of range",
        "TypeError: 'NoneType' object is not subscriptable",
        "ImportError: No module named foo",
        "FileNotFoundError: [Errno 2] No such file or directory: 'train.py'",
        "torch.AcceleratorError: CUDA error: misaligned address",
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x10 and 20x5)",
    ],
)
def test_what_is_not_known_is_not_guessed(message):
    text, found = explain(message)
    assert not found
    assert "diagnose LOG" in text


def test_a_whole_text_is_known_and_says_where_to_see_it():
    text, found = explain("RuntimeError: Address already in use")
    assert found
    assert "nearest" not in text
    assert text.startswith("port-taken\n  why: the port is taken")
    assert 'faults.run("address_in_use")' in text
    assert 'notebook 01, "The port is taken"' in text


def test_rare_words_count_more_and_the_nearest_comes_first():
    texts = [f"rank {name} failed" for name in ("one", "two", "three", "four", "five", "six")]
    texts[1] += " with EPIPE"
    assert find_nearest("rank failed: EPIPE", texts) == [1]
    assert find_nearest("three rank faild", texts)[0] == 2  # codespell:ignore faild
    assert find_nearest("rank failed", texts) == []  # so do all
    assert find_nearest("nothing of it", texts) == []


def test_the_command_takes_words_or_what_is_piped_in(capsys, monkeypatch):
    assert cli.main(["explain", "Connection", "closed", "by", "peer"]) == 0
    assert "peer-gone" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("KeyError: 'LOCAL_RANK'\n"))
    assert cli.main(["explain"]) == 0
    assert "environment-not-set" in capsys.readouterr().out
    assert cli.main(["explain", "bad label 11"]) == 1
    assert "nothing known" in capsys.readouterr().out
    assert cli.main(["explain", "42"]) == 2
    assert "'42' holds no word" in capsys.readouterr().err
