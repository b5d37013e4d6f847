"""The Chinese course says what the English one says, and runs the same code."""

import json
import re
import shutil
import sys
import unicodedata
from collections import Counter
from itertools import chain
from pathlib import Path

import build
import nbformat
import pytest
import translate

DOCUMENTS = translate.documents(translate.ROOT)
BOOKS = [document for document in DOCUMENTS if document.english.suffix == ".ipynb"]
ALL = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.english.stem)
ALL_BOOKS = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.english.stem)

FENCE = re.compile(r"```.*?```", re.S)
CODE = re.compile(r"(`+)(.+?)\1", re.S)
MATH = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.S)
TARGET = re.compile(r"\]\(([^)]+)\)")
TAG = re.compile(r"</?\w+>")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
BOLD = re.compile(r"\*\*(.+?)\*\*|(?<![*\w])\*([^*\s][^*\n]*)\*(?!\*)")
CHINESE = "[\u4e00-\u9fff]"
NOT_SO = re.compile(
    "工人|规约|rank 们|搬运|走散|无声|行前|藏[住在到]|包上"
)  # no practitioner's words


def entries(document):
    catalog = translate.read_catalog(translate.ROOT / document.po)
    return [entry for entry in catalog if entry.id]


def cells(path: Path):
    return nbformat.read(translate.ROOT / path, as_version=4).cells


def lost(english: str, chinese: str) -> dict[str, list[str]]:
    """What an English text has and its translation has not, by kind."""
    chinese = chinese.replace(translate.CHINESE_START, "make lab")
    missing = {}
    for kind, pattern in (
        ("fenced code", FENCE),
        ("code", CODE),
        ("math", MATH),
        ("link", TARGET),
        ("tag", TAG),
        ("number", NUMBER),
    ):
        had, has = (
            [" ".join(match[0].split()) if kind == "code" else match[0] for match in found]
            for found in (pattern.finditer(english), pattern.finditer(chinese))
        )
        if gone := Counter(had) - Counter(has):
            missing[kind] = sorted(gone.elements())
        english, chinese = pattern.sub(" ", english), pattern.sub(" ", chinese)
    return missing


def shape(text: str) -> list[str]:
    """The kind of each line that has one: heading, list item, columns of a table row."""
    kinds = []
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            bare = CODE.sub("", line)
            kinds.append(f"{bare.count('|')} bars")
        elif mark := re.match(r"\s*(#+|-|\d+\.)\s", line):
            kinds.append(mark[1])
    return kinds


def broken_bold(text: str) -> list[str]:
    """Bold that Markdown would not see: a mark between a letter and the bold's own punctuation."""
    text, found = CODE.sub("`x`", FENCE.sub("", text)), []
    for match in BOLD.finditer(text):
        inside = match[1] or match[2]
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        edges = ((inside[0], before), (inside[-1], after))
        if any(_is_mark(edge) and out.strip() and not _is_mark(out) for edge, out in edges):
            found.append(match[0] + after)
    return found


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"


@ALL
def test_no_text_lags_behind(document):
    catalog = translate.read_catalog(translate.ROOT / document.po)
    found = translate.texts(translate.ROOT, document)
    assert found
    behind = translate.lags(translate.updated(catalog, document, found), document)
    assert not behind, "\n".join(map(str, behind))


def test_the_files_are_what_the_command_writes():
    files, _ = translate.everything(translate.ROOT)
    assert len(files) == 2 * len(DOCUMENTS)
    for path, text in files.items():
        current = translate.is_current(translate.ROOT / path, text)
        assert current, f"{path}: run python tests/notebooks/translate.py"
    books = {path.name for path in (translate.ROOT / translate.FOLDER).glob("*.ipynb")}
    assert books == {book.english.name for book in BOOKS}  # none of a notebook that is gone


@ALL_BOOKS
def test_the_code_is_the_english_one_and_the_outputs_are_of_one_run(book):
    english, chinese = cells(book.english), cells(book.chinese)
    ran = translate.was_run(nbformat.read(translate.ROOT / book.chinese, as_version=4))
    first = next(cell for cell in chinese if cell.cell_type == "code")
    assert first.source == translate.SPEAKS
    chinese.remove(first)
    assert [c.id for c in english] == [c.id for c in chinese]
    for old, new in zip(english, chinese, strict=True):
        if old.cell_type != "code":
            assert re.search(CHINESE, new.source), new.source
            continue
        if ran:
            assert new.execution_count == old.execution_count + 1
            assert {x.output_type for x in old.outputs} == {x.output_type for x in new.outputs}
            new.outputs, new.execution_count = old.outputs, old.execution_count
        assert json.dumps(old) == json.dumps(new)


