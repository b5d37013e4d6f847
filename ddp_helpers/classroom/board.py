"""The board: learners x exercises, drawn anew every few seconds, in a terminal or as a page."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ddp_helpers.arguments import check_least
from ddp_helpers.classroom import tables
from ddp_helpers.classroom.learners import Learner, find
from ddp_helpers.exercises import short_title
from ddp_helpers.words import shown

LEAST = 0.5  # seconds between two drawings
CLEAR = "\x1b[H\x1b[2J"  # of a terminal: to the first line, and nothing below
STYLE = """
body { font: 1.1rem/1.5 system-ui, sans-serif; margin: 1rem; color: #111; background: #fff; }
table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .5rem; }
th, td { border: 1px solid #888; padding: .1rem .45rem; text-align: center; }
tbody th { text-align: left; white-space: nowrap; }
.done { background: #0072b2; color: #fff; } .tried { background: #f5c77e; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #111; } .tried { color: #111; }
}
"""


def show(places: Sequence[str | Path], notebooks: Sequence[str] = (), every: float = 0) -> None:
    """Print the board; with `every`, again each so many seconds, until Ctrl-C.

    Raises:
        ValueError: a notebook without exercises, or too few seconds.
    """
    if every:
        check_least("--every", every, LEAST)
    while True:
        learners, problems = find(places)
        lines = [
            tables.board(learners, notebooks),
            *(shown(f"not read: {each}") for each in problems),
        ]
        print((CLEAR if every and sys.stdout.isatty() else "") + "\n".join(lines), flush=True)
        if not every:
            return
        time.sleep(every)


def serve(
    places: Sequence[str | Path],
    notebooks: Sequence[str] = (),
    every: float = 5,
    host: str = "127.0.0.1",
    port: int = 0,
) -> ThreadingHTTPServer:
    """A server of the board as a page, which a browser loads anew every few seconds.

    It knows one page, and gives away no file. The caller runs it (`serve_forever`), and closes it.

    Raises:
        ValueError: a notebook without exercises, or too few seconds.
        OSError: the port is taken.
    """
    check_least("--every", every, LEAST)
    tables.chosen(notebooks)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] != "/":
                self.send_error(404)
                return
            content = page(find(places)[0], notebooks, every).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """A line each few seconds helps nobody."""

    return ThreadingHTTPServer((host, port), Page)


def page(learners: Sequence[Learner], notebooks: Sequence[str], every: float) -> str:
    """The board as HTML: a mark says the same as the colour, and a screen reader reads the rows."""
    columns = [n for numbers in tables.chosen(notebooks).values() for n in numbers]
    head = "".join(
        f'<th scope="col"><abbr title="{html.escape(short_title(n))}">{n}</abbr></th>'
        for n in columns
    )
    rows = [_row(learner, columns) for learner in learners]
    counts = "".join(f"<td>{tables.by_all(learners, n)}</td>" for n in columns)
    rows.append(f'<tr><th scope="row">done by</th>{counts}<td></td></tr>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Board</title>'
        f'<meta http-equiv="refresh" content="{every:g}"><style>{STYLE}</style></head><body><table>'
        f"<caption>{len(learners)} learners, {time.strftime('%H:%M:%S')}. "
        f"{html.escape(tables.LEGEND)}</caption>"
        f'<thead><tr><th scope="col">learner</th>{head}<th scope="col">done</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></body></html>"
    )


def _row(learner: Learner, columns: Sequence[str]) -> str:
    marks = [tables.mark(learner.state, number) for number in columns]
    kinds = {tables.DONE: "done", tables.OPEN: "open"}
    cells = "".join(f'<td class="{kinds.get(each, "tried")}">{each}</td>' for each in marks)
    name = html.escape(learner.name)
    return f'<tr><th scope="row">{name}</th>{cells}<td>{marks.count(tables.DONE)}</td></tr>'
