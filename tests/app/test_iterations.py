"""The iterations: scrubbing, playing, and residual curves on logarithmic axes, with real gestures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, Job, JobPhase, Pane, Run, State
from equipoise.view.iterations import IterationsView
from equipoise.view.plots import SERIES_COLOURS, log_ticks, positive_points
from equipoise_engine.protocol import ReconstructSettings, ResultFacts, ScanFacts
from equipoise_engine.recipe import Recipe

SCAN = ScanFacts(
    scan="s",
    path="/data/tooth.h5",
    kind="ct",
    format="Data Exchange HDF5",
    state="counts",
    shape=(181, 8, 64),
    full_shape=(181, 8, 64),
    recipe=Recipe(),
    slices=8,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("fbp", "cgls"),
)


def run(key: str, label: str, steps: tuple[int, ...], *, done: bool = True, zero_at: int | None = None) -> Run:
    """Return a run whose residuals halve at each step."""
    data = [0.5**n for n in range(1, len(steps) + 1)]
    fixed_point = [0.1 * value for value in data]
    if zero_at is not None:
        data[zero_at] = 0.0
        fixed_point[zero_at] = float("nan")
    facts = ResultFacts(
        result=key,
        scan="s",
        method="cgls",
        label=label,
        shape=(8, 64, 64),
        first_slice=0,
        voxel_mm=(1.0, 1.0, 1.0),
        calibrated=False,
        unit="1/px",
        outcome="converged",
        iterations=steps[-1] if steps else 1,
        data_residual=data[-1] if data else 0.1,
        seconds=1.0,
        low=0.0,
        high=1.0,
    )
    return Run(
        key,
        1,
        "s",
        label,
        ReconstructSettings(method="cgls"),
        3,
        20,
        steps=steps,
        data_residuals=tuple(data),
        fixed_point_residuals=tuple(fixed_point),
        result=facts if done else None,
    )


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Session]:
    session = Session()
    session._set(
        State(
            engine=Engine(phase=EnginePhase.READY),
            scans=(SCAN,),
            scan="s",
            slice_index=3,
            runs=(run("a", "CGLS", (1, 2, 3, 4, 5)), run("b", "CGLS 2", (2, 4, 6, 8), zero_at=1)),
            panes=(Pane(run="a"), Pane(run="b")),
        )
    )
    yield session
    session.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, session: Session) -> IterationsView:
    view = IterationsView(session)
    qtbot.addWidget(view)
    session.changed.connect(view.show_change)
    view.resize(800, 300)
    view.show()
    qtbot.waitExposed(view)
    QApplication.processEvents()
    return view


def test_the_right_end_is_the_result_and_each_step_to_the_left_an_iterate(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    assert view.slider.value() == view.slider.maximum() == 5
    assert view.label.text().startswith("CGLS: result, after 5 iterations")
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Left)
    assert session.state.panes[0].step == 5
    qtbot.keyClick(view.slider, Qt.Key.Key_Left)
    assert session.state.panes[0].step == 4
    assert view.label.text() == "CGLS: iterate 4 of 5 · data residual 0.0625 · fixed-point residual 0.00625"
    assert [marker.value() for marker in view._markers] == [4, 4]
    qtbot.keyClick(view.slider, Qt.Key.Key_Home)
    assert session.state.panes[0].step == 1
    qtbot.keyClick(view.slider, Qt.Key.Key_End)
    assert session.state.panes[0].step is None


def test_scrubbing_acts_on_the_active_pane_only(qtbot: QtBot, view: IterationsView, session: Session) -> None:
    session.set_active_pane(1)
    assert view.slider.maximum() == 4
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Home)
    assert session.state.panes[1].step == 2
    assert session.state.panes[0].step is None


def test_beside_a_direct_method_in_the_active_pane_the_other_run_is_scrubbed(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    runs = (run("d", "FBP", ()), session.state.runs[1])
    session._set(replace(session.state, runs=runs, panes=(Pane(run="d"), Pane(run="b"))))
    assert view.label.text().startswith("CGLS 2: result")
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Home)
    assert [pane.step for pane in session.state.panes] == [None, 2]
    assert [pane.run for pane in session.state.panes] == ["d", "b"]


def test_scrubbing_goes_to_the_slice_whose_iterates_are_kept(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    session.set_slice(6)
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Home)
    assert session.state.slice_index == 3


def test_while_a_run_goes_on_the_slider_follows_or_stays_where_it_was_put(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    def live(count: int) -> State:
        steps = tuple(range(1, count + 1))
        return replace(
            session.state,
            runs=(run("a", "CGLS", steps, done=False), session.state.runs[1]),
            jobs=(Job(1, "reconstruct", "x", JobPhase.RUNNING),),
        )

    session._set(live(6))
    assert view.slider.value() == view.slider.maximum() == 6
    assert "newest iterate, 6" in view.label.text()
    session._set(live(7))
    assert view.slider.value() == view.slider.maximum() == 7
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Home)
    session._set(live(9))
    assert view.slider.value() == 0
    assert view.slider.maximum() == 9
    assert session.state.panes[0].step == 1


def test_play_steps_through_all_iterates_and_ends_at_the_result(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    seen: list[int | None] = []
    session.changed.connect(lambda old, new: seen.append(new.panes[0].step))
    view._timer.setInterval(5)
    qtbot.mouseClick(view.play, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not view.play.isChecked(), timeout=3000)
    assert seen == [1, 2, 3, 4, 5, None]


def test_play_waits_for_a_picture_that_is_under_way(qtbot: QtBot, view: IterationsView, session: Session) -> None:
    view._timer.setInterval(5)
    qtbot.mouseClick(view.play, Qt.MouseButton.LeftButton)
    session._set(replace(session.state, panes=(replace(session.state.panes[0], asked=99), session.state.panes[1])))
    at = view.slider.value()
    qtbot.wait(80)
    assert view.slider.value() == at
    session._set(replace(session.state, panes=(replace(session.state.panes[0], asked=None), session.state.panes[1])))
    qtbot.waitUntil(lambda: not view.play.isChecked(), timeout=3000)


def test_curves_of_all_runs_are_overlaid_and_told_apart_without_colour(view: IterationsView) -> None:
    for plot in (view.data_plot, view.fixed_point_plot):
        curves = plot.getPlotItem().listDataItems()
        assert [curve.name() for curve in curves] == ["CGLS", "CGLS 2"]
        pens = [curve.opts["pen"] for curve in curves]
        assert pens[0].color().name().upper() == SERIES_COLOURS[0]
        assert pens[1].color().name().upper() == SERIES_COLOURS[1]
        assert pens[0].style() != pens[1].style()
        assert curves[0].opts["symbol"] != curves[1].opts["symbol"]
        assert plot.getPlotItem().getAxis("left").logMode
    assert [line.split("</span> ")[1] for line in view.names.text().split("<br>")] == ["CGLS", "CGLS 2"]
    assert "●" in view.names.text()
    assert "■" in view.names.text()


def test_a_fast_solver_is_drawn_at_leisure_but_to_its_last_step(
    qtbot: QtBot, view: IterationsView, session: Session
) -> None:
    drawn: list[object] = []
    view.data_plot.getPlotItem().listDataItems()[0].sigPlotChanged.connect(drawn.append)
    for count in range(6, 46):
        steps = tuple(range(1, count + 1))
        runs = (run("a", "CGLS", steps, done=False), session.state.runs[1])
        session._set(replace(session.state, runs=runs))

    def last() -> float:
        x, _ = view.data_plot.getPlotItem().listDataItems()[0].getOriginalDataset()
        return float(x[-1])

    qtbot.waitUntil(lambda: last() == 45, timeout=2000)
    assert len(drawn) < 40


def test_curves_follow_the_palette(qtbot: QtBot, view: IterationsView) -> None:
    palette = QPalette(view.palette())
    palette.setColor(QPalette.ColorRole.Base, QColor("#101418"))
    palette.setColor(QPalette.ColorRole.Text, QColor("#f0f4f8"))
    view.setPalette(palette)
    QApplication.processEvents()
    for plot in (view.data_plot, view.fixed_point_plot):
        assert plot.backgroundBrush().color() == QColor("#101418")
        assert plot.getPlotItem().getAxis("left").textPen().color() == QColor("#f0f4f8")


def test_zeros_and_nan_are_left_out_of_the_logarithmic_plots(view: IterationsView) -> None:
    curve = view.data_plot.getPlotItem().listDataItems()[1]
    x, y = curve.getOriginalDataset()
    assert list(x) == [2, 6, 8]
    assert np.allclose(y, [0.5, 0.125, 0.0625])
    x, _ = view.fixed_point_plot.getPlotItem().listDataItems()[1].getOriginalDataset()
    assert list(x) == [2, 6, 8]
    view.grab()


def test_a_run_of_zeros_only_draws_nothing_and_warns_of_nothing(view: IterationsView, session: Session) -> None:
    flat = replace(run("c", "Zeros", (1, 2, 3)), data_residuals=(0.0,) * 3, fixed_point_residuals=(0.0,) * 3)
    session._set(replace(session.state, runs=(flat,), panes=(Pane(run="c"), Pane())))
    QApplication.processEvents()
    view.grab()
    assert len(view.data_plot.getPlotItem().listDataItems()) == 1
    assert "data residual 0 " in view.label.text()


def test_a_run_that_is_forgotten_leaves_the_plots_and_the_others_keep_their_colour(
    view: IterationsView, session: Session
) -> None:
    session.forget("a")
    curves = view.data_plot.getPlotItem().listDataItems()
    assert [curve.name() for curve in curves] == ["CGLS 2"]
    assert curves[0].opts["pen"].color().name().upper() == SERIES_COLOURS[1]


def test_without_iterates_there_is_nothing_to_scrub(view: IterationsView, session: Session) -> None:
    session._set(replace(session.state, runs=(run("d", "FBP", ()),), panes=(Pane(run="d"), Pane())))
    assert not view.slider.isEnabled()
    assert not view.play.isEnabled()
    assert view.label.text() == "FBP: a direct method, without iterates"
    assert not view._markers[0].isVisible()


def test_iterates_that_went_with_their_engine_cannot_be_scrubbed(view: IterationsView, session: Session) -> None:
    runs = tuple(replace(r, held=False) for r in session.state.runs)
    session._set(replace(session.state, runs=runs))
    assert not view.slider.isEnabled()
    assert "gone with the engine" in view.label.text()


def test_positive_points_pairs_steps_with_values_that_can_be_drawn() -> None:
    x, y = positive_points((1, 2, 3, 4, 5, 6), (1.0, 0.0, -1.0, float("inf"), float("nan"), 0.25))
    assert list(x) == [1, 6]
    assert list(y) == [1.0, 0.25]
    x, y = positive_points((1, 2), (0.5,))
    assert list(x) == [1]


@pytest.mark.parametrize(
    ("low", "high"), [(-1.7, 0.0), (-9.0, 0.3), (-0.05, 0.02), (-30.0, 5.0), (-1.52, -1.511), (-3.05, -3.04999)]
)
def test_log_ticks_are_few_ascending_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high, 8)
    positions = [position for position, _ in ticks]
    assert positions == sorted(positions)
    assert len(positions) <= 8
    assert all(low <= position <= high for position in positions)
    assert all(float(text) == pytest.approx(10**position, rel=1e-2) for position, text in ticks)
    assert len({text for _, text in ticks}) == len(ticks) > 1
