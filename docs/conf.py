"""The site: `make docs` builds it to build/docs."""

import os

# Keras's layers are documented on the backend that they need.
os.environ["KERAS_BACKEND"] = "torch"

import torchconv

project = "torchconv"
author = "The torchconv authors"
release = torchconv.__version__
html_title = f"torchconv {release}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3

# Docstrings are in Google's form; between single backticks there is code, and quotes stay as they are.
default_role = "code"
smartquotes = False
napoleon_numpy_docstring = False
autodoc_preserve_defaults = True
