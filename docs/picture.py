"""Draws the output that quickstart.md shows, for the README: figures/run-cora.svg."""

import re
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
_SIZE, _LINE, _EDGE = 14, 17, 14  # of letters, lines and the margin, pixels
_WIDTH = 0.602 * _SIZE  # of a letter of most monospace fonts


def shown() -> str:
    """The output of `gebt run cora --seeds 10`, as it is on the page."""
    page = (HERE / "quickstart.md").read_text("utf-8")
    [text] = re.findall(r"--seeds 10 -->\n```\n(.*?)```", page, re.S)
    return text


def drawn(text: str) -> str:
    """An SVG of the text, each line as wide as its letters."""
    lines = text.splitlines()
    width = round(max(map(len, lines)) * _WIDTH + 2 * _EDGE)
    height = len(lines) * _LINE + 2 * _EDGE
    rows = [
        f'<text x="{_EDGE}" y="{_EDGE + _LINE * (row + 0.75):g}" xml:space="preserve" '
        f'textLength="{len(line) * _WIDTH:g}">{escape(line)}</text>'
        for row, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-size="{_SIZE}" '
            'font-family="DejaVu Sans Mono, Menlo, monospace" fill="#24292f">',
            '<rect width="100%" height="100%" rx="6" fill="#f6f8fa"/>',
            *rows,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    (HERE / "figures" / "run-cora.svg").write_text(drawn(shown()), encoding="utf-8")
