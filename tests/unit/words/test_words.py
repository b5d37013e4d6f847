"""The package speaks Chinese where it is asked to, and English everywhere else."""

import os
import re
import subprocess
import sys

import catalogue
import pytest

from ddp_helpers import words as package
from ddp_helpers.evidence.records import Finding
from ddp_helpers.exercises import exercise
from ddp_helpers.exercises.core import files, load
from ddp_helpers.words import book as words

CHINESE = re.compile("[\u4e00-\u9fff]")
LAGS_AT_MOST = 0.1  # of all words
NOT_SO = re.compile("工人|规约|rank 们|搬运|走散|无声|残余")  # what no practitioner says
SAMPLES = {
    "these": "rank 1",
    "rank": "2",
    "verb": "waits",
    "how": "moves",
    "op": "shift",
    "verdict": "perhaps",
    "port": "80",
    "variable": "GLOO_SOCKET_IFNAME",
    "function": "main",
}
WINGS = pytest.mark.parametrize("wing", catalogue.WINGS)


def entries(wing):
    text = (catalogue.FOLDER / f"{wing}.po").read_text()
    return list(words.entries(text))


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv(words.VARIABLE, "zh_CN")


def sample(text):
    """The text with something in each hole."""

    def value(hole):
        kind = hole[1].rstrip("_0123456789")
        return "3" if kind in words.NUMBERS else SAMPLES.get(kind, f"<{hole[1]}>")

    return words._plain(words.HOLE.sub(value, text))


def test_the_package_is_translated():
    every, behind = [], []
    for wing in catalogue.WINGS:
        catalog, lagging = catalogue.updated(wing)
        here = [entry.id for entry in catalog if entry.id]
        share = catalogue.words(lagging) / max(1, catalogue.words(here))
        print(f"{wing}: {share:.0%} of {catalogue.words(here)} words lag", *lagging, sep="\n  ")
        every, behind = every + here, behind + lagging
    share = catalogue.words(behind) / catalogue.words(every)
    assert share <= LAGS_AT_MOST, "run tests/unit/words/catalogue.py, and translate what is empty"


@WINGS
def test_a_translation_has_the_holes_of_its_text(wing):
    for text, told in entries(wing):
        holes = {hole[1] for hole in words.HOLE.finditer(text)}
        assert {hole[1] for hole in words.HOLE.finditer(told)} <= holes, text
        assert re.findall(r"`[^`{]+`", text) == [] or "`" in told, text  # what is to be typed
        assert not NOT_SO.search(told), told
        half_width = re.findall(rf"{CHINESE.pattern}[,;:?!(]", re.sub(r"\(.*?\)", "", told))
        assert not half_width, told


@WINGS
def test_each_text_is_known_for_what_it_is(wing, chinese):
    """No pattern takes what is another's."""
    wrong = []
    for text, told in entries(wing):
        expected = sample(told)
        if told != text and words.shown(sample(text)) != words.tidy(expected):
            wrong.append(f"{text}\n  {words.shown(sample(text))}")
    assert len(wrong) <= len(entries(wing)) // 50, "\n".join(wrong)


