"""Where the course's notebooks lie."""

from __future__ import annotations

from pathlib import Path

from ddp_helpers.data.folder import PACKAGE


def lessons(source: str | Path | None = None, which: str = "[0-9][0-9]") -> list[Path]:
    """The notebooks, in order.

    Args:
        source: their folder; by default the one beside the package.
        which: the number of one.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(source) if source else PACKAGE.parent / "notebooks"
    found = sorted(folder.glob(f"{which}_*.ipynb"))
    if not found:
        there = sorted(path.name.partition("_")[0] for path in folder.glob("[0-9][0-9]_*.ipynb"))
        if there:
            raise FileNotFoundError(
                f"no notebook {which} in {folder}: expected one of {', '.join(there)}"
            )
        what = f"no notebook {which}" if which.isdecimal() else "no notebooks"
        raise FileNotFoundError(
            f"{what} in {folder}: --from names the folder notebooks/ of the course's repository; "
            "an installed package does not hold them"
        )
    return found


def find_lesson(which: str, source: str | Path | None = None) -> Path:
    """The notebook of that number.

    Raises:
        FileNotFoundError: there is none.
    """
    if not which.isdecimal():
        raise FileNotFoundError(f"notebook {which!r}: expected its number, such as 06")
    return lessons(source, which.zfill(2))[0]
