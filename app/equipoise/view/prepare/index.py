"""A slider with a number field, for the view or slice that is shown."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSlider, QSpinBox, QWidget


class IndexSlider(QWidget):
    """Chooses a number from 0 to a count less one; hidden where there is no choice."""

    moved = Signal(int)
    """From the user's hand only."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.label = QLabel(name)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.number = QSpinBox()
        self.number.setKeyboardTracking(False)
        for field in (self.slider, self.number):
            field.setRange(0, 0)
            field.valueChanged.connect(self._take)
        self.of = QLabel()
        self.of.setProperty("muted", True)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.label)
        row.addWidget(self.slider, 1)
        row.addWidget(self.number)
        row.addWidget(self.of)
        self.set_name(name)
        self.set_count(0)

    def value(self) -> int:
        """The number, from 0."""
        return self.number.value()

    def set_name(self, name: str) -> None:
        """Say what is chosen, as "View"."""
        self.label.setText(name)
        self.slider.setAccessibleName(name)
        self.slider.setToolTip(f"{name}, counted from 0 in the selected part")
        self.number.setAccessibleName(f"{name} as a number")
        self.number.setToolTip(f"{name}, counted from 0 in the selected part")

    def set_count(self, count: int) -> None:
        """Offer 0 to `count` - 1 and keep the number where it can be."""
        self._set(min(self.value(), max(0, count - 1)), max(0, count - 1))
        self.of.setText(f"of {count}")
        self.setVisible(count > 1)

    def set_value(self, value: int) -> None:
        """Choose a number, or the nearest that is offered, without a signal."""
        self._set(max(0, min(value, self.number.maximum())), self.number.maximum())

    def _set(self, value: int, last: int) -> None:
        for field in (self.slider, self.number):
            field.blockSignals(True)
            field.setRange(0, last)
            field.setValue(value)
            field.blockSignals(False)

    def _take(self, value: int) -> None:
        self._set(value, self.number.maximum())
        self.moved.emit(value)