def test_without_the_variable_nothing_is_read_or_changed(monkeypatch):
    monkeypatch.delenv(words.VARIABLE, raising=False)
    text = "01.1 not yet: with 2 ranks, rank 0 says there are 1"
    assert package.shown(text) is text
    assert package.joined("a.", "b.") == "a. b."
    code = (
        "import ddp_helpers.words as w; w.shown('Start from:');"
        "import sys; assert not {'torch', 'ddp_helpers.words.book'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_text_has_one_translation_in_all_catalogues():
    told = {}
    for wing in catalogue.WINGS:
        for text, translation in entries(wing):
            told.setdefault(text, {})[translation] = wing
    assert not {text: each for text, each in told.items() if len(each) > 1}


@pytest.mark.parametrize("name", ["en", "en_US.UTF-8", "C"])
def test_english_may_be_asked_for(monkeypatch, name):
    monkeypatch.setenv(words.VARIABLE, name)
    assert words.shown("Start from:") == "Start from:"


def test_a_language_that_is_not_there_is_named_and_english_is_shown(monkeypatch):
    monkeypatch.setenv(words.VARIABLE, "../zh_CN")
    with pytest.warns(UserWarning, match="expected zh_CN or en"):
        assert words.shown("Start from:") == "Start from:"


@pytest.mark.parametrize("name", ["zh_CN", "zh-CN", "zh_CN.UTF-8", "zh"])
def test_chinese_has_several_names(monkeypatch, name):
    monkeypatch.setenv(words.VARIABLE, name)
    assert words.shown("Start from:") == "从这里开始："


@pytest.mark.parametrize("number", files())
def test_an_exercise_is_chinese(number, chinese):
    exercise = load(number).EXERCISE
    for text in (exercise.title, exercise.task, exercise.lesson):
        assert CHINESE.search(words.shown(text)), text
    assert sum(bool(CHINESE.search(words.shown(hint))) for hint in exercise.hints) >= 2


def test_a_cell_to_fill_in_says_in_chinese_what_to_do(chinese, capsys):
    for number in files():
        exercise(number, load(number).starter)
        title, _, *lines = capsys.readouterr().out.splitlines()
        assert CHINESE.search(title), title
        assert "再运行这个单元格" in lines[-2]
        assert lines[-1].endswith(f'hint("{number}")')


def test_what_is_somebody_elses_stays(chinese):
    error = "ValueError: rank 0 has the shape 3, expected 4 and more"
    assert words.shown(f"rank 1 failed: {error}") == f"rank 1 出错：{error}"
    for text in ("    x = 1  # the ranks call different collectives", "[rank-did-not-come]"):
        assert words.shown(f"what came\n{text}\n").endswith(f"\n{text}\n")


def test_what_cells_of_the_lessons_look_for_is_still_there(chinese):
    report = "sanitizer: the ranks name different roots in one broadcast"
    assert "different roots" in words.shown(report) != report
    cause = "why: the ranks make different calls, from call 2 of group 0 on [different-collective]"
    assert "call 2" in words.shown(cause) != cause


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "why: rank 2 waits in recv from rank 0, and rank 0 waits in all_reduce",
            "原因：rank 2 在 recv 里等 rank 0，而 rank 0 在 all_reduce 里等待",
        ),
        (
            "01.6 not yet: total did not end within 20 s in a run of 3 ranks:",
            "01.6 还没做对：total 用 3 个 rank 运行时没有在 20 秒内结束：",
        ),
        (
            "01.2 not yet: with src=2, my_broadcast failed in a run of 3 ranks:\n"
            "rank 2 failed: E: x",
            "01.2 还没做对：src=2 时，my_broadcast 用 3 个 rank 运行时出错了：\nrank 2 出错：E: x",
        ),
        (
            "your answer: 2 calls, 24 B by rank 0",
            "你的答案：2 次调用，发送量最大的是 rank 0，共 24 B",
        ),
        (
            "'perhaps' found, expected yes, no. Your guess?",
            "无法识别 'perhaps'，请输入：是，否。你猜？",
        ),
    ],
)
def test_a_text_around_another_is_chinese_as_a_whole(chinese, text, told):
    assert words.shown(text) == told


def test_a_finding_is_chinese_line_by_line(chinese):
    finding = Finding(
        "epoch-not-advanced",
        "DistributedSampler gives the same order in every training pass: its epoch stayed 0",
        "call sampler.set_epoch(epoch) with a new number before each epoch",
    )
    assert words.shown(f"sanitizer, a note: {finding}").splitlines() == [
        "sanitizer 提示：DistributedSampler 每轮训练给出的样本顺序都相同：它的 epoch 一直是 0",
        "怎么办：每个 epoch 开始前调用 sampler.set_epoch(epoch)，每次传入不同的数",
        "[epoch-not-advanced]",
    ]


def test_lines_are_filled_by_columns():
    text = "用 `dist.all_reduce(x)` 把 `tensor` 求和，再除以 rank 的个数。" * 3
    lines = words.filled(text, 40).splitlines()
    assert all(words.columns(line) <= 42 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not any(line[0] in "，。" for line in lines)


SEEN = """
import os
from ddp_helpers import check_environment, launch
from ddp_helpers.exercises import ask, check, hint, task

def my_sum(*tensors):
    print("the ranks call different collectives")
    return tensors[0] * 0

def fails():
    if os.environ["RANK"] == "1":
        raise ValueError("rank 0 has the shape 3, expected 4")

if __name__ == "__main__":
    task("01.4"); hint("01.4", 1); check("01.4", my_sum)
    ask("different processes", 1, 2).was(2)
    print(check_environment())
    try:
        launch(fails, 2, echo=False)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.usefixtures("no_process_left")
def test_a_real_run_speaks_chinese(tmp_path):
    script = tmp_path / "seen.py"
    script.write_text(SEEN)
    env = os.environ | {
        words.VARIABLE: "zh_CN",
        "DDP_HELPERS_PROGRESS": str(tmp_path / "progress.json"),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, timeout=100
    )
    said = done.stdout
    assert done.returncode == 0, done.stderr
    for piece in (
        "01.4 各部分长度不等时的平均值（约",
        "01.4，提示 1/3：",
        "01.4 还没做对：rank 0（共 2 个 rank）上，",
        "rank 0 打印了：\nthe ranks call different collectives\n",
        "有几个不同的进程？答案：2",
        "没有残留的环境变量",
        "rank 1 出错：ValueError: rank 0 has the shape 3, expected 4\n  在 ",
    ):
        assert piece in said, said
