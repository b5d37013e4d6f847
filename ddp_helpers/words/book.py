"""Catalogues, and how a text finds its entry: the language is chosen by DDP_HELPERS_LANG.

The code speaks English and nothing else: what ranks send, what logs hold, what tests read. Only who
shows a text calls `shown(text)`. It looks the text up in the catalogues beside this file, whose
entries tests/unit/words/catalogue.py takes from the code: an f-string there is a pattern here, so
"rank 2 returned None: ..." is found as "rank {rank} returned {value}: ...". What no catalogue has
stays as it is: torch's texts, a learner's own, and the `[kind]` of a finding.

Without the variable nothing is read, and every text is returned as it came.
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

from ddp_helpers.words import VARIABLE

FOLDER = Path(__file__).parent
HOLE = re.compile(r"\{(\w+)(!s)?\}")
NUMBERS = (
    "number",
    "numbers",
    "count",
    "millions",
    "ms",
)  # what a hole of such a name takes: digits, and commas
OTHERS = {
    "how": r"[a-z ]+",
    "op": r"\w+",
    "port": r"\d+",
    "variable": r"[A-Z_]+",
    "verdict": r"[a-z' ]+",
    "way": r"[^.:]+",
    "function": r"[^,: ]+",  # a name: no comma, and no space
    "rank": r"\d+",
    "verb": r"\w+",
    "word": r"\w+",
    "these": r"ranks? \d[^:]*?",  # at the beginning of a line of a report
}
CLOSING = r"[,.:;)\u3001\u3002\uff0c\uff1a\uff1b\uff09\uff1f\uff01\u201d]*"  # begins no line
PIECE = re.compile(rf"`[^`]*`{CLOSING}|[!-~]+ ?{CLOSING}|.{CLOSING}")
BETWEEN = re.compile(r"(?<=[\u3001-\u9fff\uff01-\uff5e]) (?=[\u3001-\u9fff\uff01-\uff5e])")
COMMA = re.compile(r"(?<=[\u4e00-\u9fff\uff09]), | ?, (?=[\u4e00-\u9fff])")  # of a list, by code
BEFORE_A_BRACKET = re.compile(r" +(?=\uff08)")
AFTER_A_MARK = re.compile(r"(?<=[\u3001\u3002\uff0c\uff1a\uff1b\uff1f\uff01]) +")
# catalogues whose single words are labels: "step", "before"
LABELS = ("classroom", "cluster", "figures", "scaling", "widgets")
WORD = re.compile("[A-Za-z]{2}")
WINDOW = 6  # sentences that code may have put together from one text
DEEPEST = 6  # texts in a text: "what to do: ..." around an advice around names of ranks
SOURCE = "    "  # so far a line of code is indented in a report: it is nobody's sentence


def shown(text: str) -> str:
    """`text` as the reader is to see it: in their language, or unchanged."""
    if not os.environ.get(VARIABLE):
        return text
    return _told(os.environ[VARIABLE], text) if WORD.search(text) else text


@lru_cache(4096)  # a picture that moves shows most of its words again
def _told(language: str, text: str) -> str:
    book = _book(language)
    return tidy(book.say(text)) if book else text


def joined(*texts: str) -> str:
    """Sentences one after another, as the reader is to see them."""
    told = " ".join(map(shown, texts))
    return tidy(told) if told != " ".join(texts) else told


def tidy(text: str) -> str:
    """Without the spaces that English had between what is Chinese now, nor its commas."""
    text = BEFORE_A_BRACKET.sub("", COMMA.sub("\uff0c", text))
    return AFTER_A_MARK.sub("", BETWEEN.sub("", text))


def filled(text: str, width: int) -> str:
    """`text` in lines of so many columns; a Chinese letter takes two, and has no spaces around."""
    lines, line, used = [], "", 0
    for piece in PIECE.findall(text):
        needed = columns(piece)
        if line and used + needed > width + piece.endswith(" "):
            lines.append(line.rstrip())
            line, used = "", 0
            piece = piece.lstrip()
        line, used = line + piece, used + needed
    return "\n".join([*lines, line.rstrip()])


def columns(text: str) -> int:
    """How wide it is in a terminal."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


