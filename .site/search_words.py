"""Words for the search: English as Sphinx does it, Chinese as pairs of characters.

Chinese has no spaces, so a search for two characters must find them anywhere in a sentence. The
page's script cuts what a reader types in the same way.
"""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

HAN = r"[㐀-鿿]"
PIECES = re.compile(rf"{HAN}+|(?:(?!{HAN})\w)+")


class CourseSearch(SearchEnglish):
    """English words by their stem, and each two neighbouring Chinese characters."""

    js_splitter_code = """
var splitQuery = (query) =>
  (query.match(/[\\u3400-\\u9fff]+|(?:(?![\\u3400-\\u9fff])[\\p{Letter}\\p{Number}_])+/gu) || [])
    .flatMap((piece) => /^[\\u3400-\\u9fff]/.test(piece) && piece.length > 2
      ? Array.from({ length: piece.length - 1 }, (_, at) => piece.slice(at, at + 2))
      : [piece]);
"""

    def split(self, input: str) -> list[str]:
        """Cut a text into words."""
        words = []
        for piece in PIECES.findall(input):
            if re.match(HAN, piece) and len(piece) > 2:
                words += [piece[at : at + 2] for at in range(len(piece) - 1)]
            else:
                words.append(piece)
        return words
