"""Every link inside the repository leads somewhere; external ones have the right form."""

import ast
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import links
import pytest

PAGES = links.pages()
TEMPLATES = links.ROOT / "ddp_helpers" / "templates"
NAME = re.compile(r"(?<![\w/*.-])[\w/]*\w+\.(?:py|sh|sbatch)\b")
YOURS = {"train.py", "script.py"}  # names for a reader's own file


def name(path):
    return str(path.relative_to(links.ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_images_lead_somewhere(page):
    inside = [target for target in links.targets(links.markdown(page)) if "://" not in target]
    problems = {target: links.problem_of(target, page) for target in inside}
    assert {target: why for target, why in problems.items() if why} == {}


def test_external_links_have_the_right_form():
    urls = links.external()
    assert "https://arxiv.org/abs/1706.02677" in urls  # of a notebook
    assert "https://doi.org/10.1145/1465482.1465560" in urls  # of a module
    problems = {url: why for url in urls if (why := links.form_problem(url))}
    assert problems == {}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.*")), ids=lambda path: path.name)
def test_a_template_names_only_files_that_are_there(path):
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text))
    else:
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    named = set(NAME.findall(text)) - YOURS
    assert {each for each in named if not (TEMPLATES / each).is_file()} == set()


def test_contributing_names_only_files_that_are_there():
    text = (links.ROOT / "CONTRIBUTING.md").read_text()
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    files = {str(path) for path in links.ROOT.glob("ddp_helpers/**/*.py")}
    missing = {
        each
        for each in set(NAME.findall(code)) - YOURS
        if not (links.ROOT / each).is_file() and not any(f.endswith(f"/{each}") for f in files)
    }
    assert missing == set()


# ---- the check itself


def test_links_are_found_and_code_is_not():
    text = """[a](b.md) ![c](d.png "title") <img src="e.png"> <https://f.org/g> [h]
`[no](code.md)`
```python
x[0](no.md)
```
[h]: i.md#j
"""
    assert links.targets(text) == ["b.md", "d.png", "e.png", "https://f.org/g", "i.md#j"]


def test_a_link_that_leads_nowhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text("# One, two: `three`\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    (tmp_path / "b.ipynb").write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# 1 · What now?\\n", "text"]}]}'
    )
    good = ["a.md", "#one-two-three", "#twice", "a.md#twice-1", "b.ipynb#1-%C2%B7-What-now%3F"]
    assert [links.problem_of(target, page) for target in good] == [None] * 5
    bad = ["c.md", "#no-heading", "a.md#twice-2", "b.ipynb#1-what-now", "../../etc/passwd"]
    assert all(links.problem_of(target, page) for target in bad)


@pytest.mark.parametrize(
    "url",
    ["http://pytorch.org", "https://localhost/x", "https://a.org:80000/", "https://b.org/a b"],
)
def test_a_bad_form_is_told(url):
    assert links.form_problem(url)
    assert not links.form_problem("https://docs.pytorch.org/docs/stable/ddp.html#a-b")


@pytest.fixture
def server():
    """Answers with the number in the path."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_weekly_check_tells_what_is_gone(server, capsys):
    here, gone, refused = (f"{server}/{code}" for code in (200, 404, 403))
    assert links.check({here: ["a.md"], refused: ["b.md"]}, tries=1) == 0
    assert f"ok   {refused}" in capsys.readouterr().out
    assert links.check({here: ["a.md"], gone: ["c.md", "d.md"]}, tries=2) == 1
    said = capsys.readouterr().out
    assert f"GONE {gone} (404): c.md, d.md" in said
    assert "2 links, 1 gone" in said
    assert links.check({f"{server}/500": ["e.md"]}, tries=2) == 1
    assert links.check({"http://127.0.0.1:9/": ["f.md"]}, tries=1) == 1
