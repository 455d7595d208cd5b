"""The control of the grey levels: a histogram with two handles, two number fields, and the colour map."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QLocale, Qt, Signal
from PySide6.QtGui import QColor, QDoubleValidator, QPalette
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QWidget,
)

from equipoise_engine.protocol import Pixels

COLOUR_MAPS = ("grey", "viridis", "magma", "cividis")
_BINS = 128
_SAMPLES_PER_AXIS = 256


def colour_map(name: str) -> pg.ColorMap:
    """Return one of `COLOUR_MAPS`; all rise evenly in lightness."""
    if name == "grey":
        return pg.ColorMap(None, [(0, 0, 0), (255, 255, 255)])
    return pg.colormap.get(name)


class LevelsControl(QWidget):
    """Shows how the values of a picture are spread and which of them are black and white.

    Its signals come from the user's hand only, never from `set_levels`.
    """

    levels_changed = Signal(float, float)
    auto_requested = Signal()
    linked_changed = Signal(bool)
    colour_map_chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._low, self._high = 0.0, 1.0
        self._map = COLOUR_MAPS[0]
        self.white = self._number_field("White level", "Value that is shown brightest")
        self.black = self._number_field("Black level", "Value that is shown darkest")

        self._plot = pg.PlotWidget()
        self._plot.setAccessibleName("Histogram of the active pane")
        self._plot.setToolTip("Drag the two lines, or the band between them, to set black and white")
        item = self._plot.getPlotItem()
        item.hideAxis("bottom")
        item.hideAxis("left")
        item.hideButtons()
        item.setMenuEnabled(False)
        item.setMouseEnabled(x=False, y=False)
        item.getViewBox().setDefaultPadding(0.0)
        self._curve = pg.PlotCurveItem(fillLevel="enclosed")
        self._bar = pg.ImageItem(axisOrder="row-major")
        self.region = pg.LinearRegionItem(orientation="horizontal", values=(0.0, 1.0))
        for part in (self._curve, self._bar, self.region):
            item.addItem(part, ignoreBounds=True)
        self._bar.setZValue(20)
        item.getViewBox().setXRange(-0.28, 1.05, padding=0)
        self.region.sigRegionChanged.connect(self._take_region)

        self.auto_button = QPushButton("Auto")
        self.auto_button.setToolTip("1st to 99.8th percentile of the analytic reconstruction")
        self.auto_button.setAccessibleName("Automatic levels")
        self.auto_button.clicked.connect(self.auto_requested)
        self.link = QCheckBox("Link")
        self.link.setChecked(True)
        self.link.setToolTip("On: the same black and white in all panes. Off: each pane chooses its own")
        self.link.setAccessibleName("Link the levels of all panes")
        self.link.toggled.connect(self.linked_changed)
        self.maps = QComboBox()
        self.maps.addItems(COLOUR_MAPS)
        self.maps.setToolTip("Colour map; all of them rise evenly in lightness")
        self.maps.setAccessibleName("Colour map")
        self.maps.currentTextChanged.connect(self._take_map)

        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setVerticalSpacing(4)
        layout.addWidget(QLabel("White"), 0, 0)
        layout.addWidget(self.white, 0, 1)
        layout.addWidget(self._plot, 1, 0, 1, 2)
        layout.addWidget(QLabel("Black"), 2, 0)
        layout.addWidget(self.black, 2, 1)
        layout.addWidget(self.auto_button, 3, 0, 1, 2)
        layout.addWidget(self.link, 4, 0, 1, 2)
        layout.addWidget(self.maps, 5, 0, 1, 2)
        layout.setRowStretch(1, 1)
        self.setFixedWidth(148)
        self._colour()
        self.set_levels(0.0, 1.0)

    def levels(self) -> tuple[float, float]:
        """Values that are shown black and white."""
        return self._low, self._high

    def linked(self) -> bool:
        """Whether all panes have the same levels."""
        return self.link.isChecked()

    def set_levels(self, low: float, high: float) -> None:
        """Show these levels, without a signal."""
        self._low, self._high = low, high
        self.region.blockSignals(True)
        self.region.setRegion((low, high))
        self.region.blockSignals(False)
        self._show_numbers()

    def set_histogram(self, pixels: Pixels) -> None:
        """Show how the values of a picture `(y, x)`, float32, are spread."""
        steps = tuple(max(1, n // _SAMPLES_PER_AXIS) for n in pixels.shape)
        sample = pixels[:: steps[0], :: steps[1]]
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            self._curve.clear()
            return
        low, high = float(sample.min()), float(sample.max())
        if high <= low:
            high = low + max(abs(low), 1.0) * 1e-3
        counts, edges = np.histogram(sample, bins=_BINS, range=(low, high))
        # the root keeps the few bright pixels visible beside the background
        height = np.sqrt(counts / counts.max())
        outline = np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
        self._curve.setData(outline, np.concatenate([[low], np.repeat(edges, 2)[1:-1], [high]]))
        margin = 0.04 * (high - low)
        bottom, top = min(low, self._low) - margin, max(high, self._high) + margin
        self._plot.getPlotItem().getViewBox().setYRange(bottom, top, padding=0)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()

    def _number_field(self, name: str, tip: str) -> QLineEdit:
        field = QLineEdit()
        validator = QDoubleValidator(field)
        validator.setLocale(QLocale.c())
        field.setValidator(validator)
        field.setAccessibleName(name)
        field.setToolTip(tip)
        field.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        field.editingFinished.connect(self._take_numbers)
        return field

    def _show_numbers(self) -> None:
        for field, value in ((self.black, self._low), (self.white, self._high)):
            field.setText(f"{value:.4g}")
            field.setCursorPosition(0)
        self._place_bar()

    def _take_region(self) -> None:
        low, high = self.region.getRegion()
        self._accept(float(low), float(high))

    def _take_numbers(self) -> None:
        try:
            low, high = float(self.black.text()), float(self.white.text())
        except ValueError:
            low, high = self._low, self._high
        # leaving a field untouched must not round the levels to what the field shows
        if (self.black.text(), self.white.text()) == (f"{self._low:.4g}", f"{self._high:.4g}"):
            return
        self._accept(min(low, high), max(low, high))

    def _accept(self, low: float, high: float) -> None:
        if high <= low:
            self.set_levels(self._low, self._high)
            return
        self.set_levels(low, high)
        self.levels_changed.emit(low, high)

    def _take_map(self, name: str) -> None:
        self._map = name
        self._place_bar()
        self.colour_map_chosen.emit(name)

    def _place_bar(self) -> None:
        self._bar.setImage(np.linspace(0, 1, 256, dtype=np.float32)[:, None], autoLevels=False, levels=(0, 1))
        self._bar.setColorMap(colour_map(self._map))
        self._bar.setRect(-0.24, self._low, 0.16, max(self._high - self._low, 1e-30))

    def _colour(self) -> None:
        palette = self.palette()
        text = palette.color(QPalette.ColorRole.Text)
        fill = QColor(text)
        fill.setAlpha(70)
        band = palette.color(QPalette.ColorRole.Highlight)
        line = QColor(band)
        band.setAlpha(35)
        self._plot.setBackground(palette.color(QPalette.ColorRole.Base))
        self._curve.setPen(pg.mkPen(text))
        self._curve.setBrush(pg.mkBrush(fill))
        self.region.setBrush(pg.mkBrush(band))
        for handle in self.region.lines:
            handle.setPen(pg.mkPen(line, width=2))
            handle.setHoverPen(pg.mkPen(line, width=4))
            handle.setCursor(Qt.CursorShape.SizeVerCursor)
