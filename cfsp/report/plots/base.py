"""What all figures share: their style, a look per method, and export to SVG, PDF and PNG."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from cfsp.storage.atomic import replacing

WIDTH = 5.5
"""Inches: the text width of a paper with one column, and narrow enough to be readable on a phone."""

STYLE: dict[Any, Any] = {  # matplotlib's stubs type the keys as literals
    "font.family": "DejaVu Sans",  # a generic family would be searched for at every text
    "font.size": 8,
    "text.color": "#101828",
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#667085",
    "axes.labelcolor": "#344054",
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ec",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,  # fonts that publishers accept
    "svg.hashsalt": "cfsp",  # the same bytes for the same records
    "svg.fonttype": "none",  # text as text: a tenth of the bytes, and readers can search and copy it
    "text.parse_math": False,  # names of methods and files are not formulas
}

THEME = {
    "#101828": "ink",
    "#344054": "soft",
    "#475467": "soft",
    "#667085": "edge",
    "#98a2b3": "edge",
    "#e4e7ec": "line",
    "#ffffff": "card",
}
"""Colours that the page replaces in dark mode -> their names in its style sheet."""

styled = rc_context(STYLE)
"""Decorator for functions that draw a figure."""

# Okabe and Ito's colours without yellow and black, and one of Tol's. The colour-blind can distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
DENSE = "#101828"
THEME |= {colour.lower(): f"c{place}" for place, colour in enumerate(COLOURS)}
PAINT = re.compile(rf"(?<=[ \"])(?:{'|'.join(THEME)})(?=[;\"])")


@dataclass(frozen=True)
class Look:
    """The colour, marker and dash of one method in every figure."""

    color: str
    marker: str
    dash: str

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.color, "marker": self.marker, "linestyle": self.dash}


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return a look for each method: one colour per criterion, then a marker and dash per method.

    Colours are shared beyond seven criteria. Looks repeat beyond 32 methods of one colour.
    """
    found: dict[str, Look] = {}
    members: Counter[str] = Counter()
    words: dict[str, str] = {}
    for method in sorted(set(methods)):
        word = re.split(r"[ (]", method)[0]
        color = words.setdefault(word, COLOURS[len(words) % len(COLOURS)])
        place = members[color]
        found[method] = Look(
            color, MARKERS[place % len(MARKERS)], DASHES[(place + place // len(MARKERS)) % len(DASHES)]
        )
        members[color] += 1
    return found


def empty_panels(
    rows: int, columns: int, height: float, labels: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with room for a legend below. height: inches of a row; labels: of the legend."""
    legend = 0.15 * sum(fill(label, 60).count("\n") + 1 for label in labels) / legend_columns(labels)
    figure = Figure((WIDTH, rows * height + legend + 0.15), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [one for row in axes for one in row]


def legend_columns(labels: Sequence[str]) -> int:
    longest = min(60, max(map(len, labels), default=0))
    return max(1, min(len(labels), 92 // (longest + 9)))


def add_legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """Add a legend below all panels, with as many columns as fit."""
    figure.legend(
        handles.values(),
        [fill(label, 60) for label in handles],
        loc="outside lower center",
        ncols=legend_columns([*handles]),
        handlelength=2.6,
    )


def method_handles(methods: Iterable[str], styles: Mapping[str, Look]) -> dict[str, Line2D]:
    return {method: Line2D([], [], **styles[method].line) for method in methods}


def show_parameters(axes: Axes, dense: int) -> None:
    """Label the x axis in parameters of the whole model, and the top axis in per cent removed."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("measured parameters")

    def share(value: Any) -> Any:  # parameters -> per cent removed
        return 100 * (1 - value / dense)

    def parameters(gone: Any) -> Any:
        return dense * (1 - gone / 100)

    top = axes.secondary_xaxis("top", functions=(share, parameters))
    top.set_xlabel("removed, % of all parameters")


def show_active(axes: Axes) -> None:
    """Label the x axis in the share of an MLP's units that a token uses."""
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("MLP units that a token uses")


def show_logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic, with plain numbers, if values span more than a factor of three."""
    values = [value for value in values if math.isfinite(value)]
    if min(values) <= 0 or max(values) < 3 * min(values):
        return
    axes.set_yscale("log")
    wide = max(values) > 100 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def short(count: float) -> str:
    """Return a count in K, M or B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.4g}"


@styled
def svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element. Its ids begin with `name`, so that a page can hold several."""
    file = io.StringIO()
    settle(figure)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    element = file.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", slim(element))


IDLE = re.compile(
    r"(?P<digits>(?<=\.\d\d)\d+)"  # less than a hundredth of a point is invisible; labels are not matched
    r"|(?P<font>font-family: [^;\"]+;? ?)"  # the page's style sheet sets it once
    r'|(?P<turn> transform="rotate\(-?0 [^"]*\)")'
    r"|(?P<indent>\n *$)"
)
"""Parts of matplotlib's SVG that have no visible effect."""


TAG = re.compile(r"<[^>]*>\s*")


def slim(element: str) -> str:
    """Remove the parts of an SVG element that have no visible effect, about half of its bytes."""
    element = TAG.sub(lambda found: IDLE.sub("", found[0]), element).replace("\n", " ")
    named = set(re.findall(r'(?:href="#|url\(#)([^")]+)', element))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", element)


def themed(element: str) -> str:
    """Replace an SVG element's colours by the page's variables, which change in dark mode."""
    return PAINT.sub(lambda found: f"var(--{THEME[found[0]]})", element)


def settle(figure: Figure) -> None:
    """Lay a figure out once. Otherwise matplotlib repeats the layout, and draws twice, at every export."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


@styled
def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write a PDF, and a PNG with 300 dots per inch. The bytes depend only on the figure."""
    settle(figure)
    for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with replacing(folder / f"{name}.{ending}") as part:
            figure.savefig(part, format=ending, dpi=300, metadata=metadata)
