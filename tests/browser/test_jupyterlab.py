"""The first notebook, run by a reader in JupyterLab."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(x => x.textContent)"


def open_first(lab, page):
    page.goto(f"{lab}/tree/notebooks/00_check_your_machine.ipynb?reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)


def test_the_first_notebook_runs_in_jupyterlab(lab, page):
    open_first(lab, page)
    folded = page.locator(".jp-NotebookPanel .jp-OutputPlaceholder")
    asked = folded.count()
    assert asked >= 5
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_function(f"() => {PROMPTS}.some(text => text.includes('*'))")
    for answer in ["nonsense", "no", "8", "", *["1"] * asked]:
        done = f"{PROMPTS}.every(text => /\\d/.test(text))"
        question = "document.querySelector('input.jp-Stdin-input:not([title=given])')"
        page.wait_for_function(f"() => {question} || {done}", timeout=180_000)
        if page.evaluate(f"() => {done}"):
            break
        field = page.locator("input.jp-Stdin-input:not([title=given])")
        field.fill(answer)
        field.evaluate("each => { each.title = 'given' }")  # it may stay for a moment
        page.locator("input.jp-Stdin-input[title=given]").last.press("Enter")
    text = page.locator(".jp-NotebookPanel").inner_text()
    assert "'nonsense' found, expected yes, no. Your guess?" in text
    assert "counting starts CUDA: you: no, it was no ✓" in text
    assert "MiB more in the folder: you: 8, it was 8 ✓" in text
    assert "different processes: it was 3" in text
    assert "numbers in the notebook's list: you: 1, it was 0" in text
    assert folded.count() == 0  # what was asked is there to be read now
    assert "[rank 0]" in text
    assert "[rank 1]" in text
    assert page.locator(".jp-RenderedHTMLCommon table").count() >= 1
