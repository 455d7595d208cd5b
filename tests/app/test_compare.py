"""The panes: what they show, and that zoom, cursor, slice and levels are shared, with real gestures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PySide6.QtCore import QPoint, QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, Job, JobPhase, Pane, Picture, Run, State
from equipoise.view.compare import CompareView
from equipoise.view.pane import NO_NUMBER_COLOUR, PaneView
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
    methods=("fbp", "cgls", "tv", "deq"),
)


def ramp(rows: int, columns: int, factor: float = 1.0) -> NDArray[np.float32]:
    """Return an image in which each pixel has a value of its own."""
    return (np.arange(rows * columns, dtype=np.float32) * factor).reshape(rows, columns)


def finished(run: str, method: str, label: str, pixels: int = 64) -> Run:
    """Return a run with a result of a field of view of 32 mm."""
    facts = ResultFacts(
        result=run,
        scan="s",
        method=method,
        label=label,
        shape=(8, pixels, pixels),
        first_slice=0,
        voxel_mm=(0.5, 32 / pixels, 32 / pixels),
        calibrated=True,
        unit="1/mm",
        outcome="converged",
        iterations=20,
        data_residual=0.0123,
        seconds=1.0,
        low=0.0,
        high=1.0,
    )
    return Run(run, 1, "s", label, ReconstructSettings(method=method), 3, 20, result=facts)


def picture(
    run: str, pixels: NDArray[np.float32], low: float = 0.0, high: float = 1.0, step: int | None = None
) -> Picture:
    return Picture(run, 3, step, low, high, pixels)


def two_panes() -> State:
    """Return a state with FBP in the first pane and TV in the second, of half the size, active."""
    return State(
        engine=Engine(phase=EnginePhase.READY),
        scans=(SCAN,),
        scan="s",
        slice_index=3,
        runs=(finished("a", "fbp", "FBP"), finished("b", "tv", "TV", 32)),
        panes=(
            Pane(run="a", picture=picture("a", ramp(64, 64), 10.0, 4000.0)),
            Pane(run="b", picture=picture("b", ramp(32, 32, 0.5), 5.0, 500.0)),
        ),
        active_pane=1,
    )


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Session]:
    session = Session()
    session._set(two_panes())
    yield session
    session.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, session: Session) -> CompareView:
    view = CompareView(session)
    qtbot.addWidget(view)
    session.changed.connect(view.show_change)
    view.resize(900, 520)
    view.show()
    qtbot.waitExposed(view)
    QApplication.processEvents()
    return view


def on_screen(pane: PaneView, row: float, column: float) -> QPoint:
    """Return the place of a pixel, its middle at whole numbers, in the pane's viewport."""
    pixels, place = pane.pixels(), pane.place()
    assert pixels is not None
    x = place.x() + (column + 0.5) / pixels.shape[1] * place.width()
    y = place.y() + (row + 0.5) / pixels.shape[0] * place.height()
    return pane.view.mapFromScene(pane.box.mapViewToScene(QPointF(x, y)))


