"""The package's own words in the reader's language: book.py, read at the first that is asked for.

    DDP_HELPERS_LANG=zh_CN python -m ddp_helpers check    # as the Chinese notebooks have it

Without the variable every text is returned as it came, and nothing is loaded.
"""

from __future__ import annotations

import os

VARIABLE = "DDP_HELPERS_LANG"


def shown(text: str) -> str:
    """`text` as the reader is to see it: in their language, or unchanged."""
    if not os.environ.get(VARIABLE):
        return text
    from ddp_helpers.words import book

    return book.shown(text)


def language() -> str:
    """The reader's language as its catalogues are called, `zh_CN`; an empty text for English."""
    if not os.environ.get(VARIABLE):
        return ""
    from ddp_helpers.words import book

    return book.language()


def joined(*texts: str) -> str:
    """Sentences one after another, as the reader is to see them."""
    if not os.environ.get(VARIABLE):
        return " ".join(texts)
    from ddp_helpers.words import book

    return book.joined(*texts)


def filled(text: str, width: int) -> str:
    """`text` in lines of so many columns; a Chinese letter takes two, and has no spaces around."""
    from ddp_helpers.words import book

    return book.filled(text, width)


def columns(text: str) -> int:
    """How wide it is in a terminal."""
    if text.isascii():
        return len(text)
    from ddp_helpers.words import book

    return book.columns(text)
