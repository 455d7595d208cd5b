"""Which views, rows and columns are taken, and how many detector elements are put together."""

from __future__ import annotations

import msgspec
import pyqtgraph as pg
from PySide6.QtCore import QSignalBlocker
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QPushButton, QSpinBox, QVBoxLayout

from equipoise.extent import last_of, shape_text, span_of, unselected
from equipoise.session import Session
from equipoise.state import sentence
from equipoise.view.prepare.fields import choice_field, count_field, heading, remark
from equipoise.view.prepare.index import IndexSlider
from equipoise.view.prepare.page import Page
from equipoise.view.prepare.picture import PictureView, percentiles
from equipoise_engine.protocol import Failed, Look, Needed, Pixels, ScanFacts, Seen
from equipoise_engine.recipe import Recipe, Selection, Span

PURPOSE = "selection"
_KINDS = (("Projection (row, column)", "projection"), ("Sinogram (view, column)", "sinogram"))
_NAMES = {"views": "View", "rows": "Row", "columns": "Column"}


class SelectionPage(Page):
    """Which part of the scan is taken, by a rectangle on a picture of the whole and by numbers."""

    title = "&Selection"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._facts: ScanFacts | None = None
        self._recipe = Recipe()
        self._wish: Look | None = None

        self.what = choice_field("Picture", "What the rectangle is laid on", _KINDS)
        self.what.setMinimumContentsLength(20)
        self.what.activated.connect(self._ask)
        self.index = IndexSlider("View")
        self.index.moved.connect(self._ask)
        self.picture = PictureView("The whole scan")
        self.picture.setMinimumHeight(250)
        self.picture.view_reset.connect(lambda: self.picture.set_view(self.picture.whole()))
        self.picture.view_changed.connect(self.picture.set_view)
        self.picture.pointed.connect(self.picture.show_point)
        self.frame = _crop_frame()
        self.frame.sigRegionChanged.connect(self._follow_frame)
        self.frame.sigRegionChangeFinished.connect(self._take_frame)
        self.picture.box.addItem(self.frame, ignoreBounds=True)

        self.first: dict[str, QSpinBox] = {}
        self.last: dict[str, QSpinBox] = {}
        self.step: dict[str, QSpinBox] = {}
        self._axis_labels: dict[str, QLabel] = {}
        self.form = QGridLayout()
        self.form.setHorizontalSpacing(10)
        for number, text in enumerate(("", "First", "Last", "Every")):
            label = QLabel(text)
            label.setProperty("muted", True)
            self.form.addWidget(label, 0, number)
            self.form.setColumnStretch(number, 1 if number else 0)
        for number, (axis, text) in enumerate((("views", "V&iews"), ("rows", "R&ows"), ("columns", "Col&umns")), 1):
            self._add_axis(number, axis, text)
        self.bin = count_field(
            "Binning",
            "So many detector elements are put together along columns, and along rows where there are many",
            1,
            64,
        )
        self.bin.valueChanged.connect(lambda value: self._tell(msgspec.structs.replace(self._selection, bin=value)))
        self._bin_label = QLabel("&Bin")
        self._bin_label.setBuddy(self.bin)
        self.form.addWidget(self._bin_label, 4, 0)
        self.form.addWidget(self.bin, 4, 1)
        self.all_button = QPushButton("Take everything")
        self.all_button.setToolTip("Take the whole scan, without binning")
        self.all_button.clicked.connect(lambda: self._tell(Selection()))
        self.form.addWidget(self.all_button, 4, 2, 1, 2)
        self.taken = QLabel(wordWrap=True)
        self.taken.setAccessibleName("What is taken")
        self.memory = remark("Memory")

        head = QHBoxLayout()
        head.addWidget(self.what)
        head.addWidget(self.index, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 8, 8, 8)
        column.addLayout(head)
        column.addWidget(self.picture, 1)
        column.addSpacing(6)
        column.addWidget(heading("What is taken"))
        column.addLayout(self.form)
        column.addWidget(self.taken)
        column.addWidget(self.memory)
        self.show_draft(None, None, Recipe())

    def _add_axis(self, row: int, axis: str, text: str) -> None:
        name = _NAMES[axis]
        first = count_field(f"First {name.lower()}", f"First {name.lower()} that is taken, counted from 0", 0, 0)
        last = count_field(f"Last {name.lower()}", f"Last {name.lower()} that is taken, included", 0, 0)
        step = count_field(f"Every k-th {name.lower()}", "1 takes all", 1, 1)
        self.first[axis], self.last[axis], self.step[axis] = first, last, step
        first.valueChanged.connect(lambda _value: self._take_numbers(axis, gives_way=last))
        last.valueChanged.connect(lambda _value: self._take_numbers(axis, gives_way=first))
        step.valueChanged.connect(lambda _value: self._take_numbers(axis, gives_way=last))
        label = QLabel(text)
        label.setBuddy(first)
        self._axis_labels[axis] = label
        for number, widget in enumerate((label, first, last, step)):
            self.form.addWidget(widget, row, number)

    # --- from the recipe to the widgets

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show a recipe."""
        other = facts is not None and (self._facts is None or self._facts.path != facts.path)
        self._facts, self._recipe = facts, recipe
        ready = facts is not None and bool(facts.full_shape)
        numbers = (*self.first.values(), *self.last.values(), *self.step.values(), self.bin)
        for widget in (self.what, self.all_button, *numbers):
            widget.setEnabled(ready)
        self.frame.setVisible(False)
        if facts is None or not ready:
            self.picture.set_picture(None, hint="First say what is missing on the Reading page, and Apply")
            self.picture.set_problem("")
            self.index.set_count(0)
            for field in numbers:
                field.clear()
            self.taken.clear()
            self.memory.clear()
            return
        ct = facts.kind == "ct"
        if other:
            self._wish = None
            self.picture.set_picture(None, hint="Waiting for the picture")
            self.picture.set_problem("")
            with QSignalBlocker(self.what):
                # a detector of one row has no height to draw a rectangle on
                self.what.setCurrentIndex(1 if ct and facts.full_shape[1] == 1 else 0)
        self.what.setVisible(ct)
        self._show_numbers(facts)
        self._show_frame()
        self.taken.setText(shape_text(facts.kind, facts.full_shape, recipe.selection))
        said = facts.memory.text.rstrip(".") if facts.memory is not None else ""
        applied = recipe.selection == facts.recipe.selection
        again = "" if applied else " (before this change; estimated again after Apply)"
        self.memory.setText(f"Memory: {said}{again}")
        self.memory.setVisible(bool(said))
        if self.isVisible():
            self._ask()

    def _show_numbers(self, facts: ScanFacts) -> None:
        ct, selection = facts.kind == "ct", self._recipe.selection
        counts = dict(zip(("views", "rows", "columns"), facts.full_shape, strict=False))
        if not ct:
            counts = {"rows": facts.full_shape[0]}
        self._axis_labels["rows"].setText("R&ows" if ct else "Sl&ices")
        for axis in ("views", "rows", "columns"):
            for widget in (self._axis_labels[axis], self.first[axis], self.last[axis], self.step[axis]):
                widget.setVisible(axis in counts)
            if axis not in counts:
                continue
            span: Span = getattr(selection, axis)
            count = counts[axis]
            for field, high, value in (
                (self.first[axis], count - 1, span.first),
                (self.last[axis], count - 1, last_of(span, count)),
                (self.step[axis], max(1, count), span.step),
            ):
                with QSignalBlocker(field):
                    field.setMaximum(high)
                    field.setValue(value)
        # columns are not thinned out: that would lose what lies between them
        self.step["columns"].setVisible(False)
        for widget in (self.bin, self._bin_label):
            widget.setVisible(ct)
        with QSignalBlocker(self.bin):
            self.bin.setValue(selection.bin)

    def _vertical(self) -> str:
        """The axis that runs down the picture."""
        return "rows" if self.what.currentData() == "projection" else "views"

    def _show_frame(self) -> None:
        facts, pixels = self._facts, self.picture.pixels()
        there = facts is not None and facts.kind == "ct" and pixels is not None
        self.frame.setVisible(there)
        if facts is None or pixels is None or not there:
            return
        count = pixels.shape[0]
        down: Span = getattr(self._recipe.selection, self._vertical())
        across = self._recipe.selection.columns
        left, right = across.first, last_of(across, pixels.shape[1]) + 1
        top, bottom = down.first, last_of(down, count) + 1
        with QSignalBlocker(self.frame):
            self.frame.maxBounds = self.picture.whole()
            self.frame.setPos((left, top), finish=False)
            self.frame.setSize((max(1, right - left), max(1, bottom - top)), finish=False)

    # --- the picture

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Ask for the picture when the page is seen."""
        super().showEvent(event)
        self._ask()

    def _ask(self) -> None:
        facts = self._facts
        if facts is None or not facts.full_shape:
            return
        ct = facts.kind == "ct"
        what = str(self.what.currentData()) if ct else "image"
        views, rows = facts.full_shape[:2] if ct else (facts.full_shape[0], 1)
        count = views if what == "projection" or not ct else rows
        self.index.set_name({"projection": "View", "sinogram": "Row"}.get(what, "Slice"))
        self.index.set_count(count)
        recipe = unselected(self._recipe)
        if recipe.known.centre_px is None and facts.recipe.known.centre_px is not None:
            # it makes no difference here, and need not be found again
            known = msgspec.structs.replace(recipe.known, centre_px=facts.recipe.known.centre_px)
            recipe = msgspec.structs.replace(recipe, known=known)
        stage = 0 if ct else None
        wish = Look(path=facts.path, recipe=recipe, what=what, index=self.index.value(), stage=stage)
        if wish != self._wish:
            self._wish = wish
            self.session.look(PURPOSE, wish)

    def show_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        """Take in the picture of the whole scan."""
        if purpose != PURPOSE or self._wish is None or seen.what != self._wish.what:
            return
        self.picture.set_problem("")
        self.picture.set_picture(pixels, seen.caption)
        self.picture.set_levels(*percentiles(pixels, 0.5, 99.5))
        self._show_frame()

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Say why there is no picture."""
        if purpose == PURPOSE:
            self._wish = None
            self.picture.set_problem(sentence(failed.message, failed.hint))

    # --- from the user's hand to the recipe

    @property
    def _selection(self) -> Selection:
        return self._recipe.selection

    def _tell(self, selection: Selection) -> None:
        if selection == self._selection:
            return
        self._recipe = msgspec.structs.replace(self._recipe, selection=selection)
        self.edited.emit(self._recipe)

    def _take_numbers(self, axis: str, gives_way: QSpinBox) -> None:
        facts = self._facts
        if facts is None:
            return
        first, last = self.first[axis], self.last[axis]
        if first.value() > last.value():
            with QSignalBlocker(gives_way):
                gives_way.setValue(first.value() if gives_way is last else last.value())
        span = span_of(first.value(), last.value(), self.step[axis].value(), last.maximum() + 1)
        self._tell(msgspec.structs.replace(self._selection, **{axis: span}))

    def _framed(self) -> dict[str, tuple[int, int]]:
        """First and last index of each axis inside the rectangle."""
        place, size = self.frame.pos(), self.frame.size()
        spans = {}
        for axis, low, length in ((self._vertical(), place.y(), size.y()), ("columns", place.x(), size.x())):
            first = max(0, round(low))
            spans[axis] = (first, max(first, min(round(low + length) - 1, self.last[axis].maximum())))
        return spans

    def _follow_frame(self) -> None:
        for axis, (first, last) in self._framed().items():
            for field, value in ((self.first[axis], first), (self.last[axis], last)):
                with QSignalBlocker(field):
                    field.setValue(value)

    def _take_frame(self) -> None:
        selection = self._selection
        for axis, (first, last) in self._framed().items():
            span = span_of(first, last, self.step[axis].value(), self.last[axis].maximum() + 1)
            selection = msgspec.structs.replace(selection, **{axis: span})
        self._show_frame()
        self._tell(selection)


def _crop_frame() -> pg.ROI:
    """Return a rectangle with handles on its sides and corners."""
    frame = pg.ROI(
        (0, 0),
        (1, 1),
        pen=pg.mkPen("#e08a00", width=3),
        hoverPen=pg.mkPen("#ffb000", width=4),
        handlePen=pg.mkPen("#e08a00", width=3),
        handleHoverPen=pg.mkPen("#0b62c4", width=4),
        rotatable=False,
    )
    frame.handleSize = 8
    for at, fixed in (
        ((0, 0), (1, 1)),
        ((1, 1), (0, 0)),
        ((0, 1), (1, 0)),
        ((1, 0), (0, 1)),
        ((0, 0.5), (1, 0.5)),
        ((1, 0.5), (0, 0.5)),
        ((0.5, 0), (0.5, 1)),
        ((0.5, 1), (0.5, 0)),
    ):
        frame.addScaleHandle(at, fixed)
    frame.setZValue(20)
    return frame
