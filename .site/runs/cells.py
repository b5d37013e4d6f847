"""Where the recorded runs of lessons are, and whether a cell is still the one that ran."""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "recorded"


def fingerprint(source: str) -> str:
    """Of a cell's code."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]
