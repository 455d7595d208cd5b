"""A picture of measured data, what a step changed in it, and the value under the mouse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent, QPalette, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from equipoise.view.levels import colour_map
from equipoise.view.theme import colours
from equipoise_engine.protocol import Pixels

SAME = 1e-6
"""Values that differ by less than this share of the larger are the same: float32 keeps no more of them."""
MOST_STRETCHED = 3.0
"""Pictures whose sides differ by more than this factor fill their pane; others keep their proportions."""
_SAMPLES = 1 << 18
_ENOUGH = 1 << 10
_BAND = 64

_CHANGED = (255, 140, 0)
_NEGATIVE = (0, 190, 255)
_NOT_A_NUMBER = (255, 0, 200)
"""Of no colour map that is used here."""
_SHADES = np.array(
    [(0, 0, 0, 0), (*_CHANGED, 100), (*_CHANGED, 220), (*_NEGATIVE, 80), (*_NEGATIVE, 200), (*_NOT_A_NUMBER, 255)],
    np.uint8,
)
"""Of unmarked pixels, and of each kind between and on the lines of its hatching."""

Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlay:
    """What is remarkable in a picture after a step.

    Parameters
    ----------
    changed
        `(row, column)`: pixels with another value than before; None where the sizes differ.
    negative
        `(row, column)`: pixels below zero.
    missing
        `(row, column)`: pixels that are not finite numbers.
    """

    changed: Marks | None
    negative: Marks
    missing: Marks

    def words(self, kspace: bool = False) -> str:
        """Return the counts in words, as "312 changed (0.04 %), 5 negative, 0 NaN".

        Parameters
        ----------
        kspace
            Whether it is a logarithm or a phase of k-space: its sign means nothing, and where nothing was sampled it
            is no number.
        """
        if self.changed is None:
            parts = ["of another size than before"]
        else:
            count = int(np.count_nonzero(self.changed))
            parts = [f"{count} changed ({_percent(count, self.changed.size)})"]
        missing = int(np.count_nonzero(self.missing))
        if kspace:
            parts.append(f"{missing} empty")
        else:
            parts += [f"{int(np.count_nonzero(self.negative))} negative", f"{missing} NaN"]
        return ", ".join(parts)


def compare(before: Pixels | None, after: Pixels) -> Overlay:
    """Return what is remarkable in a picture `(row, column)`, float32, and what differs from the one before."""
    missing, negative = np.empty(after.shape, np.bool_), np.empty(after.shape, np.bool_)
    changed = np.empty(after.shape, np.bool_) if before is not None and before.shape == after.shape else None
    with np.errstate(invalid="ignore", over="ignore"):
        # in bands that stay in the cache: this runs between two turns of the event loop
        for first in range(0, after.shape[0], _BAND):
            band = slice(first, first + _BAND)
            now = after[band]
            np.less(now, 0, out=negative[band])
            np.logical_not(np.isfinite(now), out=missing[band])
            if before is not None and changed is not None:
                _note_changes(before[band], now, changed[band])
    return Overlay(changed=changed, negative=negative, missing=missing)


def _note_changes(before: Pixels, after: Pixels, changed: Marks) -> None:
    """Write into `changed` where two bands `(row, column)` of pictures differ."""
    least = np.maximum(np.abs(before), np.abs(after))
    # no number on either side
    odd = ~np.isfinite(least)
    least *= np.float32(SAME)
    np.greater(np.abs(after - before), least, out=changed)
    if odd.any():
        # a number in place of none is a change, and the other way round
        one, other = before[odd], after[odd]
        changed[odd] = (one != other) & ~(np.isnan(one) & np.isnan(other))


def difference(before: Pixels, after: Pixels) -> Pixels | None:
    """Return after minus before `(row, column)`, float32, NaN where either is; None where the sizes differ."""
    if before.shape != after.shape:
        return None
    with np.errstate(invalid="ignore"):
        return np.asarray(after - before, dtype=np.float32)


def percentiles(pixels: Pixels, low: float, high: float) -> tuple[float, float]:
    """Return two percentiles of the finite values of a picture, a little apart where they are equal."""
    values = pixels.reshape(-1)
    values = values[:: max(1, values.size // _SAMPLES)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    bottom, top = (float(v) for v in np.percentile(values, (low, high)))
    return (bottom, top) if top > bottom else (bottom, bottom + max(abs(bottom), 1.0) * 1e-3)


def shared_levels(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float] | None:
    """Return levels for two pictures of about the same values; None where these are of different kinds."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    widest = max(one[1] - one[0], other[1] - other[0])
    return (min(one[0], other[0]), max(one[1], other[1])) if common > widest / 3 else None


