"""Small mends of what Sphinx and its theme write, for readers who hear a page or use its keys."""

from __future__ import annotations

import re

PARAMETERS = re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*</dd>\n)+)</dl>')


def for_everybody(app, pagename, templatename, context, doctree) -> None:
    """Headings that say their level, folds with one name, parameters that are no dictionary."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace(
        '<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">'
    )
    body = context.get("body", "")
    # the text inside says more: show or hide, and what
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    context["body"] = PARAMETERS.sub(_lines, body)


def _lines(found: re.Match[str]) -> str:
    lines = found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">\n{lines}</span>'
