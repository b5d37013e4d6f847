"""Buttons to a real kernel: one address makes them all, and without it there are none."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".site"))

import kernels  # noqa: E402

LESSONS = ("01_process_groups.ipynb", "zh_CN/01_process_groups.ipynb")


@pytest.fixture
def course(tmp_path):
    """A copy of what the buttons are made from, and for."""
    for name in ("pyproject.toml", "README.md", *(f"notebooks/{each}" for each in LESSONS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def enter(course, address):
    file = course / "pyproject.toml"
    old = f'github = "{kernels.address_of(course)}"'
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, f'github = "{address}"'))


def test_an_address_makes_them_and_without_it_all_is_as_before(course):
    enter(course, "")
    kernels.write(course)
    before = (course / "README.md").read_text()
    assert "mybinder" not in before
    enter(course, "somebody/ddp-course")
    assert kernels.write(course) == ["README.md", *(f".colab/{name}" for name in LESSONS)]
    text = (course / "README.md").read_text()
    start = (
        "[中文](README.zh-CN.md)\n\n[Binder](https://mybinder.org/v2/gh/somebody/ddp-course/main?"
    )
    assert start in text
    assert "urlpath=lab%2Ftree%2Fnotebooks%2F00_check_your_machine.ipynb) · [Colab](" in text
    assert "[Codespaces](https://codespaces.new/somebody/ddp-course)" in text
    kernels.write(course)
    assert (course / "README.md").read_text() == text  # once, not twice
    enter(course, "")
    assert kernels.write(course) == ["README.md"]
    assert (course / "README.md").read_text() == before
    assert not (course / ".colab").exists()


@pytest.mark.parametrize("name", LESSONS)
def test_colab_gets_the_lesson_with_an_install_that_keeps_its_torch(name):
    text = (ROOT / "notebooks" / name).read_text()
    cells = json.loads(kernels.for_colab(text, "somebody/ddp-course"))["cells"]
    lesson = json.loads(text)["cells"]
    assert "git clone -q --depth 1 https://github.com/somebody/ddp-course " in cells[1]["source"]
    assert "%pip install -q --no-deps /content/course" in cells[1]["source"]
    assert [each["source"] for each in cells if each is not cells[1]] == [
        each["source"] for each in lesson
    ]
    assert not any(each.get("outputs") for each in cells)
    target = kernels.links("somebody/ddp-course", f"notebooks/{name}")
    assert f"github/somebody/ddp-course/blob/main/.colab/{name})" in target


def test_a_lesson_on_the_site_has_the_line_only_with_an_address():
    lesson = {"cells": [{"cell_type": "markdown", "source": "# 01"}]}
    kernels.put_links(lesson, "notebooks/01_x.ipynb", "")
    assert lesson["cells"][0]["source"] == "# 01"
    kernels.put_links(lesson, "notebooks/01_x.ipynb", "somebody/ddp-course")
    assert lesson["cells"][0]["source"].startswith("# 01\n\nRun it with a real kernel: [Binder](")


@pytest.mark.parametrize("address", ["https://github.com/a/b", "a", "a/b/c", "a b/c"])
def test_what_is_no_address_is_told(course, address):
    enter(course, address)
    with pytest.raises(ValueError, match='expected "OWNER/NAME"'):
        kernels.write(course)


def test_the_repository_is_in_step_with_its_address():
    address = kernels.address_of(ROOT)
    line = f"{kernels.links(address)}\n\n" if address else ""
    assert "".join(kernels.LINE.findall((ROOT / "README.md").read_text())) == line
    assert (ROOT / ".colab").exists() == bool(address)
