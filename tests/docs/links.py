"""The links of the course's texts: README, notebooks, notes, and the texts inside the package.

python tests/docs/links.py            lists the external ones, and where they stand
python tests/docs/links.py --check    asks for each of them; 1 if one is gone. Needs a network
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"^ *(```|~~~).*?^ *\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"  # [text](target), ![text](target "title")
    r"|^ {0,3}\[[^\]]+\]:\s*(\S+)"  # [text]: target
    r"|<(https?://[^>\s]+)>"
    r"|\b(?:href|src)=[\"']([^\"']+)",
    re.MULTILINE,
)
URL = re.compile(r"https?://[^\s\"'<>()\[\]{}`]+[^\s\"'<>()\[\]{}`.,;:!?]")
HEADING = re.compile(r"^#{1,6} +(.+?) *#* *$", re.MULTILINE)
REFUSED = (401, 403, 429)  # a server that does not like programs; people may well get the page
ANSWER_SECONDS = 20


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


def targets(text: str) -> list[str]:
    """Where the links and images of a Markdown text lead; code is left out."""
    return [next(filter(None, hit)) for hit in LINK.findall(CODE.sub("", text))]


def anchors(path: Path) -> set[str]:
    """What may stand behind the # of a link to a page: as GitHub and as JupyterLab name it."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", markdown(path), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set(re.findall(r"\b(?:id|name)=[\"']([^\"']+)", text))
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        if path.suffix == ".ipynb":
            found.add(plain.replace(" ", "-"))
            continue
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        again = sum(bool(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", name)) for name in found)
        found.add(f"{slug}-{again}" if again else slug)
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


def ask(url: str, tries: int = 3, pause: float = 5.0) -> tuple[bool, str]:
    """Whether a link still leads somewhere, and what the server said."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "Mozilla/5.0 (link check)", "Accept": "*/*"}
    )
    said = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(pause)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return True, str(answer.status)
        except urllib.error.HTTPError as error:
            if error.code in REFUSED:
                return True, f"{error.code}, to programs: please look"
            said = str(error.code)
            if error.code in (404, 410):
                break
        except OSError as error:
            said = str(getattr(error, "reason", error))
    return False, said


def check(links: dict[str, list[str]], **patience: float) -> int:
    """Ask for all links, print what is not well; 1 if one is gone, else 0."""
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(lambda url: ask(url, **patience), links))
    for (url, files), (good, said) in zip(links.items(), answers, strict=True):
        if not good or said != "200":
            print(f"{'ok  ' if good else 'GONE'} {url} ({said}): {', '.join(files)}")
    gone = sum(not good for good, _ in answers)
    print(f"{len(links)} links, {gone} gone")
    return int(gone > 0)


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
