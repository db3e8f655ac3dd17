"""How the site is made: ``sphinx-build -W --keep-going -b html docs build/docs``."""

import re
from pathlib import Path
from posixpath import normpath, relpath

from lightning_gradcam import __version__

ROOT = Path(__file__).parent.parent
# Files that stand beside docs/, so that a code host shows them, and the page that each of them is on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}

project = "lightning_gradcam"
author = "The lightning_gradcam authors"
copyright = author  # noqa: A001  # Sphinx' name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # as a code host has them, so that `page.md#heading` leads to the same place in both
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"  # that of furo underlines the names of modules
html_copy_source = False
html_show_sphinx = False

linkcheck_ignore = [r"https://[^/]*\.invalid/"]  # no host has this ending: the placeholder of the project's address


def with_links_of_site(text: str, folder: str) -> str:
    """A page whose relative links lead where they do on a code host.

    Args:
        text: Markdown.
        folder: Where its file stands, from the root of the repository; links on the site start in docs/.
    """

    def to_site(link: re.Match[str]) -> str:
        path = normpath(f"{folder}/{link[1]}")
        if not (ROOT / path).is_file():
            return link[0]  # an address, or a broken link, which the build complains of
        return f"]({PAGES.get(path) or relpath(path, 'docs')}{link[2] or ''})"

    return re.sub(r"\]\(([^()#\s]+)(#[^()\s]*)?\)", to_site, text)


def read_page(app, docname, source):
    """Sphinx has read a page of docs/."""
    source[0] = with_links_of_site(source[0], "docs")


def read_included(app, path, docname, source):
    """A page of docs/ has included a file."""
    source[0] = with_links_of_site(source[0], normpath(f"docs/{path.parent.as_posix()}"))


def setup(app):
    """Listen to what is read."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
