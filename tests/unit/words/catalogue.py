"""Keep the package's words in step with its code: they are in ddp_helpers/words/zh_CN/*.po.

    python tests/unit/words/catalogue.py           # update the .po files, say what lags
    python tests/unit/words/catalogue.py --check   # write nothing; exit code 1 if anything lags

A .po file has an entry for each sentence of one wing that a reader may be shown. Holes are those of
f-strings, by a name made from what stands in them; the translation has the same holes, in any
order. A hole `{error!s}` is left as it is, where its text is somebody else's. A translation that is
the text itself says: this one stays English.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence, Set
from difflib import get_close_matches
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from by_hand import BY_HAND

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "ddp_helpers"
FOLDER = PACKAGE / "words/zh_CN"
WINGS = {  # catalogue: where its words are
    "bench": ("bench/records.py", "bench/step_meter.py", "bench/verdict.py"),
    "classroom": ("classroom/*.py",),
    "cluster": ("cluster/*.py",),
    "command": ("cli/*.py", "templates/__init__.py", "arguments.py"),
    "diagnosis": ("diagnosis/*.py", "diagnosis/*.toml"),
    "environment": ("environment/check.py", "environment/report.py"),
    "exercises": ("exercises/*.py",),
    "faults": (),  # of their records
    "figures": (
        *("plots/collectives.py", "plots/lanes.py", "plots/runs.py", "timeline/plots.py"),
        *("scaling/plots.py", "bench/plots.py"),
        *("exercises/figure.py", "evidence/claims.py"),
    ),  # and what the notebooks' cells give to them
    "launch": (
        "ranks/conclusion.py",
        "ranks/given.py",
        "ranks/starting.py",
        "evidence/records.py",
    ),
    "questions": (),  # of the notebooks' cells
    "ranks": tuple(
        f"ranks/{name}.py"
        for name in "view prompts breakpoints session staying stall host_task".split()
    ),
    "troubleshooting": ("troubleshooting/known.py",),
    "verifier": ("verifier/*.py",),
    "scaling": tuple(  # plots.py is among the figures; others.py has names, and what BY_HAND says
        f"scaling/{name}.py"
        for name in ("fits", "machine_costs", "memory", "memory_trace", "memory_ways")
    )
    + tuple(
        f"scaling/{name}.py"
        for name in ("published", "rated", "records", "step_time", "work_costs")
    ),
    "sanitizer": tuple(f"sanitizer/{part}/*.py" for part in ("checks", "compare", "talk", "watch")),
    "widgets": ("widgets/*.py",),
}
# calls and keywords of widgets and figures whose texts are shown, be it a single word
LABELLED = set("Slider Choice Steps Tick Explorable text axis OfRank".split())
LABEL_KEYS = {"label", "xlabel", "ylabel", "title", "run_label", "description", "tooltip", "how"}
COMMANDS = ("bench", "classroom", "cluster", "command", "scaling")
ERRORS = set(  # a command prints them
    "ValueError TypeError OSError RuntimeError KeyError FileExistsError FileNotFoundError".split()
)
WRONG = ("STARTER_SAYS", "WRONG")  # what the starter and wrong answers make a check say
HELP = ("HELP", "COMMANDS", "PLACES", "STYLE", "usage")  # argparse's, and a page's look
PLACES = {"loc", "textcoords", "layout"}  # keywords whose texts say where
NO_WORDS = {
    *("rank {rank}", "{pair}.py", "{name}: {ms} ms", "row wrap", "2px 18px"),
    *("over by {value} {unit}", "worked {worked} ms, waited {waited} ms a step"),
    *("{bytes} of memory", "text/html; charset=utf-8"),
    *("forkserver import main", "price_per_hour model_error"),
    "parameters gradients optimizer frozen buckets gathered activations recomputed",
    "background communication_cpu step_overhead byte_overhead noise",
    "seconds_per_sample seconds_per_batch optimizer_seconds data_seconds_per_sample",
    r"`# NEW` marks\s+what differs from(?: the step before,)?\s+\w+\.py(?::[^.]*)?\.\s+",
    "{value}{value_2}{value_3}{value_4}{value_5}{value_6}{value_7}  bound by",
}
FIGURES = re.compile(r"(plot_\w+|show|says|compare)\(")  # calls in the notebooks' cells
FIGURE_KEYS = {"title", "note", "ylabel", "xlabel", "alt", "measured_label"}
ALIKE = 0.75  # a text so near to one that is gone is that one, changed
# calls whose texts nobody is shown: patterns, names, the answers that a check must refuse
UNSEEN = set(
    "Wrong compile match search sub fullmatch findall split startswith endswith replace join_ "
    "getattr hasattr setattr set_title encode Gate getLogger import_module strftime "
    "ValueError TypeError KeyError RuntimeError AssertionError OSError RuntimeWarning warn "
    "add_argument literal_eval".split()
)
HOLE = re.compile(r"\{\w+\}")
SAID = re.compile(r"[A-Za-z][a-z']*[,:;]? (?:\w+[,:;]? )*?\w*[a-z]{2}")  # two words in a row
MARKUP = re.compile(r"<\w+ |text-align|border-top|^import |json\.dumps")


def sentences(wing: str) -> dict[str, list[tuple[str, int]]]:
    """The texts of a wing, each with the places where it stands."""
    found: dict[str, list[tuple[str, int]]] = {}
    for pattern in WINGS[wing]:
        for path in sorted(PACKAGE.glob(pattern)):
            read = _of_rules if path.suffix == ".toml" else _of_code
            if wing in COMMANDS:
                read = _of_command
            labels = _labels(path) if wing in ("widgets", "figures") else ()
            for text, line in (*read(path), *labels):
                if text in NO_WORDS:
                    continue
                found.setdefault(text, []).append((path.relative_to(ROOT).as_posix(), line))
    by_hand = list(BY_HAND.get(wing, ()))
    if wing == "exercises":  # a title without loading the file
        by_hand += [_title_of(path) for path in sorted(PACKAGE.glob("exercises/e[0-9]*.py"))]
    if wing == "faults":
        by_hand += _faults()
    if wing == "figures":
        by_hand += figures()
    if wing == "questions":
        by_hand += _questions()
    for text in by_hand:
        found.setdefault(text, []).append(("tests/unit/words/catalogue.py", 1))
    return found


def _title_of(path: Path) -> str:
    return "{number} " + path.stem.split("_", 2)[2].replace("_", " ")


def _faults() -> list[str]:
    found = []
    for path in sorted(PACKAGE.glob("faults/[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) == "Fault":
                given = {each.arg: each.value for each in node.keywords}
                found += [as_template(given[key]) for key in ("title", "cause", "mend")]
    return found


BOOKS = tuple(sorted((ROOT / "notebooks").glob("*.ipynb")))


def _cells(calls: re.Pattern[str], books: Sequence[Path] = BOOKS) -> Iterator[ast.AST]:
    """All nodes of the notebooks' cells with such a call."""
    for path in books:
        for cell in json.loads(path.read_text())["cells"]:
            code = "".join(cell["source"])
            if cell["cell_type"] == "code" and calls.search(code):
                yield from ast.walk(ast.parse(re.sub(r"^[%!].*$", "pass", code, flags=re.M)))


