"""How the site is built: `make docs`. Warnings are errors."""

import re

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

import gebt
from gebt.cli.app import app as command_line

project = "gebt"
version = release = gebt.__version__
html_title = f"gebt {version}"
language = "en-GB"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
smartquotes = False
pygments_style = "tango"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# As the docstrings write: `Name` is something of Python's, linked if it is on a page.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
toc_object_entries = False
maximum_signature_line_length = 80


def setup(app):
    """What else is needed."""
    app.connect("missing-reference", _by_last_name)
    app.connect("autodoc-process-docstring", _prose, priority=400)  # before napoleon
    app.connect("source-read", _unbroken)
    app.connect("doctree-resolved", _dashed)
    app.add_directive("commands", Commands)


def _prose(app, what, name, thing, options, lines):
    """Docstrings are prose: |x| is a magnitude, a colon does not end a type."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda m: m[1] or r"\|", x) for x in lines]
    starts = [at + 1 for at, line in enumerate(lines) if line.strip() == "Returns:"]
    starts += [0] * (what in ("attribute", "data", "property"))
    for at in reversed(sorted(starts)):
        indent = re.match(" *", lines[at])[0]
        lines.insert(at, indent + "\\ ")


def _unbroken(app, name, source):
    """Figures stay on one line with their deviation."""
    source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _dashed(app, tree, name):
    """Between a parameter and what it is; smart quotes would change --flags, too."""
    for text in tree.findall(lambda node: node == " -- "):
        text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


class Commands(SphinxDirective):
    """All commands and their flags, as typer has them."""

    def run(self):
        """A section for each command, a table of its flags."""
        return self.parse_text_to_nodes(
            "\n".join(_described("gebt", get_command(command_line))),
            allow_section_headings=True,
        )


def _described(name, command):
    if hasattr(command, "commands"):
        for each, below in command.commands.items():
            yield from _described(f"{name} {each}", below)
        return
    yield from (f"## {name}", "", command.help.replace("\n\n", "\n"), "")
    yield from ("| flag | what |", "| --- | --- |")
    for each in command.params:
        if each.name != "help":
            option = each.param_type_name == "option"
            flag = each.opts[0] if option else (each.metavar or each.name).upper()
            value = each.metavar if option and each.metavar else ""
            about = re.sub(r"\[/?\w*\]", "", each.help or "")
            about = about.replace("|", "\\|").replace("<", "&lt;")
            yield f"| `{f'{flag} {value}'.strip()}` | {about} |"
    yield ""


def _by_last_name(app, env, node, text):
    """Link `Ticket`, or gebt.tickets.ticket.Ticket, to where gebt.Ticket stands."""
    python, name = env.get_domain("py"), node["reftarget"]
    if name.startswith("gebt."):
        name = name.rpartition(".")[2]
    for full in sorted(python.objects):
        if node.get("refdomain") == "py" and full.endswith(f".{name}"):
            role = python.role_for_objtype(python.objects[full].objtype)
            where = node["refdoc"], app.builder, role, full, node, text
            return python.resolve_xref(env, *where)
    return None
