"""Which of many texts is nearest to a piece of one that was cut short or misspelt?

Words count by how rare they are: `EADDRINUSE` says more than `rank`. A word that no text has
counts as the one that it most looks like, a little less. The name of one of Python's own
exceptions is never enough.
"""

from __future__ import annotations

import builtins
import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[A-Za-z]{3,}")
EXCEPTIONS = {name.lower() for name in vars(builtins) if name[0].isupper()}
ALIKE = 0.75  # of difflib's ratio: one letter of four may be another
ENOUGH = 0.7  # of what the piece says must be in a text
RARE = 1.5  # words as rare as one in four texts, at least
STRANGE = 0.5  # of the weight of the rarest word, for one that looks like none: it may be a name
CLOSE = 0.7  # of the nearest's score: the others must come as near
MOST = 3  # that are worth reading


def words_of(text: str) -> set[str]:
    """The words of three letters or more, without their case; numbers differ from run to run."""
    return {word.lower() for word in WORD.findall(text)}


def find_nearest(piece: str, texts: Sequence[str], most: int = MOST) -> list[int]:
    """The positions of the texts that are nearest to `piece`, the nearest first; maybe none."""
    known = [words_of(text) for text in texts]
    counts = Counter(word for words in known for word in words)
    weights = {word: math.log(1 + len(texts) / n) for word, n in counts.items()}
    strange = STRANGE * math.log(1 + len(texts))
    asked: dict[str, float] = {}
    total = 0.0
    for word in words_of(piece):
        match = _most_alike(word, counts)
        total += weights[match[0]] if match else strange
        if match:
            asked[match[0]] = max(match[1], asked.get(match[0], 0.0))
    scores = [sum(asked[w] * weights[w] for w in words & asked.keys()) for words in known]
    telling = asked.keys() - EXCEPTIONS
    rarest = [max((weights[w] for w in words & telling), default=0.0) for words in known]
    good = [at for at, s in enumerate(scores) if s >= ENOUGH * total and rarest[at] >= RARE]
    # of texts with the same words the one with fewer others
    good.sort(key=lambda at: (-scores[at], len(known[at])))
    return [at for at in good if scores[at] >= CLOSE * scores[good[0]]][:most]


def _most_alike(word: str, known: Counter[str]) -> tuple[str, float] | None:
    if word in known:
        return word, 1.0
    for match in difflib.get_close_matches(word, known, 1, ALIKE):
        return match, difflib.SequenceMatcher(None, word, match).ratio()
    return None
