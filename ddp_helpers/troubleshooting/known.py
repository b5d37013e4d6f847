"""All that is known to go wrong, as one list: the texts of `diagnose`, and the failure lab.

`troubles()` is the list, `page()` the same in Markdown: notebooks/TROUBLESHOOTING.md, and the
Chinese one in notebooks/zh_CN, if the reader's language is Chinese.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from urllib.parse import quote

from ddp_helpers import faults
from ddp_helpers.diagnosis.log_causes import diagnose_text
from ddp_helpers.diagnosis.rule_files import peer_is_gone
from ddp_helpers.troubleshooting.examples import Example, read_examples
from ddp_helpers.words import VARIABLE, language, shown

COMMAND = "python -m ddp_helpers explain --all > notebooks/TROUBLESHOOTING.md"
TWINS = {
    "": "[中文](zh_CN/TROUBLESHOOTING.md)",
    "zh_CN": "[English](../TROUBLESHOOTING.md) · [术语表](GLOSSARY.md)",
}
WIDTH = 100
TITLES = {
    "hangs": "Ranks hang",
    "start-up": "It does not start",
    "silently wrong": "The result is wrong, and nothing is printed",
    "slow": "It works, but slowly",
    "after the end": "At the end, and after it",
    "many machines": "Several machines",
}


@dataclass(frozen=True)
class Lesson:
    """A section of a notebook."""

    notebook: str
    section: str

    def __str__(self) -> str:
        return shown(f'notebook {self.notebook[:2]}, "{self.section}"')

    @property
    def link(self) -> str:
        """In Markdown; JupyterLab jumps to the section."""
        section = shown(self.section)
        anchor = quote(section.replace(" ", "-"))
        mark = "\uff0c" if language() else ", "
        return f"[{self.notebook[:2]}{mark}{section}]({self.notebook}#{anchor})"


LOOK_FIRST = Lesson("05_when_it_breaks.ipynb", "Loud: the first error is the cause")
LAB = Lesson("05_when_it_breaks.ipynb", "The failure lab")
PREFLIGHT = Lesson("06_beyond_one_machine.ipynb", "Before the first run: preflight")
LESSONS = {
    "Ranks that try to meet": PREFLIGHT,
    "The process group": Lesson("01_process_groups.ipynb", "From start to clean-up"),
    "Collectives and models that do not match": LAB,
    "Processes that start processes": LAB,
    "GPUs and NCCL": Lesson("06_beyond_one_machine.ipynb", "NCCL's variables"),
    "Checkpoints and disks": Lesson(
        "03_training_loop.ipynb", "7 · Rank 0 saves, never half a file"
    ),
    "Command lines, limits and signals": LAB,
    "Another rank failed first": LOOK_FIRST,
    TITLES["hangs"]: Lesson("05_when_it_breaks.ipynb", "Hanging: who waits for whom?"),
    TITLES["start-up"]: LAB,
    TITLES["silently wrong"]: Lesson(
        "05_when_it_breaks.ipynb", "Silent: nothing is printed, and everything is wrong"
    ),
    TITLES["slow"]: Lesson("04_make_it_fast.ipynb", "2 · Where the time goes"),
    TITLES["after the end"]: LAB,
    TITLES["many machines"]: PREFLIGHT,
}
LESSONS_OF_A_KIND = {
    "stale-addresses": Lesson("06_beyond_one_machine.ipynb", "Restarts without you: elastic"),
    "killed": Lesson("06_beyond_one_machine.ipynb", "A real training, and a machine that dies"),
    "time-limit": Lesson("06_beyond_one_machine.ipynb", "Slurm"),
    "port-taken": Lesson("01_process_groups.ipynb", "The port is taken"),
    "environment-not-set": Lesson("01_process_groups.ipynb", "When there is no launcher"),
    "rank-missing": Lesson("01_process_groups.ipynb", "Join a process group"),
    "different-models": Lesson("02_dataparallel_vs_ddp.ipynb", "What DDP needs from you"),
    "loader-worker-died": Lesson("04_make_it_fast.ipynb", "9 · Feed the ranks"),
    "module-prefix": Lesson("03_training_loop.ipynb", "Exact resume"),
    "rank-did-not-come": Lesson(
        "05_when_it_breaks.ipynb", "Tools for a hang outside of this course"
    ),
}


@dataclass(frozen=True)
class Meaning:
    """Texts as they are printed, why, and what to do."""

    texts: tuple[str, ...]
    cause: str
    advice: str


@dataclass(frozen=True)
class Trouble:
    """One thing that goes wrong."""

    name: str
    """The kind of its `Diagnosis`, or the title of its fault."""
    group: str
    meanings: tuple[Meaning, ...]
    faults: tuple[str, ...]
    """Names of faults that print such a text, or are named so."""
    lesson: Lesson
    also: tuple[str, ...] = ()
    """Pieces of other texts of it."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of it; none if nothing is printed."""
        return tuple(text for meaning in self.meanings for text in meaning.texts)


@cache
def troubles() -> tuple[Trouble, ...]:
    """The known errors, group by group; then those faults of the lab that print no such text."""
    found = [_known_error(kind, list(each)) for kind, each in groupby(read_examples(), _kind)]
    shown = {name for trouble in found for name in trouble.faults}
    return (*found, *(_fault(name) for name in faults.names() if name not in shown))


def _kind(example: Example) -> str:
    return example.kind


