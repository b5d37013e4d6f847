"""Take the first chapters of Pride and Prejudice from Debian's package of Jane Austen's novels.

    apt-get download r-cran-janeaustenr
    python data/make_austen.py r-cran-janeaustenr_1.0.0-1_all.deb            # writes data/austen/
    python data/make_austen.py r-cran-janeaustenr_1.0.0-1_all.deb --check    # compares with it

It needs Debian's dpkg-deb, and nothing beyond the standard library.
"""

import argparse
import io
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent / "austen" / "pride_and_prejudice.txt"
MEMBER = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
TITLE = "PRIDE AND PREJUDICE"
AT_MOST = 64_000  # bytes; only whole chapters are taken


def read_member(package: Path) -> bytes:
    """The file of R's data sets within the package."""
    command = ["dpkg-deb", "--fsys-tarfile", package]
    tar = io.BytesIO(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    with tarfile.open(fileobj=tar) as archive:
        if MEMBER in archive.getnames():
            return archive.extractfile(MEMBER).read()
    raise SystemExit(f"error: {package} has no {MEMBER}: give r-cran-janeaustenr_1.0.0-1_all.deb")


def vectors(database: bytes) -> Iterator[list[str]]:
    """R's character vectors; each is stored as 4 bytes of length, then zlib, then R's XDR."""
    at = 0
    while at < len(database):
        stream = zlib.decompressobj()
        raw = stream.decompress(database[at + 4 :])
        at = len(database) - len(stream.unused_data)
        (encoding,) = struct.unpack_from(">I", raw, 14)  # behind "X\\n" and three versions
        position = 18 + encoding
        _, count = struct.unpack_from(">II", raw, position)
        position += 8
        lines = []
        for _ in range(count):
            _, length = struct.unpack_from(">Ii", raw, position)
            lines.append(raw[position + 8 : position + 8 + length].decode())
            position += 8 + length
        yield lines


def first_chapters(lines: list[str]) -> str:
    """As many whole chapters as fit, each line as it is, without spaces at its end."""
    starts = [n for n, line in enumerate(lines) if line.startswith("Chapter ")] + [len(lines)]
    ends = [n for n in starts[1:] if len("\n".join(lines[:n]).encode()) <= AT_MOST]
    return "\n".join(line.rstrip() for line in lines[starts[0] : ends[-1]]).strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    found = [lines for lines in vectors(read_member(options.package)) if lines[0] == TITLE]
    text = first_chapters(found[0])
    if options.check:
        same = TARGET.read_text() == text
        print("the same" if same else f"{TARGET} differs")
        return 0 if same else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    print(f"{TARGET}: {len(text.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
