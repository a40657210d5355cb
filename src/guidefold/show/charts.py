"""Charts as SVG, each for light pages and for dark ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

Points = Sequence[tuple[float, float]]
INKS = {"light": "#1c2330", "dark": "#e6e9ef"}
# This order is told apart by all common types of colour vision, on white and on black (Paul Tol's
# 'bright' and 'light' schemes, https://sronpersonalpages.nl/~pault/)
COLOURS = {"light": ("#4477aa", "#aa3377", "#228833"), "dark": ("#77aadd", "#ee99bb", "#bbcc33")}
MARKERS = ("o", "s", "^")
HEADROOM = 1.08  # of a chart above its highest point, so that its marker is whole
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "guidefold",  # the same chart is the same file
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    Attributes:
        title: The heading.
        alt: The content in words.
        light: The SVG in dark ink, as a data URI.
        dark: The SVG in light ink, as a data URI.
        columns: The headings of the table of numbers.
        rows: The rows of the table of numbers.
    """

    title: str
    alt: str
    light: str
    dark: str
    columns: list[str]
    rows: list[list[str]]


def curves(
    title: str, series: Mapping[str, Points], x_label: str, y_label: str, *, falling: bool = False
) -> Chart:
    """Lines over a common x axis.

    Args:
        title: The chart's heading.
        series: The points of each line, by name; at most three lines.
        x_label: The label of the x axis.
        y_label: The label of the y axis.
        falling: Whether x runs from high to low, as timesteps do while a picture is drawn.
    """

    def draw(axes: Any, colours: Sequence[str]) -> None:
        for (name, points), colour, marker in zip(series.items(), colours, MARKERS, strict=False):
            x, y = zip(*points, strict=True)
            symbol = marker if len(points) <= 30 else ""
            axes.plot(x, y, color=colour, label=name, marker=symbol, markersize=4)
        if falling:
            axes.invert_xaxis()
        # The axis's own margin is a share of the data's range: of a flat line, next to nothing.
        highest = max(y for points in series.values() for _, y in points)
        axes.set_ylim(0, HEADROOM * highest if highest > 0 else 1)

    ends = [
        f"{name}: {points[0][1]:.3g} at {points[0][0]:g}, {points[-1][1]:.3g} at {points[-1][0]:g}"
        for name, points in series.items()
    ]
    rows = [[name, f"{x:g}", f"{y:.4g}"] for name, points in series.items() for x, y in points]
    return _chart(
        title, draw, (x_label, y_label), "; ".join(ends), (["line", x_label, y_label], rows)
    )


def bars(title: str, groups: Mapping[str, Mapping[str, float]], y_label: str) -> Chart:
    """Bars side by side, group by group.

    Args:
        title: The chart's heading.
        groups: The heights of each group's bars, by name; every group has the same names, at most
            three.
        y_label: The label of the y axis.
    """
    names = list(next(iter(groups.values())))

    def draw(axes: Any, colours: Sequence[str]) -> None:
        width = 0.8 / len(names)
        for number, (name, colour) in enumerate(zip(names, colours, strict=False)):
            places = [
                place + (number - (len(names) - 1) / 2) * width for place in range(len(groups))
            ]
            heights = [group[name] for group in groups.values()]
            axes.bar(places, heights, width * 0.92, color=colour, label=name)
        labels = [fill(name, 10, max_lines=3, placeholder="…") for name in groups]
        axes.set_xticks(range(len(groups)), labels, fontsize=8)
        axes.grid(visible=False, axis="x")

    rows = [[group, *(f"{bar[name]:.3f}" for name in names)] for group, bar in groups.items()]
    alt = "; ".join(
        f"{group}: " + ", ".join(f"{name} {bar[name]:.2f}" for name in names)
        for group, bar in groups.items()
    )
    return _chart(title, draw, ("", y_label), alt, (["", *names], rows))


def _chart(
    title: str,
    draw: Callable[[Any, Sequence[str]], None],
    labels: tuple[str, str],
    alt: str,
    table: tuple[list[str], list[list[str]]],
) -> Chart:
    drawn = {theme: _svg(draw, labels, theme) for theme in INKS}
    return Chart(title, f"{title}. {alt}.", drawn["light"], drawn["dark"], *table)


def _svg(draw: Callable[[Any, Sequence[str]], None], labels: tuple[str, str], theme: str) -> str:
    """The chart in one theme, as a data URI."""
    import matplotlib as mpl  # takes most of a second, which every other command would wait for
    from matplotlib.figure import Figure

    ink = INKS[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {**STYLE, **dict.fromkeys(inked, ink), "grid.color": ink}
    with mpl.rc_context(style):
        # A small figure makes its text large enough to be read on a phone.
        figure = Figure(figsize=(4.2, 2.8), layout="constrained")
        axes = figure.subplots()
        draw(axes, COLOURS[theme])
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
