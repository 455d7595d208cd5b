"""The controls: how the active scan is to be reconstructed."""

from __future__ import annotations

import os
from pathlib import PurePath

from PySide6.QtCore import QLocale, Qt, Signal
from PySide6.QtGui import QDoubleValidator, QPalette
from PySide6.QtWidgets import (
    QCheckBox,
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
    "fdk": "Feldkamp (FDK)",
    "cgls": "CGLS",
    "sirt": "SIRT",
    "tv": "Total variation (TV)",
    "wavelet": "Wavelets",
    "zerofilled": "Zero-filled",
    "gridding": "Gridding",
    "grappa": "GRAPPA",
    "homodyne": "Homodyne (partial Fourier)",
    "pocs": "POCS (partial Fourier)",
    "sense": "CG-SENSE",
    "deq": "Equilibrium model",
}
SENTENCES = {
    "fbp": "Filters the projections and smears them back along their rays: one pass, exact for many views.",
    "fdk": "Filters the projections and smears them back through the volume: one pass, for a small cone angle.",
    "cgls": "Fits the image to the projections by least squares; many iterations fit the noise too.",
    "sirt": "Smears the residuals of all rays back, step by step; slow and robust, quicker with subsets of the views.",
    "tv": "Fits the data while keeping the image piecewise smooth: edges stay, fine texture is flattened.",
    "wavelet": "Fits the data while few wavelets make up the image: keeps more texture than TV.",
    "zerofilled": "Takes what was not measured as zero and combines the coils: one pass, with aliases.",
    "gridding": "Sums the samples, weighted by the area of k-space they stand for: one pass, with aliases.",
    "homodyne": "Counts the measured side of k-space twice and keeps what is real after a smooth phase: one pass.",
    "pocs": "Fills in the missing side of k-space so that the image has the smooth phase of its centre.",
    "grappa": "Fills in what was not measured from its neighbours in all coils, by weights that fit the centre.",
    "sense": "Fits the image to all coils at once with their sensitivities by conjugate gradients.",
    "deq": "Iterates a learned step together with the measured data until the image no longer changes.",
}
WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hann")
FILTERED = frozenset({"fbp", "fdk"})
ITERATIVE = frozenset({"cgls", "sirt", "tv", "wavelet", "sense", "deq"})
WITH_STRENGTH = frozenset({"tv", "wavelet", "sense"})
WITH_SIGN = frozenset({"sirt", "tv"})
WITH_COIL_MAPS = frozenset({"gridding", "sense", "tv", "wavelet", "deq"})
RAMP, UNIFORM, COUNTS = "As in FBP", "All rays alike", "By photon counts"
WEIGHTINGS = {
    "cgls": ((UNIFORM, ""), (COUNTS, "counts")),
    "sirt": ((UNIFORM, ""), (COUNTS, "counts")),
    "tv": ((RAMP, ""), (UNIFORM, "uniform"), (COUNTS, "counts")),
}
"""Names for people and values of `ReconstructSettings.weighting`, the method's own first."""
FOOTPRINTS = (("Joseph: along lines", "joseph"), ("Strip: detector width", "strip"))
COIL_MAPS = (("ESPIRiT", "espirit"), ("Walsh", "walsh"), ("ESPIRiT, two sets", "espirit-2"))

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

    centre_wanted = Signal()
    """The user wants to see or change the rotation centre."""

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
        self.weighting = _choice(
            "Weighting",
            "How much each ray counts in the fit; by photon counts, dark rays count less (Sauer and Bouman, 1993)",
        )
        self.nonnegative = QCheckBox("No negative values")
        self.nonnegative.setChecked(True)
        self.nonnegative.setAccessibleName("No negative values")
        self.nonnegative.setToolTip("Attenuation is not negative; switch this off for phase contrast")
        self.subsets = _count(
            "Subsets of views", "1 uses all views at once; N subsets in turn come as far in one of N iterations", 1, 1
        )
        self.footprint = _choice(
            "Footprint",
            "How a pixel meets a ray: interpolated along lines (quick), or averaged over the detector element",
            FOOTPRINTS,
        )
        self.coil_maps = _choice(
            "Coil maps",
            "Coil sensitivities from the centre of k-space (Uecker et al., 2014), or from the images of the coils "
            "(Walsh et al., 2000); two sets unfold an object that wraps around its field of view",
            COIL_MAPS,
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

        self.centre_button = QPushButton("Rotation ce&ntre …")
        self.centre_button.setAccessibleName("Rotation centre")
        self.centre_button.clicked.connect(self.centre_wanted)

        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
        self.form.addRow(self.method)
        self.form.addRow(self.sentence)
        self.form.addRow("&Iterations", self.iterations)
        self.form.addRow("&Tolerance", self.tolerance)
        self.form.addRow("Stren&gth", self.strength)
        self.form.addRow("W&eighting", self.weighting)
        self.form.addRow("S&ubsets", self.subsets)
        self.form.addRow("", self.nonnegative)
        self.form.addRow("&Footprint", self.footprint)
        self.form.addRow("Coil &maps", self.coil_maps)
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
        self.form.addRow(self.centre_button)

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
        method = self._method()
        shown = self._wanted()
        iterative = method in ITERATIVE
        return ReconstructSettings(
            method=method,
            iterations=self.iterations.value() if iterative else 0,
            tolerance=self.tolerance.value() if iterative else 0.0,
            strength=self.strength.value() if method in WITH_STRENGTH else 0.0,
            weighting=str(self.weighting.currentData() or "") if shown[self.weighting] else "",
            nonnegative=self.nonnegative.isChecked() or not shown[self.nonnegative],
            subsets=self.subsets.value() if shown[self.subsets] else 1,
            footprint=str(self.footprint.currentData()) if shown[self.footprint] else FOOTPRINTS[0][1],
            coil_maps=str(self.coil_maps.currentData()) if shown[self.coil_maps] else COIL_MAPS[0][1],
            window=self.filter_window.currentText() if method in FILTERED else WINDOWS[0],
            views_every=self.views_every.value() if shown[self.views_every] else 1,
            accelerate=self.accelerate.value() if shown[self.accelerate] else 1,
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
                centre = facts.recipe.known.centre_px
                at = "" if centre is None else f"The axis lies at column {centre:.2f}. "
                self.centre_button.setToolTip(f"{at}Estimate it, compare the images of several centres, or set it")
                self.subsets.setValue(1)
                if facts.kind == "ct":
                    self.views_every.setMaximum(max(1, facts.shape[0] // 2))
            self._shown_scan = facts.scan
        self._show_rows()
        self._show_used()

    def _wanted(self) -> dict[QWidget, bool]:
        """Which rows the method and the scan have."""
        facts = find_scan(self._state, self._state.scan)
        method = self._method()
        kind = facts.kind if facts is not None else ""
        cone = facts is not None and "fdk" in facts.methods
        return {
            self.sentence: bool(method),
            self.iterations: method in ITERATIVE,
            self.tolerance: method in ITERATIVE,
            self.strength: method in WITH_STRENGTH,
            self.weighting: kind == "ct" and method in WEIGHTINGS,
            self.nonnegative: kind == "ct" and method in WITH_SIGN,
            self.subsets: method == "sirt",
            self.footprint: kind == "ct" and not cone and method in ITERATIVE,
            self.coil_maps: kind == "mri" and method in WITH_COIL_MAPS,
            self.filter_window: method in FILTERED,
            self.model: method == "deq",
            self.views_every: kind == "ct",
            self.views_used: kind == "ct",
            self.accelerate: kind == "mri",
            self.slices: facts is not None and facts.slices > 1,
            self._range: facts is not None and facts.slices > 1 and self.slices.currentIndex() == 2,
            self._rule: kind == "ct",
            self.centre_button: kind == "ct",
        }

    def _show_rows(self) -> None:
        method = self._method()
        for field, visible in self._wanted().items():
            self.form.setRowVisible(field, visible)
        self.sentence.setText(SENTENCES.get(method, ""))
        self._show_weightings(WEIGHTINGS.get(method, ()))
        self._show_coil_maps()

    def _show_coil_maps(self) -> None:
        """Offer two sets of maps where the method and the sampling take them."""
        facts = find_scan(self._state, self._state.scan)
        two = self._method() in ITERATIVE - {"deq"} and facts is not None and "gridding" not in facts.methods
        entries = COIL_MAPS if two else COIL_MAPS[:2]
        if self.coil_maps.count() == len(entries):
            return
        chosen = self.coil_maps.currentIndex()
        self.coil_maps.clear()
        for name, value in entries:
            self.coil_maps.addItem(name, value)
        self.coil_maps.setCurrentIndex(chosen if chosen < len(entries) else 0)

    def _show_weightings(self, offered: tuple[tuple[str, str], ...]) -> None:
        """Offer the weightings of the method and keep the chosen one where it is among them."""
        names = [name for name, _ in offered]
        if names == [self.weighting.itemText(row) for row in range(self.weighting.count())]:
            return
        chosen = self.weighting.currentText()
        self.weighting.clear()
        for name, value in offered:
            self.weighting.addItem(name, value)
        # what the first method had of its own may be another's choice, and the other way round
        if chosen == COUNTS and chosen in names:
            self.weighting.setCurrentIndex(names.index(chosen))

    def _show_used(self) -> None:
        facts = find_scan(self._state, self._state.scan)
        if facts is not None and facts.kind == "ct":
            views = facts.shape[0]
            used = -(-views // self.views_every.value())
            self.views_used.setText(f"uses {used} of {views} views")
            self.subsets.setMaximum(used)

    def _enable(self) -> None:
        ready = self._state.engine.phase not in (EnginePhase.RESTARTING, EnginePhase.STOPPED)
        there = find_scan(self._state, self._state.scan) is not None
        self.method.setEnabled(there)
        self.start_button.setEnabled(there and ready)
        self.centre_button.setEnabled(there)


def _choice(name: str, tip: str, entries: tuple[tuple[str, str], ...] = ()) -> QComboBox:
    box = QComboBox()
    for text, value in entries:
        box.addItem(text, value)
    box.setAccessibleName(name)
    box.setToolTip(tip)
    return box


def _count(name: str, tip: str, low: int, high: int) -> QSpinBox:
    field = QSpinBox()
    field.setRange(low, high)
    field.setAccessibleName(name)
    field.setToolTip(tip)
    field.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return field
