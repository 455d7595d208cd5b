"""What the files do not say, or say wrongly: the roles of their parts, angles, beam, rotation centre."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtWidgets import QCheckBox, QComboBox, QGridLayout, QHBoxLayout, QLabel, QWidget

from equipoise.geometry import (
    angles_text,
    beam_of,
    beam_text,
    centre_was_found,
    centre_word,
    fact,
    usual_range,
    with_value,
)
from equipoise.roles import CT_ROLES, MRI_ROLES, ROLE_NAMES, RoleRow, fitting, kind_of, role_rows, with_role
from equipoise.session import Session
from equipoise.view.prepare.fields import (
    FAR_PX,
    Mark,
    choice_field,
    count_field,
    heading,
    limit_centre,
    number_field,
    remark,
)
from equipoise.view.prepare.page import Page
from equipoise.view.scrolled import scrolled_column
from equipoise_engine.protocol import Needed, ScanFacts
from equipoise_engine.recipe import Known, Recipe, Source

_NONE = "(none)"
_SOURCE_TIP = (
    "Which part of the files has this role. Choose one, or type its name and press Enter: a dataset, a variable, or a"
    " pattern of files beside the scan (flats/*.tif). #A:B after it takes frames A to B − 1 only, #A:B:C every C-th;"
    " #A:B alone stands for frames among the projections."
)
_LAYOUTS = (
    ("As found", ""),
    ("Projections (row, column)", "projections"),
    ("Sinograms (view, column)", "sinograms"),
)
_STATES = (
    ("As found", ""),
    ("Counts, not corrected yet", "counts"),
    ("Transmission, flat-field corrected", "transmission"),
    ("Attenuation, logarithm taken", "attenuation"),
)
_CT_FIELDS = ("layout", "transposed", "state", "angles", "clockwise", "centre_px", "pixel_mm", "beam")
_MRI_FIELDS = ("matrix", "keep_oversampling")
_MISSING = {"centre": "centre_px", "pixel": "pixel_mm"}
"""Other names by which fields may be called missing or guessed."""


class SourceField(QComboBox):
    """The source of one role: what was found, none, one of the parts of the files, or what the user types."""

    chosen = Signal(object)
    """Text of the source, empty for none, or None for what the reader finds; from the user's hand only."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role
        self._told: str | None = None
        self.setEditable(True)
        self.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(18)
        self.setAccessibleName(f"Source of {ROLE_NAMES[role]}")
        self.setToolTip(_SOURCE_TIP)
        self.activated.connect(self._take_entry)
        line = self.lineEdit()
        assert line is not None
        line.setPlaceholderText("type a name, or choose")
        line.editingFinished.connect(self._take_text)

    def show_row(self, row: RoleRow, sources: tuple[Source, ...]) -> None:
        """Offer what may have the role, and show what has it."""
        self.blockSignals(True)
        self.clear()
        nothing = "not found: choose, or type a name" if row.needed else "as found: nothing"
        self.addItem(f"{row.found} (as found)" if row.found else nothing, None)
        self.addItem(_NONE, "")
        for source in fitting(row.role, sources):
            size = " × ".join(str(n) for n in source.shape)
            self.addItem(source.name, source.name)
            self.setItemData(self.count() - 1, f"{source.name}: {size}, {source.kind}", Qt.ItemDataRole.ToolTipRole)
        self._told = row.told
        place = self.findData(row.told) if row.told is not None else 0
        self.setCurrentIndex(place)
        if place < 0 and row.told is not None:
            self.setEditText(row.told)
        line = self.lineEdit()
        if line is not None:
            line.setCursorPosition(0)
        self.blockSignals(False)

    def _take_entry(self, row: int) -> None:
        self._tell(self.itemData(row))

    def _take_text(self) -> None:
        text = self.currentText().strip()
        entry = self.findText(text)
        self._tell(self.itemData(entry) if entry >= 0 else text)

    def _tell(self, source: str | None) -> None:
        if source != self._told:
            self._told = source
            self.chosen.emit(source)


