"""What `replay` notices: a cell that tells something else when it runs again."""

import nbformat
import pytest
import replay

TELL_THE_SAME = [
    "import random, sys, tempfile\nfolder = tempfile.mkdtemp()",
    "print(f'{random.random():.3f} ms')",  # a number that was measured
    "print('→ this against that: faster' if random.random() < 0.5 else '→ this: can\\'t tell')",
    "1 / 0",
    "1 / 0",
    "assert 'later' not in globals(), 'first run all from the top'",  # says what to do
    "later = 1",
]
TELL_SOMETHING_ELSE = {
    "twice": [
        "import os\nos.mkdir(os.path.join(folder, 'records'))",  # FileExistsError
        "left = list(folder) if 'left' not in globals() else []\nprint('left:', *left[:1])",
        "from ddp_helpers.exercises import ask\n"
        "calls = globals().get('calls', 0) + 1\nask('calls').was(calls)",
    ],
    "backwards": [
        "try:\n    {}['a']\nexcept KeyError as error:\n    sys.last_value = error",
        "print(type(sys.last_value).__name__)",
        "int('a')",
    ],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For each way, the sources of the cells that differ, and how."""
    sources = [*TELL_THE_SAME, *TELL_SOMETHING_ELSE["twice"], *TELL_SOMETHING_ELSE["backwards"]]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    path = tmp_path_factory.mktemp("replay") / "played.ipynb"
    nbformat.write(notebook, path)
    player = replay.Player(path)
    with player.kernel():
        played = replay.play_all(player)
        backwards = replay.play_backwards(player, played)
    player = replay.Player(path)
    with player.kernel():
        both = replay.play_in_both(player, 5.0)
    return {
        "both": {sources[index]: differs for index, (_, differs) in both.items() if differs},
        "twice": {sources[index]: differs for index, (_, differs) in played.items() if differs},
        "backwards": {sources[index]: differs for index, differs in backwards.items() if differs},
    }


def test_a_cell_that_says_something_else_a_second_time_is_found(found):
    assert list(found["twice"]) == TELL_SOMETHING_ELSE["twice"], found["twice"]


def test_a_cell_that_says_something_else_in_the_other_edition_is_found(found):
    assert list(found["both"]) == TELL_SOMETHING_ELSE["twice"], found["both"]


@pytest.mark.parametrize(
    ("english", "chinese", "same"),
    [
        (["rank 1 failed"], ["rank 1 出错"], True),
        (["rank 1 failed"], ["rank 1 failed"], True),
        (["rank 1 failed", "8"], ["rank 1 出错", "9"], True),  # numbers may be measured
        (["rank 1 failed"], [], False),
        (["a row"], ["another row"], False),
        ([replay.EXACT + "it was 3"], [replay.EXACT + "结果是 3"], True),
        ([replay.EXACT + "it was 3"], [replay.EXACT + "结果是 4"], False),
    ],
)
def test_editions_may_differ_in_words_alone(english, chinese, same):
    said = [replay.Said(None, tuple(lines), 0.1) for lines in (english, chinese)]
    assert bool(replay.difference_of_editions(*said)) != same


def test_a_cell_that_leans_on_what_ran_before_is_found(found):
    assert TELL_SOMETHING_ELSE["backwards"][1] in found["backwards"]
    assert not found["backwards"].keys() & set(TELL_THE_SAME), found["backwards"]


def test_what_takes_too_long_runs_once(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("runs = []")])
    notebook.cells.append(nbformat.v4.new_code_cell("runs.append(1)\nprint('so often:', *runs)"))
    nbformat.write(notebook, path := tmp_path / "slow.ipynb")
    player = replay.Player(path)
    with player.kernel():
        assert not any(differs for _, differs in replay.play_all(player, 0.0).values())


def test_a_hidden_name_of_pythons_own_is_found():
    sources = [
        "for all in [1]:\n    print(all)",
        "def f():\n    sum = 1\n    return sum",
        "one = 1",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    assert replay.hidden_builtins(nbformat.v4.new_notebook(cells=cells)) == [(0, "all")]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (["a = 1", "a = 2", "print(a)"], [(2, "a", (0, 1))]),
        (["a = 1", "for a in (1, 2):\n    print(a)"], []),
        (["a = 1", "a = 2\nprint(a)"], []),
        (["a = 1", "a = a + 1"], [(1, "a", (0, 1))]),
        (
            ["n = 1", "n = 2", "def f():\n    return n"],
            [(2, "n", (0, 1))],
        ),
        (["import os", "os.getpid()"], []),
    ],
)
def test_a_name_of_two_makers_is_found(sources, told):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    found = replay.made_twice(nbformat.v4.new_notebook(cells=cells))
    assert [(each.cell, each.name, each.makers) for each in found] == told