def _known_error(kind: str, examples: list[Example]) -> Trouble:
    meanings: dict[tuple[str, str], list[str]] = {}
    for example in examples:
        diagnosis = diagnose_text(example.text)[0]
        meanings.setdefault((diagnosis.cause, diagnosis.advice), []).append(example.text)
    group = examples[0].group
    return Trouble(
        kind,
        group,
        tuple(Meaning(tuple(texts), *meaning) for meaning, texts in meanings.items()),
        tuple(name for name in faults.names() if _shows(faults.load(name).FAULT, kind, examples)),
        LESSONS_OF_A_KIND.get(kind, LESSONS[group]),
        peer_is_gone() if kind == "peer-gone" else (),
    )


def _shows(fault: faults.Fault, kind: str, examples: list[Example]) -> bool:
    printed = fault.says != "nothing" and any(fault.says in each.text for each in examples)
    return printed or fault.kind == kind


def _fault(name: str) -> Trouble:
    fault = faults.load(name).FAULT
    texts = () if fault.says == "nothing" else (fault.says,)
    group = TITLES[fault.group]
    meaning = Meaning(texts, fault.cause, fault.mend)
    return Trouble(fault.title, group, (meaning,), (name,), LESSONS[group])


def page() -> str:
    """The list as a page in Markdown, with links as in notebooks/, or its folder of a language."""
    parts = [_head()]
    for group, members in groupby(troubles(), lambda trouble: trouble.group):
        parts.append(f"## {shown(group)}\n")
        if group in TITLES.values():
            parts.append(_table(group, members))
        else:
            parts += [_section(trouble) for trouble in members]
    return "\n".join(parts)


def command() -> str:
    """What writes the page, in the reader's language."""
    spoken = language()
    told = COMMAND.replace("notebooks/", f"notebooks/{spoken}/") if spoken else COMMAND
    return f"{VARIABLE}={spoken} {told}" if spoken else told


def _head() -> str:
    hangs, silent = (_to_group(TITLES[group]) for group in ("hangs", "silently wrong"))
    paragraphs = (
        "Search this page for a piece of your message: a word such as `EADDRINUSE` is best, "
        "without numbers and paths. If yours differs a little, `python -m ddp_helpers explain "
        '"MESSAGE"` finds the nearest, and `python -m ddp_helpers diagnose LOG` reads a whole log '
        "and tells causes from consequences.",
        "If several ranks failed, look for the first error that is not about a connection. If "
        f"nothing is printed at all, begin at {hangs} or at {silent}.",
    )
    told = [shown(text) for text in paragraphs]
    if not language():  # Chinese would get spaces where lines end
        told = [textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in told]
    written = f"<!-- This page is written by `{command()}` -->\n"
    return "\n\n".join([f"# {shown('Troubleshooting')}", TWINS[language()], *told, written])


def _to_group(title: str) -> str:
    """A link to a heading of this page."""
    told = shown(title)
    anchor = re.sub(r"[^\w -]", "", told.lower()).replace(" ", "-")
    return f"[{told}](#{anchor})"


def _section(trouble: Trouble) -> str:
    lines = [f"### {trouble.name}\n"]
    for meaning in trouble.meanings:
        lines += [f"```text\n{_tidy(text)}\n```\n" for text in meaning.texts]
        lines += [
            _told("**Why:**", meaning.cause) + "<br>",
            _told("**What to do:**", meaning.advice),
        ]
        lines.append("")
    if trouble.also:
        pieces = ", ".join(f"`{piece}`" for piece in trouble.also)
        lines.append(shown(f"It may also say {pieces}.") + "\n")
    lines += list(_fault_lines(trouble))
    lines.append(_read_more(trouble.lesson))
    return "\n".join(lines)


def _told(head: str, text: str) -> str:
    """A sentence behind its head, each as the reader is to see it."""
    return f"{shown(head)}{shown(text)}\u3002" if language() else f"{head} {text}."


def _read_more(lesson: Lesson) -> str:
    return shown(f"Read more: {lesson.link}.") + "\n"


def _fault_lines(trouble: Trouble) -> Iterator[str]:
    """The faults that can be run, with what they print where no text above has it."""
    if trouble.faults:
        yield shown("In the failure lab:") + "\n"
    for name in trouble.faults:
        fault = faults.load(name).FAULT
        new = fault.says != "nothing" and not any(fault.says in text for text in trouble.texts)
        printed = shown(f", which prints `{fault.says}`") if new else ""
        mark = "\uff1a" if language() else ": "
        yield f"- {_link(name)}{printed}{mark}{shown(fault.cause)} *{shown(fault.mend)}*"
    if trouble.faults:
        yield ""


def _table(group: str, members: Iterable[Trouble]) -> str:
    rows = [
        shown("| what is wrong | torch prints | why | what to do | this course names it |"),
        "| --- | --- | --- | --- | --- |",
    ]
    for trouble in members:
        (name,), (meaning,) = trouble.faults, trouble.meanings
        printed = " ".join(f"`{text}`" for text in meaning.texts) or shown("nothing")
        kind = f"`{faults.load(name).FAULT.kind}`"
        cells = (_link(name), printed, shown(meaning.cause), shown(meaning.advice), kind)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*rows, f"\n{_read_more(LESSONS[group])}"])


def _link(name: str) -> str:
    up = "../.." if language() else ".."
    return f"[{shown(faults.load(name).FAULT.title)}]({up}/ddp_helpers/faults/{name}.py)"


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
