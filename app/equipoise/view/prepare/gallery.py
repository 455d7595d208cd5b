"""Quick images of one slice for several values, side by side: the sharpest is taken by a click."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QRectF, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent, QPalette
from PySide6.QtWidgets import QFrame, QGridLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from equipoise.session import Session
from equipoise.state import sentence
from equipoise.view.levels import colour_map
from equipoise.view.prepare.picture import percentiles
from equipoise_engine.protocol import Failed, Look, Pixels

_COLUMNS = 3


class Candidate(QFrame):
    """One image of the gallery with its value below; a click, Enter or Space takes it."""

    clicked = Signal()

    def __init__(self, value: float, unit: str) -> None:
        super().__init__()
        self.value = value
        self.text = f"{value:.2f} {unit}"
        self.pixels: Pixels | None = None
        self._failed = False
        self._current = False
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setToolTip(f"Take {self.text}")
        self.view = pg.GraphicsView()
        self.view.setFrameShape(QFrame.Shape.NoFrame)
        self.view.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.view.setMinimumSize(90, 90)
        self.view.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)
        box = pg.ViewBox(lockAspect=True, invertY=True, enableMenu=False, defaultPadding=0.0)
        self.view.setCentralItem(box)
        self.image = pg.ImageItem(axisOrder="row-major")
        self.image.setColorMap(colour_map("grey"))
        self.image.setVisible(False)
        box.addItem(self.image)
        self._box = box
        self.caption = QLabel(self.text)
        self.caption.setAlignment(Qt.AlignmentFlag.AlignCenter)
        for part in (self.view, self.view.viewport(), self.caption):
            part.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(3, 3, 3, 3)
        layout.setSpacing(2)
        layout.addWidget(self.view, 1)
        layout.addWidget(self.caption)
        self.mark(False)
        self._colour()

    def show_picture(self, pixels: Pixels, low: float, high: float) -> None:
        """Show an image `(y, x)`, float32, from black at `low` to white at `high`."""
        self.pixels = pixels
        self.image.setImage(np.where(np.isfinite(pixels), pixels, np.float32(np.nan)), autoLevels=False)
        self.image.setLevels((low, high))
        self.image.setVisible(True)
        rows, columns = pixels.shape
        self._box.setRange(QRectF(0, 0, columns, rows), padding=0)

    def fail(self, reason: str) -> None:
        """Say that there is no image."""
        self._failed = True
        self.setToolTip(f"{reason}\nClick takes {self.text} all the same")
        self.mark(self._current)

    def mark(self, current: bool) -> None:
        """Show whether its value is the one in force."""
        font = self.caption.font()
        font.setBold(current)
        self.caption.setFont(font)
        self._current = current
        text = self.text + (", taken" if current else "") + (": no image" if self._failed else "")
        self.caption.setText(text)
        self.setAccessibleName(text)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 - Qt's name
        """Take a click."""
        if event.button() == Qt.MouseButton.LeftButton:
            self.setFocus()
            self.clicked.emit()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 - Qt's name
        """Take Enter and Space as a click."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self.clicked.emit()
            return
        super().keyPressEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()

    def _colour(self) -> None:
        self.view.setBackground(self.palette().color(QPalette.ColorRole.Window).darker(118))


class Gallery(QWidget):
    """Asks for one image after the other, the middle one first, and shows them with the same black and white.

    Parameters
    ----------
    purpose
        Beginning of the purposes of its pictures.
    unit
        Of the values.
    """

    taken = Signal(float)
    """Value of the image that the user takes."""

    def __init__(self, session: Session, purpose: str, unit: str) -> None:
        super().__init__()
        self._session = session
        self._purpose = purpose
        self._unit = unit
        self._round = 0
        self._waiting: list[int] = []
        self._wish: Callable[[float], Look] | None = None
        self._levels: tuple[float, float] | None = None
        self.candidates: list[Candidate] = []
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(4)

    @property
    def complete(self) -> bool:
        """Whether nothing is waited for."""
        return not self._waiting

    def fill(self, values: tuple[float, ...], wish: Callable[[float], Look]) -> None:
        """Ask for an image of each value.

        Parameters
        ----------
        wish
            Makes the request of a value.
        """
        self.clear()
        middle = (len(values) - 1) / 2
        self._wish = wish
        self._waiting = sorted(range(len(values)), key=lambda number: abs(number - middle))
        for number, value in enumerate(values):
            candidate = Candidate(value, self._unit)
            candidate.clicked.connect(lambda value=value: self.taken.emit(value))
            self._grid.addWidget(candidate, number // _COLUMNS, number % _COLUMNS)
            self.candidates.append(candidate)
        for row in range(_COLUMNS):
            self._grid.setRowStretch(row, 1 if row < -(-len(values) // _COLUMNS) else 0)
        self._ask()

    def clear(self) -> None:
        """Show nothing, and wait for nothing more."""
        self._round += 1
        self._waiting, self._wish, self._levels = [], None, None
        for candidate in self.candidates:
            self._grid.removeWidget(candidate)
            candidate.hide()
            candidate.deleteLater()
        self.candidates = []

    def mark(self, value: float | None) -> None:
        """Show which of the values is in force."""
        for candidate in self.candidates:
            candidate.mark(value is not None and abs(candidate.value - value) < 5e-3)

    def show_seen(self, purpose: str, pixels: Pixels) -> None:
        """Take in a picture `(y, x)`, float32, if it is one of its own."""
        candidate = self._answered(purpose)
        if candidate is None:
            return
        if self._levels is None:
            self._levels = percentiles(pixels, 1.0, 99.8)
        candidate.show_picture(pixels, *self._levels)
        self._ask()

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Take in that a picture could not be made, if it is one of its own."""
        candidate = self._answered(purpose)
        if candidate is not None:
            candidate.fail(sentence(failed.message, failed.hint))
            self._ask()

    def _answered(self, purpose: str) -> Candidate | None:
        if not self._waiting or purpose != self._purpose_of(self._waiting[0]):
            return None
        return self.candidates[self._waiting.pop(0)]

    def _ask(self) -> None:
        if self._waiting and self._wish is not None:
            number = self._waiting[0]
            self._session.look(self._purpose_of(number), self._wish(self.candidates[number].value))

    def _purpose_of(self, number: int) -> str:
        # a name of its own for each: the answer does not tell for which value it is
        return f"{self._purpose} {self._round}.{number}"
