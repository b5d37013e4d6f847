"""Each notebook runs in a fresh kernel, and is what it promises to be."""

import getpass
import re
import socket
import time
from itertools import pairwise
from pathlib import Path

import build
import nbformat
import pytest
import replay

PATHS = sorted(build.NOTEBOOKS.glob("*.ipynb"))
CHINESE = sorted(build.NOTEBOOKS.glob("zh_CN/*.ipynb"))
ALL = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
WORDS_OF_A_CELL = 100  # most cells have half of it; tables and hints do not count
WORDS_OF_A_LIST = 150  # goals, recap, exercises
LINES_OF_A_CELL = 25
AGAIN_UP_TO = 3.0  # seconds; what takes longer runs a second time in `make replay`


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_outputs(notebook) -> str:
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts += [output.get("text", ""), output.get("evalue", "")]
            texts += output.get("traceback", [])
            texts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return re.sub(build.PICTURE, "", "\n".join(texts))


def test_they_are_all_here_in_order():
    numbers = [path.stem.partition("_")[0] for path in PATHS]
    assert numbers == sorted(set(numbers))  # the number is the order, and no number twice
    assert {"00", "01", "02", "03", "04", "05", "06", "07"} <= set(numbers)


@ALL
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_process_left")
def test_it_executes_and_each_cell_says_the_same_a_second_time(path):
    """The first time in Chinese, the second in English: both editions have the same code."""
    chinese = path.parent / "zh_CN" / path.name
    number = int(path.name[:2])
    player = replay.Player(chinese, (path.parent, chinese.parent)[number % 2])  # both open lessons
    with player.kernel():
        started = time.monotonic()
        played = replay.play_in_both(player, AGAIN_UP_TO)
        took = time.monotonic() - started
    once = sum(first.seconds for first, _ in played.values())
    print(f"{path.name}: {once:.1f} s, and {took - once:.1f} s for what ran again")
    for index, (first, differs) in played.items():
        source = player.notebook.cells[index].source
        assert not first.not_meant, f"{source}\n{first.not_meant}"
        assert not differs, f"{source}\n{differs}"


@ALL
def test_a_name_that_a_cell_takes_from_others_is_made_by_one_of_them(path):
    """Else what it shows depends on which of them ran last."""
    assert not replay.made_twice(read(path))


@ALL
def test_pythons_own_names_keep_their_meaning(path):
    """Else a cell above fails when it runs again."""
    assert not replay.hidden_builtins(read(path))


@ALL
def test_committed_outputs_are_there_and_clean(path):
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    assert nbformat.writes(build.clean(read(path))) == nbformat.writes(notebook)
    for cell in code_cells(notebook):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in cell.metadata.get("tags", [])), cell.source


@pytest.mark.parametrize(
    "path", [*PATHS, *CHINESE], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_committed_outputs_tell_nothing_about_a_machine(path):
    text = text_outputs(read(path))
    forbidden = [str(build.ROOT), socket.gethostname(), "/tmp/ipykernel", str(Path.home()) + "/"]
    forbidden += [getpass.getuser()] if getpass.getuser() != "root" else []
    for word in forbidden:
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
    whole = path.read_text()
    assert "/work/" not in whole
    assert "/root/" not in whole


@pytest.mark.parametrize(
    "path", [*PATHS, *CHINESE], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_where_an_output_is_folded_words_stand_in_its_place(path):
    """JupyterLab shows the first line of the output, as it stands there."""
    folded = [cell for cell in read(path).cells if build.FOLDED in cell.metadata.get("tags", [])]
    assert folded
    for cell in folded:
        data = cell.outputs[0].get("data", {})
        line = next(filter(None, data.get("text/html", "").splitlines()), "")
        assert "<" not in line, f"{line[:60]} in the place of:\n{cell.source}"


@ALL
def test_its_shape(path):
    notebook = read(path)
    cells = notebook.cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    lesson = [cell for cell in cells if "exercise" not in cell.metadata.get("tags", [])]
    assert 20 <= len(lesson) <= 52  # who goes on without the exercises has no more cells to read
    assert texts[0].startswith("# ")
    assert any("minutes" in text for text in texts[:2])
    assert any("What you have seen" in text for text in texts)
    assert any("Exercise" in text for text in texts)
    for text in texts:
        prose = re.sub(r"<details>.*?</details>|^\|[^\n]*$", "", text, flags=re.S | re.M)
        is_list = re.match(r"# |## (What you have seen|Exercises)", text)
        assert len(prose.split()) <= (WORDS_OF_A_LIST if is_list else WORDS_OF_A_CELL), text
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LINES_OF_A_CELL, cell.source


@ALL
def test_every_figure_has_a_text_for_those_who_cannot_see_it(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.data.get("text/plain", "")
                assert len(alt) > 30, cell.source
                assert not alt.startswith("<Figure"), cell.source


def test_each_links_to_the_next():
    for path, following in pairwise(PATHS):
        assert following.name in read(path).cells[-1].source, path.name


def test_cleaning_removes_what_tells_about_a_machine():
    dirty = (
        f"{build.ROOT}/notebooks/x.py {build.ROOT}/data {socket.gethostname()} {Path.home()}/x "
        "<obj at 0x7f0011223344> /tmp/ipykernel_12/34.py [127.0.0.1]:45275"
    )
    assert build.anonymous(dirty) == (
        "x.py ../data my-machine ~/x <obj at 0x...> <cell> [127.0.0.1]:PORT"
    )


def test_a_picture_is_left_as_it_is():
    name = socket.gethostname()
    html = f'<img src="data:image/png;base64,ab/{name}/cd+{name}"><p>{name}</p>'
    kept = html.replace(f"<p>{name}", "<p>my-machine")
    assert build.anonymous(html) == kept
