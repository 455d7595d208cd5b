"""One pane of the comparison: a picture with its header, its crosshair and the value under it."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QObject, QPoint, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPalette, QPen, QWheelEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFrame,
    QGraphicsRectItem,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
)

from equipoise.view.levels import colour_map
from equipoise_engine.protocol import Pixels

NO_NUMBER_COLOUR = QColor(255, 0, 200)
"""Colour of pixels that are not numbers; no colour map contains it."""

EMPTY_HINT = "Reconstruct with another method to compare"


class PaneView(QFrame):
    """Shows one picture `(y, x)`, row 0 at the top, in millimetres of the field of view.

    The pane knows nothing of the other panes: it tells what the user did, and is told what to show.
    """

    activated = Signal()
    run_chosen = Signal(str)
    slices_scrolled = Signal(int)
    """By how many slices to go on."""
    slice_end_wanted = Signal(bool)
    """First (False) or last (True) slice."""
    view_changed = Signal(QRectF)
    """The user zoomed or panned; the rectangle that is now seen, in the units of the picture's rectangle."""
    view_reset = Signal()
    pointed = Signal(QPointF)
    """Position under the mouse, in the units of the picture's rectangle."""
    left = Signal()

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self._active = False
        self._pixels: Pixels | None = None
        self._rect = QRectF(0, 0, 1, 1)
        self._wanted_view: QRectF | None = None
        self._wheel = 0

        self.chooser = QComboBox()
        self.chooser.setAccessibleName(f"Result in pane {number + 1}")
        self.chooser.setToolTip("The reconstruction that this pane shows")
        self.chooser.setPlaceholderText("Choose a result")
        self.chooser.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.chooser.setMinimumContentsLength(6)
        self.chooser.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.chooser.activated.connect(self._choose)
        self.chooser.installEventFilter(self)
        self._entries: tuple[tuple[str, str], ...] = ()

        self.residual = QLabel()
        self.residual.setToolTip("‖A x − y‖ / ‖y‖: how far the image is from the measured data")
        self.caption = QLabel()
        self.caption.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        small = self.caption.font()
        small.setPointSizeF(max(7.0, small.pointSizeF() * 0.92))
        self.caption.setFont(small)
        self.residual.setFont(small)

        self.view = pg.GraphicsView()
        self.view.setAccessibleName(f"Picture in pane {number + 1}")
        self.view.setFrameShape(QFrame.Shape.NoFrame)
        self.view.setMinimumSize(120, 100)
        self.box = pg.ViewBox(lockAspect=True, invertY=True, enableMenu=False, defaultPadding=0.0)
        self.view.setCentralItem(self.box)
        self._hole = QGraphicsRectItem()
        self._hole.setBrush(NO_NUMBER_COLOUR)
        self._hole.setPen(QPen(Qt.PenStyle.NoPen))
        self._hole.setVisible(False)
        self.image = pg.ImageItem(axisOrder="row-major")
        self.image.setColorMap(colour_map("grey"))
        self.image.setVisible(False)
        hair = pg.mkPen(255, 200, 0, 200)
        self._across = pg.InfiniteLine(angle=0, pen=hair)
        self._down = pg.InfiniteLine(angle=90, pen=hair)
        for part in (self._hole, self.image, self._across, self._down):
            self.box.addItem(part, ignoreBounds=True)
        self.box.sigRangeChangedManually.connect(self._tell_view)
        self.box.sigResized.connect(self._restore_view)
        self.view.installEventFilter(self)
        self.view.viewport().installEventFilter(self)

        # these lie on the picture and must be readable on any of its greys
        overlay = "color: white; background: rgba(0, 0, 0, 165); padding: 1px 5px; border-radius: 3px;"
        self.value = QLabel(self.view)
        self.value.setStyleSheet(overlay)
        self.value.setAccessibleName(f"Value in pane {number + 1}")
        self.value.hide()
        self.legend = QLabel("magenta: not a number", self.view)
        self.legend.setStyleSheet(overlay)
        self.legend.hide()
        self.hint = QLabel(EMPTY_HINT, self.view)
        self.hint.setWordWrap(True)
        self.hint.setAlignment(Qt.AlignmentFlag.AlignCenter)
        for label in (self.value, self.legend, self.hint):
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)

        header = QHBoxLayout()
        header.setContentsMargins(2, 0, 2, 0)
        header.addWidget(self.chooser)
        details = QHBoxLayout()
        details.setContentsMargins(4, 0, 4, 0)
        details.addWidget(self.caption, 1)
        details.addWidget(self.residual)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(5, 5, 5, 5)
        layout.setSpacing(3)
        layout.addLayout(header)
        layout.addLayout(details)
        layout.addWidget(self.view, 1)
        self.show_crosshair(None)
        self._colour()

    # --- what to show

    def pixels(self) -> Pixels | None:
        """The picture `(y, x)`, float32, that is seen, or None."""
        return self._pixels

    def place(self) -> QRectF:
        """Rectangle of the picture, in millimetres where the scan is calibrated and else in pixels."""
        return QRectF(self._rect)

    def set_runs(self, entries: tuple[tuple[str, str], ...], chosen: str | None) -> None:
        """Offer the runs, each by id and text, and mark the chosen one."""
        self.chooser.blockSignals(True)
        if entries != self._entries:
            if tuple(key for key, _ in entries) == tuple(key for key, _ in self._entries):
                # only texts changed: an open list stays open
                for row, (_, text) in enumerate(entries):
                    self.chooser.setItemText(row, text)
            else:
                self.chooser.clear()
                for key, text in entries:
                    self.chooser.addItem(text, key)
            self._entries = entries
        keys = [key for key, _ in entries]
        self.chooser.setCurrentIndex(keys.index(chosen) if chosen in keys else -1)
        self.chooser.setEnabled(bool(entries))
        self.chooser.blockSignals(False)

    def set_picture(self, pixels: Pixels | None, rect: QRectF) -> None:
        """Show a picture `(y, x)`, float32, in its rectangle; with None show the hint."""
        if pixels is None:
            self._pixels = None
            self.image.setVisible(False)
            self._hole.setVisible(False)
            self.legend.hide()
            self.hint.show()
            return
        whole = bool(np.isfinite(pixels).all())
        if not whole:
            pixels = np.where(np.isfinite(pixels), pixels, np.float32(np.nan))
        new_place = self._pixels is None or self._pixels.shape != pixels.shape or rect != self._rect
        self._pixels = pixels
        self._rect = QRectF(rect)
        self.image.setImage(pixels, autoLevels=False)
        if new_place:
            self.image.setRect(rect)
            self._hole.setRect(rect)
        self._hole.setVisible(not whole)
        self.legend.setVisible(not whole)
        self.image.setVisible(True)
        self.hint.hide()
        self._place_overlays()

    def set_caption(self, text: str, residual: str) -> None:
        """Say what is seen, and how far it is from the data."""
        if text != self.caption.text():
            self.caption.setText(text)
            self.caption.setToolTip(text)
            self.view.setAccessibleDescription(text)
        if residual != self.residual.text():
            self.residual.setText(residual)

    def set_hint(self, text: str) -> None:
        """Say what to do where there is no picture."""
        self.hint.setText(text)

    def set_levels(self, low: float, high: float) -> None:
        """Show `low` black and `high` white."""
        self.image.setLevels((low, high))

    def levels(self) -> tuple[float, float] | None:
        """Values that are shown black and white."""
        levels = self.image.getLevels()
        return None if levels is None else (float(levels[0]), float(levels[1]))

    def set_colour_map(self, name: str) -> None:
        """Use one of `COLOUR_MAPS`."""
        self.image.setColorMap(colour_map(name))

    def set_active(self, active: bool) -> None:
        """Draw the outline of the active pane, or of another."""
        self._active = active
        self.setAccessibleName(f"Pane {self.number + 1}{', active' if active else ''}")
        font = self.caption.font()
        font.setBold(active)
        self.caption.setFont(font)
        self.update()

    def set_view(self, rect: QRectF) -> None:
        """Show this part of the plane, or a little more where the proportions differ."""
        self._wanted_view = QRectF(rect)
        self.box.setRange(rect=rect, padding=0)

    def seen(self) -> QRectF:
        """Part of the plane that is seen."""
        rect: QRectF = self.box.viewRect()
        return rect

    def show_crosshair(self, at: QPointF | None) -> None:
        """Mark a point, given in the units of the rectangle."""
        for line in (self._across, self._down):
            line.setVisible(at is not None and self._pixels is not None)
        if at is None:
            self.value.hide()
            return
        self._across.setPos(at.y())
        self._down.setPos(at.x())

    def pixel_at(self, at: QPointF) -> tuple[int, int] | None:
        """Row and column of the pixel under a point, or None outside the picture."""
        if self._pixels is None:
            return None
        rows, columns = self._pixels.shape
        row = int(np.floor((at.y() - self._rect.y()) / self._rect.height() * rows))
        column = int(np.floor((at.x() - self._rect.x()) / self._rect.width() * columns))
        return (row, column) if 0 <= row < rows and 0 <= column < columns else None

    def set_value(self, text: str) -> None:
        """Write the value under the crosshair into the corner."""
        self.value.setText(text)
        self.value.setVisible(bool(text))
        self._place_overlays()

    # --- what the user does

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        """Read the gestures on the picture."""
        kind = event.type()
        if watched is self.chooser:
            if kind == QEvent.Type.FocusIn:
                self.activated.emit()
            return False
        if isinstance(event, QMouseEvent):
            if kind == QEvent.Type.MouseButtonPress:
                self.activated.emit()
            elif kind == QEvent.Type.MouseButtonDblClick and event.button() == Qt.MouseButton.LeftButton:
                self.view_reset.emit()
                return True
            elif kind == QEvent.Type.MouseMove:
                self.pointed.emit(self._plane(event.position().toPoint()))
            return False
        if isinstance(event, QWheelEvent):
            held = event.modifiers()
            if held & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier):
                turn = event.angleDelta()
                self._wheel += turn.y() or turn.x()
                notches = int(self._wheel / 120)
                if notches:
                    self._wheel -= 120 * notches
                    self.slices_scrolled.emit(-notches)
                return True
            return False
        if isinstance(event, QKeyEvent) and kind == QEvent.Type.KeyPress:
            return watched is self.view and self._key(Qt.Key(event.key()), event.modifiers())
        if kind == QEvent.Type.Leave and watched is not self.view:
            self.left.emit()
        elif kind == QEvent.Type.FocusIn:
            self.activated.emit()
        elif kind == QEvent.Type.Resize and watched is self.view:
            self._place_overlays()
        return False

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - Qt's name
        """Draw the outline."""
        super().paintEvent(event)
        painter = QPainter(self)
        role = QPalette.ColorRole.Highlight if self._active else QPalette.ColorRole.Mid
        width = 3.0 if self._active else 1.0
        painter.setPen(QPen(self.palette().color(role), width))
        half = width / 2
        painter.drawRect(QRectF(half, half, self.width() - width, self.height() - width))

    def _choose(self, row: int) -> None:
        self.activated.emit()
        key = self.chooser.itemData(row)
        if key is not None:
            self.run_chosen.emit(str(key))

    def _key(self, key: Qt.Key, held: Qt.KeyboardModifier) -> bool:
        if held & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier):
            return False
        seen = self.seen()
        match key:
            case Qt.Key.Key_PageUp:
                self.slices_scrolled.emit(-1)
            case Qt.Key.Key_PageDown:
                self.slices_scrolled.emit(1)
            case Qt.Key.Key_Home:
                self.slice_end_wanted.emit(False)
            case Qt.Key.Key_End:
                self.slice_end_wanted.emit(True)
            case Qt.Key.Key_Plus | Qt.Key.Key_Equal:
                self._zoom(seen, 0.8)
            case Qt.Key.Key_Minus:
                self._zoom(seen, 1.25)
            case Qt.Key.Key_0:
                self.view_reset.emit()
            case Qt.Key.Key_Left | Qt.Key.Key_Right | Qt.Key.Key_Up | Qt.Key.Key_Down:
                step = {
                    Qt.Key.Key_Left: QPointF(-0.1, 0),
                    Qt.Key.Key_Right: QPointF(0.1, 0),
                    Qt.Key.Key_Up: QPointF(0, -0.1),
                    Qt.Key.Key_Down: QPointF(0, 0.1),
                }[key]
                self.view_changed.emit(seen.translated(step.x() * seen.width(), step.y() * seen.height()))
            case _:
                return False
        return True

    def _zoom(self, seen: QRectF, factor: float) -> None:
        size = QPointF(seen.width() * factor, seen.height() * factor)
        self.view_changed.emit(QRectF(seen.center() - size / 2, seen.center() + size / 2))

    def _plane(self, at: QPoint) -> QPointF:
        point: QPointF = self.box.mapSceneToView(self.view.mapToScene(at))
        return point

    def _tell_view(self) -> None:
        self.view_changed.emit(self.seen())

    def _restore_view(self) -> None:
        if self._wanted_view is not None:
            self.box.setRange(rect=self._wanted_view, padding=0)

    def _place_overlays(self) -> None:
        for label in (self.value, self.legend):
            label.adjustSize()
        bottom = self.view.height() - 4
        self.value.move(4, bottom - self.value.height())
        self.legend.move(self.view.width() - self.legend.width() - 4, 4)
        self.hint.setGeometry(12, 0, max(0, self.view.width() - 24), self.view.height())

    def _colour(self) -> None:
        palette = self.palette()
        # a little darker than the window on either theme, so that the picture stands out
        ground = palette.color(QPalette.ColorRole.Window).darker(118)
        self.view.setBackground(ground)
        # a label inside a graphics view does not follow the palette of the window
        self.hint.setStyleSheet(f"color: {palette.color(QPalette.ColorRole.WindowText).name()}")
