"""The controls: how the active scan is to be reconstructed."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

from PySide6.QtCore import QLocale, Qt
from PySide6.QtGui import QDoubleValidator, QPalette
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QWidget,
)

from equipoise.session import Session
from equipoise.state import EnginePhase, State, find_scan
from equipoise.view.scrolled import scrolled_column
from equipoise_engine.protocol import ReconstructSettings, ScanFacts

FULL_NAMES = {
    "fbp": "Filtered back-projection (FBP)",
    "cgls": "CGLS",
    "tv": "Total variation (TV)",
    "zerofilled": "Zero-filled",
    "sense": "CG-SENSE",
    "deq": "Equilibrium model",
}
SENTENCES = {
    "fbp": "Filters the projections and smears them back along their rays: one pass, exact for many views.",
    "cgls": "Fits the image to the projections by least squares; many iterations fit the noise too.",
    "tv": "Fits the data while keeping the image piecewise smooth: edges stay, fine texture is flattened.",
    "zerofilled": "Takes what was not measured as zero and combines the coils: one pass, with aliases.",
    "sense": "Fits the image to all coils at once with their sensitivities by conjugate gradients.",
    "deq": "Iterates a learned step together with the measured data until the image no longer changes.",
}
WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hann")
ITERATIVE = frozenset({"cgls", "tv", "sense", "deq"})
WITH_STRENGTH = frozenset({"tv", "sense"})

SHIPPED = "Shipped with Equipoise"
FROM_FILE = "From a file…"
WEIGHTS_FILTER = "Model weights (*.safetensors)"


class ModelChooser(QWidget):
    """Chooses weights: those that ship with the program, those of this session, or a file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.box = QComboBox()
        self.box.setAccessibleName(name)
        self.box.setToolTip("Weights of the equilibrium model")
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.setMinimumContentsLength(12)
        self.box.addItem(SHIPPED, None)
        self.box.addItem(FROM_FILE, "")
        self.box.activated.connect(self._take)
        self._chosen = 0
        self._models: tuple[str, ...] = ()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.box)
        self.setFocusProxy(self.box)

    def model(self) -> str | None:
        """Path of the weights, or None for those that ship with the program."""
        path = self.box.itemData(self._chosen)
        return str(path) if path else None

    def show_models(self, models: tuple[str, ...]) -> None:
        """Offer the weights of this session as well."""
        for path in models:
            if path not in self._models:
                self._add(path)
        self._models = models

    def choose(self, path: str | None) -> None:
        """Choose weights by their path; those that are not offered yet are added."""
        row = 0 if path is None else self._row(path)
        if row < 0 and path is not None:
            row = self._add(path)
        self._chosen = row
        self.box.setCurrentIndex(row)

    def _row(self, path: str) -> int:
        return next((row for row in range(self.box.count()) if self.box.itemData(row) == path), -1)

    def _add(self, path: str) -> int:
        if (row := self._row(path)) >= 0:
            return row
        row = self.box.count() - 1
        self.box.insertItem(row, PurePath(path).name, path)
        self.box.setItemData(row, path, Qt.ItemDataRole.ToolTipRole)
        return row

    def _take(self, row: int) -> None:
        if row != self.box.count() - 1:
            self._chosen = row
            return
        self.box.setCurrentIndex(self._chosen)
        dialog = QFileDialog(self, "Model weights", "", WEIGHTS_FILTER)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(lambda path: self.choose(os.path.abspath(path)))
        dialog.open()


class NumberField(QLineEdit):
    """A positive number, or nothing for the method's own default."""

    def __init__(self, name: str, tip: str) -> None:
        super().__init__()
        validator = QDoubleValidator(0.0, 1e9, 12, self)
        validator.setLocale(QLocale.c())
        self.setValidator(validator)
        self.setPlaceholderText("default")
        self.setAccessibleName(name)
        self.setToolTip(tip)

    def value(self) -> float:
        """The number, 0 for nothing."""
        try:
            return max(0.0, float(self.text()))
        except ValueError:
            return 0.0


