"""The iterations: look at any iterate of a run again, and compare how the residuals of all runs fall."""

from __future__ import annotations

from bisect import bisect_left
from html import escape

import pyqtgraph as pg
from PySide6.QtCore import QEvent, Qt, QTimer
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSlider, QStyle, QToolButton, QVBoxLayout, QWidget

from equipoise.session import Session
from equipoise.state import Run, State, find_run, slice_of
from equipoise.view.plots import (
    colour_plot,
    log_plot,
    positive_points,
    series_colour,
    series_mark,
    series_pen,
    series_symbol,
)

PLAY_INTERVAL_MS = 150
_DRAW_INTERVAL_MS = 100
"""A solver may report more often than the curves need to be drawn."""
_SYMBOLS_UP_TO = 60
"""Longer curves are drawn without symbols, which would run into each other."""


class IterationsView(QWidget):
    """A slider over the iterates of the run in the active pane, and the residual curves of all runs.

    The right end of the slider is the newest iterate while the run goes on, and its result afterwards. Where
    the active pane shows a direct method, the slider serves the first pane that has iterates.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._state = State()
        self._numbers: dict[str, int] = {}
        """Run -> number of its style; kept for good, so that no curve changes its colour."""
        self._curves: dict[str, tuple[pg.PlotDataItem, pg.PlotDataItem]] = {}

        self.play = QToolButton()
        self.play.setCheckable(True)
        self.play.setAccessibleName("Play")
        self.play.setToolTip("Step through the iterates (Space while this button has the focus)")
        self.play.toggled.connect(self._toggle)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName("Iterate")
        self.slider.setToolTip("Iterate in the active pane; the right end is the result, or the newest iterate")
        self.slider.setPageStep(5)
        self.slider.valueChanged.connect(self._scrub)
        self.label = QLabel()
        self.label.setAccessibleName("Step and residuals")
        self.label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._timer = QTimer(self)
        self._timer.setInterval(PLAY_INTERVAL_MS)
        self._timer.timeout.connect(self._advance)

        self._drawn: tuple[Run, ...] = ()
        self._rest = QTimer(self)
        self._rest.setInterval(_DRAW_INTERVAL_MS)
        self._rest.setSingleShot(True)
        self._rest.timeout.connect(self._draw)

        palette = self.palette()
        self.data_plot = log_plot("Data residual over the iteration", "Data residual  ‖A x − y‖ / ‖y‖", palette)
        self.fixed_point_plot = log_plot(
            "Fixed-point residual over the iteration", "Fixed-point residual  ‖T(x) − x‖ / ‖T(x)‖", palette
        )
        self._plots = (self.data_plot, self.fixed_point_plot)
        # the runs look alike in both plots; their names beside them leave room for the curves
        for plot in self._plots:
            plot.getPlotItem().legend.hide()
        self.names = QLabel()
        self.names.setAccessibleName("Names of the curves")
        self.names.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.names.setFixedWidth(190)
        self.names.setWordWrap(True)
        self._markers = tuple(pg.InfiniteLine(angle=90) for _ in self._plots)
        for plot, marker in zip(self._plots, self._markers, strict=True):
            plot.getPlotItem().getAxis("bottom").setStyle(tickTextOffset=2)
            plot.getPlotItem().addItem(marker, ignoreBounds=True)
            marker.hide()
        self.fixed_point_plot.getPlotItem().setXLink(self.data_plot.getPlotItem())

        row = QHBoxLayout()
        row.addWidget(self.play)
        row.addWidget(self.slider, 1)
        plots = QHBoxLayout()
        plots.setSpacing(6)
        for plot in self._plots:
            plots.addWidget(plot, 1)
        plots.addWidget(self.names)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 6)
        layout.setSpacing(3)
        layout.addLayout(row)
        layout.addWidget(self.label)
        layout.addLayout(plots, 1)
        self._colour()
        self._show_play(False)
        self.show_change(self._state, session.state)
        self._show_position()

    # --- from the state to the widgets

    def show_change(self, old: State, new: State) -> None:
        """Bring what differs between two states onto the screen."""
        old, self._state = self._state, new
        if old.runs is not new.runs:
            known = {run.run for run in self._drawn}
            others = any(run.run not in known for run in new.runs) or len(known) != len(new.runs)
            if others or not self._rest.isActive():
                self._draw()
        if old.runs is not new.runs or old.panes is not new.panes or old.active_pane != new.active_pane:
            if _key(old) != _key(new):
                self.play.setChecked(False)
            self._show_position()

    def _draw(self) -> None:
        """Bring the curves up to date, then rest for a moment."""
        before = {run.run: run for run in self._drawn}
        runs = self._state.runs
        if runs is self._drawn:
            return
        self._drawn = runs
        self._rest.start()
        now = {run.run: run for run in runs}
        for key in [key for key in self._curves if key not in now]:
            for plot, curve in zip(self._plots, self._curves.pop(key), strict=True):
                plot.getPlotItem().removeItem(curve)
        for run in runs:
            if before.get(run.run) is run or not _iterates(run):
                continue
            if run.run not in self._curves:
                self._add_curves(run)
            for curve, values in zip(
                self._curves[run.run], (run.data_residuals, run.fixed_point_residuals), strict=True
            ):
                steps, kept = positive_points(run.steps, values)
                symbol = series_symbol(self._numbers[run.run]) if len(steps) <= _SYMBOLS_UP_TO else None
                curve.setData(steps, kept, symbol=symbol)
        self.names.setText("<br>".join(self._name(run) for run in runs if run.run in self._curves))

    def _name(self, run: Run) -> str:
        number = self._numbers[run.run]
        return f'<span style="color:{series_colour(number)}">{series_mark(number)}</span> {escape(run.label)}'

    def _add_curves(self, run: Run) -> None:
        number = self._numbers.setdefault(run.run, len(self._numbers))
        pen = series_pen(number)
        curves = []
        for plot in self._plots:
            curve = pg.PlotDataItem(
                pen=pen, symbolSize=5, symbolPen=None, symbolBrush=pg.mkBrush(pen.color()), name=run.label
            )
            plot.getPlotItem().addItem(curve)
            curves.append(curve)
        self._curves[run.run] = (curves[0], curves[1])
        self._colour()

    def _show_position(self) -> None:
        pane = self._state.panes[_pane(self._state)]
        run = find_run(self._state, pane.run)
        count = 0 if run is None else len(_iterates(run))
        position = count
        if run is not None and pane.step is not None:
            position = _nearest(run.steps, pane.step)
        self.slider.blockSignals(True)
        self.slider.setRange(0, count)
        self.slider.setValue(position)
        self.slider.blockSignals(False)
        self.slider.setEnabled(count > 0 and run is not None and run.held)
        self.play.setEnabled(self.slider.isEnabled())
        self.label.setText(self._words(run, position))
        looked_at = run.steps[min(position, count - 1)] if run is not None and count else None
        for marker in self._markers:
            marker.setVisible(looked_at is not None)
            if looked_at is not None:
                marker.setValue(looked_at)

    def _words(self, run: Run | None, position: int) -> str:
        if run is None:
            return "The active pane shows no run"
        if not _iterates(run):
            return f"{run.label}: a direct method, without iterates" if run.result else f"{run.label}: no iterate yet"
        number = min(position, len(run.steps) - 1)
        if position < len(run.steps):
            where = f"iterate {run.steps[number]} of {run.steps[-1]}"
        elif run.result is not None:
            where = f"result, after {run.result.iterations} iterations"
        else:
            where = f"newest iterate, {run.steps[-1]}"
        data = _number(run.data_residuals, number)
        fixed_point = _number(run.fixed_point_residuals, number)
        text = f"{run.label}: {where} · data residual {data} · fixed-point residual {fixed_point}"
        return text if run.held else f"{text} · iterates gone with the engine"

    # --- gestures

    def _scrub(self, position: int) -> None:
        number = _pane(self._state)
        run = find_run(self._state, self._state.panes[number].run)
        if run is None or not _iterates(run):
            return
        if slice_of(self._state, run) != run.preview_slice:
            # iterates are kept for this one slice
            self._session.set_slice(run.preview_slice)
        step = run.steps[position] if position < len(run.steps) else None
        self._session.show_run(number, run.run, step)

    def _toggle(self, playing: bool) -> None:
        self._show_play(playing)
        if not playing:
            self._timer.stop()
            return
        if self.slider.value() >= self.slider.maximum():
            self.slider.setValue(0)
        self._timer.start()

    def _advance(self) -> None:
        if self.slider.value() >= self.slider.maximum():
            self.play.setChecked(False)
            return
        # the next picture is asked for when this one has come, however slow the engine is
        if self._state.panes[_pane(self._state)].asked is None:
            self.slider.setValue(self.slider.value() + 1)

    def _show_play(self, playing: bool) -> None:
        icon = QStyle.StandardPixmap.SP_MediaPause if playing else QStyle.StandardPixmap.SP_MediaPlay
        self.play.setIcon(self.style().standardIcon(icon))

    # --- appearance

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()
            self._show_play(self.play.isChecked())

    def _colour(self) -> None:
        palette = self.palette()
        for plot, marker in zip(self._plots, self._markers, strict=True):
            colour_plot(plot, palette)
            marker.setPen(pg.mkPen(palette.color(palette.ColorRole.Highlight), width=2))


def _pane(state: State) -> int:
    """Number of the pane whose iterates are looked at: the active one, or the first that has any."""
    numbers: list[int] = [state.active_pane, *range(len(state.panes))]
    for number in numbers:
        run = find_run(state, state.panes[number].run)
        if run is not None and _iterates(run):
            return number
    return state.active_pane


def _iterates(run: Run) -> tuple[int, ...]:
    """Steps that can be looked at; the one image of a direct method is its result."""
    return run.steps if run.total > 1 else ()


def _key(state: State) -> tuple[int, str | None]:
    number = _pane(state)
    return number, state.panes[number].run


def _nearest(steps: tuple[int, ...], step: int) -> int:
    """Index of the step nearest to `step` in ascending steps."""
    if not steps:
        return 0
    right = min(bisect_left(steps, step), len(steps) - 1)
    left = max(0, right - 1)
    return left if abs(steps[left] - step) < abs(steps[right] - step) else right


def _number(values: tuple[float, ...], index: int) -> str:
    return f"{values[index]:.3g}" if index < len(values) and values[index] == values[index] else "–"
