"""Fields of the pages: numbers, choices, and the mark that says where a value comes from."""

from __future__ import annotations

from collections.abc import Callable

import qtawesome
from PySide6.QtCore import QEvent, QLocale, QSignalBlocker, Qt
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QHBoxLayout, QLabel, QSizePolicy, QSpinBox, QWidget

from equipoise.view.theme import Colours, colours
from equipoise_engine.protocol import ScanFacts

_SIGNS: dict[str, tuple[str, Callable[[Colours], str]]] = {
    "needed": ("fa5s.exclamation-circle", lambda chosen: chosen.bad),
    "guessed": ("fa5s.question-circle", lambda chosen: chosen.accent),
    "given": ("fa5s.pen", lambda chosen: chosen.muted),
    "found": ("fa5s.search", lambda chosen: chosen.muted),
}
_TIPS = {
    "needed": "The files do not say this, and without it the scan cannot be opened",
    "guessed": "The files do not say this; it was guessed",
    "given": "Given here, in place of what the files say",
    "found": "Found in the measured data",
}


class Mark(QWidget):
    """Says in a word, with a sign, where a value comes from: "needed", "guessed", "given", "found", or nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._sign = QLabel()
        self.word = QLabel()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(4)
        row.addWidget(self._sign)
        row.addWidget(self.word)
        row.addStretch(1)
        self._widen()

    def say(self, word: str) -> None:
        """Show one of the words, or nothing."""
        if word == self.word.text():
            return
        self.word.setText(word)
        self.setToolTip(_TIPS.get(word, ""))
        self.setAccessibleName(f"{self._name}: {word}" if word else self._name)
        self._draw()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._draw()
        elif event.type() == QEvent.Type.FontChange:
            self._widen()

    def _widen(self) -> None:
        metrics = self.fontMetrics()
        self.setMinimumWidth(metrics.height() + 8 + max(metrics.horizontalAdvance(word) for word in _SIGNS))

    def _draw(self) -> None:
        # another font of the application takes the bold away
        font = self.font()
        font.setBold(self.word.text() == "needed")
        self.word.setFont(font)
        sign = _SIGNS.get(self.word.text())
        if sign is None:
            self._sign.clear()
            return
        size = self.fontMetrics().height()
        name, colour = sign
        self._sign.setPixmap(qtawesome.icon(name, color=colour(colours(self.palette()))).pixmap(size, size))


FAR_PX = 1e6
"""Columns farther than this are of no detector."""


class LengthField(QDoubleSpinBox):
    """A number with its unit, without needless zeros; it tells of a number when it is complete, not of each key."""

    def textFromValue(self, value: float) -> str:  # noqa: N802 - Qt's name
        """Return the number as short as it can be written."""
        return f"{round(value, self.decimals()):.12g}"


def number_field(name: str, tip: str, low: float, high: float, decimals: int, suffix: str = "") -> LengthField:
    """Return a field for a real number."""
    field = LengthField()
    field.setLocale(QLocale.c())
    field.setDecimals(decimals)
    field.setRange(low, high)
    field.setSuffix(suffix)
    field.setKeyboardTracking(False)
    _describe(field, name, tip)
    # the widest number that fits says nothing of the usual ones
    field.setMinimumWidth(field.fontMetrics().horizontalAdvance(f"-0000.{'0' * decimals}{suffix}") + 34)
    field.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return field


def count_field(name: str, tip: str, low: int, high: int) -> QSpinBox:
    """Return a field for a whole number; it tells of a number when it is complete, not of each key."""
    field = QSpinBox()
    field.setLocale(QLocale.c())
    field.setRange(low, high)
    field.setKeyboardTracking(False)
    _describe(field, name, tip)
    field.setMinimumWidth(field.fontMetrics().horizontalAdvance("00000") + 34)
    field.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return field


def choice_field(name: str, tip: str, entries: tuple[tuple[str, object], ...]) -> QComboBox:
    """Return a choice between entries, each with its text and its value."""
    field = QComboBox()
    for text, value in entries:
        field.addItem(text, value)
    field.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    field.setMinimumContentsLength(12)
    _describe(field, name, tip)
    field.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return field


def limit_centre(field: LengthField, facts: ScanFacts | None) -> None:
    """Let a field take columns of the detector of a scan, and any while that is not known."""
    shape = facts.full_shape if facts is not None else ()
    low, high = (0.0, max(1.0, shape[2] - 1.0)) if len(shape) == 3 else (-FAR_PX, FAR_PX)
    with QSignalBlocker(field):
        field.setRange(low, high)


def heading(text: str) -> QLabel:
    """Return the heading of a part of a page."""
    label = QLabel(text)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


def remark(name: str) -> QLabel:
    """Return a place for muted words below a field."""
    label = QLabel()
    label.setWordWrap(True)
    label.setProperty("muted", True)
    label.setAccessibleName(name)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def _describe(widget: QWidget, name: str, tip: str) -> None:
    widget.setAccessibleName(name)
    widget.setToolTip(tip)
