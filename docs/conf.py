"""Builds the documentation: `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # generated.py, and the package of this checkout

project = "quart-openai-sse"
author = "the authors of quart-openai-sse"
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
exclude_patterns = ["_build"]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "quart-openai-sse"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# The docstrings put `code` in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
