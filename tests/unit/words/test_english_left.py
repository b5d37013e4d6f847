"""How much English a reader of the Chinese course still meets, by page and by part."""

import ast
import importlib
import json
import re
import sys
from collections import Counter
from functools import cache
from itertools import zip_longest
from pathlib import Path

import catalogue
import pytest

from ddp_helpers.evidence.claims import ARROW
from ddp_helpers.exercises.core import files, load
from ddp_helpers.widgets.controls import Choice
from ddp_helpers.words import VARIABLE, shown
from ddp_helpers.words import book as words

sys.path.insert(0, str(catalogue.ROOT / ".site" / "play"))
from mover import RECORDED, REPLAYED, recording

CHINESE = re.compile("[\u4e00-\u9fff]")
OWN = 0.7
"""A line with this share of words from a cell's texts is the cell's own."""
MOST = 0.1  # of the words, in each part of each page
PAGES = sorted((catalogue.ROOT / "notebooks/zh_CN").glob("0*.ipynb"))
CODE = re.compile(r"```.*?```|`[^`]*`|\$[^$\n]+\$|\]\([^)]*\)|<[^>]+>|https?://\S+", re.S)
NAME = re.compile(  # [kinds], files, flags, calls and dotted names; what has digits or capitals
    r"In\[\d+\]|\[[a-z-]+\]|--?[a-z][\w-]*|[\w./<>-]*[_/.()=:]\w[\w./()=-]*|\w*\d\w*|\w+[A-Z]\w*"
)
WORD = re.compile(r"[A-Za-z][a-z']+")
"""A word; what is all capitals (DDP, GPU) is a name."""
THEIRS = re.compile(  # a line of a log, of data or of code
    r"Error\b|Warning\b|^File |^[{|]|\(\{|\['|^\[[rR]ank ?\d|torch/|^W\d|\x1b|"
    r"^(def|return|with|for|from|import) "
)
TERMS = set(  # what Chinese practitioners say in English
    "all allreduce backward barrier batch bf broadcast bucket cell checkpoint conda cpu docker "
    "dropout dtype epoch fail false float fork forward gather gloo hook host int jupyter kernel "
    "kubernetes launch linux localhost logits loss lr master mesh micro nccl none notebook "
    "numpy ok optimizer pad pass pdb pip pipeline profiler python rank ranks ray recv reduce "
    "ring root sanitizer scatter script seed send server shape shard shell shuffle slurm spawn "
    "ssh step steps tensor torch torchrun traceback true warn worker wrap".split()
)


def english(text: str) -> int:
    """How many English words it has, apart from code, names and terms."""
    plain = NAME.sub(" ", CODE.sub(" ", text))
    return sum(each.lower() not in TERMS for each in WORD.findall(plain))