def _questions() -> list[str]:
    """What the notebooks' cells ask, and the answers that are words."""
    found = []
    for node in _cells(re.compile(r"\bask\(")):
        if isinstance(node, ast.Call) and _name(node.func) == "ask":
            values = [each.value for each in node.args if isinstance(each, ast.Constant)]
            found += [_doubled(each) for each in values if isinstance(each, str)]
    return list(dict.fromkeys(found))


def figures(books: Sequence[Path] = BOOKS) -> list[str]:
    """What the notebooks' cells write on figures, and say of what they have measured."""
    found = []
    for node in _cells(FIGURES, books):
        given: list[ast.AST] = []
        if isinstance(node, ast.Call):
            given += [each.value for each in node.keywords if each.arg in FIGURE_KEYS]
            claims = _name(node.func) in ("says", "compare")
            given += node.args if claims else []
        elif isinstance(node, ast.Dict):  # of keywords
            pairs = zip(node.keys, node.values, strict=True)
            given += [value for key, value in pairs if getattr(key, "value", "") in FIGURE_KEYS]
        texts = (as_template(each) for each in given if _is_text(each))
        found += [text for text in texts if re.search("[a-z]{2}", HOLE.sub("", text))]
    return list(dict.fromkeys(found))


def _labels(path: Path) -> Iterator[tuple[str, int]]:
    """Names of controls, axes and what a picture shows: a single word is one, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            given = [each.value for each in node.keywords if each.arg in LABEL_KEYS]
            given += node.args if _name(node.func) in LABELLED else []
            for each in filter(_is_text, given):
                text = as_template(each).strip()
                if re.search("[a-z]{2}", HOLE.sub("", text)) and not SAID.search(text):
                    yield text, node.lineno


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.Constant) or _is_sum(node)


def _of_rules(path: Path) -> Iterator[tuple[str, int]]:
    for rule in tomllib.loads(path.read_text())["rule"]:
        for key in ("cause", "advice", "group"):
            yield re.sub(r"\\(\d)", r"{part\1}", _doubled(rule[key])), 1


def _of_code(path: Path) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    answers = _answers(tree)
    yield from _walk(tree, answers)


def _of_command(path: Path) -> Iterator[tuple[str, int]]:
    """With the errors that it prints, and without what argparse shows as help."""
    yield from _walk(ast.parse(path.read_text()), set(), UNSEEN - ERRORS | {"add", "add_parser"})


def _answers(tree: ast.Module) -> set[str]:
    """Functions of a learner: the starter, the solution, wrong and other right answers."""
    names = {"starter", "solution", "faulty", "fixed"}
    for node in tree.body:
        if isinstance(node, ast.Assign) and _name(node.targets[0]) in ("WRONG", "ALSO_RIGHT"):
            names |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    return names


def _walk(node: ast.AST, answers: set[str], unseen: Set[str] = UNSEEN) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.JoinedStr | ast.Constant) or _is_sum(node):
        text = as_template(node)
        if text and SAID.search(re.sub(r"\{\w+\}", "", text)):
            for line in text.strip("\n").split("\n"):
                if SAID.search(re.sub(r"\{\w+\}", "", line)) and not MARKUP.search(line):
                    yield line.strip(), node.lineno
        if isinstance(node, ast.JoinedStr):  # a text may stand in a hole
            for value in node.values:
                if isinstance(value, ast.FormattedValue):
                    yield from _walk(value.value, answers, unseen)
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Call) and _name(node.func) in unseen:
        return
    if isinstance(node, ast.FunctionDef) and node.name in answers:
        return
    unshown = WRONG if unseen is UNSEEN else HELP
    if isinstance(node, ast.Assign) and _name(node.targets[0]) in unshown:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if name == "keywords":
            value = [each for each in value if each.arg not in PLACES]
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, answers, unseen)


def _is_sum(node: ast.AST) -> bool:
    """True for texts that are put together with `+`."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
        return False
    return all(
        isinstance(each, ast.JoinedStr)
        or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        or _is_sum(each)
        for each in (node.left, node.right)
    )


