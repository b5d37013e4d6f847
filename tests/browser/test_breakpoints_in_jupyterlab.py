"""breakpoint() in a rank, with the prompt under the cell of a real JupyterLab."""

import pytest
from test_launch_in_jupyterlab import open_and_run, until_all_have_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
INPUT = ".jp-Stdin-input"
TRAIN = """\
import torch, torch.distributed as dist
from ddp_helpers import LaunchError, launch, process_group

def train():
    with process_group() as pg:
        x = torch.full((2,), pg.rank + 1.0)
        if pg.rank == 1:
            breakpoint()
        y = x * 10
        dist.all_reduce(y)
        return y.sum().item()
"""
FAILS = """\
def fails():
    with process_group() as pg:
        label = 11 + pg.rank
        if pg.rank == 1:
            raise ValueError("bad label")
        dist.barrier()

try:
    launch(fails, 2, post_mortem=True)
except LaunchError as error:
    print("REPORT", error)
"""


def answer(page, prompt, line):
    """Wait for a prompt's input box, and type a line into it."""
    page.locator(".jp-Stdin-prompt", has_text=prompt).last.wait_for(timeout=60_000)
    box = page.locator(f"{INPUT}:not([used])")
    box.wait_for(timeout=30_000)
    box.evaluate("box => box.setAttribute('used', '')")  # an answered one stays for a moment
    box = page.locator(INPUT).last
    box.fill(line)
    box.press("Enter")


def shown(page):
    return page.locator(".jp-NotebookPanel").inner_text()


def test_step_print_continue_and_quit(lab, page):
    runs = "print(launch(train, 2, timeout=5).values)"
    again = "print(repr(launch(train, 2, timeout=5)))"
    open_and_run(lab, page, "break.ipynb", [TRAIN, runs, again, "print(launch(lambda: 7, 2))"])
    answer(page, "[rank 1] (Pdb)", "n")
    page.locator(".jp-OutputArea", has_text="-> dist.all_reduce(y)").first.wait_for()
    answer(page, "[rank 1] (Pdb)", "p y")
    page.locator(".jp-OutputArea", has_text="[rank 1] tensor([20., 20.])").first.wait_for()
    page.wait_for_timeout(6000)  # longer than the launch's limit, which stands still
    answer(page, "[rank 1] (Pdb)", "c")
    page.locator(".jp-OutputArea", has_text="[60.0, 60.0]").first.wait_for(timeout=30_000)
    answer(page, "[rank 1] (Pdb)", "q")
    until_all_have_run(page)
    text = shown(page)
    assert "rank 1 has stopped at cell In[1], line 9, in train" in text, text[-3000:]
    assert "[rank 1] > cell In[1], line 9, in train" in text
    assert "[rank 1] -> y = x * 10" in text
    assert "LaunchResult(2 ranks, quit at rank 1's prompt" in text
    assert "Traceback" not in text
    assert "LaunchResult(2 ranks, ok" in text  # and the next launch works


def test_a_failed_rank_is_looked_at(lab, page):
    open_and_run(lab, page, "failed.ipynb", [TRAIN, FAILS])
    answer(page, "[rank 1] (Pdb)", "p label")
    page.locator(".jp-OutputArea", has_text="[rank 1] 12").first.wait_for(timeout=30_000)
    answer(page, "[rank 1] (Pdb)", "q")
    until_all_have_run(page)
    text = shown(page)
    assert "[rank 1] ValueError: bad label" in text, text[-3000:]
    assert "REPORT rank 1 failed: ValueError: bad label" in text


def test_the_stop_button_works_at_a_prompt(lab, page):
    cells = [TRAIN, "launch(train, 2)", "print(launch(lambda: 7, 2).values)"]
    open_and_run(lab, page, "stop_prompt.ipynb", cells)
    page.locator(INPUT).wait_for(timeout=60_000)
    page.locator("[data-command='notebook:interrupt-kernel']").first.click()
    page.locator(".jp-OutputArea", has_text="stopped after").first.wait_for(timeout=30_000)
    assert "rank 1 was at cell In[1], line 9, in train" in shown(page)
    page.locator(".jp-CodeCell").nth(2).click()
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-OutputArea", has_text="[7, 7]").first.wait_for(timeout=60_000)