class ControlsView(QWidget):
    """Asks for a method and its parameters; only the button of the user starts the reconstruction."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._state = State()
        self._shown_scan: str | None = None

        self.method = QComboBox()
        self.method.setAccessibleName("Method")
        self.method.setToolTip("Reconstruction method; only those that suit this scan are offered")
        self.method.currentIndexChanged.connect(self._show_rows)
        self.sentence = QLabel()
        self.sentence.setWordWrap(True)
        self.sentence.setMinimumHeight(3 * self.fontMetrics().lineSpacing())
        self.sentence.setAlignment(Qt.AlignmentFlag.AlignTop)

        self.iterations = _count("Iterations", "Largest number of iterations", 0, 10000)
        self.iterations.setSpecialValueText("default")
        self.tolerance = NumberField(
            "Tolerance",
            "Stop once ‖T(x) − x‖ / ‖T(x)‖ is below this (no unit); empty: the method's own",
        )
        self.strength = NumberField(
            "Strength",
            "Weight of the regularisation, relative to the image (no unit); empty: the method's own",
        )
        self.filter_window = QComboBox()
        self.filter_window.addItems(WINDOWS)
        self.filter_window.setAccessibleName("Filter window")
        self.filter_window.setToolTip("Window of the ramp filter, sharpest first (Kak and Slaney, 1988, chapter 3)")
        self.model = ModelChooser("Model")
        self.views_every = _count("Use every k-th view", "1 uses all views; more try a shorter scan", 1, 64)
        self.views_used = QLabel()
        self.accelerate = _count("Acceleration", "1 uses all lines; R keeps one of R lines, and the centre", 1, 16)
        self.views_every.valueChanged.connect(self._show_used)

        self.slices = QComboBox()
        self.slices.addItems(["This slice", "All slices", "Range"])
        self.slices.setAccessibleName("Slices")
        self.slices.setToolTip("Which slices to reconstruct; one slice is the quickest trial")
        self.slices.currentIndexChanged.connect(self._show_rows)
        self.first = _count("First slice", "First slice of the range, counted from 0", 0, 0)
        self.last = _count("Last slice", "Last slice of the range, included", 0, 0)
        span = QHBoxLayout()
        span.setContentsMargins(0, 0, 0, 0)
        span.addWidget(self.first)
        span.addWidget(QLabel("to"))
        span.addWidget(self.last)
        self._range = QWidget()
        self._range.setLayout(span)

        self.start_button = QPushButton("&Reconstruct")
        self.start_button.setDefault(True)
        self.start_button.setToolTip("Reconstruct the active scan with these settings")
        self.start_button.clicked.connect(self.start)

        self.centre = NumberField(
            "Rotation centre",
            "Detector column of the rotation axis, in pixels; 0 is the middle of the first",
        )
        self.centre.setPlaceholderText("from the file, or found")
        self.centre.returnPressed.connect(self._reopen)
        self.reopen_button = QPushButton("Re-open with this centre")
        self.reopen_button.setToolTip("Read the scan again; without a centre it takes the file's, or finds it")
        self.reopen_button.clicked.connect(self._reopen)

        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        self.form.addRow(self.method)
        self.form.addRow(self.sentence)
        self.form.addRow("&Iterations", self.iterations)
        self.form.addRow("&Tolerance", self.tolerance)
        self.form.addRow("Stren&gth", self.strength)
        self.form.addRow("&Window", self.filter_window)
        self.form.addRow("M&odel", self.model)
        self.form.addRow("Every k-th &view", self.views_every)
        self.form.addRow("", self.views_used)
        self.form.addRow("&Acceleration", self.accelerate)
        self.form.addRow("&Slices", self.slices)
        self.form.addRow("Range", self._range)
        self.form.addRow(self.start_button)
        self._rule = QFrame()
        self._rule.setFrameShape(QFrame.Shape.HLine)
        self._rule.setForegroundRole(QPalette.ColorRole.Mid)
        self.form.addRow(self._rule)
        self.form.addRow("Ce&ntre (px)", self.centre)
        self.form.addRow(self.reopen_button)

        column = scrolled_column(self, 230)
        column.addLayout(self.form)
        column.addStretch(1)
        self._show_scan(None)
        self.show_change(self._state, session.state)

    def show_change(self, old: State, new: State) -> None:
        """Bring what differs between two states onto the screen."""
        old, self._state = self._state, new
        if old.models is not new.models:
            self.model.show_models(new.models)
        facts = find_scan(new, new.scan)
        if facts is not find_scan(old, old.scan) or old.scan != new.scan:
            self._show_scan(facts)
        self._enable()

    def settings(self) -> ReconstructSettings:
        """The settings of the method that is chosen; parameters of other methods keep their defaults."""
        facts = find_scan(self._state, self._state.scan)
        method = self._method()
        iterative = method in ITERATIVE
        return ReconstructSettings(
            method=method,
            iterations=self.iterations.value() if iterative else 0,
            tolerance=self.tolerance.value() if iterative else 0.0,
            strength=self.strength.value() if method in WITH_STRENGTH else 0.0,
            window=self.filter_window.currentText() if method == "fbp" else WINDOWS[0],
            views_every=self.views_every.value() if facts is not None and facts.kind == "ct" else 1,
            accelerate=self.accelerate.value() if facts is not None and facts.kind == "mri" else 1,
            model=self.model.model() if method == "deq" else None,
            slices=self._slices(),
        )

    def start(self) -> None:
        """Reconstruct with these settings."""
        if self.start_button.isEnabled():
            self._session.reconstruct(self.settings())

    def _method(self) -> str:
        data = self.method.currentData()
        return str(data) if data else ""

    def _slices(self) -> tuple[int, int] | None:
        match self.slices.currentIndex():
            case 0:
                return self._state.slice_index, self._state.slice_index + 1
            case 1:
                return None
            case _:
                first, last = sorted((self.first.value(), self.last.value()))
                return first, last + 1

    def _show_scan(self, facts: ScanFacts | None) -> None:
        self.method.blockSignals(True)
        before = self._method()
        methods = facts.methods if facts is not None else ()
        if tuple(self.method.itemData(row) for row in range(self.method.count())) != methods:
            self.method.clear()
            for method in methods:
                self.method.addItem(FULL_NAMES.get(method, method), method)
                self.method.setItemData(self.method.count() - 1, SENTENCES.get(method, ""), Qt.ItemDataRole.ToolTipRole)
            if before in methods:
                self.method.setCurrentIndex(methods.index(before))
        self.method.blockSignals(False)
        if facts is not None:
            another = facts.scan != self._shown_scan
            for field in (self.first, self.last):
                field.setRange(0, max(0, facts.slices - 1))
            if another:
                self.first.setValue(0)
                self.last.setValue(max(0, facts.slices - 1))
                self.centre.setText(_centre(facts))
                if facts.kind == "ct":
                    self.views_every.setMaximum(max(1, facts.shape[0] // 2))
            self._shown_scan = facts.scan
        self._show_rows()
        self._show_used()

    def _show_rows(self) -> None:
        facts = find_scan(self._state, self._state.scan)
        method = self._method()
        kind = facts.kind if facts is not None else ""
        wanted: dict[QWidget, bool] = {
            self.sentence: bool(method),
            self.iterations: method in ITERATIVE,
            self.tolerance: method in ITERATIVE,
            self.strength: method in WITH_STRENGTH,
            self.filter_window: method == "fbp",
            self.model: method == "deq",
            self.views_every: kind == "ct",
            self.views_used: kind == "ct",
            self.accelerate: kind == "mri",
            self.slices: facts is not None and facts.slices > 1,
            self._range: facts is not None and facts.slices > 1 and self.slices.currentIndex() == 2,
            self._rule: kind == "ct",
            self.centre: kind == "ct",
            self.reopen_button: kind == "ct",
        }
        for field, visible in wanted.items():
            self.form.setRowVisible(field, visible)
        self.sentence.setText(SENTENCES.get(method, ""))

    def _show_used(self) -> None:
        facts = find_scan(self._state, self._state.scan)
        if facts is not None and facts.kind == "ct":
            views = facts.shape[0]
            self.views_used.setText(f"uses {-(-views // self.views_every.value())} of {views} views")

    def _enable(self) -> None:
        ready = self._state.engine.phase not in (EnginePhase.RESTARTING, EnginePhase.STOPPED)
        there = find_scan(self._state, self._state.scan) is not None
        self.method.setEnabled(there)
        self.start_button.setEnabled(there and ready)
        self.reopen_button.setEnabled(there and ready)

    def _reopen(self) -> None:
        facts = find_scan(self._state, self._state.scan)
        if facts is not None and self.reopen_button.isEnabled():
            self._session.open(facts.path, self.centre.value() if self.centre.text().strip() else None)


def _count(name: str, tip: str, low: int, high: int) -> QSpinBox:
    field = QSpinBox()
    field.setRange(low, high)
    field.setAccessibleName(name)
    field.setToolTip(tip)
    field.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return field


def _centre(facts: ScanFacts) -> str:
    """Number of the rotation centre among the facts of a scan, as text, or nothing."""
    for name, value in facts.geometry:
        if "centre" in name.lower() and (found := re.search(r"-?\d+(\.\d+)?", value)):
            return found.group()
    return ""