def turn_wheel(pane: PaneView, at: QPoint, notches: int, held: Qt.KeyboardModifier) -> None:
    viewport = pane.view.viewport()
    event = QWheelEvent(
        QPointF(at),
        QPointF(viewport.mapToGlobal(at)),
        QPoint(),
        QPoint(0, 120 * notches),
        Qt.MouseButton.NoButton,
        held,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(viewport, event)
    QApplication.processEvents()


def close(a: QRectF, b: QRectF) -> bool:
    return bool(np.allclose(a.getRect(), b.getRect(), rtol=1e-3, atol=1e-3))  # type: ignore[attr-defined]


def seen_colour(pane: PaneView, row: float, column: float) -> QColor:
    image = pane.view.viewport().grab().toImage()
    ratio = image.devicePixelRatio()
    at = on_screen(pane, row, column)
    return image.pixelColor(round(at.x() * ratio), round(at.y() * ratio))


def test_row_0_is_at_the_top_and_column_0_at_the_left(view: CompareView) -> None:
    pane = view.panes[0]
    assert on_screen(pane, 0, 5).y() < on_screen(pane, 63, 5).y()
    assert on_screen(pane, 5, 0).x() < on_screen(pane, 5, 63).x()
    # the ramp grows with the row
    assert seen_colour(pane, 2, 30).lightness() < seen_colour(pane, 60, 30).lightness()


def test_a_picture_has_the_levels_of_the_analytic_one_in_all_panes(view: CompareView) -> None:
    assert view.panes[0].levels() == view.panes[1].levels() == (10.0, 4000.0)
    assert view.levels.levels() == (10.0, 4000.0)


def test_a_typed_level_reaches_all_panes_and_auto_brings_the_analytic_ones_back(
    qtbot: QtBot, view: CompareView
) -> None:
    view.levels.white.setFocus()
    view.levels.white.selectAll()
    qtbot.keyClicks(view.levels.white, "2000")
    qtbot.keyClick(view.levels.white, Qt.Key.Key_Return)
    assert [pane.levels() for pane in view.panes] == [(10.0, 2000.0)] * 2
    qtbot.mouseClick(view.levels.auto_button, Qt.MouseButton.LeftButton)
    assert [pane.levels() for pane in view.panes] == [(10.0, 4000.0)] * 2


def test_dragging_the_white_line_moves_the_levels_of_all_panes(qtbot: QtBot, view: CompareView) -> None:
    view.levels.set_levels(500.0, 2000.0)
    for pane in view.panes:
        pane.set_levels(500.0, 2000.0)
    plot = view.levels._plot
    box = plot.getPlotItem().getViewBox()
    viewport = plot.viewport()

    def place(value: float) -> QPoint:
        point: QPoint = plot.mapFromScene(box.mapViewToScene(QPointF(0.5, value)))
        return point

    start, end = place(2000.0), place(3000.0)
    QTest.mouseMove(viewport, start)
    QTest.mousePress(viewport, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, start)
    for share in np.linspace(0.1, 1.0, 10):
        between = QPoint(start.x(), round(start.y() + share * (end.y() - start.y())))
        QTest.mouseMove(viewport, between, 5)
        qtbot.wait(5)
    QTest.mouseRelease(viewport, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, end)
    low, high = view.levels.levels()
    assert low == pytest.approx(500.0)
    assert 2700 < high < 3300
    assert [pane.levels() for pane in view.panes] == [(low, high)] * 2


def test_without_the_link_each_pane_has_its_own_levels(qtbot: QtBot, view: CompareView, session: Session) -> None:
    view.levels.link.setChecked(False)
    assert view.panes[0].levels() == (10.0, 4000.0)
    assert view.panes[1].levels() == (5.0, 500.0)
    view.levels.black.selectAll()
    qtbot.keyClicks(view.levels.black, "50")
    qtbot.keyClick(view.levels.black, Qt.Key.Key_Return)
    assert view.panes[0].levels() == (10.0, 4000.0)
    assert view.panes[1].levels() == (50.0, 500.0), "only the active pane follows"
    # the next pictures: one pane chooses anew, the other stays where the hand put it
    panes = tuple(
        replace(pane, picture=picture(str(pane.run), ramp(64, 64), 7.0, 70.0)) for pane in session.state.panes
    )
    session._set(replace(session.state, panes=panes))
    assert view.panes[0].levels() == (7.0, 70.0)
    assert view.panes[1].levels() == (50.0, 500.0)
    view.levels.link.setChecked(True)
    assert view.panes[0].levels() == view.panes[1].levels() == (50.0, 500.0)


def test_levels_stay_from_slice_to_slice(view: CompareView, session: Session) -> None:
    state = session.state
    other = Picture("a", 4, None, 0.0, 9.0, ramp(64, 64, 2.0))
    session._set(replace(state, panes=(replace(state.panes[0], picture=other), state.panes[1])))
    assert view.panes[0].levels() == (10.0, 4000.0)


def test_the_wheel_zooms_all_panes_to_the_same_part(view: CompareView) -> None:
    before = view.panes[0].seen()
    turn_wheel(view.panes[0], on_screen(view.panes[0], 20, 20), 2, Qt.KeyboardModifier.NoModifier)
    first, second = view.panes[0].seen(), view.panes[1].seen()
    assert first.width() < 0.9 * before.width()
    assert close(first, second)
    # the same place of the object lies at the same place of both panes, although their pixels differ in size
    assert (on_screen(view.panes[0], 20.5, 20.5) - on_screen(view.panes[1], 10, 10)).manhattanLength() <= 3
    view.reset_zoom()
    assert close(view.panes[0].seen(), before)
    assert close(view.panes[1].seen(), before)


def test_dragging_pans_all_panes(view: CompareView) -> None:
    pane = view.panes[0]
    viewport = pane.view.viewport()
    before = pane.seen()
    start = on_screen(pane, 32, 32)
    QTest.mousePress(viewport, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, start)
    for step in range(1, 9):
        QTest.mouseMove(viewport, start + QPoint(5 * step, 0), 10)
    QTest.mouseRelease(viewport, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, start + QPoint(40, 0))
    assert pane.seen().x() < before.x()
    assert close(view.panes[0].seen(), view.panes[1].seen())


def test_keys_zoom_pan_and_reset(qtbot: QtBot, view: CompareView) -> None:
    pane = view.panes[0]
    home = pane.seen()
    pane.view.setFocus()
    qtbot.keyClick(pane.view, Qt.Key.Key_Plus)
    assert view.panes[1].seen().width() == pytest.approx(0.8 * home.width(), rel=1e-3)
    qtbot.keyClick(pane.view, Qt.Key.Key_Right)
    assert view.panes[1].seen().center().x() > home.center().x()
    qtbot.keyClick(pane.view, Qt.Key.Key_0)
    assert close(view.panes[1].seen(), home)


def test_the_cursor_names_pixel_place_and_the_value_of_each_pane(
    qtbot: QtBot, view: CompareView, session: Session
) -> None:
    session.set_active_pane(0)
    QTest.mouseMove(view.panes[0].view.viewport(), on_screen(view.panes[0], 30, 30))
    with qtbot.waitSignal(view.hovered) as heard:
        QTest.mouseMove(view.panes[0].view.viewport(), on_screen(view.panes[0], 10, 21))
    text = str(heard.args[0])
    assert "row 10, column 21" in text
    # 64 pixels of 0.5 mm, origin at (31.5, 31.5), y upwards
    assert "x -5.25 mm, y 10.75 mm" in text
    assert f"FBP: {10 * 64 + 21}" in text
    assert f"TV: {(5 * 32 + 10) * 0.5:g}" in text
    assert view.panes[0].value.text() == "661"
    assert view.panes[1].value.text() == "85"
    assert view.panes[1].value.isVisible()
    for pane in view.panes:
        assert pane._across.isVisible()
        assert pane._across.value() == pytest.approx(view.panes[0]._across.value())


def test_outside_a_picture_there_is_no_value(view: CompareView) -> None:
    view._point(QPointF(100.0, 0.0))
    assert view.panes[0].value.text() == ""
    assert not view.panes[0].value.isVisible()


def test_pixels_that_are_no_numbers_have_a_colour_of_their_own(view: CompareView, session: Session) -> None:
    pixels = ramp(64, 64)
    pixels[10:30, 10:30] = np.nan
    pixels[40:50, 40:50] = np.inf
    panes = (Pane(run="a", picture=picture("a", pixels, 0.0, 4000.0)), session.state.panes[1])
    session._set(replace(session.state, panes=panes))
    QApplication.processEvents()
    pane = view.panes[0]
    assert seen_colour(pane, 20, 20) == NO_NUMBER_COLOUR
    assert seen_colour(pane, 45, 45) == NO_NUMBER_COLOUR
    assert seen_colour(pane, 35, 20) != NO_NUMBER_COLOUR
    assert pane.legend.isVisible()
    assert not view.panes[1].legend.isVisible()


def test_a_pane_keeps_its_picture_until_the_next_one_comes(view: CompareView, session: Session) -> None:
    before = view.panes[1].pixels()
    session._set(replace(session.state, runs=(*session.state.runs, finished("c", "cgls", "CGLS"))))
    session.show_run(1, "c")
    assert view.panes[1].pixels() is before
    assert view.panes[1].image.isVisible()
    assert "waiting for CGLS" in view.panes[1].caption.text()
    panes = (session.state.panes[0], replace(session.state.panes[1], picture=picture("c", ramp(64, 64))))
    session._set(replace(session.state, panes=panes))
    assert view.panes[1].pixels() is panes[1].picture.pixels  # type: ignore[union-attr]
    assert view.panes[1].caption.text() == "slice 3 · result"


def test_an_empty_pane_says_what_to_do(view: CompareView, session: Session) -> None:
    session.set_pane_count(3)
    QApplication.processEvents()
    assert len(view.panes) == 3
    assert view.panes[2].hint.isVisible()
    assert view.panes[2].hint.text() == "Reconstruct with another method to compare"


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3)])
def test_panes_lie_in_a_tidy_grid(view: CompareView, session: Session, count: int, columns: int) -> None:
    session.set_pane_count(count)
    QApplication.processEvents()
    assert len({pane.x() for pane in view.panes}) == columns
    assert len({pane.y() for pane in view.panes}) == count // columns
    assert max(pane.width() for pane in view.panes) - min(pane.width() for pane in view.panes) <= 2


