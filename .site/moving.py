"""Explorables that move on a page: the course's own modules, run by a Python in the browser.

The Python is Pyodide, from npm; without it the pictures stand still. What a page gets is the files
of `play/`, the modules that drawing needs, and a picture of the Python's memory after it has drawn
everything once, with which it starts in a second instead of three.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from ddp_helpers.widgets.controls import Choice, Control, Frames, Slider, Steps, Tick

HERE = Path(__file__).resolve().parent
PLAY = HERE / "play"
sys.path.insert(0, str(PLAY))

from mover import MOVING, RECORDED, load, recorded_about, recording, result_of  # noqa: E402
from spoken import WORDS as SPOKEN  # noqa: E402
from spoken import translated  # noqa: E402

from ddp_helpers.words import shown  # noqa: E402

PYODIDE = HERE / "node_modules" / "pyodide"
FROM_PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
FROM_PYODIDE += ("pyodide-lock.json",)
SHIPPED = {"small_numpy.py": "numpy.py"}
SHIPPED |= {name: name for name in ("film.py", "mover.py", "recordings.py", "spoken.py")}
WORDS = tomllib.loads((PLAY / "words.toml").read_text(encoding="utf-8"))


def moving() -> tuple[str, ...]:
    """Names of the explorables that move on a page; none where Pyodide is not installed."""
    if not all((PYODIDE / name).exists() for name in FROM_PYODIDE):
        return ()
    return MOVING


def ship(root: Path, folder: Path, cache: Path) -> None:
    """Write all that a page's Python needs to `folder`.

    Raises:
        subprocess.CalledProcessError: a module needs more than Python's own library, or the memory
            could not be taken; the message is printed.
    """
    folder.mkdir(parents=True)
    for name in FROM_PYODIDE:
        shutil.copy(PYODIDE / name, folder / name)
    shutil.copy(PLAY / "worker.mjs", folder)
    (folder / "LICENSE.txt").write_text(_licence(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as stage:
        lay_out(root, Path(stage))
        files = modules(Path(stage))
    text = json.dumps(files, ensure_ascii=False, sort_keys=True)
    (folder / "modules.json").write_text(text, encoding="utf-8")
    for language in ("zh_CN",):
        told = json.dumps(words(root, language), ensure_ascii=False, sort_keys=True)
        (folder / f"words.{language}.json").write_text(told, encoding="utf-8")
    memory = _memory(folder / "modules.json", text, cache)
    if memory:
        (folder / "memory.gz").write_bytes(memory)


def lay_out(root: Path, stage: Path) -> None:
    """The package as a page imports it: without `__init__`s that load more than drawing needs."""
    for source, name in SHIPPED.items():
        shutil.copy(PLAY / source, stage / name)
    shutil.copytree(PLAY / "recorded", stage / "recorded")
    package = root / "ddp_helpers"
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        if path.name != "__init__.py" or defines(path):
            (stage / "ddp_helpers" / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, stage / "ddp_helpers" / inside)


def words(root: Path, language: str) -> dict[str, str]:
    """What a page of that language gets besides: its catalogues, and what reads them."""
    folder = Path("ddp_helpers", "words")
    paths = [folder / "book.py", *(folder / language / f"{name}.po" for name in SPOKEN)]
    return {path.as_posix(): (root / path).read_text(encoding="utf-8") for path in paths}


def defines(path: Path) -> bool:
    """Whether an `__init__` has functions or classes of its own: it does not only hand names on."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    own = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return any(node.name != "__getattr__" for node in own)


def modules(stage: Path) -> dict[str, str]:
    """The files that drawing every explorable loads, by a Python that has nothing installed."""
    script = (
        f"import sys; sys.path.insert(0, {str(stage)!r}); import mover, spoken; mover.warm_up(); "
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), "
        "sep='\\n')"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    loaded = [Path(line) for line in done.stdout.splitlines()]
    needed = {path for path in loaded if path.is_relative_to(stage)}
    needed |= set((stage / "recorded").iterdir())
    for wing in ("templates", "faults"):  # the ladder shows those, and the failure lab these
        needed |= set((stage / "ddp_helpers" / wing).glob("[a-z]*.py"))
    return {path.relative_to(stage).as_posix(): path.read_text(encoding="utf-8") for path in needed}


def _memory(modules: Path, text: str, cache: Path) -> bytes | None:
    """The memory of a page's Python that has drawn all, packed; None where there is no node."""
    node = shutil.which("node")
    if node is None:
        print("no node here: the pictures' first move takes seconds longer (apt install nodejs)")
        return None
    script = PLAY / "memory.mjs"
    known = hashlib.sha256(text.encode())
    for file in (script, HERE / "package-lock.json"):
        known.update(file.read_bytes())
    kept = cache / f"{known.hexdigest()[:20]}.gz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "memory"
            command = [node, str(script), str(PYODIDE), str(modules), str(raw)]
            subprocess.run(command, check=True, timeout=300)
            packed = gzip.compress(raw.read_bytes(), compresslevel=6, mtime=0)
        half = kept.with_suffix(f".{hashlib.sha256(packed).hexdigest()[:8]}")
        half.write_bytes(packed)
        half.replace(kept)  # builds side by side find it whole, or not at all
    return kept.read_bytes()


