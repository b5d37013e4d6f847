"""Make data/mnist_5k/mnist_5k.pt, one file for torch.load, from the four IDX files beside it.

    python data/make_mnist_5k_pt.py

It needs torch. The file is what torch.save writes, with each part compressed: a fifth of the size.
torch.load reads it all the same, but not with mmap=True. `--check` compares instead of writing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import torch

FILES = [f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
NO_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same content always gives the same bytes


def read_idx(path: Path) -> torch.Tensor:
    """One IDX file: 2 bytes of zero, the type, how many dimensions, their sizes, the values."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape).clone()


def packed(tensors: list[torch.Tensor]) -> bytes:
    """What torch.save writes, compressed, without dates and without the id of this saving."""
    plain, small = io.BytesIO(), io.BytesIO()
    torch.save(tensors, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(small, "w") as target:
        for name in source.namelist():
            if not name.endswith(".data/serialization_id"):
                part = zipfile.ZipInfo("mnist_5k/" + name.partition("/")[2], NO_DATE)
                target.writestr(part, source.read(name), zipfile.ZIP_DEFLATED, 9)
    return small.getvalue()


def content_sha256(tensors: list[torch.Tensor]) -> str:
    """Of the bytes of all tensors, one after the other; no version of torch or zlib changes it."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "mnist_5k")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    path = options.folder / "mnist_5k.pt"
    tensors = [read_idx(options.folder / name) for name in FILES]
    if not options.check:
        path.write_bytes(packed(tensors))
    found = torch.load(path, weights_only=True)
    if len(found) != len(tensors) or not all(map(torch.equal, found, tensors)):
        sys.exit(f"{path} holds something else than the files beside it: make it again")
    print(f"{path.name}\n  file    {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"  content {content_sha256(found)}")


if __name__ == "__main__":
    main()
