"""What all plots share: colours from the palette, styles of overlaid curves, points on a log axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, floor, log10

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QPalette, QPen
from PySide6.QtWidgets import QSizePolicy

# Okabe and Ito, "Color Universal Design" (2008), without black and yellow, which vanish on some backgrounds.
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SERIES_DASHES = (
    Qt.PenStyle.SolidLine,
    Qt.PenStyle.DashLine,
    Qt.PenStyle.DotLine,
    Qt.PenStyle.DashDotLine,
)
SERIES_SYMBOLS = ("o", "s", "t", "d", "+", "x")
SERIES_MARKS = ("●", "■", "▼", "◆", "✚", "✖")


def series_pen(number: int) -> QPen:
    """Return the pen of the curve `number`: its colour and its dashes differ from those of its neighbours."""
    colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
    pen: QPen = pg.mkPen(colour, width=2, style=SERIES_DASHES[number % len(SERIES_DASHES)])
    return pen


def series_colour(number: int) -> str:
    """Return the colour of the curve `number` as #rrggbb."""
    return SERIES_COLOURS[number % len(SERIES_COLOURS)]


def series_mark(number: int) -> str:
    """Return the character that looks like the symbol of the curve `number`."""
    return SERIES_MARKS[number % len(SERIES_MARKS)]


def series_symbol(number: int) -> str:
    """Return the symbol of the points of the curve `number`."""
    return SERIES_SYMBOLS[number % len(SERIES_SYMBOLS)]


def positive_points(steps: Sequence[int], values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps and values `(point,)`, float64, that a log axis can show: finite and above zero."""
    count = min(len(steps), len(values))
    x = np.asarray(steps[:count], dtype=np.float64)
    y = np.asarray(values[:count], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(y) & (y > 0)
    return x[keep], y[keep]


def colour_plot(plot: pg.PlotWidget, palette: QPalette) -> None:
    """Give a plot the background and the text colour of a palette."""
    text = palette.color(QPalette.ColorRole.Text)
    faint = QColor(text)
    faint.setAlpha(110)
    plot.setBackground(palette.color(QPalette.ColorRole.Base))
    item = plot.getPlotItem()
    for name in ("left", "bottom", "right", "top"):
        axis = item.getAxis(name)
        axis.setPen(pg.mkPen(faint))
        axis.setTextPen(pg.mkPen(text))
    item.titleLabel.setText(item.titleLabel.text, color=text)
    if item.legend is not None:
        background = QColor(palette.color(QPalette.ColorRole.Base))
        background.setAlpha(210)
        item.legend.setBrush(pg.mkBrush(background))
        item.legend.setLabelTextColor(text)
        for _sample, label in item.legend.items:
            label.setText(label.text, color=text)


def log_plot(name: str, quantity: str, palette: QPalette) -> pg.PlotWidget:
    """Return an empty plot of a positive quantity over the step, with a logarithmic axis and a legend."""
    plot = pg.PlotWidget()
    item = plot.getPlotItem()
    item.setLogMode(x=False, y=True)
    # each grid line is drawn again with each new point; those of the other axis would double the time
    item.showGrid(x=False, y=True, alpha=0.2)
    item.setTitle(quantity, size="9pt")
    item.hideButtons()
    item.setMenuEnabled(False)
    # a few steps must not spread so far that the axis counts in fractions
    item.getViewBox().setLimits(xMin=0.0, minXRange=10.0)
    item.getViewBox().sigRangeChanged.connect(partial(_set_log_ticks, item.getAxis("left")))
    item.getViewBox().sigResized.connect(partial(_set_log_ticks, item.getAxis("left")))
    item.addLegend(offset=(-6, 6), labelTextSize="8pt", verSpacing=-4)
    plot.setAccessibleName(name)
    plot.setMinimumSize(140, 90)
    plot.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)
    colour_plot(plot, palette)
    return plot


_TICK_SPACING_PX = 20
_MANTISSAS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


def log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return the ticks of a logarithmic axis from `low` to `high`, powers of ten; about `most` of them.

    Each tick is its position, as a power of ten, and its text.
    """
    decades = range(floor(low), ceil(high) + 1)
    found: list[float] = []
    for mantissas in _MANTISSAS:
        found = [d + log10(m) for d in decades for m in mantissas if low <= d + log10(m) <= high]
        if len(found) <= most:
            break
    if len(found) < 2:
        # far less than a decade: no round number need lie inside
        span = high - low
        digits = max(3, 2 - floor(log10(span))) if span > 0 else 3
        return [(p, f"{10**p:.{digits}g}") for p in (low + share * span for share in (0.1, 0.5, 0.9))]
    every = -(-len(found) // max(1, most))
    return [(position, f"{10**position:.3g}") for position in found[::every]]


def _set_log_ticks(axis: pg.AxisItem, box: pg.ViewBox, *_: object) -> None:
    low, high = box.viewRange()[1]
    # a view that has not been laid out yet may span anything
    if high - low < 1000 and abs(low) < 300 and abs(high) < 300:
        axis.setTicks([log_ticks(low, high, max(2, int(box.height()) // _TICK_SPACING_PX)), []])