def around_zero(pixels: Pixels) -> tuple[float, float]:
    """Return levels as far below zero as above it, for a difference."""
    # of the changed pixels only: a few specks are to be seen as well as a change everywhere
    every = pixels.reshape(-1)
    values = _changes(every[:: max(1, every.size // _SAMPLES)])
    if values.size < _ENOUGH:
        values = _changes(every)
    if not values.size:
        return -1.0, 1.0
    most = float(np.percentile(np.abs(values), 99))
    return (-most, most) if most > 0 else (-1.0, 1.0)


def _changes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    there = np.isfinite(values) & (values != 0)
    return np.asarray(values[there])


def axes_of(caption: str) -> tuple[str, str]:
    """Return the names of the axes that a caption tells in brackets, as "view 12 (row, column), transmission"."""
    found = re.search(r"\(([^\W\d]\w*), ([^\W\d]\w*)\)", caption)
    return (found.group(1), found.group(2)) if found else ("row", "column")


def _percent(count: int, total: int) -> str:
    share = 100 * count / total if total else 0.0
    if 0 < share < 0.01:
        return "under 0.01 %"
    return f"{share:.2f} %" if share < 1 else f"{share:.1f} %" if share < 99.95 or count == total else "99.9 %"


class ElidedLabel(QLabel):
    """One line of text that ends in dots where there is no room for all of it."""

    def __init__(self) -> None:
        super().__init__()
        self._whole = ""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def show_text(self, text: str) -> None:
        """Show a text; all of it is in the tooltip."""
        self._whole = text
        self.setToolTip(text)
        self._elide()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the width."""
        super().resizeEvent(event)
        self._elide()

    def _elide(self) -> None:
        text = self.fontMetrics().elidedText(self._whole, Qt.TextElideMode.ElideRight, self.width())
        if text != self.text():
            self.setText(text)


class PictureView(QWidget):
    """Shows one picture `(row, column)`, row 0 at the top, in pixels.

    Parameters
    ----------
    name
        For people, as "Before".
    shades
        One of `COLOUR_MAPS`, or "diverging".
    """

    pointed = Signal(object)
    """Row and column under the mouse as a tuple, or None."""
    view_changed = Signal(QRectF)
    """The user zoomed or panned; the part that is now seen, in pixels."""
    view_reset = Signal()

    def __init__(self, name: str, shades: str = "grey") -> None:
        super().__init__()
        self.name = name
        self._pixels: Pixels | None = None
        self._missing: Marks | None = None
        self._overlay: Overlay | None = None
        self._kspace = False
        self._coarse = 0
        self._axes = ("row", "column")

        self.heading = QLabel(name)
        font = self.heading.font()
        font.setBold(True)
        self.heading.setFont(font)
        self.caption = ElidedLabel()
        self.caption.setProperty("muted", True)
        self.view = pg.GraphicsView()
        self.view.setAccessibleName(name)
        self.view.setFrameShape(QFrame.Shape.NoFrame)
        self.view.setMinimumSize(110, 100)
        self.view.setToolTip("Wheel: zoom; drag: move; double-click: show all. Keys: + − 0 and arrows")
        self.box = pg.ViewBox(lockAspect=True, invertY=True, enableMenu=False, defaultPadding=0.0)
        self.view.setCentralItem(self.box)
        self.image = pg.ImageItem(axisOrder="row-major")
        self.image.setColorMap(_colour_map(shades))
        self.image.setVisible(False)
        self._marks = pg.ImageItem(axisOrder="row-major")
        self._marks.setVisible(False)
        hair = pg.mkPen(255, 200, 0, 200)
        self._across = pg.InfiniteLine(angle=0, pen=hair)
        self._down = pg.InfiniteLine(angle=90, pen=hair)
        for part in (self.image, self._marks, self._across, self._down):
            self.box.addItem(part, ignoreBounds=True)
        for line in (self._across, self._down):
            line.setVisible(False)
        self.box.sigRangeChangedManually.connect(lambda: self.view_changed.emit(self.seen()))
        self.box.sigRangeChanged.connect(self._draw_marks)
        self.view.installEventFilter(self)
        self.view.viewport().installEventFilter(self)
        self.view.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

        # these lie on the picture and must be readable on any of its greys
        over = "color: white; background: rgba(0, 0, 0, 165); padding: 1px 5px; border-radius: 3px;"
        self.value = QLabel(self.view)
        self.value.setStyleSheet(over)
        self.value.setAccessibleName(f"Value under the mouse: {name}")
        self.value.hide()
        self.hint = QLabel(self.view)
        self.hint.setWordWrap(True)
        self.hint.setAlignment(Qt.AlignmentFlag.AlignCenter)
        for label in (self.value, self.hint):
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.problem = QLabel()
        self.problem.setWordWrap(True)
        self.problem.setAccessibleName(f"Problem: {name}")
        self.problem.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.problem.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.problem.hide()

        head = QHBoxLayout()
        head.addWidget(self.heading)
        head.addWidget(self.caption, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(head)
        column.addWidget(self.problem)
        column.addWidget(self.view, 1)
        self._colour()

    # --- what to show

    def pixels(self) -> Pixels | None:
        """The picture `(row, column)`, float32, that is seen, or None."""
        return self._pixels

    def set_picture(
        self, pixels: Pixels | None, caption: str = "", hint: str = "", axes: str = "", kspace: bool = False
    ) -> None:
        """Show a picture `(row, column)`, float32; with None the hint in its place.

        Parameters
        ----------
        axes
            Another caption, which names the axes.
        kspace
            As for `Overlay.words`; what is no number is then not marked.
        """
        self.caption.show_text(caption)
        self.view.setAccessibleDescription(caption or hint)
        self.hint.setText(hint)
        self.hint.setVisible(pixels is None and bool(hint))
        before, self._pixels = self._pixels, pixels
        self.image.setVisible(pixels is not None)
        if pixels is None:
            self.set_overlay(None)
            self.show_point(None)
            return
        self._axes = axes_of(axes or caption)
        missing = ~np.isfinite(pixels)
        self._missing = missing if missing.any() else None
        # to a colour map an infinity is no number either
        shown = pixels if self._missing is None else np.where(missing, np.float32(np.nan), pixels)
        self.image.setImage(shown, autoLevels=False, levels=self.levels() or percentiles(pixels, 1.0, 99.8))
        self._kspace = kspace
        self.set_overlay(None)
        if before is None or before.shape != pixels.shape:
            rows, columns = pixels.shape
            self.box.setAspectLocked(max(rows, columns) <= MOST_STRETCHED * min(rows, columns))
            self.image.setRect(self.whole())
            self.set_view(self.whole())

    def whole(self) -> QRectF:
        """The rectangle of the picture, in pixels."""
        rows, columns = self._pixels.shape if self._pixels is not None else (1, 1)
        return QRectF(0, 0, columns, rows)

    def set_levels(self, low: float, high: float) -> None:
        """Show `low` in the first and `high` in the last colour."""
        self.image.setLevels((low, high))

    def levels(self) -> tuple[float, float] | None:
        """Values that are shown in the first and the last colour."""
        levels = self.image.getLevels()
        return None if levels is None else (float(levels[0]), float(levels[1]))

    def set_shades(self, name: str) -> None:
        """Use one of `COLOUR_MAPS`, or "diverging"."""
        self.image.setColorMap(_colour_map(name))

    def set_overlay(self, overlay: Overlay | None) -> None:
        """Mark the pixels of an overlay; with None those only that are no numbers."""
        if overlay is None and self._pixels is not None and self._missing is not None:
            overlay = Overlay(changed=None, negative=np.zeros_like(self._missing), missing=self._missing)
        self._overlay, self._coarse = overlay, 0
        self._draw_marks()

    def set_problem(self, text: str) -> None:
        """Say why there is no newer picture; the one that is seen stays."""
        self.problem.setText(f"⚠ {text}" if text else "")
        self.problem.setVisible(bool(text))

    def set_view(self, rect: QRectF) -> None:
        """Show this part, or a little more where the proportions differ."""
        self.box.setRange(rect=rect, padding=0)

    def seen(self) -> QRectF:
        """Part of the picture that is seen, in pixels."""
        rect: QRectF = self.box.viewRect()
        return rect

    def show_point(self, point: tuple[int, int] | None) -> None:
        """Mark a pixel by row and column and write its value into the corner."""
        there = point is not None and self._pixels is not None
        if point is not None and self._pixels is not None:
            row, column = point
            rows, columns = self._pixels.shape
            there = 0 <= row < rows and 0 <= column < columns
        for line in (self._across, self._down):
            line.setVisible(there)
        self.value.setVisible(there)
        if point is None or self._pixels is None or not there:
            return
        row, column = point
        self._across.setPos(row + 0.5)
        self._down.setPos(column + 0.5)
        self.value.setText(f"{self._axes[0]} {row}, {self._axes[1]} {column}: {self._pixels[row, column]:.5g}")
        self.value.adjustSize()
        self.value.move(4, self.view.height() - self.value.height() - 4)

    # --- what the user does

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        """Read the gestures on the picture."""
        kind = event.type()
        on_view = watched is self.view
        if isinstance(event, QMouseEvent):
            if kind == QEvent.Type.MouseButtonDblClick and event.button() == Qt.MouseButton.LeftButton:
                self.view_reset.emit()
                return True
            if kind == QEvent.Type.MouseMove:
                point: QPointF = self.box.mapSceneToView(self.view.mapToScene(event.position().toPoint()))
                self.pointed.emit(self._pixel(point))
        elif isinstance(event, QKeyEvent) and kind == QEvent.Type.KeyPress:
            return on_view and self._key(Qt.Key(event.key()), event.modifiers())
        elif kind == QEvent.Type.Leave and not on_view:
            self.pointed.emit(None)
        elif kind == QEvent.Type.Resize and on_view:
            self.hint.setGeometry(12, 0, max(0, self.view.width() - 24), self.view.height())
        return False

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()

    def _key(self, key: Qt.Key, held: Qt.KeyboardModifier) -> bool:
        if held & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier):
            return False
        seen = self.seen()
        moves = {
            Qt.Key.Key_Left: (-0.1, 0.0),
            Qt.Key.Key_Right: (0.1, 0.0),
            Qt.Key.Key_Up: (0.0, -0.1),
            Qt.Key.Key_Down: (0.0, 0.1),
        }
        if key == Qt.Key.Key_0:
            self.view_reset.emit()
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal, Qt.Key.Key_Minus):
            factor = 1.25 if key == Qt.Key.Key_Minus else 0.8
            half = QPointF(seen.width() * factor / 2, seen.height() * factor / 2)
            self.view_changed.emit(QRectF(seen.center() - half, seen.center() + half))
        elif key in moves:
            across, down = moves[key]
            self.view_changed.emit(seen.translated(across * seen.width(), down * seen.height()))
        else:
            return False
        return True

    def _pixel(self, point: QPointF) -> tuple[int, int] | None:
        rows, columns = self._pixels.shape if self._pixels is not None else (0, 0)
        row, column = int(np.floor(point.y())), int(np.floor(point.x()))
        return (row, column) if 0 <= row < rows and 0 <= column < columns else None

    def _draw_marks(self) -> None:
        """Draw the overlay so coarsely that a single pixel is still seen."""
        overlay = self._overlay
        self._marks.setVisible(overlay is not None)
        if overlay is None or self._pixels is None:
            return
        seen, rows = self.seen(), self._pixels.shape[0]
        per_point = max(seen.width() / max(1, self.view.width()), seen.height() / max(1, self.view.height()))
        coarse = 1 << max(0, int(np.ceil(np.log2(max(1.0, per_point * 2)))))
        if coarse == self._coarse:
            return
        self._coarse = coarse
        shown = coloured(overlay, coarse, self._kspace)
        self._marks.setImage(shown, autoLevels=False)
        self._marks.setRect(QRectF(0, 0, shown.shape[1] * coarse, max(rows, shown.shape[0] * coarse)))

    def _colour(self) -> None:
        palette = self.palette()
        chosen = colours(palette)
        self.view.setBackground(palette.color(QPalette.ColorRole.Window).darker(118))
        # a label inside a graphics view does not follow the palette of the window
        self.hint.setStyleSheet(f"color: {chosen.text}")
        self.problem.setStyleSheet(
            f"color: {chosen.text}; background: {chosen.warning}; padding: 4px 6px; border-radius: 3px;"
        )


def link(pictures: Sequence[PictureView]) -> None:
    """Let pictures of one size share zoom and crosshair."""

    def show(rect: QRectF) -> None:
        for picture in pictures:
            if picture.pixels() is not None:
                picture.set_view(rect)

    def point(at: tuple[int, int] | None) -> None:
        for picture in pictures:
            picture.show_point(at)

    def reset() -> None:
        for picture in pictures:
            picture.set_view(picture.whole())

    for picture in pictures:
        picture.view_changed.connect(show)
        picture.pointed.connect(point)
        picture.view_reset.connect(reset)


def coloured(overlay: Overlay, coarse: int, kspace: bool) -> NDArray[np.uint8]:
    """Return an overlay as `(row, column, RGBA)`, one pixel for `coarse` by `coarse` of the picture.

    Each kind has a pattern of its own besides its colour: changed is hatched aslant, negative across, NaN is full.
    """
    missing = _coarser(overlay.missing, coarse)
    rows, columns = (np.arange(n, dtype=np.int32) for n in missing.shape)
    kinds = np.zeros(missing.shape, np.uint8)
    if overlay.changed is not None:
        aslant = (rows[:, None] + columns) % 4 == 0
        kinds = _coarser(overlay.changed, coarse) * (np.uint8(1) + aslant.astype(np.uint8))
    if not kspace:
        across = np.where(rows % 3 == 0, np.uint8(4), np.uint8(3))[:, None]
        np.copyto(kinds, across, where=_coarser(overlay.negative, coarse))
        kinds[missing] = 5
    return np.take(_SHADES, kinds, axis=0)


def legend(kspace: bool) -> str:
    """Return what the colours of an overlay mean, as rich text."""
    entries = [(_CHANGED, "changed (hatched aslant)")]
    if not kspace:
        entries += [(_NEGATIVE, "negative (hatched across)"), (_NOT_A_NUMBER, "NaN (full)")]
    return "&nbsp;&nbsp; ".join(
        f'<span style="color: rgb({red}, {green}, {blue})">■</span>&nbsp;{text.replace(" ", "&nbsp;")}'
        for (red, green, blue), text in entries
    )


def _coarser(marks: Marks, coarse: int) -> Marks:
    """Return marks in blocks, each marked where anything in it is."""
    if coarse <= 1:
        return marks
    rows, columns = (-(-n // coarse) for n in marks.shape)
    padded = np.zeros((rows * coarse, columns * coarse), np.bool_)
    padded[: marks.shape[0], : marks.shape[1]] = marks
    # along the rows first, which lie together in memory
    lines = padded.reshape(rows, coarse, columns * coarse).any(axis=1)
    return np.asarray(lines.reshape(rows, columns, coarse).any(axis=2))


def _colour_map(name: str) -> pg.ColorMap:
    if name == "diverging":
        # blue below zero, white at it, red above: Brewer's RdBu, which readers with any colour vision tell apart
        return pg.ColorMap(None, [(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)])
    return colour_map(name)
