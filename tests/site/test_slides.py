"""The slides: every figure is on them, after its code, and no other library is fetched."""

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"<section>|</section>")


@pytest.fixture(scope="module")
def slides():
    spec = importlib.util.spec_from_file_location("slides", ROOT / ".site/slides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", ["01_process_groups", "zh_CN/05_when_it_breaks"])
def test_a_page_has_all_figures_and_starts_without_other_libraries(slides, path, tmp_path, capsys):
    source = ROOT / "notebooks" / f"{path}.ipynb"
    notebook = nbformat.read(source, as_version=4)
    assert slides.main([str(source), "--out", str(tmp_path), "--reveal", "here"]) == 0
    text = (tmp_path / f"{source.stem}.html").read_text()
    assert len(re.findall(r"<img[^>]* src=.data:image/png", text)) == figures(notebook) > 0
    texts = sum(cell.cell_type == "markdown" for cell in notebook.cells)
    assert len(SECTION.split(text)) > texts
    scripts = re.findall(r"<script[^>]* src=[\"']([^\"']+)", text)
    assert [each for each in scripts if "mathjax" not in each] == ["here/dist/reveal.js"]
    assert "require(" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
    assert capsys.readouterr().out.strip().endswith(f"{source.stem}.html")


def test_a_large_output_comes_after_its_code(slides):
    new = nbformat.v4
    shown = new.new_output("display_data", {"image/png": "AAAA", "text/plain": "a figure"})
    cells = [
        new.new_markdown_cell("## Part"),
        new.new_code_cell("plot()", outputs=[shown]),
        new.new_markdown_cell("Predict."),
        new.new_code_cell("1 + 1", outputs=[new.new_output("stream", text="2\n")]),
    ]
    parts = [part for cell in cells for part in slides.parts(cell)]
    kinds = [(part.metadata.slideshow.slide_type, bool(part.get("outputs"))) for part in parts]
    assert kinds == [
        *[("slide", False), ("fragment", False), ("subslide", True)],
        *[("subslide", False), ("fragment", True)],
    ]


def test_a_number_names_a_notebook_and_what_is_none_is_said(slides, tmp_path, capsys):
    assert slides.main(["0", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["00_check_your_machine.html"]
    assert slides.main(["00", "17", "--out", str(tmp_path / "none")]) == 1
    assert "no notebook 17: expected a file, or one of 00, 01" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_no_such_language(slides, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slides"])
    assert slides.main(["--language", "xx"]) == 1
    assert "no notebooks in" in capsys.readouterr().err
