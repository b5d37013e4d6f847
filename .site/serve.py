"""Show the site at an address of this machine: `make serve`.

Its explorables move only on a page that comes from a server. Texts are packed, as web servers do.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (".html", ".css", ".js", ".mjs", ".json", ".svg")


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder."""

    def log_message(self, *_: object) -> None:
        """Print no line for each file."""

    def send_head(self) -> BytesIO | BinaryIO | None:
        """The answer's head, and the file to send after it."""
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if self.path.partition("?")[0].endswith("/") else path
        packs = "gzip" in self.headers.get("Accept-Encoding", "")
        if not packs or path.suffix not in TEXTS or not path.is_file():
            return super().send_head()
        packed = gzip.compress(path.read_bytes(), compresslevel=6)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(packed)))
        self.send_header("Cache-Control", "no-cache")  # the next build is seen at once
        self.end_headers()
        return BytesIO(packed)


def main(arguments: list[str] | None = None) -> int:
    """Command line; ends by Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "site")
    options = parser.parse_args(arguments)
    if not (options.site / "index.html").exists():
        print(f"error: no site in {options.site}: run make site first", file=sys.stderr)
        return 1
    handler = functools.partial(Handler, directory=str(options.site))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler)
    except OSError as error:
        print(
            f"error: port {options.port}: {error.strerror}; another one does: make serve PORT=8001",
            file=sys.stderr,
        )
        return 1
    print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