def _licence() -> str:
    version = json.loads((PYODIDE / "package.json").read_text(encoding="utf-8"))["version"]
    return (
        f"The files named pyodide* and python_stdlib.zip are Pyodide {version}, unchanged, under "
        "the Mozilla Public License 2.0;\nits source is at https://github.com/pyodide/pyodide. "
        "They hold CPython and its library, under the PSF licence.\n"
    )


def player(name: str, start: Mapping[str, object], still: str, up: str, language: str) -> str:
    """The HTML of an explorable that moves.

    Args:
        start: where its controls stand, where that is not as it always starts.
        still: what there is to see until it moves: `picture_parts()`, or of a notebook's output.
        up: from the page to the top of the site, "" or "../" and so on.
        language: "en" or "zh".
    """
    explorable = translated(load(name, start))
    words = WORDS[language]
    controls = "".join(control_html(key, each, words) for key, each in explorable.controls.items())
    if explorable.plays:
        controls += (
            f'<button type="button" class="ddp-steps" data-plays="{explorable.plays}" '
            f'aria-pressed="false">{words["play"]}</button>'
        )
    notes = ""
    if name in RECORDED:
        button = html.escape(words["recorded"].format(explorable.run_label))
        controls += f'<button type="button" class="ddp-run">{button}</button>'
        notes = words["ranks"].format(recording(name).about)
    elif name == "machine_room":
        notes = words["machine"].format(recorded_about(name))
    elif explorable.run:
        notes = words["button"]
    title = html.escape(explorable.title)
    return (
        f'<div class="ddp-play" data-explorable="{name}" data-play="{up}play/">'
        f'<b class="ddp-title">{title}</b>'
        f'<form class="ddp-controls" aria-label="{title}: {words["controls"]}">{controls}</form>'
        f'{still}<p class="ddp-note"><span class="ddp-how">{words["still"]}</span> '
        f"{notes}</p></div>"
    )


def still(name: str, start: Mapping[str, object]) -> str:
    """The picture for where the controls start, and its words."""
    explorable = load(name, start)
    values = {key: control.value for key, control in explorable.controls.items()}
    picture = explorable.picture(values, result_of(name, values, ran=False))
    words = "<br>".join(html.escape(shown(picture.words)).splitlines())
    return parts(picture.scene.svg(picture.words), words, picture.detail)


def parts(picture: str, words: str, detail: str) -> str:
    """The three that change when a control moves, as HTML."""
    return (
        f'<div class="ddp-picture">{picture}</div><div class="ddp-words" role="status">{words}'
        f'</div><div class="ddp-detail">{detail}</div>'
    )


def control_html(name: str, control: Control, words: Mapping[str, str]) -> str:
    """A control as plain HTML; what it stands at is a number, a place among options, or a tick."""
    if isinstance(control, Frames):
        slider = control_html(name, Steps(control.label, control.value, control.options), words)
        return (
            f'<fieldset class="ddp-film" aria-label="{html.escape(control.label)}" '
            f'data-ms="{1000 * control.seconds:g}" disabled>{slider}'
            f'<button type="button" class="ddp-step" data-by="-1">{words["back"]}</button>'
            f'<button type="button" class="ddp-pass" data-stop="{words["stop"]}">{words["pass"]}'
            f'</button><button type="button" class="ddp-step" data-by="1">{words["on"]}</button>'
            "</fieldset>"
        )
    label = f"<span>{html.escape(control.label)}</span>"
    if isinstance(control, Tick):
        ticked = " checked" if control.value else ""
        return f'<label><input type="checkbox" name="{name}"{ticked}>{label}</label>'
    if isinstance(control, Slider):
        lowest, highest, step, at = control.least, control.most, control.step, control.value
        options, shown = "", str(at)
    elif isinstance(control, Choice):
        labels = [text for text, _ in control.pairs]
        at = [value for _, value in control.pairs].index(control.value)
        if not isinstance(control, Steps):
            entries = "".join(
                f'<option value="{place}"{" selected" * (place == at)}>{html.escape(text)}</option>'
                for place, text in enumerate(labels)
            )
            return f'<label>{label}<select name="{name}">{entries}</select></label>'
        lowest, highest, step, shown = 0, len(labels) - 1, 1, labels[at]
        options = f' data-options="{html.escape(json.dumps(labels))}" aria-valuetext="{shown}"'
    return (
        f'<label>{label}<input type="range" name="{name}" min="{lowest}" max="{highest}" '
        f'step="{step}" value="{at}"{options}><output>{html.escape(shown)}</output></label>'
    )