def test_a_click_on_a_picture_makes_its_pane_the_active_one(qtbot: QtBot, view: CompareView, session: Session) -> None:
    qtbot.mouseClick(view.panes[0].view.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(60, 60))
    assert session.state.active_pane == 0
    assert view.panes[0].accessibleName() == "Pane 1, active"
    assert view.panes[1].accessibleName() == "Pane 2"


def test_the_chooser_shows_another_run_in_its_pane(qtbot: QtBot, view: CompareView, session: Session) -> None:
    chooser = view.panes[1].chooser
    assert [chooser.itemText(row) for row in range(chooser.count())] == ["TV", "FBP"]
    assert chooser.currentText() == "TV"
    chooser.setFocus()
    qtbot.keyClick(chooser, Qt.Key.Key_Down)
    assert session.state.panes[1].run == "a"


def test_a_running_run_is_marked_and_its_iterate_is_named(view: CompareView, session: Session) -> None:
    live = Run(
        "c",
        7,
        "s",
        "Equilibrium",
        ReconstructSettings(method="deq"),
        3,
        50,
        steps=(1, 2),
        data_residuals=(0.5, 0.25),
        fixed_point_residuals=(1.0, 0.1),
    )
    pane = Pane(run="c", picture=picture("c", ramp(64, 64), step=2))
    session._set(
        replace(
            session.state,
            runs=(*session.state.runs, live),
            jobs=(Job(7, "reconstruct", "x", JobPhase.RUNNING),),
            panes=(session.state.panes[0], pane),
        )
    )
    assert view.panes[1].chooser.currentText() == "● Equilibrium, running"
    assert view.panes[1].caption.text() == "slice 3 · iterate 2"
    assert view.panes[1].residual.text() == "data residual 0.25"
    # without a result of its own, its field of view is that of the scan's other results
    assert view.panes[1].place() == view.panes[0].place()