@ALL
def test_nothing_that_a_text_names_is_lost(document):
    for entry in entries(document):
        assert not lost(entry.id, entry.string), entry.string
        assert shape(entry.id) == shape(entry.string), entry.string


@ALL
def test_the_marks_are_chinese_and_bold_is_seen(document):
    for entry in entries(document):
        assert not broken_bold(entry.string), entry.string
        assert not NOT_SO.search(entry.string), entry.string
        prose = CODE.sub("`x`", MATH.sub("", FENCE.sub("", entry.string)))
        prose = TARGET.sub("]", re.sub(r"^\|[-| ]+$", "", prose, flags=re.M))
        half_width = re.findall(rf"{CHINESE}[,;:?!(]|[;:?!)]{CHINESE}", prose)
        assert not half_width, f"{half_width} in {entry.string}"
        tight = re.findall(rf"{CHINESE}[A-Za-z0-9`]|[A-Za-z0-9`]{CHINESE}", prose)
        assert not tight, f"no space: {tight} in {entry.string}"


@ALL
def test_relative_links_lead_somewhere(document):
    path = translate.ROOT / document.chinese
    texts = [path.read_text()]
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in cells(document.chinese) if cell.cell_type == "markdown"]
    prose = (FENCE.sub("", text) for text in texts)
    targets = list(chain.from_iterable(re.findall(r"\]\(([^)#]+)\)", text) for text in prose))
    assert targets
    for target in targets:
        if "://" not in target:
            assert (path.parent / target).exists(), target


@ALL_BOOKS
def test_each_lesson_leads_to_its_twin_and_to_the_glossary(book):
    english, chinese = cells(book.english)[0].source, cells(book.chinese)[0].source
    assert english.endswith(f"\n\n[中文](zh_CN/{book.english.name})")
    assert chinese.endswith(f"\n\n[English](../{book.english.name}) · [术语表](GLOSSARY.md)")


def test_the_commands_of_the_chinese_readme_open_the_chinese_lessons():
    text = (translate.ROOT / translate.README).read_text()
    assert "make lab-zh" in text
    assert "notebooks/zh_CN/00_check_your_machine.ipynb\n" in text
    assert "notebooks/00" not in text
    assert translate.in_chinese_lessons("make lab     # a\nmake lab", []) == (
        "make lab-zh  # a\nmake lab-zh"
    )


def test_links_go_to_the_chinese_document_and_back():
    english, chinese = "notebooks/01_process_groups.ipynb", "zh_CN/01_process_groups.ipynb"
    book = next(b for b in BOOKS if b.english.as_posix() == english)

    def led(text, document):
        return translate.with_links(text, document, DOCUMENTS)

    assert led("[a](02_dataparallel_vs_ddp.ipynb#b)", book) == "[a](02_dataparallel_vs_ddp.ipynb#b)"
    assert led("![a](images/ring.png)", book) == "![a](../images/ring.png)"
    assert led('<img src="images/ring.png">', book) == '<img src="../images/ring.png">'
    assert led("[a](../README.md)", book) == "[a](../../README.zh-CN.md)"
    assert led("[a](../data/README.md)", book) == "[a](../../data/README.md)"
    assert led(f"[English]({chinese})", book) == "[English](../01_process_groups.ipynb)"
    assert led(f"[a]({english})", DOCUMENTS[-1]) == f"[a](notebooks/{chinese})"
    assert led("[English](README.zh-CN.md)", DOCUMENTS[-1]) == "[English](README.md)"
    kept = "[a](https://x.org/a.md) [b](#b) `x[0](y)`\n```python\nx[0](y)\n```"
    assert led(kept, book) == kept


def copy_of_the_course(root: Path) -> Path:
    shutil.copytree(translate.ROOT / "notebooks", root / "notebooks")
    for name in ("README.md", translate.README):
        shutil.copy(translate.ROOT / name, root / name)
    return root


def change(root: Path, number: int, text: str) -> None:
    path = root / BOOKS[0].english
    notebook = nbformat.read(path, as_version=4)
    cell = notebook.cells[number - 1]
    assert cell.cell_type == "markdown"
    cell["source"] = text.format(cell.source)
    nbformat.write(notebook, path)


