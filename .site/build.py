"""Build the site of the course: `make site`, or `python .site/build.py --out FOLDER`.

First the pages are gathered below `--work` (README, notebooks, templates, API), then Sphinx
renders them to `--out`. No notebook is executed, and the finished pages fetch nothing.
"""

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

MARK = ".made-by-the-site-build"


def main(arguments: list[str] | None = None) -> int:
    """Gather the pages and render them; the exit status is Sphinx's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "site-pages")
    options = parser.parse_args(arguments)
    try:
        from sphinx.cmd.build import build_main
    except ModuleNotFoundError as error:
        print(
            f"error: no {error.name} here, expected the group `site`: run `make site`, "
            "or pip install -c constraints.txt -e '.[site]'",
            file=sys.stderr,
        )
        return 1
    from gather import gather
    from moving import PYODIDE, moving

    for folder in (options.out, options.work):
        empty(folder)
    if not moving():
        print(
            f"no Pyodide in {PYODIDE}: the explorables of this site stand still, as pictures. With "
            "npm and a network, `npm ci --prefix .site` brings it once"
        )
    gather(ROOT, options.work)
    flags = ["-W", "--keep-going", "-q", "-E", "-j", "auto", "-b", "html", "-c", str(HERE)]
    flags += ["-d", str(options.work / ".doctrees")]
    done = build_main([*flags, str(options.work), str(options.out)])
    if done == 0:
        print(f"{size(options.out):.1f} MB: open {options.out / 'index.html'}, or run make serve")
    return done


def size(folder: Path) -> float:
    """Of all its files, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def empty(folder: Path) -> None:
    """Make an empty folder; one that this command did not make is left alone.

    Raises:
        FileExistsError: there are files in it that are not a site's.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise FileExistsError(
                f"{folder} holds files that are not a site's, expected an empty folder: "
                "choose another one, or empty it yourself"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


if __name__ == "__main__":
    sys.exit(main())
