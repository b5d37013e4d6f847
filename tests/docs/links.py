"""The links of the course's texts: README, notebooks, notes, and the texts inside the package.

python tests/docs/links.py            lists the external ones, and where they stand
python tests/docs/links.py --check    asks for each of them; 1 if one is gone. Needs a network

Markdown is read by markdown-it-py, and Sphinx's linkcheck asks. By hand is what neither knows:
links between the files of a repository, JupyterLab's anchors, addresses in the texts of modules.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6)
MARKDOWN.normalizeLink = lambda url: url  # as it is written: an odd letter is to be seen
HTML_LINK = re.compile(r"\b(?:href|src)=[\"']([^\"']+)")
HTML_ANCHOR = re.compile(r"\b(?:id|name)=[\"']([^\"']+)")
WORDS = ("text", "code_inline")
URL = re.compile(r"https?://[^\s\"'<>()\[\]{}`]+[^\s\"'<>()\[\]{}`.,;:!?]")
REFUSED = ("401", "403", "429")  # a server that does not like programs; people may get the page
TRIES = 3  # servers have bad moments
ASKING = {  # settings of Sphinx's linkcheck
    "linkcheck_timeout": "20",
    "linkcheck_workers": "8",
    "linkcheck_rate_limit_timeout": "60",
    "linkcheck_allow_unauthorized": "1",
    "linkcheck_report_timeouts_as_broken": "1",
    "linkcheck_anchors": "0",  # many sites make their anchors by a script
    "user_agent": "Mozilla/5.0 (link check)",
}


def pages() -> list[Path]:
    """The Markdown files and notebooks."""
    found = [*ROOT.glob("*.md"), *(ROOT / "data").glob("*.md")]
    for kind in ("*.md", "*.ipynb"):
        found += [
            path
            for path in (ROOT / "notebooks").rglob(kind)
            if ".ipynb_checkpoints" not in path.parts
        ]
    return sorted(found)


def markdown(path: Path) -> str:
    """The Markdown of a page; of a notebook, that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def tokens(text: str) -> Iterator[Token]:
    """The parts of a Markdown text, those within a line after the line."""
    for token in MARKDOWN.parse(text):
        yield token
        yield from token.children or ()


def targets(text: str) -> list[str]:
    """Where the links and images of a Markdown text lead; code is left out."""
    found: list[str] = []
    for token in tokens(text):
        if token.type in ("link_open", "image"):
            found.append(str(token.attrGet("href") or token.attrGet("src")))
        elif token.type in ("html_inline", "html_block"):
            found += HTML_LINK.findall(token.content)
    return found


def anchors(path: Path) -> set[str]:
    """What may stand behind the # of a link to a page: as GitHub and as JupyterLab name it."""
    found: set[str] = set()
    is_notebook, in_heading = path.suffix == ".ipynb", False
    for token in tokens(markdown(path)):
        if token.type in ("html_inline", "html_block"):
            found.update(HTML_ANCHOR.findall(token.content))
        elif token.type == "heading_open" and not is_notebook:
            found.add(str(token.attrGet("id")))
        elif token.type == "inline" and in_heading and is_notebook:
            parts = [part.content for part in token.children or () if part.type in WORDS]
            found.add("".join(parts).replace(" ", "-"))
        in_heading = token.type == "heading_open"
    return found


def problem_of(target: str, page: Path) -> str | None:
    """What is wrong with a link inside the repository; None if it leads somewhere."""
    name, _, anchor = target.partition("#")
    path = (page.parent / unquote(name)).resolve() if name else page
    if not path.is_relative_to(ROOT):
        return "leads out of the repository"
    if not path.exists():
        return "leads to no file"
    if anchor and path.suffix in (".md", ".ipynb") and unquote(anchor) not in anchors(path):
        return f"has no heading for #{anchor}"
    return None


def form_problem(url: str) -> str | None:
    """What is wrong with the form of an external link; None if nothing is."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme != "https":
        return "begins with no https://"
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.hostname or "") or port:
        return "names no public host"
    return "has a space or an odd letter" if re.search(r"[^!-~]|[<>\"\\^{}|]", url) else None


def external() -> dict[str, list[str]]:
    """Each external link, with the files that have it."""
    found: dict[str, list[str]] = {}
    for path in pages():
        links = [target for target in targets(markdown(path)) if "://" in target]
        _note(found, links, path)
    for path in sorted((ROOT / "ddp_helpers").rglob("*.py")):
        _note(found, list(_strings_with_urls(path)), path)
    return found


def _note(found: dict[str, list[str]], links: list[str], path: Path) -> None:
    for link in dict.fromkeys(links):
        found.setdefault(link, []).append(str(path.relative_to(ROOT)))


def _strings_with_urls(path: Path) -> Iterator[str]:
    """The links in the texts of a Python file; not the names of XML, which nobody opens."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            hits = URL.findall(node.value)
            yield from (hit for hit in hits if not hit.startswith("http://www.w3.org/"))


def check(links: dict[str, list[str]], tries: int = TRIES) -> int:
    """Ask for all links, print what is not well; 1 if one is gone, else 0."""
    gone = 0
    for url, said in sorted(_asked(links, tries).items()):
        refused = said in REFUSED
        gone += not refused
        hint = ", to programs: please look" if refused else ""
        print(f"{'ok  ' if refused else 'GONE'} {url} ({said}{hint}): {', '.join(links[url])}")
    print(f"{len(links)} links, {gone} gone")
    return int(gone > 0)


def _asked(links: dict[str, list[str]], tries: int) -> dict[str, str]:
    """Those that Sphinx calls broken: the number that the server said, or why it said none."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index.md").write_text("# Links\n\n" + "".join(f"- <{url}>\n" for url in links))
        settings = {**ASKING, "extensions": "myst_parser", "linkcheck_retries": str(tries)}
        options = [part for item in settings.items() for part in ("-D", "=".join(item))]
        limit = socket.getdefaulttimeout()  # Sphinx sets another one, for the whole process
        try:
            build_main(["-b", "linkcheck", "-C", "-Q", *options, name, str(folder / "out")])
        finally:
            socket.setdefaulttimeout(limit)
        lines = (folder / "out" / "output.json").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    unasked = set(links) - {answer["uri"] for answer in answers}
    if unasked:
        raise RuntimeError(
            f"Sphinx did not ask for {sorted(unasked)}: run it without -Q to see why"
        )
    broken = [answer for answer in answers if answer["status"] == "broken"]
    return {each["uri"]: re.match(r"\d{3}\b|.*", each["info"])[0] for each in broken}


def main() -> int:
    """List the external links, or ask for each of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="ask for each; needs a network")
    links = external()
    if parser.parse_args().check:
        return check(links)
    for url, files in sorted(links.items()):
        print(f"{url}: {', '.join(files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
