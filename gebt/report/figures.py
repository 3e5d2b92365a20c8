"""The drawings: lines with bands, heat maps, scatters, distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
MORE_COLOURS = (*COLOURS, "#8c564b", "#6a51a3", "#66a61e")
MARKERS = "osD^vPX*<>"


@dataclass(frozen=True)
class Line:
    """Points of a curve; ``low`` and ``high`` bound its band, if any."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """One set of axes with curves and levels."""

    title: str
    lines: Sequence[Line]
    levels: Mapping[str, float]


def curves(
    panels: Sequence[Panel], xlabel: str, ylabel: str, *, log_y: bool = False
) -> Any:
    """Panels in rows of three with one scale; a line of one label has one colour."""
    width = 3.4 if len(panels) > 1 else 4.6
    figure, axes = _axes(len(panels), width, 2.6, across=3, sharex=True, sharey=True)
    labels = list(dict.fromkeys(line.label for p in panels for line in p.lines))
    names = list(dict.fromkeys(name for p in panels for name in p.levels))
    for panel, axis in zip(panels, axes, strict=True):
        for line in panel.lines:
            colour = MORE_COLOURS[labels.index(line.label) % len(MORE_COLOURS)]
            axis.plot(
                line.x, line.y, line.style, color=colour, label=line.label, marker="."
            )
            if len(line.low):
                axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2)
        for name, level in panel.levels.items():
            place = names.index(name)
            style = ("--", ":", "-.")[place % 3]
            axis.axhline(level, ls=style, color=COLOURS[-1 - place], lw=1.2, label=name)
        axis.set_title(panel.title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if log_y:
            _log_scale(axis, "y")
    _label(axes, xlabel, ylabel, across=3)
    _legend(figure, axes)
    return figure


def heat_maps(maps: Sequence[tuple[str, Sequence[int], np.ndarray]]) -> Any:
    """Square matrices over pairs of epochs, in [0, 1], on one colour scale."""
    figure, axes = _axes(len(maps), 2.3, 2.3, across=4)
    top = max(float(matrix.max()) for _, _, matrix in maps) or 1.0
    for (title, epochs, matrix), axis in zip(maps, axes, strict=True):
        half = (epochs[1] - epochs[0]) / 2  # a cell lies around its epoch
        ends = (epochs[0] - half, epochs[-1] + half) * 2
        image = axis.imshow(
            matrix, origin="lower", extent=ends, vmin=0, vmax=top, cmap="viridis"
        )
        axis.set_title(title)
    _label(axes, "epoch", "epoch", across=4)
    figure.colorbar(image, ax=list(axes), label="mask distance", aspect=30)
    return figure


def scatter(
    panels: Mapping[str, Sequence[tuple[str, float, float, float]]],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
) -> Any:
    """Points (label, x, y, spread of y) by panel, labelled "what" or "what, which".

    One colour for each what, one marker for each which.
    """
    width = 3.4 if len(panels) > 1 else 4.6
    figure, axes = _axes(len(panels), width, 3.6, across=3, sharex=True, sharey=True)
    labels = list(dict.fromkeys(p[0] for points in panels.values() for p in points))
    parts = [label.partition(", ") for label in labels]
    colours = list(dict.fromkeys(what for what, _, _ in parts))
    markers = list(dict.fromkeys(which for _, _, which in parts))
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        for label, (what, _, which) in zip(labels, parts, strict=True):
            mine = [p[1:] for p in points if p[0] == label]
            if not mine:
                continue
            x, y, bar = zip(*mine, strict=True)
            axis.errorbar(
                x,
                y,
                bar if any(bar) else None,  # else bars would be in the legend alone
                fmt=MARKERS[markers.index(which) % len(MARKERS)],
                color=MORE_COLOURS[colours.index(what) % len(MORE_COLOURS)],
                label=label,
                lw=1,
                ms=5,
            )
        axis.set_title(title)
        if log_x:
            _log_scale(axis, "x")
    _label(axes, xlabel, ylabel, across=3)
    _legend(figure, axes)
    return figure


def at_least(values: Mapping[str, np.ndarray], xlabel: str, ylabel: str) -> Any:
    """How many of the values are at least as large, both axes logarithmic.

    Values below 1 count in none. Unlike a histogram it has no bins to choose, and no
    gaps between the few large values.
    """
    figure, [axis] = _axes(1, 4.6, 3.2)
    for place, (label, mine) in enumerate(values.items()):
        x = np.append(0.9, np.unique(mine[mine > 0]))  # from the axes' edge on
        y = len(mine) - np.searchsorted(np.sort(mine), x)
        axis.step(x, y, where="pre", color=COLOURS[place], label=label)
    axis.set(xlim=(0.9, None), ylim=(0.9, None))  # also where there is no link
    for name in "xy":
        _log_scale(axis, name)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    _legend(figure, [axis])
    return figure


def _axes(
    count: int, width: float, height: float, across: int = 1, **options: Any
) -> tuple[Any, Any]:
    """A figure with some axes, in rows of ``across``; all axes of one size."""
    from matplotlib.figure import Figure

    columns, rows = min(count, across), math.ceil(count / across)
    size = (width * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for surplus in axes[count:]:
        surplus.remove()
    return figure, axes[:count]


def _label(axes: Any, xlabel: str, ylabel: str, across: int) -> None:
    """Label the lowest axes of each column and the first of each row."""
    for place, axis in enumerate(axes):
        if place + across >= len(axes):
            axis.set_xlabel(xlabel)
            axis.tick_params(labelbottom=True)
        if place % across == 0:
            axis.set_ylabel(ylabel)


def _log_scale(axes: Any, name: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    between = (1, 2, 5) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _legend(figure: Any, axes: Any) -> None:
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    # Above and at the left: in sight where the figure is wider than the screen.
    columns = min(len(entries), max(2, 2 * len(axes)), 4)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper left",
        ncols=columns,
        columnspacing=1.2,
    )