def cells(page: Path, kind: str) -> list[dict]:
    return [c for c in json.loads(page.read_text())["cells"] if c["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def numbers_of(page: Path) -> list[str]:
    return [number for number in files() if number.startswith(page.name[:2])]


def prose(page: Path) -> list[tuple[str, str]]:
    """English and Chinese of each text."""
    twin = page.parents[1] / page.name
    pairs = zip(cells(twin, "markdown"), cells(page, "markdown"), strict=True)
    return [(source(old), source(new)) for old, new in pairs]


def comments(page: Path) -> int:
    """English words of comments: they are code, which has one source, and are only told."""
    code = "\n".join(map(source, cells(page, "code")))
    return sum(map(english, re.findall(r"(?<!['\"\w])# (.*)", code)))


def asked_for(page: Path) -> list[tuple[str, str]]:
    """Tasks, hints and lessons of the page's exercises."""
    found = [load(number).EXERCISE for number in numbers_of(page)]
    texts = [text for each in found for text in (each.title, each.task, each.lesson, *each.hints)]
    return [(text, shown(text)) for text in texts]


def explorables(page: Path) -> list[tuple[str, str]]:
    """What the page's explorables say: titles, controls, scenes, words, also of a run."""
    code = " ".join(map(source, cells(page, "code")))
    texts = []
    for name in re.findall(r'explore\("(\w+)"', code):
        found = importlib.import_module(f"ddp_helpers.widgets.{name}").explorable()
        texts += [found.title, found.run_label]
        for control in found.controls.values():
            texts += [control.label]
            texts += [label for label, _ in control.pairs] if isinstance(control, Choice) else []
        values = {key: control.value for key, control in found.controls.items()}
        results = [None] if found.known is None else [found.known()]
        if name in RECORDED and name not in REPLAYED:  # of the latter there is a film
            results.append(recording(name).result(values))
        for result in results:
            picture = found.picture(values, result)
            texts += [picture.words, *(getattr(each, "text", "") for each in picture.scene.shapes)]
    return [(text, shown(text)) for text in texts]


def figures(page: Path) -> list[tuple[str, str]]:
    """Titles, axes, legends and texts for who can't see, as the page's cells give them."""
    code = "\n".join(map(source, cells(page, "code")))
    if not re.search(r"plot_\w+\(|plots\.show", code):
        return []
    texts = (*catalogue.figures([page]), *of_the_package())
    return [(text, shown(sample(text))) for text in texts]


@cache
def of_the_package() -> tuple[str, ...]:
    """What figures say whoever draws them."""
    return tuple(set(catalogue.sentences("figures")) - set(catalogue.figures()))


def sample(text: str) -> str:
    """With a number in each hole."""
    return words._plain(words.HOLE.sub("3", text))


def printed(page: Path) -> list[tuple[str, str]]:
    """What the package says in the outputs of both editions; nothing before they are Chinese."""
    new = told_by(page)
    old = told_by(page.parents[1] / page.name) if CHINESE.search("".join(new)) else new[:0]
    return list(zip_longest(old, new if old else [], fillvalue=""))


def told_by(page: Path) -> list[str]:
    """The lines of its outputs that are the package's."""
    found, own = [], set()
    for cell in cells(page, "code"):
        own |= said_by(source(cell))
        for output in cell["outputs"]:
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
            text += "\n".join(output.get("traceback", []))
            lines = [line.strip().removeprefix(f"{ARROW} ") for line in text.splitlines()]
            found += [line for line in lines if not is_theirs(line, own)]
    return found


def said_by(code: str) -> set[str]:
    """Words that a cell itself may print: those of its texts."""
    try:
        texts = [each.value for each in ast.walk(ast.parse(code)) if isinstance(each, ast.Constant)]
        code = " ".join(text for text in texts if isinstance(text, str))
    except SyntaxError:  # a cell for ranks, or a file
        pass
    return set(WORD.findall(code))


def is_theirs(line: str, own: set[str]) -> bool:
    """Whether a line is torch's, Python's, a program's, or mostly of the cell's own words."""
    if THEIRS.search(line):
        return True
    spoken = WORD.findall(NAME.sub(" ", CODE.sub(" ", line)))
    return sum(word in own for word in spoken) >= OWN * len(spoken) > 0


PARTS = {
    "prose": prose,
    "exercises": asked_for,
    "explorables": explorables,
    "figures": figures,
    "outputs": printed,
}
REPORTS = (
    *("diagnosis", "environment", "exercises", "faults", "launch", "questions", "ranks"),
    *("sanitizer", "troubleshooting", "verifier"),
)


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv(VARIABLE, "zh_CN")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_chinese_as_a_whole_and_in_its_parts(page, chinese):
    """Outputs count for the whole page only: they hold texts of exceptions, which stay English."""
    counts, still = {}, {}
    for name, part in PARTS.items():
        pairs = part(page)
        counts[name] = Counter(
            left=sum(english(new) for _, new in pairs), every=sum(english(old) for old, _ in pairs)
        )
        still[name] = [new for _, new in pairs if english(new)]
    counts["the page"] = sum(counts.values(), Counter())
    for name, count in counts.items():
        share = count["left"] / max(1, count["every"])
        print(f"{name:12}{count['left']:5} of {count['every']:5} words are English, {share:.1%}")
    print(f"comments in its code, apart: {comments(page)} words")
    above = [name for name, count in counts.items() if count["left"] > MOST * count["every"]]
    assert set(above) <= {"outputs"}, {name: still.get(name) for name in above}


@pytest.mark.parametrize("wing", REPORTS)
def test_a_report_is_chinese(wing, chinese):
    texts = catalogue.sentences(wing)
    every = sum(english(sample(text)) for text in texts)
    left = sum(english(shown(sample(text))) for text in texts)
    print(f"{wing:12}{left:5} of {every:5} words are English, {left / every:.1%}")
    assert left <= MOST * every
