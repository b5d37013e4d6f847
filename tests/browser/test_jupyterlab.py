"""The first notebook, run by a reader in JupyterLab."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(x => x.textContent)"


def test_the_first_notebook_runs_in_jupyterlab(lab, page):
    page.goto(f"{lab}/tree/notebooks/00_check_your_machine.ipynb?reset")
    cells = page.locator(".jp-NotebookPanel .jp-CodeCell")
    cells.first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_function(f"() => {PROMPTS}.some(text => text.includes('*'))")
    page.wait_for_function(f"() => {PROMPTS}.every(text => /\\d/.test(text))", timeout=180_000)
    text = page.locator(".jp-NotebookPanel").inner_text()
    assert "[rank 0]" in text
    assert "[rank 1]" in text
    assert page.locator(".jp-RenderedHTMLCommon table").count() >= 1