def as_template(node: ast.AST) -> str:
    """An f-string with named holes; any other text with its braces doubled."""
    if isinstance(node, ast.BinOp):
        return as_template(node.left) + as_template(node.right)
    if isinstance(node, ast.Constant):
        return _doubled(node.value) if isinstance(node.value, str) else ""
    assert isinstance(node, ast.JoinedStr)
    names: dict[str, str] = {}
    parts = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(_doubled(str(value.value)))
        elif isinstance(value, ast.FormattedValue):
            code = ast.unparse(value.value)
            if code not in names:
                name = base = _hole_name(value.value)
                number = 2
                while name in names.values():
                    name, number = f"{base}_{number}", number + 1
                names[code] = name
            parts.append(f"{{{names[code]}}}")
    return "".join(parts)


def _doubled(text: str) -> str:
    """Braces doubled, but for those of a text that format() fills in."""
    doubled = text.replace("{", "{{").replace("}", "}}")
    return re.sub(r"\{\{([a-z]\w+)\}\}", r"{\1}", doubled)


def _hole_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        if _name(node.func) in ("len", "sum", "max", "min", "sorted", "show", "join", "name_ranks"):
            inner = node.args[0] if node.args else node.func
            return _hole_name(inner) if isinstance(inner, ast.Name | ast.Attribute) else "value"
        return _name(node.func).strip("_") or "value"
    if isinstance(node, ast.Subscript):
        return _hole_name(node.value)
    return _name(node).strip("_") or "value"


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def updated(wing: str) -> tuple[Catalog, list[str]]:
    """The catalogue that the code asks for, with what is translated already; and what lags."""
    path = FOLDER / f"{wing}.po"
    old = Catalog(locale="zh_CN")
    if path.exists():
        with path.open("rb") as file:
            old = read_po(file, locale="zh_CN")
    wanted = sentences(wing)
    gone = {each.id: each for each in old if each.id and each.string and each.id not in wanted}
    new, behind = Catalog(locale="zh_CN"), []
    for text, places in wanted.items():
        entry = old.get(text)
        files = [(file, None) for file in sorted({file for file, _ in places})]
        if entry and entry.string:
            new.add(text, entry.string, files, [f for f in entry.flags if f == "fuzzy"])
        elif near := get_close_matches(text, list(gone), 1, ALIKE):
            new.add(text, gone[near[0]].string, files, ["fuzzy"])
        else:
            new.add(text, "", files)
        if not new.get(text).string or new.get(text).fuzzy:
            behind.append(text)
    return new, behind


