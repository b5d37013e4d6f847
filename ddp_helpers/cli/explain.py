"""`python -m ddp_helpers explain MESSAGE`: what it means, or which known ones are nearest."""

from __future__ import annotations

import argparse
import re
import sys

from ddp_helpers import faults
from ddp_helpers.diagnosis.log_causes import diagnose_text, read_chains
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.rule_files import consequences, known_errors
from ddp_helpers.troubleshooting.known import Trouble, page, troubles
from ddp_helpers.troubleshooting.nearest import find_nearest
from ddp_helpers.words import shown

LONGEST = 200  # characters of a text
NOTHING = (
    "nothing known is near to it: try a longer piece, or give the whole log to "
    "python -m ddp_helpers diagnose LOG"
)
# `requests.exceptions.ConnectionError: `, and not torch.distributed.DistBackendError
FOREIGN = re.compile(
    r"(?!torch\.|_?pickle|ray\.|lightning|pytorch_lightning|subprocess\.|multiprocessing\.|socket\.)"
    r"[a-z_]\w*(?:\.\w+)*\.[A-Z]\w+: "
)
OTHER_FLAGS = re.compile(r"error: unrecognized arguments: (?!.*--local[-_]rank)-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("message", nargs="*", help="any piece of it; without one, what is piped in")
    parser.add_argument("--all", action="store_true", help="all that is known, as a page")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if options.all:
        print(page(), end="")
        return 0
    message = " ".join(options.message)
    if message in ("", "-"):
        message = "" if sys.stdin.isatty() else sys.stdin.read()
    text, found = explain(message)
    print(shown(text))
    return int(not found)


def explain(message: str) -> tuple[str, bool]:
    """What `message` means, or what is nearest to it; and whether anything was found.

    Args:
        message: a line of an error, a piece of it, or all that was printed.

    Raises:
        ValueError: there is no word in it.
    """
    if not any(map(str.isalpha, message)):
        raise ValueError(
            f"{message.strip()!r} holds no word: expected an error message or a piece of one, as "
            'an argument, explain "Connection closed by peer", or piped in'
        )
    known = {trouble.name: trouble for trouble in troubles()}
    found = [each for each in diagnose_text(message) if each.kind != "not-recognised"]
    if found:
        blocks = [
            "\n".join(
                [
                    f"{each.kind}\n  why: {each.cause}\n  what to do: {each.advice}",
                    *(_see(known[each.kind]) if each.kind in known else ()),
                ]
            )
            for each in found
        ]
        return "\n\n".join(blocks), True
    if _is_anothers(message):
        return NOTHING, False
    listed = list(known.values())
    near = find_nearest(message, [_searched(trouble) for trouble in listed])
    if not near:
        return NOTHING, False
    blocks = [_block(listed[at]) for at in near]
    return "\n\n".join(["not known word for word; the nearest:", *blocks]), True


def _is_anothers(message: str) -> bool:
    """True for a whole error of a library that is none of ours, though its words may be alike."""
    if FOREIGN.match(message.strip()) or OTHER_FLAGS.search(message):
        return True
    errors = [error for chain in read_chains(read_text(message)) for error in chain.errors]
    rules = (*known_errors(), *consequences())
    return any(rule.is_anothers(error) for error in errors for rule in rules)


def _searched(trouble: Trouble) -> str:
    causes = [meaning.cause for meaning in trouble.meanings]
    lab = [faults.load(name).FAULT for name in trouble.faults]
    shown = [f"{fault.title} {fault.group} {fault.says} {fault.cause}" for fault in lab]
    return "\n".join([trouble.name, *trouble.texts, *trouble.also, *causes, *shown])


def _block(trouble: Trouble) -> str:
    lines = [trouble.name]
    for meaning in trouble.meanings:
        lines += [f"  printed: {_short(text)}" for text in meaning.texts[:1]]
        lines += [f"  why: {meaning.cause}", f"  what to do: {meaning.advice}"]
    return "\n".join([*lines, *_see(trouble)])


def _see(trouble: Trouble) -> list[str]:
    runs = [f'faults.run("{name}")' for name in trouble.faults]
    return [f"  see it: {', '.join([*runs, str(trouble.lesson)])}"]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