@pytest.mark.parametrize(
    ("text", "state"),
    [("{} And a new sentence.", "changed"), ("Quite another text.", "not translated")],
)
def test_one_changed_cell_is_named_and_stays_english(tmp_path, capsys, text, state):
    root = copy_of_the_course(tmp_path)
    assert translate.main(["--check"], root) == 0
    change(root, 3, text)
    before = {path: path.read_bytes() for path in root.rglob("*.po")}

    capsys.readouterr()
    assert translate.main(["--check"], root) == 1
    said = capsys.readouterr().out
    words = translate.first_words(cells(root / BOOKS[0].english)[2].source)
    assert f"{BOOKS[0].english}, cell 3: {state}: {words}\n" in said
    assert "1 texts lag behind" in said
    assert before == {path: path.read_bytes() for path in root.rglob("*.po")}  # only looked

    assert translate.main([], root) == 0
    assert translate.main(["--check"], root) == 1  # written, and still not translated
    english, chinese = cells(root / BOOKS[0].english), cells(root / BOOKS[0].chinese)
    assert chinese[2].source == english[2].source
    entry = translate.read_catalog(root / BOOKS[0].po).get(english[2].source)
    assert entry.fuzzy == (state == "changed") == bool(entry.string)


def test_changed_code_is_out_of_date_until_written(tmp_path, capsys):
    root = copy_of_the_course(tmp_path)
    path = root / BOOKS[0].english
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].source += "\n# one more line"
    nbformat.write(notebook, path)
    assert translate.main(["--check"], root) == 1
    assert f"{BOOKS[0].chinese}: out of date" in capsys.readouterr().out
    assert translate.main([], root) == 0
    assert translate.main(["--check"], root) == 0
    assert cells(root / BOOKS[0].chinese)[4].source.endswith("# one more line")


def test_the_readme_is_cut_without_a_loss():
    text = "# a\n\nb\nc\n```\nd\n\ne\n```\nf\n\n\n- g\n"
    parts = list(translate.blocks(text))
    assert "\n".join(part for _, part, _ in parts) == text
    assert [(line, part) for line, part, is_prose in parts if is_prose] == [
        (1, "# a"),
        (3, "b\nc"),
        (10, "f"),
        (13, "- g"),
    ]


def test_the_guards_notice():
    assert lost("`a` costs 3 and 0.5", "`a` 要 3") == {"number": ["0.5"]}
    assert lost("[x](a.md) `b` $c$ <b>", "") == {
        "code": ["`b`"],
        "math": ["$c$"],
        "link": ["](a.md)"],
        "tag": ["<b>"],
    }
    assert shape("| a | `|` |\n- b\n1. c\n## d") == ["3 bars", "-", "1.", "##"]
    assert broken_bold("**先猜。**再看 **`a`**吧 **好**的 **a.** b") == [
        "**先猜。**再",
        "**`x`**吧",
    ]


def run_with_outputs(path: Path, text: str) -> None:
    """As if the Chinese notebook had been run: each of its cells showed `text`."""
    notebook = nbformat.read(path, as_version=4)
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text=text)]
    nbformat.write(notebook, path)


def test_its_own_outputs_stay_until_the_code_is_another(tmp_path):
    root = copy_of_the_course(tmp_path)
    run_with_outputs(root / BOOKS[0].chinese, "它自己的\n")
    change(root, 3, "{} And a new sentence.")
    notebook = nbformat.read(root / BOOKS[0].english, as_version=4)
    notebook.cells[3].source += "\n# one more line"
    nbformat.write(notebook, root / BOOKS[0].english)
    assert translate.main([], root) == 0
    own = [nbformat.v4.new_output("stream", text="它自己的\n")]
    code = [cell for cell in cells(root / BOOKS[0].chinese) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [cell.source for cell in code if cell.outputs != own] == [notebook.cells[3].source]
    assert code[1].outputs == notebook.cells[3].outputs


@pytest.mark.usefixtures("no_process_left")
def test_a_chinese_run_changes_outputs_alone(tmp_path, monkeypatch):
    path = tmp_path / "zh_CN" / BOOKS[0].english.name
    path.parent.mkdir()
    source = f"{translate.SPEAKS}\nfrom ddp_helpers.words import shown\nshown('Start from:')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="language")])
    nbformat.write(notebook, path)
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    arguments = ["build.py", "--language", "zh_CN", f"notebooks/{path.name}"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert build.main() == 0
    (cell,) = cells(path)
    assert (cell.id, cell.source, cell.execution_count) == ("language", source, 1)
    assert cell.outputs[0].data["text/plain"] == "'从这里开始\uff1a'"
