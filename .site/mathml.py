"""Formulas as MathML, which browsers draw by themselves: no script, no fonts to fetch."""

from __future__ import annotations

import html
import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

SIZES = re.compile(r"\\[Bb]igg?[lrm]?(?![A-Za-z])")  # brackets of MathML grow by themselves
log = logging.getLogger(__name__)


def to_mathml(node: nodes.math | nodes.math_block, as_block: bool) -> str:
    """The formula as MathML; one that can't be turned is a warning, which ends the build."""
    text = SIZES.sub("", node.astext())
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        log.warning("formula %r: %s; expected what docutils can turn", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"


def inline(self, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(to_mathml(node, as_block=False))
    raise nodes.SkipNode


def block(self, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    self.body.append(f'<div class="formula">{to_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode
