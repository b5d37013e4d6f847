"""The gallery of explorables: picture, what it shows, how to open it, and where it is used."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from editions import edition, lessons, paragraphs, said, speaking, to_lesson, twin
from exercise_page import title_of
from moving import moving, parts, player, still

from ddp_helpers import widgets
from ddp_helpers.words import language

PAGE = "explorables.md"
README = {"": "README.md", "zh_CN": "README.zh-CN.md"}
HERE = (
    "Pictures that answer: move a control, and the picture follows. They move here, in this page, "
    "by the Python that draws them in JupyterLab. A button runs real ranks there; here it shows "
    "what real ranks did when they were recorded."
)
ONLY_THERE = (
    "Pictures that answer: move a control in JupyterLab, and the picture follows. Those with a "
    "button run real ranks. Here you see them as they are at the start."
)
OUTPUT = re.compile(
    r'<div class="ddp-static"><b>.*?</b><br>(<img[^>]*>)<p>(.*?)</p>(.*)</div>$', flags=re.S
)


def write_explorables(root: Path, pages: Path) -> None:
    """Write explorables.md, with the pictures and titles of the README.

    Raises:
        ValueError: README.md does not show one of them.
    """
    spoken = language()
    readme = (root / README[spoken]).read_text(encoding="utf-8")
    move = moving()
    about = said(HERE) if move else said(ONLY_THERE)
    text = [f"# {said('See it move')}\n", twin(PAGE), f"{about}\n"]
    for name in (*move, *(name for name in widgets.NAMES if name not in move)):
        found = re.search(rf"\*\*{name}\*\*.*?!\[([^\]]+)\]\(([^)]+)\)", readme)
        if found is None:
            raise ValueError(
                f"{README[spoken]} shows no picture of the explorable {name}, expected "
                f"**{name}**: TITLE<br>![TITLE](notebooks/images/{name}.png)"
            )
        title, image = found.groups()
        if name in move:
            up, short = ("../", "zh") if spoken else ("", "en")
            shown = f"```{{raw}} html\n{player(name, {}, still(name, {}), up, short)}\n```"
        else:
            (pages / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / image, pages / image)
            shown = f"![{title}]({image})"
        source = Path(widgets.__file__).with_name(f"{name}.py")
        words = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        text.append(
            f"## {title}\n\n{paragraphs(words)}\n\n{shown}\n\n"
            f'```python\nfrom ddp_helpers import widgets\n\nwidgets.explore("{name}")\n```\n\n'
            f"{_used_in(root, name)}"
        )
    (pages / PAGE).write_text("\n".join(text), encoding="utf-8")


def put_players(notebook: dict, page: str) -> None:
    """Make the outputs of a lesson's explorables move, where they can: they show what ran there."""
    language = "zh" if edition(page) else "en"
    up = "../" * page.count("/")
    for cell in notebook["cells"]:
        called = _call("".join(cell["source"])) if cell["cell_type"] == "code" else None
        if called is None or called[0] not in moving():
            continue
        for output in cell["outputs"]:
            shown = "".join(output.get("data", {}).get("text/html", ""))
            if found := OUTPUT.fullmatch(shown):
                with speaking(edition(page)):
                    made = player(*called, parts(*found.groups()), up, language)
                output["data"]["text/html"] = made


def _call(source: str) -> tuple[str, dict[str, object]] | None:
    """The name and the start of `widgets.explore(NAME, ...)` in the last line of a cell."""
    found = re.search(r"^widgets\.explore\(.*\)$", source, flags=re.M)
    if found is None:
        return None
    call = ast.parse(found[0], mode="eval").body
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    return ast.literal_eval(call.args[0]), given


def _used_in(root: Path, name: str) -> str:
    call = rf'explore\(\\"{name}\\"'
    notebooks = sorted(lessons(root).glob("*.ipynb"))
    where = [path for path in notebooks if re.search(call, path.read_text(encoding="utf-8"))]
    links = ", ".join(f"[{title_of(path)}]({to_lesson(path.name, PAGE)})" for path in where)
    return said("Used in: {links}", links=links) + "\n" if links else ""
