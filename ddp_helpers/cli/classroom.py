"""`python -m ddp_helpers classroom`: for instructors, and the learners of a class."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from ddp_helpers.words import shown

PLACES = "learners' copies, progress files, or folders with some"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    sub = jobs.add_parser("check", help="can this machine seat a class?")
    sub.add_argument("--seats", type=int, default=30, help="learners")
    sub.add_argument(
        "--notebook",
        action="append",
        metavar="06",
        help="what they all run; may be given several times; by default what needs most",
    )
    sub.add_argument("--from", dest="source", metavar="NOTEBOOKS", help="the course's notebooks/")
    sub = jobs.add_parser("hand-out", help="make learners' copies of the notebooks")
    sub.add_argument("folder", help="becomes a copy; with --learners, it holds one for each")
    many = sub.add_mutually_exclusive_group()
    many.add_argument("--learners", type=int, metavar="N", help="learner-01 to learner-N")
    many.add_argument("--names", metavar="FILE", help="the same, named by the lines of this file")
    sub.add_argument("--from", dest="source", metavar="NOTEBOOKS", help="the course's notebooks/")
    sub.add_argument("--language", metavar="zh_CN", help="English, if not given")
    sub = jobs.add_parser("name", help="for learners: what the board calls you")
    sub.add_argument("name", nargs="+")
    sub = jobs.add_parser("reset", help="for learners: a notebook as it was handed out")
    sub.add_argument("notebooks", nargs="*", metavar="03", help="which")
    sub.add_argument("--all", action="store_true", help="all notebooks")
    sub.add_argument("--folder", default=".", help="the learner's copy; this folder, if not given")
    sub = jobs.add_parser("board", help="learners x exercises, drawn anew every few seconds")
    sub.add_argument("places", nargs="+", help=PLACES)
    sub.add_argument("--notebook", action="append", default=[], metavar="01", help="only this one")
    sub.add_argument("--every", type=float, default=5, metavar="SECONDS")
    sub.add_argument("--once", action="store_true", help="print it and end")
    sub.add_argument("--serve", action="store_true", help="as a page, for a browser")
    sub.add_argument("--host", default="127.0.0.1", help="of the page; 0.0.0.0 lets others see it")
    sub.add_argument("--port", type=int, default=0, help="of the page; a free one, if not given")
    sub = jobs.add_parser(
        "collect", help="all answers in one folder, and a report for each learner"
    )
    sub.add_argument("places", nargs="+", help=PLACES)
    sub.add_argument("--into", default="collected", help="the folder; collected/, if not given")
    sub = jobs.add_parser("key", help="minutes of each section, and all answers, for who teaches")
    sub.add_argument("notebooks", nargs="*", metavar="01", help="which; all, if none is given")
    sub.add_argument("--from", dest="source", metavar="NOTEBOOKS", help="the course's notebooks/")
    sub = jobs.add_parser("report", help="tables of what learners have done")
    sub.add_argument("places", nargs="+", help=PLACES)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    jobs = {
        "check": _check,
        "hand-out": _hand_out,
        "name": _name,
        "reset": _reset,
        "board": _board,
        "collect": _collect,
        "key": _key,
        "report": _report,
    }
    return jobs[options.job](options)


def _check(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom.room import check
    from ddp_helpers.classroom.seats import LESSONS

    def tell(line: str) -> None:
        print(shown(line), flush=True)

    print(seating := check(options.seats, options.notebook or LESSONS, options.source, tell))
    return int(not seating.ok)


def _hand_out(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom.copies import hand_out, read_names

    learners = read_names(options.names) if options.names else options.learners
    made = hand_out(options.folder, learners, options.source, options.language)
    for each in made:
        notebooks = "1 notebook" if len(each.new) == 1 else f"{len(each.new)} notebooks"
        said = f"{each.folder}: {notebooks if each.new else 'nothing new'}"
        if each.left:
            said += f"; changed by the learner, and left alone: {', '.join(each.left)}"
        print(shown(said))
    ours = "python -m ddp_helpers classroom"
    told = f"a learner begins with README.md there, and sets a notebook back by `{ours} reset 03`"
    print(shown(told))
    print(shown(f"to look on: {ours} board {options.folder}"))
    return 0


def _name(options: argparse.Namespace) -> int:
    from ddp_helpers.exercises import progress_file

    progress_file.rename(" ".join(options.name))
    told = f"hello {progress_file.current()['learner']}; kept in {progress_file.path()}"
    print(shown(told))
    if not os.environ.get(progress_file.VARIABLE) and progress_file.class_folder() is None:
        # a terminal opens at home: then a class's board would never show it
        told = "this folder is in no copy of a class: in one, go to your copy and say it there"
        print(shown(told))
    return 0


def _reset(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom.copies import reset

    if bool(options.notebooks) == options.all:
        raise ValueError("which notebook? `reset 03` sets one back, `reset --all` all of them")
    print(*map(shown, reset(options.notebooks, options.folder)), sep="\n")
    return 0


def _board(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom import board

    if not options.serve:
        board.show(options.places, options.notebook, 0 if options.once else options.every)
        return 0
    there = (options.host, options.port)
    with board.serve(options.places, options.notebook, options.every, *there) as server:
        told = f"http://{options.host}:{server.server_port}/ until Ctrl-C"
        print(shown(told), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _collect(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom.collection import collect

    learners, problems = collect(options.places, options.into)
    told = f"{len(learners)} learners in {Path(options.into)}: begin with report.md there"
    print(shown(told))
    return _tell(problems)


def _key(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom.lessons import find_lesson, lessons
    from ddp_helpers.classroom.teachers_key import key

    found = [find_lesson(each, options.source) for each in options.notebooks]
    print("\n".join(map(key, found or lessons(options.source))))
    return 0


def _report(options: argparse.Namespace) -> int:
    from ddp_helpers.classroom import tables
    from ddp_helpers.classroom.learners import find

    learners, problems = find(options.places)
    print(tables.report(learners))
    return _tell(problems)


def _tell(problems: list[str]) -> int:
    for problem in problems:
        print(shown(f"not read: {problem}"), file=sys.stderr)
    return int(bool(problems))
