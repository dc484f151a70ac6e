"""How Sphinx builds the manual: `make docs`, without a network."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from selfprune import __version__
from selfprune.runs.option_list import sections

ROOT = Path(__file__).parents[1]

project = "selfprune"
author = "selfprune contributors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path = ["templates"]
html_theme = "furo"
html_title = "selfprune"
html_show_sphinx = False
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autosummary_ignore_module_all = False
napoleon_use_ivar = True


class OptionList(SphinxDirective):
    """All options, as the command lists them."""

    def run(self) -> list[nodes.Node]:
        """A section for each group."""
        return [self._section(heading, options) for _, heading, options in sections() if options]

    def _section(self, heading: str, options: list) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(f"options of {heading}")])
        section += nodes.title(text=heading)
        section += (entries := nodes.definition_list())
        for option in options:
            term = nodes.term("", "", nodes.literal(text=f"{option.name}={option.default}"), nodes.Text(f" ({option.kind})"))
            entries += nodes.definition_list_item("", term, nodes.definition("", self._told(option.sentence)))
        return section

    def _told(self, sentence: str) -> nodes.paragraph:
        parts = re.split(r"`([^`]*)`", sentence)
        return nodes.paragraph("", "", *(nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)))


def escape_marks(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: bars, stars and ends in _ mean themselves, outside code."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`[^`]*`)", line)
            lines[i] = "".join(part if part.startswith("`") else re.sub(r"([|*]|_\b)", r"\\\1", part) for part in parts)


def link_within_the_repository(app: Sphinx, page: nodes.document) -> None:
    """Links out of this folder lead to the studies' pages, or name the file; one to nothing stays, and is warned of."""
    for link in list(page.findall(pending_xref)):
        path = ROOT / "docs" / link["reftarget"]
        if link.get("refdomain") != "doc" and link.source:
            path = Path(link.source).parent / link["reftarget"]
        path = next((each.resolve() for each in (path, path.with_name(f"{path.name}.md")) if each.exists()), None)
        if path is None or not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "docs"):
            continue
        study = f"studies/{path.parent.name if path.stem == 'README' else path.stem.lower()}"
        if path.suffix == ".md" and study in app.env.found_docs:
            link.attributes.update(refdomain="doc", reftarget=study, reftargetid=None)
        else:
            named = nodes.literal(text=str(path.relative_to(ROOT)))
            link.replace_self([*link.children, nodes.Text(" ("), named, nodes.Text(")")])


def setup(app: Sphinx) -> None:
    """Docstrings are escaped before napoleon reads them; links are followed out of this folder."""
    app.add_directive("option-list", OptionList)
    app.connect("autodoc-process-docstring", escape_marks, priority=400)
    app.connect("doctree-read", link_within_the_repository)
