"""Sphinx settings of the site; `build.py` runs Sphinx with them."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import docstrings  # noqa: E402
import editions  # noqa: E402
import mathml  # noqa: E402
import mend_html  # noqa: E402
from search_words import CourseSearch  # noqa: E402

project = "Data-parallel PyTorch"
author = "the authors of the course"
copyright = "the authors of the course; MIT licence"
language = "en"
smartquotes = False  # the texts as they are written
html_title = project
html_theme = "furo"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_extra", ".doctrees"]

# notebooks: committed outputs, never executed; no script of ipywidgets from elsewhere
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_digits = False
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # a notebook may go from # to ###
    "misc.highlighting_failure",  # a traceback may hold any text
]

# API: docstrings name their types in words, so the signature has the annotations
add_module_names = False
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
default_role = "py:obj"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# what the browser gets
html_static_path = ["static", str(editions.search_words())]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_search_scorer = str(HERE / "scorer.js")
html_copy_source = False
html_show_sourcelink = False
html_domain_indices = False
html_math_renderer = "mathml"
copybutton_selector = "div.highlight:not(.cell_output *, .changes *) pre"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"
html_theme_options = {
    "source_repository": "",
    "navigation_with_keys": False,
    "light_css_variables": {"color-code-background": "#f3f4f6"},  # the style's own is near white
}


def scripts_of_what_moves(app, pagename, templatename, context, doctree) -> None:
    """Only pages on which something moves load what moves it."""
    if 'class="ddp-play"' in context.get("body", ""):
        app.add_js_file("play.js", defer="defer")
    if 'class="ddp-recorded"' in context.get("body", ""):
        app.add_js_file("runs.js", defer="defer")


def setup(app) -> dict[str, bool]:
    """Register what the settings above name."""
    app.config.html_extra_path = [str(Path(app.srcdir) / "_extra")]
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.block, None))
    app.add_search_language(CourseSearch)
    app.add_directive("course-module", docstrings.CourseModule)
    app.add_directive("course-first-line", docstrings.FirstLine)
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("html-collect-pages", editions.search_page)
    app.connect("html-page-context", editions.frame, priority=800)  # after the theme
    app.connect("build-finished", editions.fixed_words)
    app.connect("html-page-context", scripts_of_what_moves)
    app.connect("html-page-context", mend_html.for_everybody, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
