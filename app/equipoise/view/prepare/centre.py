"""Where the rotation axis lies on the detector: estimated, compared by its images, or set by hand."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QSignalBlocker, Qt
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QStyle,
    QTabWidget,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from equipoise.extent import selected_shape, unselected
from equipoise.geometry import centre_word
from equipoise.session import Session
from equipoise.state import JobPhase, State, find_job, sentence
from equipoise.view.plots import colour_plot, series_pen, series_symbol
from equipoise.view.prepare.fields import FAR_PX, Mark, choice_field, limit_centre, number_field
from equipoise.view.prepare.gallery import Gallery
from equipoise.view.prepare.page import Page
from equipoise.view.prepare.picture import PictureView, percentiles
from equipoise.view.scan import WarningBox
from equipoise_engine.protocol import (
    CentreEstimate,
    CentreFound,
    Failed,
    FindCentre,
    Look,
    Needed,
    Pixels,
    ScanFacts,
    Seen,
)
from equipoise_engine.recipe import Recipe

PURPOSE = "centre axis"
GALLERY = "centre gallery"
STEP_PX = 0.1
CHECK_BELOW = 0.5
"""Confidence below which a centre should be checked."""
_HINT = (
    "Estimate looks for the axis by every method that suits the scan and lets them vote. Where they are not sure,"
    " Compare shows the images of several centres side by side."
)
_CLICK = "Click the sharpest image to take its centre."
_VALUE = Qt.ItemDataRole.UserRole


class CentrePage(Page):
    """The axis on a picture, by number, by several methods, and by the images that it gives."""

    title = "Rotation &centre"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._facts: ScanFacts | None = None
        self._recipe = Recipe()
        self._wish: Look | None = None
        self._job: int | None = None
        self._found: CentreFound | None = None
        self._gallery_of: Recipe | None = None

        self.centre = number_field(
            "Column of the axis",
            "Detector column of the rotation axis, counted in the file before anything is cropped; 0 is the middle of"
            " the first. The image at the right follows",
            -FAR_PX,
            FAR_PX,
            2,
            " px",
        )
        self.centre.setSingleStep(STEP_PX)
        self.centre.valueChanged.connect(self._tell)
        label = QLabel("A&xis at column")
        label.setBuddy(self.centre)
        self.mark = Mark("Rotation centre")
        self.auto_button = QPushButton("As &found")
        self.auto_button.setToolTip("Take the file's centre, or let it be found in the projections")
        self.auto_button.clicked.connect(lambda: self._set(None))
        head = QHBoxLayout()
        head.addWidget(label)
        head.addWidget(self.centre, 1)
        head.addWidget(self.mark)
        head.addWidget(self.auto_button)

        self.picture = PictureView("Axis on the detector")
        self.picture.setMinimumHeight(130)
        self.picture.setMaximumHeight(210)
        self.picture.view_changed.connect(self.picture.set_view)
        self.picture.view_reset.connect(lambda: self.picture.set_view(self.picture.whole()))
        self.picture.pointed.connect(self.picture.show_point)
        self.line = pg.InfiniteLine(
            angle=90, movable=True, pen=pg.mkPen("#ffb000", width=2), hoverPen=pg.mkPen("#ffd060", width=4)
        )
        self.line.setZValue(20)
        self.line.setVisible(False)
        self.line.sigDragged.connect(self._follow_line)
        self.line.sigPositionChangeFinished.connect(self._take_line)
        self.picture.box.addItem(self.line, ignoreBounds=True)

        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(self._make_methods(), "&Estimate")
        self.tabs.addTab(self._make_gallery(), "Co&mpare")
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 8, 8, 8)
        column.addLayout(head)
        column.addWidget(self.picture, 2)
        column.addWidget(self.tabs, 5)
        session.changed.connect(self._follow_job)
        session.centre_found.connect(self._show_found)
        self.show_draft(None, None, Recipe())

    # --- how it is built

    def _make_methods(self) -> QWidget:
        self.estimate_button = QPushButton("Est&imate")
        self.estimate_button.setToolTip("Find the rotation centre by every method that suits the scan")
        self.estimate_button.clicked.connect(self._estimate)
        self.range = choice_field(
            "Where to look",
            "Columns between which the axis is looked for",
            (("around the middle", False), ("between", True)),
        )
        self.range.activated.connect(self._enable)
        self.range_first = number_field("First column", "Lowest column of the search", -FAR_PX, FAR_PX, 1)
        self.range_last = number_field("Last column", "Highest column of the search", -FAR_PX, FAR_PX, 1)
        self.range_and = QLabel("and")
        row = QHBoxLayout()
        row.addWidget(self.estimate_button)
        row.addWidget(self.range, 2)
        for widget in (self.range_first, self.range_and, self.range_last):
            row.addWidget(widget, 0 if widget is self.range_and else 1)

        self.said = QLabel(wordWrap=True)
        self.said.setAccessibleName("What was found")
        self.said.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.warning = WarningBox()
        self.methods = QTreeWidget()
        self.methods.setAccessibleName("Estimates of the rotation centre")
        self.methods.setToolTip("Double-click or Enter takes an estimate")
        self.methods.setHeaderLabels(["Method", "Column", "Confidence", "Remark"])
        self.methods.setRootIsDecorated(False)
        self.methods.setUniformRowHeights(True)
        self.methods.setAlternatingRowColors(True)
        self.methods.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.methods.setMinimumHeight(110)
        self.methods.header().setStretchLastSection(True)
        for number in range(3):
            self.methods.header().setSectionResizeMode(number, QHeaderView.ResizeMode.ResizeToContents)
        self.methods.itemActivated.connect(lambda item: self._set(float(item.data(0, _VALUE))))
        self.methods.currentItemChanged.connect(self._enable)
        self.use_button = QPushButton("&Use this centre")
        self.use_button.setToolTip("Take the centre of the selected row")
        self.use_button.clicked.connect(self._use)
        self.plot = pg.PlotWidget()
        self.plot.setAccessibleName("Metrics of the rotation centre")
        self.plot.setToolTip(
            "How badly each column explains the projections, by each method, scaled from 0 to 1: lower is better"
        )
        self.plot.setMinimumHeight(110)
        item = self.plot.getPlotItem()
        item.hideButtons()
        item.setMenuEnabled(False)
        item.setLabel("bottom", "column of the axis (px); lower is better")
        item.hideAxis("left")
        item.showGrid(x=True, y=False, alpha=0.2)
        item.addLegend(offset=(-6, 6), labelTextSize="8pt", verSpacing=-4)
        below = QHBoxLayout()
        below.addWidget(self.said, 1)
        below.addWidget(self.use_button, 0, Qt.AlignmentFlag.AlignTop)
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 8, 0, 0)
        column.addLayout(row)
        column.addWidget(self.warning)
        column.addWidget(self.methods, 2)
        column.addLayout(below)
        column.addWidget(self.plot, 3)
        column.addStretch(0)
        return page

    def _make_gallery(self) -> QWidget:
        self.count = choice_field(
            "Number of images", "How many centres are tried", tuple((str(n), n) for n in (3, 5, 7, 9))
        )
        self.count.setCurrentIndex(1)
        self.count.setMinimumContentsLength(3)
        self.spacing = number_field("Spacing", "From one centre to the next", 0.05, 1000, 2, " px")
        self.spacing.setValue(1.0)
        self.compare_button = QPushButton("Com&pare")
        self.compare_button.setToolTip("Make a quick image of the middle slice for each centre around the present one")
        self.compare_button.clicked.connect(self._compare)
        self.gallery_said = QLabel(_CLICK, wordWrap=True)
        self.gallery_said.setProperty("muted", True)
        self.gallery = Gallery(self.session, GALLERY, "px")
        self.gallery.taken.connect(self._set)
        row = QHBoxLayout()
        row.addWidget(self.compare_button)
        row.addWidget(self.count)
        row.addWidget(QLabel("images,"))
        row.addWidget(self.spacing, 1)
        row.addWidget(QLabel("apart"))
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 8, 0, 0)
        column.addLayout(row)
        column.addWidget(self.gallery_said)
        column.addWidget(self.gallery, 1)
        return page

    # --- from the recipe to the widgets

    def show_draft(self, facts: ScanFacts | None, needed: Needed | None, recipe: Recipe) -> None:
        """Show a recipe."""
        if (self._facts.path if self._facts is not None else "") != (facts.path if facts is not None else ""):
            self._wish = self._found = self._gallery_of = None
            self.gallery.clear()
            self._say_click()
            open_first = "First say what is missing on the Reading page, and Apply"
            self.picture.set_picture(None, hint="Waiting for the picture" if facts is not None else open_first)
            self.picture.set_problem("")
            self.line.setVisible(False)
            self._show_estimates()
        self._facts, self._recipe = facts, recipe
        for field in (self.centre, self.range_first, self.range_last):
            limit_centre(field, facts)
        centre = self._centre()
        with QSignalBlocker(self.centre):
            if centre is None:
                self.centre.clear()
            else:
                self.centre.setValue(centre)
                self.line.setPos(centre + 0.5)
        self.mark.say(centre_word(facts, recipe.known))
        self.gallery.mark(centre)
        if self._gallery_of is not None and self._gallery_of != _without_centre(recipe):
            # images of another preparation say nothing of this one
            self._gallery_of = None
            self.gallery.clear()
        self._show_vote_line()
        self._enable()
        if self.isVisible():
            self._ask()

    def _centre(self) -> float | None:
        """The centre in force: the one that is given, else the one that the scan was opened with."""
        if self._recipe.known.centre_px is not None:
            return self._recipe.known.centre_px
        return None if self._facts is None else self._facts.recipe.known.centre_px

    def _enable(self) -> None:
        ready = self._facts is not None and self._facts.kind == "ct"
        for widget in (self.centre, self.picture, self.range, self.compare_button, self.count, self.spacing):
            widget.setEnabled(ready)
        self.auto_button.setEnabled(ready and centre_word(self._facts, self._recipe.known) == "given")
        self.estimate_button.setEnabled(ready and self._job is None)
        self.estimate_button.setText("Estimating …" if self._job is not None else "Est&imate")
        self.use_button.setEnabled(ready and self.methods.currentItem() is not None)
        between = bool(self.range.currentData())
        for part in (self.range_first, self.range_and, self.range_last):
            part.setVisible(between)

    # --- the picture with the axis

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Ask for the picture when the page is seen."""
        super().showEvent(event)
        self._ask()

    def _ask(self) -> None:
        facts = self._facts
        if facts is None or facts.kind != "ct" or not facts.full_shape:
            return
        rows = facts.full_shape[1]
        what = "projection" if rows > 1 else "sinogram"
        recipe = _with_centre(unselected(self._recipe), self._centre() or 0.0)
        # the picture itself knows no centre: it is not asked for again where only that was moved
        wish = Look(path=facts.path, recipe=recipe, what=what, index=0, stage=0)
        before = self._wish
        if before is None or (_without_centre(before.recipe), before.path, before.what) != (
            _without_centre(recipe),
            facts.path,
            what,
        ):
            self._wish = wish
            self.session.look(PURPOSE, wish)

    def show_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        """Take in a picture."""
        self.gallery.show_seen(purpose, pixels)
        self._say_click()
        if purpose == PURPOSE:
            self.picture.set_problem("")
            self.picture.set_picture(pixels, seen.caption)
            self.picture.set_levels(*percentiles(pixels, 0.5, 99.5))
            # as wide as there is room: the axis is to be placed finely
            self.picture.box.setAspectLocked(False)
            self.picture.set_view(self.picture.whole())
            self.line.setVisible(True)

    def show_failure(self, purpose: str, failed: Failed) -> None:
        """Say why there is no picture."""
        self.gallery.show_failure(purpose, failed)
        self._say_click()
        if purpose == PURPOSE:
            self._wish = None
            self.picture.set_problem(sentence(failed.message, failed.hint))

    def _follow_line(self) -> None:
        with QSignalBlocker(self.centre):
            self.centre.setValue(self.line.value() - 0.5)

    def _take_line(self) -> None:
        self._set(round(self.line.value() - 0.5, 2))

    # --- from the user's hand to the recipe

    def _tell(self, value: float) -> None:
        self._set(value)

    def _set(self, centre: float | None) -> None:
        recipe = _with_centre(self._recipe, centre)
        if recipe != self._recipe:
            self._recipe = recipe
            self.edited.emit(recipe)

    def _use(self) -> None:
        item = self.methods.currentItem()
        if item is not None:
            self._set(float(item.data(0, _VALUE)))

    # --- estimates

    def _estimate(self) -> None:
        if self._facts is None:
            return
        between = bool(self.range.currentData())
        wish = FindCentre(
            path=self._facts.path,
            recipe=self._recipe,
            first_px=self.range_first.value() if between else None,
            last_px=self.range_last.value() if between else None,
        )
        self._job = self.session.find_centre(wish)
        self.said.setText("Looking for the axis …" if self._job is not None else "The engine is stopped.")
        self._enable()

    def _follow_job(self, old: State, new: State) -> None:
        if self._job is None or old.jobs is new.jobs:
            return
        job = find_job(new, self._job)
        if job is not None and job.active:
            return
        self._job = None
        if job is not None and job.phase is not JobPhase.DONE:
            self.said.setText(sentence(job.message, job.hint) or "The search was cancelled.")
        self._enable()

    def _show_found(self, found: CentreFound) -> None:
        if self._facts is None or found.path != self._facts.path:
            return
        self._found = found
        self._show_estimates()

    def _show_estimates(self) -> None:
        self.methods.clear()
        self.plot.getPlotItem().clear()
        found = self._found
        unsure = found is not None and found.confidence < CHECK_BELOW
        self.warning.show_texts(("The methods are not sure: compare the images of several centres.",) if unsure else ())
        self.said.setText(found.text if found is not None else _HINT)
        for widget in (self.methods, self.plot, self.use_button):
            widget.setVisible(found is not None)
        if found is None:
            self._enable()
            return
        vote = self._add_row("Vote of all", found.centre_px, found.confidence, "", bold=True)
        for estimate in found.estimates:
            remark = "at the edge of what was looked at" if estimate.at_edge else estimate.text
            self._add_row(estimate.method, estimate.centre_px, estimate.confidence, remark, edge=estimate.at_edge)
        self.methods.setCurrentItem(vote)
        self._draw_curves(found.estimates)
        self._show_vote_line()
        self._enable()

    def _add_row(
        self, method: str, centre: float, confidence: float, remark: str, *, bold: bool = False, edge: bool = False
    ) -> QTreeWidgetItem:
        item = QTreeWidgetItem([method, f"{centre:.2f}", f"{_confidence(confidence)} ({confidence:.2f})", remark])
        item.setData(0, _VALUE, centre)
        item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        item.setToolTip(3, remark)
        if edge or confidence < CHECK_BELOW:
            item.setIcon(0, self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning))
        if bold:
            font = item.font(0)
            font.setBold(True)
            for column in range(3):
                item.setFont(column, font)
        self.methods.addTopLevelItem(item)
        return item

    def _draw_curves(self, estimates: tuple[CentreEstimate, ...]) -> None:
        item = self.plot.getPlotItem()
        for number, estimate in enumerate(estimates):
            x, y = normalised(estimate)
            if not x.size:
                continue
            item.plot(x, y, pen=series_pen(number), name=estimate.method)
            best = int(np.argmin(y))
            pen = series_pen(number)
            item.plot(
                x[best : best + 1],
                y[best : best + 1],
                pen=None,
                symbol=series_symbol(number),
                symbolPen=pen,
                symbolBrush=pen.color(),
                symbolSize=9,
            )
        text = self.palette().text().color()
        self._vote = pg.InfiniteLine(
            angle=90,
            pen=pg.mkPen(text, width=1),
            label="vote",
            labelOpts={"position": 0.9, "color": text, "anchors": [(0, 0.5), (0, 0.5)]},
        )
        self._now = pg.InfiniteLine(
            angle=90,
            pen=pg.mkPen("#ffb000", width=2),
            label="taken",
            labelOpts={"position": 0.75, "color": text, "anchors": [(1, 0.5), (1, 0.5)]},
        )
        for line in (self._vote, self._now):
            item.addItem(line, ignoreBounds=True)
        colour_plot(self.plot, self.palette())

    def _show_vote_line(self) -> None:
        if self._found is None:
            return
        self._vote.setValue(self._found.centre_px)
        centre = self._centre()
        self._now.setVisible(centre is not None)
        if centre is not None:
            self._now.setValue(centre)

    # --- images

    def _compare(self) -> None:
        facts, centre = self._facts, self._centre()
        if facts is None or centre is None:
            return
        count, spacing = int(self.count.currentData()), self.spacing.value()
        rows = selected_shape("ct", facts.full_shape, self._recipe.selection)[1]
        index = max(0, min(rows, facts.slices) // 2)
        recipe = self._recipe

        def wish(value: float) -> Look:
            return Look(path=facts.path, recipe=_with_centre(recipe, value), what="image", index=index)

        self._gallery_of = _without_centre(recipe)
        values = tuple(round(centre + (number - count // 2) * spacing, 3) for number in range(count))
        self.gallery.fill(values, wish)
        self.gallery.mark(centre)
        self._say_click()

    def _say_click(self) -> None:
        self.gallery_said.setText(_CLICK if self.gallery.complete else "Making the images …")

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "plot"):
            colour_plot(self.plot, self.palette())
            if self._found is not None:
                text = self.palette().text().color()
                self._vote.setPen(pg.mkPen(text, width=1))
                for line in (self._vote, self._now):
                    line.label.setColor(text)


def normalised(estimate: CentreEstimate) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and metric `(point,)` of an estimate, float64, the metric from 0 (best) to 1."""
    count = min(len(estimate.positions_px), len(estimate.metric))
    x = np.asarray(estimate.positions_px[:count], dtype=np.float64)
    y = np.asarray(estimate.metric[:count], dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    low, high = (float(y.min()), float(y.max())) if y.size else (0.0, 0.0)
    return x, (y - low) / (high - low) if high > low else np.zeros_like(y)


def _confidence(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    return "high" if value >= 0.8 else "fair" if value >= CHECK_BELOW else "low, check it"


def _with_centre(recipe: Recipe, centre: float | None) -> Recipe:
    known = msgspec.structs.replace(recipe.known, centre_px=centre)
    return msgspec.structs.replace(recipe, known=known)


def _without_centre(recipe: Recipe) -> Recipe:
    return _with_centre(recipe, None)
