"""A form for the values of one step, made from the fields and limits that stand in the recipe."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import QLocale, Qt, Signal
from PySide6.QtGui import QValidator
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from equipoise.step_fields import DECIMALS, Field, fields_of, limits, parse_numbers
from equipoise_engine.recipe import Step


class NumberField(QDoubleSpinBox):
    """A number without needless zeros, in the C locale."""

    def __init__(self) -> None:
        super().__init__()
        self.setLocale(QLocale.c())
        self.setDecimals(DECIMALS)
        self.setKeyboardTracking(False)
        self.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)

    def textFromValue(self, value: float) -> str:  # noqa: N802 - Qt's name
        """Return the number as short as it can be written."""
        return f"{value:.10g}"

    def valueFromText(self, text: str) -> float:  # noqa: N802 - Qt's name
        """Return the number that was typed."""
        try:
            return float(text)
        except ValueError:
            return self.value()

    def validate(self, text: str, at: int) -> tuple[QValidator.State, str, int]:
        """Let numbers with an exponent be typed."""
        try:
            inside = self.minimum() <= float(text) <= self.maximum()
        except ValueError:
            rest = text.strip().lower().rstrip("e+-.")
            begun = not rest or rest.replace(".", "", 1).replace("-", "", 1).isdigit()
            return (QValidator.State.Intermediate if begun else QValidator.State.Invalid), text, at
        return (QValidator.State.Acceptable if inside else QValidator.State.Intermediate), text, at


class StepForm(QWidget):
    """Shows one step and tells what the user changes."""

    edited = Signal(object)
    """The whole new step."""

    def __init__(self) -> None:
        super().__init__()
        self._step: Step | None = None
        self._fields: dict[str, QWidget] = {}
        self._loading = False
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.about.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.problem = QLabel()
        self.problem.setWordWrap(True)
        self.problem.setAccessibleName("Problem with a value")
        self.problem.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.about)
        column.addLayout(self.form)
        column.addWidget(self.problem)
        column.addStretch(1)

    def field(self, name: str) -> QWidget:
        """The widget of a value, by its name in the recipe."""
        return self._fields[name]

    def show_step(self, step: Step | None) -> None:
        """Show the values of a step; the widgets stay where it is of the same kind."""
        if type(step) is not type(self._step):
            self._rebuild(step)
        self._step = step
        if step is None:
            return
        self._loading = True
        for field in fields_of(type(step)):
            _fill(self._fields[field.name], getattr(step, field.name))
        self._loading = False
        self.problem.hide()

    def _rebuild(self, step: Step | None) -> None:
        while self.form.rowCount():
            self.form.removeRow(0)
        self._fields = {}
        self.problem.hide()
        text = (type(step).__doc__ or "") if step is not None else ""
        self.about.setText(" ".join(text.split()))
        if step is None:
            return
        for field in fields_of(type(step)):
            widget = self._widget(field)
            within = limits(field)
            widget.setAccessibleName(field.title)
            widget.setToolTip(f"{field.description}\n{within}".strip())
            self._fields[field.name] = widget
            label = "" if isinstance(widget, QCheckBox) else field.title
            self.form.addRow(label, widget)

    def _widget(self, field: Field) -> QWidget:
        match field.kind:
            case "switch":
                switch = QCheckBox(field.title)
                switch.toggled.connect(lambda on: self._change(field.name, on))
                return switch
            case "choice":
                choice = QComboBox()
                for value in field.choices:
                    choice.addItem(value.replace("-", " ").capitalize(), value)
                choice.currentIndexChanged.connect(lambda row: self._change(field.name, choice.itemData(row)))
                return choice
            case "count":
                count = QSpinBox()
                count.setKeyboardTracking(False)
                count.setRange(int(field.low), int(field.high))
                count.setSingleStep(2 if field.odd else 1)
                count.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
                count.valueChanged.connect(lambda value: self._change(field.name, value))
                return count
            case "number":
                number = NumberField()
                number.setRange(field.low, field.high)
                number.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
                number.valueChanged.connect(lambda value: self._change(field.name, value))
                return number
            case _:
                line = QLineEdit()
                line.editingFinished.connect(lambda: self._take_numbers(field, line.text()))
                return line

    def _take_numbers(self, field: Field, text: str) -> None:
        try:
            numbers = parse_numbers(text, field)
        except ValueError as error:
            self.problem.setText(f"⚠ {error}")
            self.problem.show()
            return
        self.problem.hide()
        self._change(field.name, numbers)

    def _change(self, name: str, value: object) -> None:
        if self._loading or self._step is None or getattr(self._step, name) == value:
            return
        # the form and the recipe agree on names, kinds and limits, as both come from the same fields
        self._step = msgspec.structs.replace(self._step, **{name: value})
        self.edited.emit(self._step)


def _fill(widget: QWidget, value: object) -> None:
    match widget:
        case QCheckBox():
            widget.setChecked(bool(value))
        case QComboBox():
            widget.setCurrentIndex(widget.findData(value))
        case QSpinBox() if isinstance(value, int):
            widget.setValue(value)
        case QDoubleSpinBox() if isinstance(value, float | int):
            widget.setValue(float(value))
        case QLineEdit() if isinstance(value, tuple):
            widget.setText(", ".join(f"{number:g}" for number in value))
        case _:
            raise TypeError(f"{type(widget).__name__} cannot show {value!r}")
