"""The contract of launch() in a real JupyterLab."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
CONTRACT = Path(__file__).parents[1] / "distributed" / "launch_contract.py"
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(x => x.textContent)"


def open_and_run(lab, page, name, cells):
    """Put a notebook into the served folder, open it, and run all cells."""
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    # without a kernel's name JupyterLab would ask for one
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    page.goto(f"{lab}?reset")
    page.locator("#jp-top-panel").wait_for(timeout=60_000)
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    parts = urlsplit(lab)
    answer = page.request.put(
        f"{parts.scheme}://{parts.netloc}/api/contents/{name}",
        headers={
            "X-XSRFToken": cookies.get("_xsrf", ""),
            "Content-Type": "application/json",
        },
        data=json.dumps({"type": "notebook", "format": "json", "content": book}),
    )
    assert answer.ok, answer.text()
    page.goto(f"{lab}/tree/{name}?reset")  # without the tabs of an earlier test
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def until_all_have_run(page):
    page.wait_for_function(f"() => {PROMPTS}.every(text => /\\d/.test(text))", timeout=180_000)


def test_the_contract_holds_in_jupyterlab(lab, page):
    text = CONTRACT.read_text()
    cells = [text, "for check in CHECKS:\n    check()\nprint(len(CHECKS), 'checks are right')"]
    open_and_run(lab, page, "contract.ipynb", cells)
    until_all_have_run(page)
    shown = page.locator(".jp-NotebookPanel").inner_text()
    assert f"{text.count('def test_')} checks are right" in shown, shown[-3000:]


LONG = """\
import os, time
from ddp_helpers import LaunchStopped, launch, report

def long_run():
    print("pid", os.getpid(), flush=True)
    for step in range(10_000):
        report(step=step + 1, total=10_000, loss=1 / (step + 1))
        time.sleep(0.01)

try:
    launch(long_run, 2, live=True)
except LaunchStopped as stopped:
    pids = [int(rank.output.split()[1]) for rank in stopped.result.ranks]
    print(stopped)
    print("STOPPED; still running:", [pid for pid in pids if os.path.exists(f"/proc/{pid}")])
"""


CROSSED = """\
import torch, torch.distributed as dist
from ddp_helpers import launch

def crossed():
    dist.init_process_group("gloo")
    print("here", flush=True)
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    dist.barrier()

launch(crossed, 2)
"""


def test_jupyterlabs_own_stop_button_says_where_each_rank_stood(lab, page):
    open_and_run(lab, page, "crossed.ipynb", [CROSSED])
    page.locator(".jp-OutputArea", has_text="[rank 1] here").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)  # for the ranks to come to their lines
    page.locator("[data-command='notebook:interrupt-kernel']").first.click()
    until_all_have_run(page)
    shown = page.locator(".jp-NotebookPanel").inner_text()
    assert "rank 0 waited in all_reduce at cell In[1], line 8, in crossed" in shown, shown[-2000:]
    assert "rank 1 waited in barrier at cell In[1], line 9, in crossed" in shown
    assert "supervisor.py" not in shown


def test_the_stop_button_ends_the_ranks_while_their_cell_runs(lab, page):
    open_and_run(lab, page, "stop.ipynb", [LONG, "print(launch(lambda: 7, 2).values)"])
    page.locator(".jp-OutputArea", has_text="step 1").first.wait_for(timeout=60_000)
    page.wait_for_timeout(2000)  # JupyterLab prepares a subshell for the button
    page.locator(".jp-OutputArea button", has_text="Stop").click()
    until_all_have_run(page)
    shown = page.locator(".jp-NotebookPanel").inner_text()
    assert "STOPPED; still running: []" in shown, shown[-2000:]
    assert "rank 1 was at cell In[1], line 8, in long_run" in shown
    assert "[7, 7]" in shown
    assert page.locator(".jp-OutputArea button").count() == 0  # nothing left to press
