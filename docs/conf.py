import re
from importlib.metadata import version as installed_version

project = "sklconv"
author = "The sklconv developers"
copyright = "2026, The sklconv developers"
release = version = installed_version("sklconv")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "auto_examples/*.ipynb", "auto_examples/*.py"]
templates_path = ["_templates"]
default_role = "code"

plot_include_source = True
plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("png", 150)]

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "sklconv"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_sidebars = {"api": [], "auto_examples/index": []}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "plot_",
    "ignore_pattern": r"__init__\.py|side_by_side\.py",  # not examples themselves
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib",),
    "show_memory": False,
    "download_all_examples": False,
    "within_subsection_order": "FileNameSortKey",
}


def _strip_foreign_references(app, what, name, obj, options, lines):
    """Reduce the references in docstrings inherited from scikit-learn to their text."""
    obj = getattr(obj, "fget", obj)
    module = getattr(obj, "__module__", None) or getattr(type(obj), "__module__", "")
    if not module.startswith("sklearn."):
        return
    for i, line in enumerate(lines):
        line = re.sub(r":(?:ref|term|class|func|meth):`~?([^`<]+?)\s*<[^>`]+>`", r"\1", line)
        lines[i] = re.sub(r":(?:ref|term|class|func|meth):`~?([^`]+)`", r"\1", line)


def setup(app):
    app.connect("autodoc-process-docstring", _strip_foreign_references, priority=100)
    return {"parallel_read_safe": True}
