"""The README: short, and what it promises is there. Its code runs in test_docs.py."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_it_stays_short():
    assert len(README.encode()) < 8192


@pytest.mark.parametrize("target", ["train", "test", "docs"])
def test_its_commands_are_make_targets(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_its_tables_say_what_the_pages_say():
    """Rows here are those of a page, or fewer of their cells from the left."""
    pages = [(ROOT / f"docs/{name}.md").read_text("utf-8") for name in _OF_FIGURES]
    rows = [row for page in pages for row in page.splitlines()]
    mine = re.findall(r"^\|(?: \w.*(?:\d|%)x?.*) \|$", README, re.M)
    figures = [row for row in mine if "](" not in row]
    assert len(figures) > 10
    for row in figures:
        assert any(each.startswith(row) for each in rows), row


_OF_FIGURES = ("what-pays", "speed", "family")


def test_every_page_is_named():
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")}
    linked = {*re.findall(r"\]\((docs/[^)#]+\.md)", README)}
    unlinked = {name for name in pages - linked if "docs/api/" not in name}
    assert unlinked == {"docs/index.md", "docs/commands.md", "docs/notes.md"}
