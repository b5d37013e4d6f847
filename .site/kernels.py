"""One click to a real kernel: the links that open the course at Binder, Colab and Codespaces.

    make buttons     # after the address has changed; the Chinese README follows

The address is entered in one place, pyproject.toml: `github = "OWNER/NAME"` under `[tool.course]`.
From it come a line in README.md, one at the top of each lesson on the site, and `.colab/`: the
lessons with a first cell that installs the course beside Colab's own torch. Without an address
there is none of it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
WORDS = tomllib.loads((ROOT / ".site/runs/words.toml").read_text(encoding="utf-8"))
BRANCH = "main"
FIRST = "notebooks/00_check_your_machine.ipynb"
FOLDER = ".colab"
FORM = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+")
LINE = re.compile(r"^\[Binder\]\(https://mybinder\.org/\S+\).*\n\n", re.M)
AFTER = re.compile(r"^\[中文\]\(README\.zh-CN\.md\)\n\n", re.M)
INSTALL = """\
# Colab has its own torch, and keeps it: --no-deps
!test -d /content/course || git clone -q --depth 1 https://github.com/{address} /content/course
%pip install -q --no-deps /content/course
%cd -q /content/course/notebooks"""


def address_of(root: Path) -> str:
    """OWNER/NAME, or an empty text.

    Raises:
        ValueError: it is something else.
    """
    tools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    address = tools.get("course", {}).get("github", "")
    if address and not FORM.fullmatch(address):
        raise ValueError(
            f'pyproject.toml, [tool.course], github = "{address}": expected "OWNER/NAME", as in '
            'https://github.com/OWNER/NAME, or "" for none'
        )
    return address


def links(address: str, notebook: str = FIRST) -> str:
    """Markdown: where the course opens, at this notebook.

    Args:
        notebook: its path in the repository.
    """
    lab, name = quote(f"lab/tree/{notebook}", safe=""), Path(notebook).name
    place = FOLDER if Path(notebook).parent.name == "notebooks" else f"{FOLDER}/zh_CN"
    found = {
        "Binder": f"https://mybinder.org/v2/gh/{address}/{BRANCH}?urlpath={lab}",
        "Colab": f"https://colab.research.google.com/github/{address}/blob/{BRANCH}/{place}/{name}",
        "Codespaces": f"https://codespaces.new/{address}",
    }
    return " · ".join(f"[{name}]({target})" for name, target in found.items())


def put_links(notebook: dict, file: str, address: str) -> None:
    """Add the line to the first cell of a lesson that the site shows."""
    if address:
        words = WORDS["zh" if "/zh_CN/" in file else "en"]["kernel"]
        first = notebook["cells"][0]
        first["source"] = f"{''.join(first['source'])}\n\n{words}{links(address, file)}"


def for_colab(text: str, address: str) -> str:
    """A lesson without its outputs, and with a first cell that installs the course."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
            cell["metadata"] = {}
    install = {
        "cell_type": "code",
        "id": "install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": INSTALL.format(address=address),
    }
    notebook["cells"].insert(1, install)
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def write(root: Path) -> list[str]:
    """Bring README.md and `.colab/` of a course in step with its address; what was written."""
    address, written = address_of(root), []
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8")
    text = LINE.sub("", before)
    if address:
        text = AFTER.sub(lambda found: f"{found[0]}{links(address)}\n\n", text, count=1)
    if text != before:
        readme.write_text(text, encoding="utf-8")
        written.append("README.md")
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    for lesson in sorted((root / "notebooks").rglob("[0-9]*.ipynb")) if address else ():
        copy = root / FOLDER / lesson.relative_to(root / "notebooks")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(for_colab(lesson.read_text(encoding="utf-8"), address), encoding="utf-8")
        written.append(copy.relative_to(root).as_posix())
    return written


def main() -> int:
    """Command line; exit code 1 if the address is none."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    try:
        written = write(ROOT)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("wrote", *written, sep="\n  ") if written else print("nothing to write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
