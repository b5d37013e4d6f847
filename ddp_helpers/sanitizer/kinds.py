"""The kinds of findings, by which a finding can be accepted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

KINDS = (
    "accumulation-without-no-sync",
    "async-not-waited",
    "async-tensor-changed",
    "averaged-after-step",
    "changed-after-wrap",
    "checkpoint-read-while-written",
    "clipped-by-own-norm",
    "different-call-site",
    "different-collective",
    "different-dtype",
    "different-learning-rates",
    "different-models",
    "different-order",
    "different-reduce-op",
    "different-shape",
    "different-source",
    "ended-inside-no-sync",
    "epoch-not-advanced",
    "eval-left-on",
    "evaluation-leak",
    "few-keys-matched",
    "forward-skipped-ddp",
    "gradient-out-of-proportion",
    "gradients-differ",
    "gradients-not-cleared",
    "identical-dropout",
    "identical-random-draws",
    "missing-data",
    "needless-find-unused",
    "no-gradient-through-collective",
    "not-finite",
    "not-in-this-torch",
    "overlapping-data",
    "padded-evaluation",
    "parameters-replaced",
    "rank-did-not-come",
    "rank-ended-early",
    "same-data-on-every-rank",
    "sanitizer-fault",
    "sharded-without-gradients",
    "smaller-world",
    "steps-differ",
    "summand-taken-for-sum",
    "tiny-buckets",
    "too-many-threads",
    "too-many-workers",
    "trainable-after-wrap",
    "uneven-batch-counts",
    "uneven-batch-weights",
    "unused-parameters",
    "unwrapped-model",
    "weights-differ",
    "weights-unchanged",
)
COMMENT = re.compile(r"#\s*ddp:\s*ignore\[([^\]]*)\]")


def checked(name: str, given: object) -> tuple[str, ...]:
    """The kinds that are to be accepted, as a tuple.

    Args:
        name: what the reader calls them, for the error.
        given: what the reader gave.

    Raises:
        TypeError: it is no list of texts.
        ValueError: there is no such kind.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name}={given!r}: expected a list of kinds, such as [{given!r}]")
    kinds = tuple(given)
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(str(kind), KINDS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{name}: there is no finding of the kind {kind!r}; {hint}each finding ends with "
                f"its kind, and these are all: {', '.join(KINDS)}"
            )
    return kinds


def accepted_in(lines: Iterable[str]) -> set[str]:
    """The kinds that comments in these lines of code accept: `# ddp: ignore[kind, kind]`."""
    comments = (hit for line in lines for hit in COMMENT.finditer(line))
    return {kind.strip() for hit in comments for kind in hit[1].split(",")}