def written(wing: str, catalog: Catalog) -> str:
    """The text of the .po file: without dates, and lines are not broken."""
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=0, omit_header=True)
    body = re.sub(r"^#, python-\S+\n", "", buffer.getvalue().decode(), flags=re.M)
    head = (
        f"# The words of {wing}; tests/unit/words/catalogue.py says how to change them.\n"
        'msgid ""\nmsgstr ""\n"Language: zh_CN\\n"\n'
        '"Content-Type: text/plain; charset=utf-8\\n"\n"Content-Transfer-Encoding: 8bit\\n"\n\n'
    )
    return head + body.strip("\n") + "\n"


def words(texts: list[str]) -> int:
    """How many English words these texts have."""
    return sum(len(re.findall(r"[A-Za-z']{2,}", re.sub(r"`[^`]*`|\{\w+\}", "", t))) for t in texts)


def main(arguments: list[str] | None = None) -> int:
    """Command line; with --check the exit code is 1 if a text lags or a file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    bad = False
    for wing in WINGS:
        catalog, behind = updated(wing)
        path, text = FOLDER / f"{wing}.po", written(wing, catalog)
        stale = not path.exists() or path.read_text() != text
        if stale and not options.check:
            path.write_text(text)
        every = [each.id for each in catalog if each.id]
        share = 1 - words(behind) / max(1, words(every))
        lag = f"{len(behind)} of {len(every)} texts lag"
        print(f"{wing}: {share:.0%} of {words(every)} words, {lag}")
        bad |= stale or bool(behind)
    return int(options.check and bad)


if __name__ == "__main__":
    sys.exit(main())