def test_slider_box_wheel_and_keys_choose_the_slice(qtbot: QtBot, view: CompareView, session: Session) -> None:
    assert (view.slider.minimum(), view.slider.maximum(), view.slider.value()) == (0, 7, 3)
    view.slider.setFocus()
    qtbot.keyClick(view.slider, Qt.Key.Key_Right)
    assert session.state.slice_index == 4
    assert view.slice_box.value() == 4
    view.slice_box.lineEdit().selectAll()
    qtbot.keyClicks(view.slice_box, "6")
    qtbot.keyClick(view.slice_box, Qt.Key.Key_Return)
    assert session.state.slice_index == 6
    pane = view.panes[0]
    seen = pane.seen()
    turn_wheel(pane, QPoint(80, 80), 1, Qt.KeyboardModifier.ControlModifier)
    assert session.state.slice_index == 5
    assert close(pane.seen(), seen), "turning through the slices must not zoom"
    turn_wheel(pane, QPoint(80, 80), -1, Qt.KeyboardModifier.ShiftModifier)
    assert session.state.slice_index == 6
    pane.view.setFocus()
    qtbot.keyClick(pane.view, Qt.Key.Key_PageDown)
    qtbot.keyClick(pane.view, Qt.Key.Key_PageDown)
    assert session.state.slice_index == 7, "the last slice is the end"
    qtbot.keyClick(pane.view, Qt.Key.Key_Home)
    assert session.state.slice_index == 0
    assert view.slider.value() == 0


def test_a_slice_that_a_result_lacks_is_said_so(view: CompareView, session: Session) -> None:
    run = session.state.runs[1]
    assert run.result is not None
    only = replace(run, result=msgspec.structs.replace(run.result, first_slice=3, shape=(1, 32, 32)))
    session._set(replace(session.state, runs=(session.state.runs[0], only)))
    session.set_slice(6)
    assert "slice 6 is not in this result" in view.panes[1].caption.text()
    assert view.panes[1].image.isVisible()


def test_a_colour_map_reaches_all_panes(qtbot: QtBot, view: CompareView, session: Session) -> None:
    view.levels.maps.setFocus()
    qtbot.keyClicks(view.levels.maps, "v")
    assert view.levels.maps.currentText() == "viridis"
    QApplication.processEvents()
    for pane in view.panes:
        colour = seen_colour(pane, 0, 3)
        assert colour.blue() > colour.green() + 40, "the low end of viridis is violet"


def test_a_picture_is_not_copied(view: CompareView, session: Session) -> None:
    pixels = ramp(64, 64)
    panes = (replace(session.state.panes[0], picture=picture("a", pixels)), session.state.panes[1])
    session._set(replace(session.state, panes=panes))
    assert view.panes[0].pixels() is pixels
    assert np.shares_memory(view.panes[0].image.image, pixels)


def test_flat_and_empty_pictures_do_no_harm(view: CompareView, session: Session) -> None:
    for pixels, low, high in (
        (np.zeros((16, 16), np.float32), 0.0, 0.0),
        (np.full((16, 16), np.nan, np.float32), float("nan"), float("nan")),
    ):
        panes = (Pane(run="a", picture=picture("a", pixels, low, high)), session.state.panes[1])
        session._set(replace(session.state, panes=panes))
        view.auto_levels()
        QApplication.processEvents()
        view.grab()
        levels = view.panes[0].levels()
        assert levels is not None
        assert levels[1] > levels[0]
