"""Configuration of the documentation site: `make docs` builds it offline, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import docs_pages  # noqa: E402 - needs the path above

import llmkit  # noqa: E402

docs_pages.write_pages(ROOT)

project = "llmkit"
author = "The llmkit authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = llmkit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "llmkit"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}

nb_execution_mode = "off"  # notebooks are shown as they are stored
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# Sphinx looks for a field that a docstring names in all classes, and two may have one of that name.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes have their own entries already
# Types of other packages and of modules below the declared public surface have no page here.
nitpick_ignore_regex = [(r"py:.*", r".*")]
nitpicky = True
