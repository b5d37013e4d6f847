"""Write the source of every page below one folder: copies with links turned, and made pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from api_pages import write_api
from editions import edition, said, speaking
from exercise_page import write_exercises
from explorable_page import put_players, write_explorables
from fault_page import write_faults
from kernels import address_of, put_links
from moving import moving, ship
from others_page import write_others
from pictures import Pictures
from places import Links, page_of
from published_page import write_published
from recipe_pages import write_recipes
from run_page import put_runs
from template_pages import write_templates

TEXTS = (
    *("README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("data/README.md", "notebooks/INSTRUCTOR.md", "notebooks/TROUBLESHOOTING.md"),
    *("notebooks/WHAT_NEXT.md", "notebooks/zh_CN/GLOSSARY.md", "notebooks/zh_CN/INSTRUCTOR.md"),
    *("notebooks/zh_CN/TROUBLESHOOTING.md", "notebooks/zh_CN/WHAT_NEXT.md"),
)
NOTEBOOKS = ("notebooks", "notebooks/zh_CN")


def gather(root: Path, pages: Path) -> None:
    """Fill `pages` with the sources of the site of the course in `root`.

    Raises:
        FileNotFoundError: there is no README.md, so `root` is not the course.
    """
    if not (root / "README.md").exists():
        raise FileNotFoundError(f"no README.md in {root}, expected the folder of the course")
    links, pictures = Links(root), Pictures(pages / "_extra")
    notebooks = [path for folder in NOTEBOOKS for path in (root / folder).glob("*.ipynb")]
    links.files |= {name for name in TEXTS if (root / name).exists()}
    links.files |= {path.relative_to(root).as_posix() for path in notebooks}
    copied: set[str] = set()
    while todo := links.files - copied:  # a page may link to a file that has no page yet
        for file in sorted(todo):
            _write(pages / page_of(file), _source(root, file, links, pictures))
        copied |= todo
    for language in ("", "zh_CN"):
        with speaking(language):
            (pages / language).mkdir(exist_ok=True)
            write_templates(root, pages / language)
            write_exercises(root, pages / language)
            write_explorables(root, pages / language)
            write_faults(pages / language)
    write_recipes(pages)
    write_published(root, pages)
    write_others(pages)
    write_api(pages)
    if moving():
        ship(root, pages / "_extra" / "play", root / "build" / "play")
    for image in links.images:
        (pages / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / image, pages / image)
    index = pages / "index.md"
    _write(index, index.read_text(encoding="utf-8") + _contents(pages, copied))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _source(root: Path, file: str, links: Links, pictures: Pictures) -> str:
    text = (root / file).read_text(encoding="utf-8")
    if file.endswith(".md"):
        return links.rewrite(text, file)
    if not file.endswith(".ipynb"):
        fence = "`" * 6
        return f"# {file}\n\n{fence}text\n{text.rstrip()}\n{fence}\n"
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links.rewrite("".join(cell["source"]), file)
        for output in cell.get("outputs", ()):
            pictures.take_out(output.get("data", {}), page_of(file))
    put_players(notebook, page_of(file))
    put_runs(notebook, page_of(file), root)
    put_links(notebook, file, address_of(root))
    return json.dumps(notebook, ensure_ascii=False)


def _contents(pages: Path, copied: set[str]) -> str:
    """The contents in the sidebar: one hidden toctree for each part."""
    there = sorted(page_of(file) for file in copied)
    chinese = [page for page in there if edition(page)]
    lessons = [page for page in there if page.endswith(".ipynb") and page not in chinese]
    next_page = [page for page in there if page == "notebooks/WHAT_NEXT.md"]
    look_up = ["templates/index.md", "recipes/index.md", "api/index.rst"]
    look_up += [
        "notebooks/TROUBLESHOOTING.md",
        "faults.md",
        "published_errors.md",
        "predictions.md",
    ]
    others = [
        page for page in there if page not in {"index.md", *chinese, *lessons, *next_page, *look_up}
    ]
    parts = {
        "The course": [*lessons, *next_page, "exercises.md", "explorables.md"],
        "Look it up": [page for page in look_up if (pages / page).exists()],
        "About": sorted(others, key=lambda page: page != "notebooks/INSTRUCTOR.md"),
        **_chinese_parts(chinese),
    }
    return "".join(
        "\n\n```{toctree}\n:hidden:\n:titlesonly:\n:caption: "
        + f"{caption}\n\n"
        + "\n".join(entries)
        + "\n```\n"
        for caption, entries in parts.items()
        if entries
    )


def _chinese_parts(pages: list[str]) -> dict[str, list[str]]:
    """The parts of the Chinese contents: its pages, and those that are made in each language."""
    folder = "notebooks/zh_CN"
    next_page, look_up = f"{folder}/WHAT_NEXT.md", [f"{folder}/TROUBLESHOOTING.md"]
    lessons = [page for page in pages if page.endswith(".ipynb")]
    look_up += [f"{folder}/GLOSSARY.md"]
    about = [page for page in pages if page not in {"zh_CN.md", next_page, *lessons, *look_up}]
    course = ["zh_CN.md", *lessons, next_page, "zh_CN/exercises.md", "zh_CN/explorables.md"]
    look_up = ["zh_CN/templates/index.md", *look_up, "zh_CN/faults.md"]
    with speaking("zh_CN"):
        return {said("The course"): course, said("Look it up"): look_up, said("About"): about}
