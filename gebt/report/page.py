"""Pages of text, tables and figures: as one HTML file that needs no network."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from gebt.files import write_bytes
from gebt.files.folders import record, refuse_others

_INK = "#222324"  # of figures; in the page the text's own colour takes its place


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; the first column names its row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tabulated(
    title: str, rows: Sequence[Mapping[str, str]], note: str = ""
) -> Iterator[Table]:
    """A table of rows that name their columns, unless there are none."""
    if rows:
        header = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[row.get(column, "-") for column in header] for row in rows]
        yield Table(title, header, cells, note)


@dataclass(frozen=True)
class Figure:
    """A picture: ``draw`` gives a matplotlib figure; ``name`` is its file's."""

    name: str
    title: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and figures below it."""

    title: str
    items: list[str | Table | Figure]


@dataclass(frozen=True)
class Page:
    """A title, a line below it, and sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def write_pages(pages: Sequence[Page], folder: Path) -> Path:
    """Write ``report.html``, and each figure as PNG and SVG in ``figures/``.

    Args:
        pages: one after the other in one file.
        folder: where to; put on its record, see `gebt.files.folders`.

    Returns:
        The page's path.

    Raises:
        FileExistsError: if a file of one of the names is there that gebt did not write.
    """
    several = len(pages) > 1  # whose figures may have equal names
    files: dict[str, bytes] = {}
    body = "\n".join(
        _page(page, files, f"{place}-" if several else "")
        for place, page in enumerate(pages, start=1)
    )
    title = escape(" · ".join(page.title for page in pages))
    before, middle, after = re.split("{title}|{body}", _DOCUMENT)
    document = "".join((before, title, middle, body, after))
    files["report.html"] = document.encode()
    refuse_others(folder, files)
    record(folder, files)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return folder / "report.html"


def _page(page: Page, files: dict[str, bytes], prefix: str) -> str:
    """The page's HTML; its figures go to the files."""
    parts = [f"<header><h1>{escape(page.title)}</h1><p>{escape(page.subtitle)}</p>"]
    parts.append("</header>")
    for section in page.sections:
        parts.append(f"<section><h2>{escape(section.title)}</h2>")
        for item in section.items:
            if isinstance(item, Table):
                parts.append(_table(item))
            elif isinstance(item, Figure):
                plain = re.sub(r"[^\w.-]+", "-", item.name)  # for a file and for ids
                named = replace(item, name=prefix + plain)
                parts.append(_figure(named, files))
            else:
                parts.append(f"<p>{escape(item)}</p>")
        parts.append("</section>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_breakable(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<div class=table style='--columns:{len(table.header)}'>"
        f"<h3>{escape(table.title)}</h3><div class=wide><table><thead><tr>{head}</tr>"
        f"</thead><tbody>{rows}</tbody></table></div>{note}</div>"
    )


def _breakable(cell: str) -> str:
    """Where a cell may be broken if the screen is narrow: never at its ±."""
    return re.sub(r"([,:] | (?=\())", r"\1<wbr>", escape(cell))


def _figure(figure: Figure, files: dict[str, bytes]) -> str:
    png, svg = _drawn(figure)
    files[f"figures/{figure.name}.png"] = png
    files[f"figures/{figure.name}.svg"] = svg.encode()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    width = svg.partition(' width="')[2].partition('"')[0]
    # Names inside must be the figure's own: all figures share one document.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure.name}-", svg)
    title = escape(figure.title)
    return (
        f"<figure style='--width:{width}'>"
        f'<div class=wide role=img aria-label="{title}">{svg}</div>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _drawn(figure: Figure) -> tuple[bytes, str]:
    """As PNG on white, and as SVG."""
    import matplotlib

    style: Any = {
        **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": _INK for part in ("edgecolor", "labelcolor", "titlecolor")},
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "lines.color": _INK,
        "patch.edgecolor": _INK,
        "legend.frameon": False,
        "legend.labelcolor": _INK,
        "svg.fonttype": "none",
        "svg.hashsalt": figure.name,
    }
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(style):
        drawn = figure.draw()
        whole: Any = {"bbox_inches": "tight"}
        drawn.savefig(png, format="png", dpi=150, facecolor="white", **whole)
        drawn.set_layout_engine("none")  # it is laid out, which takes most of the time
        undated = {"Date": None}  # equal results give equal files
        drawn.savefig(svg, format="svg", facecolor="none", metadata=undated, **whole)
    return png.getvalue(), svg.getvalue().decode()


_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --dim: #767676;
  --tint: color-mix(in srgb, CanvasText 5%, transparent) }
@media (prefers-color-scheme: dark) { :root { --dim: #9a9a9a } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.5rem 0 0 }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
header p, .note, figcaption { color: var(--dim); font-size: .9rem; margin: .2rem 0 }
p { max-width: 46rem }
h1, h2, h3, p, figcaption { overflow-wrap: anywhere }
/* Tables and figures stand beside each other where they fit, and fill the row. */
section { display: flex; flex-wrap: wrap; column-gap: 2rem; align-items: start }
section > h2, section > p { flex: 0 0 100%; max-width: none; box-sizing: border-box }
section > p { padding-right: max(0px, 100% - 46rem); margin: .7rem 0 0 }
.table { flex: 1 1 auto; min-width: 0; max-width: min(100%, 16rem * var(--columns)) }
.note { width: 0; min-width: min(100%, 46rem) }
figure { flex: 1 1 var(--width); min-width: 0; margin: 1.2rem 0 0;
  max-width: min(100%, 1.3 * var(--width)) }
figure svg { display: block; width: 100%; min-width: calc(.75 * var(--width));
  height: auto; font-family: inherit }
/* What scrolls sideways has a shade at its right edge until the end is reached. */
.wide { overflow-x: auto; background:
  linear-gradient(to left, Canvas 1rem, transparent) right / 3rem 110% no-repeat local,
  linear-gradient(to left, #888a, transparent) right / 1rem 100% no-repeat scroll }
table { border-spacing: 0; font-variant-numeric: tabular-nums;
  font-size: .9rem; width: 100% }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th, wbr { white-space: normal }
th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: Canvas; white-space: normal; max-width: 45vw }
tbody tr:nth-child(odd) { background: var(--tint) }
tbody tr:nth-child(odd) td:first-child { background:
  linear-gradient(var(--tint) 0 0) Canvas }
@media (max-width: 40rem) {
  table { font-size: .8rem }
  th, td { padding: .3rem .35rem }
}
</style>
</head>
<body>
{body}
</body>
</html>
"""