@dataclass(frozen=True)
class Pattern:
    """A text with holes, and its translation with the same holes."""

    text: str
    translation: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Single words of its own catalogue, which a hole of it may have."""

    @cached_property
    def longest(self) -> str:
        """The longest piece between holes: a quick look tells whether a text can be this one."""
        return max(map(_plain, HOLE.split(self.text)[::3]), key=len).strip()

    def rank(self) -> tuple[bool, bool, int]:
        """Patterns are tried in this order."""
        text, first = self.text, HOLE.match(self.text)
        # a hole for a number takes digits only
        anything = first is not None and _kind(first[1]) not in NUMBERS
        return "{these}" not in text, anything, -len(HOLE.sub("", text))

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """What the whole text must match; spaces beside an empty hole may have gone."""
        parts, seen = [], set()
        pieces = HOLE.split(self.text)
        for at, piece in enumerate(pieces):
            if at % 3 == 0:
                parts.append(re.escape(_plain(piece)).replace(r"\ ", " "))
            elif at % 3 == 1:
                parts.append(f"(?P={piece})" if piece in seen else _hole(piece))
                seen.add(piece)
        if self.text.endswith("}."):  # the last sentence, and not those after it
            parts[-2] = parts[-2].replace(".*?", r"(?:(?!\. ).)*?")
        spaced = re.sub(r" (?=\(\?P<part\d)", " ?", "".join(parts))
        return re.compile(re.sub(r"(\(\?P<part\d>\.\*\?\)) ", r"\1 ?", spaced))


class Book:
    """All catalogues of a language."""

    def __init__(self, folder: Path) -> None:
        self.exact: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        """Single words: a label is one as a whole, and in a text of its own catalogue."""
        patterns = []
        for file in sorted(folder.glob("*.po")):
            own: dict[str, str] = {}
            for text, translation in entries(file.read_text(encoding="utf-8")):
                if HOLE.search(text):
                    patterns.append(Pattern(text, translation, own))
                elif file.stem in LABELS and " " not in text:
                    own[_plain(text)] = _plain(translation)
                else:
                    self.exact[_plain(text)] = _plain(translation)
            self.labels |= own
        # a report's line holds the words of others, and so does what begins with words of its own;
        # else the most words are the surest
        self.patterns = sorted(patterns, key=Pattern.rank)

    def say(self, text: str, depth: int = 0, labels: Mapping[str, str] | None = None) -> str:
        """The text, or each line of it, or each sentence, as far as it is known.

        Args:
            labels: the single words that it may be.
        """
        if depth > DEEPEST or not text.strip():
            return text
        if (label := (self.labels if labels is None else labels).get(text)) is not None:
            return label
        if depth and (listed := self._listed(text, depth, labels or {})):
            return listed
        if (known := self._known(text, depth)) is not None:
            return known
        lines = text.splitlines(keepends=True)
        if len(lines) > 1:
            return "".join(self._line(line, depth) for line in lines)
        return self._sentences(text, depth)

    def _listed(self, text: str, depth: int, labels: Mapping[str, str]) -> str:
        """What stands in a hole may be a list, each piece of which is known; else ""."""
        if text in self.exact:
            return ""
        for mark, chinese in (("; ", "\uff1b"), (", ", "\uff0c"), (" and ", " \u548c ")):
            if mark in text and (mark == "; " or "(" not in text):  # (3,) holds no list
                parts = text.split(mark)
                if 0 < sum(": " in part for part in parts) < len(parts):
                    return ""  # a sentence with a cause of its own is no list
                said = [labels.get(part) or self._known(part, depth) for part in parts]
                return chinese.join(filter(None, said)) if all(said) else ""
        return ""

    def _known(self, text: str, depth: int) -> str | None:
        if text in self.exact:
            return self.exact[text]
        for pattern in self.patterns:
            if pattern.longest in text and (hit := pattern.regex.fullmatch(text)):
                return self._fill(pattern, hit.groupdict(), depth)
        return None

    def _fill(self, pattern: Pattern, values: dict[str, str], depth: int) -> str:
        def value(hole: re.Match[str]) -> str:
            found = values[hole[1]]
            return found if hole[2] else self.say(found, depth + 1, pattern.labels)

        pieces = re.split(r"(\{\w+(?:!s)?\})", pattern.translation)
        return "".join(
            value(hole) if (hole := HOLE.fullmatch(piece)) else _plain(piece) for piece in pieces
        )

    def _line(self, line: str, depth: int) -> str:
        body = line.strip()
        if not body or line.startswith(SOURCE):
            return line
        start = line[: line.index(body)]
        said = self._known(body, depth + 1)  # as a whole first: a comma in it makes no list
        said = self.say(body, depth + 1, {}) if said is None else said
        return start + said + line[len(start) + len(body) :]

    def _sentences(self, text: str, depth: int) -> str:
        """Texts put together by code are known one by one; one may have several sentences."""
        parts = re.split(r"(?<=[.:;?]) (?=\S)", text)
        told, known, at = "", False, 0
        while at < len(parts) > 1:
            said, many = None, 0
            while said is None and many < min(WINDOW, len(parts) - at):
                many += 1
                said = self._known(" ".join(parts[at : at + many]), depth)
            many = many if said is not None else 1
            told += parts[at] + " " if said is None else said
            known, at = known or said is not None, at + many
        return told.rstrip() if known else text


def entries(text: str) -> Iterator[tuple[str, str]]:
    """The translated entries of a .po file, as gettext's tools write it: msgid, msgstr."""
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#~")]
        fuzzy = any(line.startswith("#,") and "fuzzy" in line for line in lines)
        pair = {"msgid": "", "msgstr": ""}
        key = ""
        for line in lines:
            head, _, rest = line.partition(" ")
            if head in pair:
                key, line = head, rest
            if key and line.startswith('"'):
                pair[key] += _unquoted(line)
        if pair["msgid"] and pair["msgstr"] and not fuzzy:
            yield pair["msgid"], pair["msgstr"]


def _unquoted(line: str) -> str:
    escapes = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda hit: escapes.get(hit[1], hit[1]), line.strip()[1:-1])


def _plain(piece: str) -> str:
    return piece.replace("{{", "{").replace("}}", "}")


def _kind(name: str) -> str:
    return name.rstrip("_0123456789")


def _hole(name: str) -> str:
    kind = _kind(name)
    what = r"\d(?:[\d., ]*\d)?" if kind in NUMBERS else OTHERS.get(kind, ".*?")
    return f"(?P<{name}>{what})"


def language() -> str:
    """The name of the reader's catalogues, or an empty text for English."""
    folder = _folder(os.environ.get(VARIABLE) or "en")
    return folder.name if folder else ""


@cache
def _book(language: str) -> Book | None:
    folder = _folder(language)
    return Book(folder) if folder else None


@cache
def _folder(language: str) -> Path | None:
    name = language.partition(".")[0].replace("-", "_")
    if name.startswith("en") or name in ("C", "POSIX"):
        return None
    folder = FOLDER / ("zh_CN" if name == "zh" else name)
    if not name.isidentifier() or not folder.is_dir():
        known = ", ".join(sorted({file.parent.name for file in FOLDER.glob("*/*.po")}))
        told = f"{VARIABLE}={language!r}: expected {known} or en, so what is shown is English"
        warnings.warn(told, stacklevel=4)
        return None
    return folder