class ReadingPage(Page):
    """What was taken for what, and what the user knows better."""

    title = "&Reading"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._facts: ScanFacts | None = None
        self._needed: Needed | None = None
        self._recipe = Recipe()
        self._showing = False
        self._centre_by_hand = False
        """Whether the user wants to give a centre, be it the one that was found."""
        self.sources: dict[str, SourceField] = {}
        self.role_marks: dict[str, Mark] = {}
        self._role_widgets: dict[str, tuple[QWidget, ...]] = {}
        self._shapes: dict[str, QLabel] = {}
        self._reasons: dict[str, QLabel] = {}
        self.marks: dict[str, Mark] = {}
        self._rows: dict[str, tuple[QWidget, ...]] = {}
        self._make_fields()

        column = scrolled_column(self, 460)
        column.addWidget(heading("Parts of the files"))
        self._grids = (self._role_grid(), self._field_grid())
        column.addLayout(self._grids[0])
        column.addSpacing(8)
        column.addWidget(heading("Geometry and values"))
        column.addLayout(self._grids[1])
        self._align()
        column.addStretch(1)
        self.show_draft(None, None, Recipe())

    # --- how it is built

    def _make_fields(self) -> None:
        self.layout_field = choice_field("Layout", "What one image of a stack is", _LAYOUTS)
        self.transposed = QCheckBox("Rows and columns are swapped")
        self.transposed.setAccessibleName("Rows and columns are swapped")
        self.transposed.setToolTip("For a detector that lay on its side, or a sinogram whose columns are the views")
        self.state_field = choice_field("Numbers are", "What the measured numbers mean", _STATES)
        self.angles_field = choice_field("Angles", "Projection angles", (("As found", False), ("Evenly spaced", True)))
        degree = "°"
        self.start = number_field("First angle", "Angle of the first view, counter-clockwise", -36000, 36000, 4, degree)
        self.stop = number_field("End of the angles", "Where the range of angles ends", -36000, 36000, 4, degree)
        self.inclusive = QCheckBox("a view at the end")
        self.inclusive.setAccessibleName("A view at the end")
        self.inclusive.setToolTip("On: the last view lies at the end. Off: one step before it, as of a full turn")
        self.angles_said = remark("What the angles mean")
        self.clockwise = QCheckBox("Turn all angles the other way")
        self.clockwise.setAccessibleName("Turn all angles the other way")
        self.clockwise.setToolTip("For a stage that turned clockwise as seen from above; the image would be mirrored")
        self.centre_field = choice_field(
            "Rotation centre", "Where the rotation axis lies", (("As found", False), ("Given", True))
        )
        self.centre = number_field(
            "Column of the axis",
            "Detector column of the rotation axis, counted in the file before anything is cropped; 0 is the middle of"
            " the first",
            -FAR_PX,
            FAR_PX,
            2,
            " px",
        )
        self.pixel_field = choice_field(
            "Pixel size", "Side of a detector element of a parallel beam", (("As found", False), ("Given", True))
        )
        self.pixel = number_field("Side of an element", "Side of a detector element", 1e-6, 1e6, 6, " mm")
        self.beam_field = choice_field(
            "Beam", "Whether the rays are parallel or come from a point", (("As found", False), ("Diverging", True))
        )
        self.source_axis = number_field("Source to axis", "From the source to the rotation axis", 1e-4, 1e9, 4, " mm")
        self.source_detector = number_field(
            "Source to detector", "From the source to the detector", 1e-4, 1e9, 4, " mm"
        )
        self.element = number_field("Detector element", "Side of a detector element", 1e-6, 1e6, 6, " mm")
        self.beam_said = remark("What the beam means")
        self.matrix_field = choice_field(
            "Matrix", "Size of images along a trajectory", (("As found", False), ("Given", True))
        )
        self.matrix_rows = count_field("Rows of the image", "Rows (y) of the image", 16, 16384)
        self.matrix_columns = count_field("Columns of the image", "Columns (x) of the image", 16, 16384)
        self.oversampling = QCheckBox("Keep the readout oversampling")
        self.oversampling.setAccessibleName("Keep the readout oversampling")
        self.oversampling.setToolTip("Off: the image is cut to the field of view along the readout")

        self.layout_field.activated.connect(lambda: self._tell("layout", self.layout_field.currentData()))
        self.transposed.clicked.connect(lambda on: self._tell("transposed", on))
        self.state_field.activated.connect(lambda: self._tell("state", self.state_field.currentData()))
        self.angles_field.activated.connect(self._choose_angles)
        self.start.valueChanged.connect(lambda value: self._take_angles(start_deg=value))
        self.stop.valueChanged.connect(lambda value: self._take_angles(stop_deg=value))
        self.inclusive.clicked.connect(lambda on: self._take_angles(inclusive=on))
        self.clockwise.clicked.connect(lambda on: self._tell("clockwise", on))
        self.centre_field.activated.connect(self._choose_centre)
        self.centre.valueChanged.connect(lambda value: self._tell("centre_px", value))
        self.pixel_field.activated.connect(self._choose_pixel)
        self.pixel.valueChanged.connect(lambda value: self._tell("pixel_mm", value))
        self.beam_field.activated.connect(self._choose_beam)
        self.source_axis.valueChanged.connect(lambda value: self._take_beam(source_axis_mm=value))
        self.source_detector.valueChanged.connect(lambda value: self._take_beam(source_detector_mm=value))
        self.element.valueChanged.connect(lambda value: self._take_beam(pixel_mm=value))
        self.matrix_field.activated.connect(self._take_matrix)
        for count in (self.matrix_rows, self.matrix_columns):
            count.valueChanged.connect(self._take_matrix)
        self.oversampling.clicked.connect(lambda on: self._tell("keep_oversampling", on))

    def _role_grid(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(10)
        grid.setVerticalSpacing(3)
        grid.setColumnStretch(1, 1)
        for number, role in enumerate((*CT_ROLES, *MRI_ROLES)):
            field, mark = SourceField(role), Mark(ROLE_NAMES[role])
            label = QLabel(ROLE_NAMES[role])
            label.setBuddy(field)
            shape, reason = QLabel(), remark(f"Why {ROLE_NAMES[role]}")
            shape.setAccessibleName(f"Shape of {ROLE_NAMES[role]}")
            shape.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            below = QWidget()
            row = QHBoxLayout(below)
            row.setContentsMargins(3, 0, 0, 3)
            row.addWidget(reason, 1)
            row.addWidget(shape, 0, Qt.AlignmentFlag.AlignTop)
            field.chosen.connect(self._source_taker(role))
            grid.addWidget(label, 2 * number, 0)
            grid.addWidget(field, 2 * number, 1)
            grid.addWidget(mark, 2 * number, 2)
            grid.addWidget(below, 2 * number + 1, 1)
            self.sources[role], self.role_marks[role] = field, mark
            self._shapes[role], self._reasons[role] = shape, reason
            self._role_widgets[role] = (label, field, mark, below)
        return grid

    def _field_grid(self) -> QGridLayout:
        self._range = _line(self.start, QLabel("to"), self.stop, self.inclusive)
        self._lengths = QWidget()
        lengths = QGridLayout(self._lengths)
        lengths.setContentsMargins(0, 0, 0, 0)
        for number, (text, field) in enumerate(
            (
                ("Source to axis", self.source_axis),
                ("Source to detector", self.source_detector),
                ("Detector element", self.element),
            )
        ):
            label = QLabel(text)
            label.setBuddy(field)
            lengths.addWidget(label, number, 0)
            lengths.addWidget(field, number, 1)
        lengths.setColumnStretch(1, 1)
        self._sides = _line(self.matrix_rows, QLabel("×"), self.matrix_columns)
        grid = QGridLayout()
        grid.setHorizontalSpacing(10)
        grid.setVerticalSpacing(5)
        grid.setColumnStretch(1, 1)
        entries: tuple[tuple[str, str, tuple[QWidget, ...]], ...] = (
            ("layout", "La&yout", (self.layout_field,)),
            ("transposed", "Images", (self.transposed,)),
            ("state", "N&umbers are", (self.state_field,)),
            ("angles", "An&gles", (self.angles_field, self._range, self.angles_said)),
            ("clockwise", "Direction", (self.clockwise,)),
            ("centre_px", "Rotation a&xis", (self.centre_field, self.centre)),
            ("beam", "&Beam", (self.beam_field, self._lengths, self.beam_said)),
            ("pixel_mm", "P&ixel size", (self.pixel_field, self.pixel)),
            ("matrix", "&Matrix", (self.matrix_field, self._sides)),
            ("keep_oversampling", "Readout", (self.oversampling,)),
        )
        at = 0
        for name, text, widgets in entries:
            label, mark = QLabel(text), Mark(text.replace("&", ""))
            label.setBuddy(widgets[0])
            grid.addWidget(label, at, 0)
            grid.addWidget(mark, at, 2)
            for widget in widgets:
                grid.addWidget(widget, at, 1)
                at += 1
            self.marks[name] = mark
            self._rows[name] = (label, mark, *widgets)
        return grid

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the font."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange and hasattr(self, "_grids"):
            self._align()

    def _align(self) -> None:
        """Let the fields of both grids begin at the same place."""
        for grid in self._grids:
            grid.setColumnMinimumWidth(0, _label_width(self))

    # --- from the recipe to the widgets

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show a recipe."""
        if facts is None or self._facts is None or facts.path != self._facts.path:
            self._centre_by_hand = False
        self._facts, self._needed, self._recipe = facts, needed, recipe
        known = recipe.known
        self._showing = True
        self._show_roles(known)
        self._show_choices(known)
        self._show_numbers(known)
        self._show_rows(known)
        self._showing = False

    def _show_roles(self, known: Known) -> None:
        shown = {row.role: row for row in role_rows(self._facts, self._needed, known)}
        sources = self._facts.sources if self._facts is not None else ()
        if self._needed is not None:
            sources = self._needed.sources
        for role, field in self.sources.items():
            row = shown.get(role)
            for widget in self._role_widgets[role]:
                widget.setVisible(row is not None)
            if row is None:
                continue
            field.show_row(row, sources)
            self._shapes[role].setText(" × ".join(str(n) for n in row.shape))
            self._reasons[role].setText(row.reason)
            self._role_widgets[role][3].setVisible(bool(row.reason or row.shape))
            guessed = self._facts is not None and role in self._facts.guessed and row.told is None
            word = "needed" if row.needed else "given" if row.told is not None else "guessed" if guessed else ""
            self.role_marks[role].say(word)

    def _show_choices(self, known: Known) -> None:
        facts = self._facts
        # it is found anew where what it was found in has changed
        axis = fact(facts, "rotation centre") if centre_was_found(facts, known) else ""
        self.layout_field.setCurrentIndex(max(0, self.layout_field.findData(known.layout)))
        self.transposed.setChecked(known.transposed)
        self.state_field.setCurrentIndex(max(0, self.state_field.findData(known.state)))
        self.state_field.setItemText(0, _as_found(facts.state if facts is not None and not known.state else ""))
        for field, given, found in (
            (self.angles_field, known.angles is not None, fact(facts, "angles")),
            (self.centre_field, self._gives_centre(known), axis),
            (self.pixel_field, known.pixel_mm is not None, fact(facts, "pixel size")),
            (self.beam_field, known.beam is not None, fact(facts, "beam").partition(";")[0]),
            (self.matrix_field, known.matrix is not None, fact(facts, "matrix")),
        ):
            field.setCurrentIndex(int(given))
            # what was opened with a value that is given says nothing of what the files say
            field.setItemText(0, _as_found("" if given else found))
        self.clockwise.setChecked(known.clockwise)
        self.oversampling.setChecked(known.keep_oversampling)

    def _show_numbers(self, known: Known) -> None:
        angles = known.angles or usual_range(self._facts)
        self.start.setValue(angles.start_deg)
        self.stop.setValue(angles.stop_deg)
        self.inclusive.setChecked(angles.inclusive)
        views = self._facts.shape[0] if self._facts is not None else 0
        if self._facts is not None and self._facts.full_shape:
            views = self._facts.full_shape[0]
        self.angles_said.setText(angles_text(angles, views))
        limit_centre(self.centre, self._facts)
        if known.centre_px is not None:
            self.centre.setValue(known.centre_px)
        if known.pixel_mm is not None:
            self.pixel.setValue(known.pixel_mm)
        beam = known.beam or beam_of(self._facts)
        self.source_axis.setValue(beam.source_axis_mm)
        self.source_detector.setValue(beam.source_detector_mm)
        self.element.setValue(beam.pixel_mm)
        shape = self._facts.full_shape if self._facts is not None else ()
        self.beam_said.setText(beam_text(beam, shape[2] if len(shape) == 3 else 0))
        rows, columns = known.matrix or (256, 256)
        self.matrix_rows.setValue(rows)
        self.matrix_columns.setValue(columns)

    def _show_rows(self, known: Known) -> None:
        kind = kind_of(self._facts, self._needed)
        missing = set() if self._needed is None else {_MISSING.get(name, name) for name in self._needed.missing}
        guessed = set() if self._facts is None else {_MISSING.get(name, name) for name in self._facts.guessed}
        usual = Known()
        for name, widgets in self._rows.items():
            seen = name in (_MRI_FIELDS if kind == "mri" else _CT_FIELDS)
            if name == "matrix" and self._facts is not None:
                # only images along a trajectory leave their size open
                seen = seen and (known.matrix is not None or "not on a grid" in fact(self._facts, "sampling"))
            given = getattr(known, name) != getattr(usual, name)
            if name == "angles" and any(role.role == "angles" and role.source for role in known.roles):
                missing.discard(name)
            word = "given" if given else "needed" if name in missing else "guessed" if name in guessed else ""
            if name == "centre_px" and word != "needed":
                word = centre_word(self._facts, known)
            for widget in widgets:
                widget.setVisible(seen)
            self.marks[name].say(word)
        even, diverging = known.angles is not None, known.beam is not None
        for widget, on in (
            (self._range, even),
            (self.angles_said, even and bool(self.angles_said.text())),
            (self.centre, self._gives_centre(known)),
            (self.pixel, known.pixel_mm is not None),
            (self._lengths, diverging),
            (self.beam_said, diverging),
            (self._sides, known.matrix is not None),
        ):
            widget.setVisible(on)
        # a diverging beam has the element among its lengths
        parallel = not diverging and fact(self._facts, "beam") in ("", "parallel")
        for widget in self._rows["pixel_mm"][:3]:
            widget.setVisible(kind == "ct" and (parallel or known.pixel_mm is not None))

    def _gives_centre(self, known: Known) -> bool:
        given = centre_word(self._facts, known) == "given"
        return given or (self._centre_by_hand and known.centre_px is not None)

    # --- from the user's hand to the recipe

    def _tell(self, field: str, value: object) -> None:
        if not self._showing:
            self._tell_known(with_value(self._facts, self._recipe.known, field, value))

    def _tell_known(self, known: Known) -> None:
        recipe = msgspec.structs.replace(self._recipe, known=known)
        if recipe != self._recipe:
            self._recipe = recipe
            self.edited.emit(recipe)

    def _source_taker(self, role: str) -> Callable[[object], None]:
        def take(source: object) -> None:
            told = with_role(self._recipe.known, role, None if source is None else str(source))
            self._tell("roles", told.roles)

        return take

    def _choose_angles(self) -> None:
        self._tell("angles", usual_range(self._facts) if self.angles_field.currentData() else None)

    def _take_angles(self, **changes: float | bool) -> None:
        before = self._recipe.known.angles
        if before is not None:
            self._tell("angles", msgspec.structs.replace(before, **changes))

    def _choose_centre(self) -> None:
        self._centre_by_hand = bool(self.centre_field.currentData())
        if not self._centre_by_hand:
            # one that was found stays; one that was given is taken back
            if not centre_was_found(self._facts, self._recipe.known):
                self._tell("centre_px", None)
            self._show_rows(self._recipe.known)
            return
        found = None if self._facts is None else self._facts.recipe.known.centre_px
        self._tell("centre_px", found if found is not None else _middle(self._facts))
        self._show_numbers(self._recipe.known)
        self._show_rows(self._recipe.known)

    def _choose_pixel(self) -> None:
        self._tell("pixel_mm", self.pixel.value() if self.pixel_field.currentData() else None)

    def _choose_beam(self) -> None:
        self._tell("beam", beam_of(self._facts) if self.beam_field.currentData() else None)

    def _take_beam(self, **changes: float) -> None:
        before = self._recipe.known.beam
        if before is not None:
            self._tell("beam", msgspec.structs.replace(before, **changes))

    def _take_matrix(self) -> None:
        sides = (self.matrix_rows.value(), self.matrix_columns.value())
        self._tell("matrix", sides if self.matrix_field.currentData() else None)


def _middle(facts: ScanFacts | None) -> float:
    """Middle column of the detector."""
    return (facts.full_shape[2] - 1) / 2 if facts is not None and len(facts.full_shape) == 3 else 0.0


def _label_width(widget: QWidget) -> int:
    """Width of the first column, the same in both grids."""
    return max(widget.fontMetrics().horizontalAdvance(name) for name in ROLE_NAMES.values()) + 6


def _as_found(value: str) -> str:
    return f"As found: {value}" if value else "As found"


def _line(*widgets: QWidget) -> QWidget:
    line = QWidget()
    row = QHBoxLayout(line)
    row.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        row.addWidget(widget, 0 if isinstance(widget, QLabel | QCheckBox) else 1)
    return line
