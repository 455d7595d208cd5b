"""The comparison: panes side by side that share zoom, cursor, slice and levels."""

from __future__ import annotations

from pathlib import PurePath

from PySide6.QtCore import QPointF, QRectF, Qt, Signal
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QSlider, QSpinBox, QVBoxLayout, QWidget

from equipoise.session import Session
from equipoise.state import MAX_PANES, Pane, Picture, Run, State, find_job, find_run, find_scan, slice_count, slice_of
from equipoise.view.levels import LevelsControl
from equipoise.view.pane import EMPTY_HINT, PaneView

ANALYTIC_METHODS = ("fbp", "fdk", "zerofilled", "gridding")
_GRIDS = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}
"""Number of panes -> columns of the grid."""

_FEWEST_COMMON = 4
"""Of ranges of the same values the common part is at least the wider divided by this."""

Levels = tuple[float, float]


class CompareView(QWidget):
    """One to six panes with the controls that they share.

    Pictures come from the state and stay until the next one has come, so no pane is ever blank in between.
    """

    hovered = Signal(str)
    """What is under the mouse: pixel, position in mm where calibrated, value in each pane."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._state = State(panes=())
        self._home = QRectF()
        self._seen = QRectF()
        self._pointer: QPointF | None = None
        self._chosen_levels: Levels | None = None
        """Levels that the user set by hand for all panes."""
        self._pane_levels: dict[int, Levels] = {}
        """Levels that the user set by hand for one pane while they are not linked."""
        self._reference: str | None = None
        """Run whose picture gave the automatic levels."""
        self._auto_levels: Levels | None = None

        self.panes: list[PaneView] = []
        self._grid = QGridLayout()
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(4)

        self.levels = LevelsControl()
        self.levels.levels_changed.connect(self._take_levels)
        self.levels.auto_requested.connect(self.auto_levels)
        self.levels.linked_changed.connect(self._link_levels)
        self.levels.colour_map_chosen.connect(self._take_colour_map)

        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName("Slice")
        self.slider.setToolTip("Slice shown in all panes (Page Up, Page Down, or Ctrl + wheel on a picture)")
        self.slider.setPageStep(10)
        self.slice_box = QSpinBox()
        self.slice_box.setAccessibleName("Slice number")
        self.slice_box.setToolTip("Slice shown in all panes, counted from 0")
        self.slice_box.setKeyboardTracking(False)
        for control in (self.slider, self.slice_box):
            control.valueChanged.connect(self._take_slice)
        label = QLabel("&Slice")
        label.setBuddy(self.slice_box)
        row = QHBoxLayout()
        row.setContentsMargins(2, 0, 2, 0)
        row.addWidget(label)
        row.addWidget(self.slider, 1)
        row.addWidget(self.slice_box)

        left = QVBoxLayout()
        left.setContentsMargins(0, 0, 0, 0)
        left.addLayout(self._grid, 1)
        left.addLayout(row)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addLayout(left, 1)
        layout.addWidget(self.levels)
        self.show_change(self._state, session.state)

    # --- from the state to the widgets

    def show_change(self, old: State, new: State) -> None:
        """Bring what differs between two states onto the screen."""
        old, self._state = self._state, new
        if len(old.panes) != len(new.panes):
            self._lay_out(len(new.panes))
        entries_changed = old.runs is not new.runs or old.jobs is not new.jobs or old.scans is not new.scans
        entries = _entries(new) if entries_changed or len(old.panes) != len(new.panes) else ()
        new_pictures = []
        for number, (view, pane) in enumerate(zip(self.panes, new.panes, strict=True)):
            before = old.panes[number] if number < len(old.panes) else None
            if entries_changed or before is None or before.run != pane.run:
                view.set_runs(entries or _entries(new), pane.run)
            picture_before = None if before is None else before.picture
            place = _place(new, pane.picture)
            if before is None or pane.picture is not picture_before:
                view.set_picture(None if pane.picture is None else pane.picture.pixels, place)
                new_pictures.append(number)
            elif pane.picture is not None and place != view.place():
                view.set_picture(pane.picture.pixels, place)
            if before is not pane or entries_changed or old.slice_index != new.slice_index:
                view.set_caption(*_caption(new, pane))
                view.set_hint(_hint(new, pane))
            if before is None or (number == old.active_pane) != (number == new.active_pane):
                view.set_active(number == new.active_pane)
        if new_pictures:
            self._set_levels_of_new_pictures(new_pictures)
        if new_pictures or old.active_pane != new.active_pane:
            self._show_levels_of_active()
        self._set_home()
        if entries_changed or old.scan != new.scan or old.slice_index != new.slice_index:
            self._show_slice()
        if self._pointer is not None and new_pictures:
            self._point(self._pointer)

    def _lay_out(self, count: int) -> None:
        while len(self.panes) > count:
            view = self.panes.pop()
            self._grid.removeWidget(view)
            view.hide()
            view.deleteLater()
        while len(self.panes) < count:
            self.panes.append(self._new_pane(len(self.panes)))
        columns = _GRIDS[max(1, min(count, MAX_PANES))]
        for number, view in enumerate(self.panes):
            self._grid.addWidget(view, number // columns, number % columns)
        rows = -(-count // columns)
        for index in range(MAX_PANES):
            self._grid.setColumnStretch(index, 1 if index < columns else 0)
            self._grid.setRowStretch(index, 1 if index < rows else 0)

    def _new_pane(self, number: int) -> PaneView:
        view = PaneView(number)
        view.set_colour_map(self.levels.maps.currentText())
        view.set_levels(*self.levels.levels())
        if not self._seen.isEmpty():
            view.set_view(self._seen)
        view.activated.connect(lambda: self._activate(number))
        view.run_chosen.connect(lambda run: self._session.show_run(number, run))
        view.slices_scrolled.connect(lambda by: self._take_slice(self._state.slice_index + by))
        view.slice_end_wanted.connect(lambda last: self._take_slice(self.slider.maximum() if last else 0))
        view.view_changed.connect(self._set_view)
        view.view_reset.connect(self.reset_zoom)
        view.pointed.connect(self._point)
        view.left.connect(self._leave)
        return view

    def _show_slice(self) -> None:
        last = max(0, slice_count(self._state) - 1)
        for control in (self.slider, self.slice_box):
            control.blockSignals(True)
            control.setRange(0, last)
            control.setValue(self._state.slice_index)
            control.setEnabled(last > 0)
            control.blockSignals(False)
        self.slice_box.setSuffix(f"  (0–{last})")

    # --- zoom

    def reset_zoom(self) -> None:
        """Show the whole of all pictures."""
        if not self._home.isEmpty():
            self._set_view(self._home)

    def _set_home(self) -> None:
        home = QRectF()
        for view in self.panes:
            if view.pixels() is not None:
                home = home.united(view.place())
        if home.isEmpty() or home == self._home:
            return
        at_home = self._seen.isEmpty() or self._seen == self._home
        # another scale or another object: the old part of the plane would say nothing
        elsewhere = not home.intersects(self._seen) or max(home.width(), 1e-9) / max(self._seen.width(), 1e-9) > 50
        self._home = home
        if at_home or elsewhere:
            self._set_view(home)

    def _set_view(self, rect: QRectF) -> None:
        self._seen = QRectF(rect)
        for view in self.panes:
            view.set_view(rect)

    # --- levels

    def auto_levels(self) -> None:
        """Take the levels from the analytic picture; where they are not linked, each pane from its own."""
        self._chosen_levels = None
        self._pane_levels.clear()
        self._reference = None
        self._set_levels_of_new_pictures(range(len(self.panes)))
        self._show_levels_of_active()

    def _set_levels_of_new_pictures(self, numbers: list[int] | range) -> None:
        if not self.levels.linked():
            for number in numbers:
                self._set_own_levels(number)
            return
        if self._chosen_levels is None:
            reference = self._reference_picture()
            # the levels stay through the slices and iterates of one run, so that these can be compared
            if reference is not None and reference.run != self._reference:
                self._reference = reference.run
                self._auto_levels = _sound(reference.low, reference.high)
        levels = self._chosen_levels or self._auto_levels
        for number, view in enumerate(self.panes):
            if self._is_apart(number):
                self._set_own_levels(number)
            elif levels is not None and view.levels() != levels:
                view.set_levels(*levels)

    def _is_apart(self, number: int) -> bool:
        """Whether a pane shows values of another unit, which have levels of their own also where these are linked."""
        picture, other = self._state.panes[number].picture, self._reference_picture()
        if picture is None or other is None or picture.run == other.run:
            return False
        run, others = find_run(self._state, picture.run), find_run(self._state, other.run)
        if run is None or run.result is None or others is None:
            return False
        if others.result is not None and run.result.unit != others.result.unit:
            return True
        # the files of references seldom tell their unit
        low, high = (other.low, other.high) if others.result is None else (others.result.low, others.result.high)
        return run.is_reference and not _alike((run.result.low, run.result.high), (low, high))

    def _set_own_levels(self, number: int) -> None:
        picture = self._state.panes[number].picture
        if number in self._pane_levels:
            self.panes[number].set_levels(*self._pane_levels[number])
        elif picture is not None:
            self.panes[number].set_levels(*_sound(picture.low, picture.high))

    def _reference_picture(self) -> Picture | None:
        """Picture that gives the automatic levels: the analytic one of the scan, else the active or any."""
        runs = {run.run: run for run in self._state.runs}
        shown = [pane.picture for pane in self._state.panes if pane.picture is not None]
        for picture in shown:
            run = runs.get(picture.run)
            if run is not None and run.settings.method in ANALYTIC_METHODS and run.scan == self._state.scan:
                return picture
        # one that was opened to compare with says nothing of the others
        made = [p for p in shown if p.run not in runs or not runs[p.run].is_reference] or shown
        active = self._state.panes[self._state.active_pane].picture
        return next((p for p in made if p is active), made[0] if made else None)

    def _show_levels_of_active(self) -> None:
        number = min(self._state.active_pane, len(self.panes) - 1)
        view = self.panes[number]
        levels = view.levels()
        if levels is not None:
            self.levels.set_levels(*levels)
        pixels = view.pixels()
        if pixels is None:
            pixels = next((p for p in (other.pixels() for other in self.panes) if p is not None), None)
        if pixels is not None:
            self.levels.set_histogram(pixels)

    def _take_levels(self, low: float, high: float) -> None:
        number = self._state.active_pane
        if self.levels.linked() and not self._is_apart(number):
            self._chosen_levels = (low, high)
            for other, view in enumerate(self.panes):
                if not self._is_apart(other):
                    view.set_levels(low, high)
        else:
            self._pane_levels[number] = (low, high)
            self.panes[number].set_levels(low, high)

    def _link_levels(self, linked: bool) -> None:
        if linked:
            self._pane_levels.clear()
            self._chosen_levels = self.levels.levels()
        self._set_levels_of_new_pictures(range(len(self.panes)))
        self._show_levels_of_active()

    def _take_colour_map(self, name: str) -> None:
        for view in self.panes:
            view.set_colour_map(name)

    # --- cursor

    def _point(self, at: QPointF) -> None:
        self._pointer = at
        values = []
        where = ""
        for view, pane in zip(self.panes, self._state.panes, strict=True):
            view.show_crosshair(at)
            pixel = view.pixel_at(at)
            pixels = view.pixels()
            if pixel is None or pixels is None or pane.picture is None:
                view.set_value("")
                continue
            value = f"{float(pixels[pixel]):.5g}"
            view.set_value(value)
            run = find_run(self._state, pane.picture.run)
            values.append(f"{run.label if run else 'pane ' + str(view.number + 1)}: {value}")
            if not where or view.number == self._state.active_pane:
                where = self._where(pixel, view.place(), pixels.shape, pane.picture)
        self.hovered.emit("  ·  ".join(filter(None, [where, *values])))

    def _where(self, pixel: tuple[int, int], place: QRectF, shape: tuple[int, ...], picture: Picture) -> str:
        row, column = pixel
        text = f"row {row}, column {column}"
        run = find_run(self._state, picture.run)
        facts = None if run is None else find_scan(self._state, run.scan)
        if run is None or facts is None or not _calibrated(self._state, run):
            return text
        # the origin is the rotation axis (CT) or the sample that a centred Fourier transform calls zero (MRI)
        middle = [(n - 1) / 2 if facts.kind == "ct" else n // 2 for n in shape]
        x = (column - middle[1]) * place.width() / shape[1]
        y = (middle[0] - row) * place.height() / shape[0]
        return f"{text}  ·  x {x:.2f} mm, y {y:.2f} mm"

    def _leave(self) -> None:
        self._pointer = None
        for view in self.panes:
            view.show_crosshair(None)
        self.hovered.emit("")

    # --- gestures that change the state

    def _activate(self, number: int) -> None:
        if self._state.active_pane != number:
            self._session.set_active_pane(number)

    def _take_slice(self, index: int) -> None:
        index = max(0, min(index, self.slider.maximum()))
        if index != self._state.slice_index:
            self._session.set_slice(index)
        elif self.slider.value() != index or self.slice_box.value() != index:
            self._show_slice()


def _running(state: State, run: Run) -> bool:
    job = find_job(state, run.job)
    return run.result is None and job is not None and job.active


def _entries(state: State) -> tuple[tuple[str, str], ...]:
    """Id and text of each run, newest first."""
    names = {facts.scan: PurePath(facts.path).name for facts in state.scans}
    entries = []
    for run in reversed(state.runs):
        text = run.label
        if len(state.scans) > 1 and run.scan in names:
            text += f" ({names[run.scan]})"
        if _running(state, run):
            text = f"● {text}, running"
        elif run.result is None:
            text += ", no result"
        entries.append((run.run, text))
    return tuple(entries)


def _calibrated(state: State, run: Run) -> bool:
    if run.result is not None:
        return run.result.calibrated
    others = (other for other in state.runs if other.scan == run.scan and not other.is_reference)
    return any(other.result is not None and other.result.calibrated for other in others)


def _place(state: State, picture: Picture | None) -> QRectF:
    """Rectangle of a picture: its field of view in millimetres, its middle at the origin."""
    if picture is None:
        return QRectF(0, 0, 1, 1)
    rows, columns = picture.pixels.shape
    height, width = float(rows), float(columns)
    run = find_run(state, picture.run)
    if run is not None:
        # while a run has no result yet, its field of view is that of the other results of its scan
        results = [run.result] if run.result is not None else []
        results += [r.result for r in state.runs if r.result is not None and r.scan == run.scan and not r.is_reference]
        if results:
            first = results[0]
            # where only one of both has a scale, a reference is laid voxel on voxel on what it is compared with
            scaled = first if all(other.calibrated == first.calibrated for other in results[1:]) else results[1]
            height, width = first.shape[1] * scaled.voxel_mm[1], first.shape[2] * scaled.voxel_mm[2]
    return QRectF(-width / 2, -height / 2, width, height)


def _caption(state: State, pane: Pane) -> tuple[str, str]:
    """What a pane shows, and its data residual, for people."""
    picture = pane.picture
    if picture is None:
        return ("waiting for the first picture" if pane.run is not None else "empty"), ""
    run = find_run(state, picture.run)
    result = "reference" if run is not None and run.is_reference else "result"
    shown = result if picture.step is None else f"iterate {picture.step}"
    text = f"slice {picture.index} · {shown}"
    wanted = find_run(state, pane.run)
    if run is None or run is not wanted:
        # otherwise the chooser above names it
        text = f"{run.label if run is not None else 'earlier result'} · {text}"
    if wanted is not None and wanted.run != picture.run:
        text += f" (waiting for {wanted.label})"
    elif wanted is not None and picture.index != (index := slice_of(state, wanted)):
        if pane.asked is not None:
            text += f" (waiting for slice {index})"
        elif wanted.result is None:
            text += f" (its iterates are kept for slice {wanted.preview_slice})"
        else:
            text += f" (slice {index} is not in this result)"
    if wanted is not None and not wanted.held:
        text += " (picture kept, data gone)"
    residual = _data_residual(run, picture.step)
    return text, "" if residual is None else f"data residual {residual:.3g}"


def _alike(one: Levels, other: Levels) -> bool:
    """Whether two ranges have much in common."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common > max(one[1] - one[0], other[1] - other[0]) / _FEWEST_COMMON


def _data_residual(run: Run | None, step: int | None) -> float | None:
    if run is None or run.is_reference:
        return None
    if step is None:
        return None if run.result is None else run.result.data_residual
    if step in run.steps:
        number = run.steps.index(step)
        return run.data_residuals[number] if number < len(run.data_residuals) else None
    return None


def _hint(state: State, pane: Pane) -> str:
    if pane.run is not None:
        return "Waiting for the first picture"
    if not state.scans:
        return "Open a scan, or drop one here"
    return EMPTY_HINT


def _sound(low: float, high: float) -> Levels:
    """Levels that differ, also for a flat or an empty picture."""
    if not (low == low and high == high):
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-3)
