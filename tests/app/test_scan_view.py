"""What is open: scans, facts, matches, warnings and results, with real gestures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QMenu, QTreeWidget, QTreeWidgetItem
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, Job, JobPhase, Pane, Run, State
from equipoise.view.scan import ScanView, outcome
from equipoise_engine.protocol import MatchFact, MemoryFacts, ReconstructSettings, ResultFacts, ScanFacts
from equipoise_engine.recipe import NegativeLog, Recipe, Selection, Span

CT = ScanFacts(
    scan="ct",
    path="/data/tooth.h5",
    kind="ct",
    format="Data Exchange HDF5",
    state="counts",
    shape=(181, 8, 64),
    full_shape=(181, 8, 64),
    recipe=Recipe(),
    slices=8,
    geometry=(("pixel size", "0.5 mm"), ("rotation centre", "31.25 px (found)")),
    matched=(MatchFact(role="flats", source="/exchange/data_white", shape=(10, 8, 64), reason="its name"),),
    warnings=("The file names no angles.", "Three columns are dead."),
    methods=("fbp", "cgls"),
)
MRI = ScanFacts(
    scan="mri",
    path="/data/brain.h5",
    kind="mri",
    format="fastMRI HDF5",
    state="k-space",
    shape=(5, 8, 64, 48),
    full_shape=(5, 8, 64, 48),
    recipe=Recipe(),
    slices=5,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("zerofilled",),
)
RESULT = ResultFacts(
    result="a",
    scan="ct",
    method="fbp",
    label="FBP",
    shape=(8, 64, 64),
    first_slice=0,
    voxel_mm=(0.5, 0.5, 0.5),
    calibrated=True,
    unit="1/mm",
    outcome="direct",
    iterations=1,
    data_residual=0.0815,
    seconds=0.42,
    low=0.0,
    high=1.0,
)


def run(key: str, label: str, result: ResultFacts | None = RESULT) -> Run:
    settings = ReconstructSettings(method="cgls")
    return Run(key, 1, "ct", label, settings, 3, 100, result=result)


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Session]:
    session = Session()
    session._set(
        State(
            engine=Engine(phase=EnginePhase.READY),
            scans=(CT, MRI),
            scan="ct",
            slice_index=3,
            runs=(run("a", "FBP"), run("b", "CGLS")),
            panes=(Pane(run="a"), Pane()),
            active_pane=1,
        )
    )
    yield session
    session.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, session: Session) -> ScanView:
    view = ScanView(session)
    qtbot.addWidget(view)
    session.changed.connect(view.show_change)
    view.resize(320, 640)
    view.show()
    qtbot.waitExposed(view)
    return view


def rows(tree: QTreeWidget) -> list[list[str]]:
    items = [tree.topLevelItem(row) for row in range(tree.topLevelItemCount())]
    return [[item.text(column) for column in range(tree.columnCount())] for item in items if item is not None]


def item_at(tree: QTreeWidget, row: int) -> QTreeWidgetItem:
    item = tree.topLevelItem(row)
    assert item is not None
    return item


def middle(tree: QTreeWidget, row: int) -> QPoint:
    return tree.visualItemRect(item_at(tree, row)).center()


def test_the_open_scans_are_listed_and_a_click_selects_one(qtbot: QtBot, view: ScanView, session: Session) -> None:
    assert rows(view.scans) == [["tooth.h5", "CT Data Exchange HDF5"], ["brain.h5", "MRI fastMRI HDF5"]]
    current = view.scans.currentItem()
    assert current is not None
    assert current.text(0) == "tooth.h5"
    qtbot.mouseClick(view.scans.viewport(), Qt.MouseButton.LeftButton, pos=middle(view.scans, 1))
    assert session.state.scan == "mri"
    qtbot.keyClick(view.scans, Qt.Key.Key_Up)
    assert session.state.scan == "ct"


def test_the_facts_are_those_of_the_selected_scan(view: ScanView, session: Session) -> None:
    facts = dict(rows(view.facts))
    assert facts["Data state"] == "counts (not corrected yet)"
    assert facts["Shape"] == "181 × 8 × 64 (view, row, column)"
    assert facts["Rotation centre"] == "31.25 px (found)"
    session.select_scan("mri")
    facts = dict(rows(view.facts))
    assert facts["Shape"] == "5 × 8 × 64 × 48 (slice, coil, ky, kx)"
    assert "Rotation centre" not in facts


def test_what_was_matched_is_shown_with_its_reason(view: ScanView) -> None:
    assert rows(view.matched) == [["flats", "/exchange/data_white", "10 × 8 × 64", "its name"]]


def test_a_button_asks_to_change_what_was_matched(qtbot: QtBot, view: ScanView) -> None:
    view.tabs.setCurrentIndex(1)
    with qtbot.waitSignal(view.change_wanted, timeout=1000):
        qtbot.mouseClick(view.change_button, Qt.MouseButton.LeftButton)


def test_the_facts_tell_what_is_taken_and_what_it_needs(view: ScanView, session: Session) -> None:
    assert "Selection" not in dict(rows(view.facts))
    memory = MemoryFacts(
        host_bytes=1, host_free=2, device_bytes=0, device_free=0, disk_bytes=1, text="Needs 1 of 2 bytes."
    )
    part = msgspec.structs.replace(
        CT,
        recipe=Recipe(selection=Selection(rows=Span(first=2, last=6)), steps=(NegativeLog(),)),
        memory=memory,
    )
    session._set(replace(session.state, scans=(part, MRI)))
    facts = dict(rows(view.facts))
    assert facts["Selection"] == "181 views, 4 of 8 rows, 64 columns: 50 % of the data"
    assert facts["Memory"] == "Needs 1 of 2 bytes."
    assert "Step 1" in facts


def test_warnings_have_words_a_sign_and_amber(view: ScanView, session: Session) -> None:
    assert view.warnings.isVisible()
    assert view.warnings.text.text() == "Warning: The file names no angles.\nWarning: Three columns are dead."
    assert not view.warnings._sign.pixmap().isNull()
    ground = QColor(view.warnings.palette().color(QPalette.ColorRole.Window))
    assert ground.red() > ground.blue()
    session.select_scan("mri")
    assert not view.warnings.isVisible()


def test_results_are_listed_newest_first_with_their_outcome(view: ScanView) -> None:
    assert rows(view.runs) == [["CGLS", "0.0815", "0.42"], ["FBP", "0.0815", "0.42"]]
    below = item_at(view.runs, 0).child(0)
    assert below is not None
    assert below.text(0) == "direct, no iterations"
    assert item_at(view.runs, 0).isExpanded()


@pytest.mark.parametrize(
    ("name", "iterations", "words"),
    [
        ("converged", 23, "converged in 23 iterations"),
        ("converged", 1, "converged in 1 iteration"),
        ("max_steps", 100, "reached the limit of 100 iterations, not converged"),
        ("diverged", 7, "diverged after 7 iterations, not to be trusted"),
        ("stopped", 12, "stopped and kept after 12 iterations"),
        ("direct", 1, "direct, no iterations"),
    ],
)
def test_outcomes_in_words(name: str, iterations: int, words: str) -> None:
    result = msgspec.structs.replace(RESULT, outcome=name, iterations=iterations)
    assert outcome(State(), run("a", "A", result)) == words


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (JobPhase.RUNNING, "running, iterate 2 of at most 100"),
        (JobPhase.CANCELLED, "cancelled"),
        (JobPhase.FAILED, "failed"),
    ],
)
def test_a_run_without_result_says_why(phase: JobPhase, words: str) -> None:
    live = replace(run("a", "A", None), steps=(1, 2), data_residuals=(0.5, 0.25))
    assert outcome(State(jobs=(Job(1, "reconstruct", "x", phase),)), live) == words


def test_a_result_whose_engine_is_gone_says_so_with_a_sign(view: ScanView, session: Session) -> None:
    assert item_at(view.runs, 1).icon(0).isNull()
    runs = (replace(session.state.runs[0], held=False), session.state.runs[1])
    session._set(replace(session.state, runs=runs))
    below = item_at(view.runs, 1).child(0)
    assert below is not None
    assert below.text(0) == "picture kept, data gone: run again"
    assert not item_at(view.runs, 1).icon(0).isNull()
    assert item_at(view.runs, 0).icon(0).isNull()


def test_a_double_click_or_enter_shows_a_result_in_the_active_pane(
    qtbot: QtBot, view: ScanView, session: Session
) -> None:
    at = middle(view.runs, 0)
    viewport = view.runs.viewport()
    qtbot.mouseClick(viewport, Qt.MouseButton.LeftButton, pos=at)
    qtbot.mouseDClick(viewport, Qt.MouseButton.LeftButton, pos=at)
    assert session.state.panes[1].run == "b"
    view.runs.setCurrentItem(item_at(view.runs, 1))
    view.show_action.trigger()
    assert session.state.panes[1].run == "a"


def test_delete_forgets_a_result_but_not_one_that_runs(qtbot: QtBot, view: ScanView, session: Session) -> None:
    session._set(
        replace(
            session.state,
            runs=(*session.state.runs, replace(run("c", "TV", None), job=9)),
            jobs=(Job(9, "reconstruct", "x", JobPhase.RUNNING),),
        )
    )
    view.activateWindow()
    view.runs.setFocus()
    view.runs.setCurrentItem(item_at(view.runs, 0))
    assert not view.forget_action.isEnabled()
    view.runs.setCurrentItem(item_at(view.runs, 1))
    assert view.forget_action.isEnabled()
    qtbot.keyClick(view.runs, Qt.Key.Key_Delete)
    assert [r.run for r in session.state.runs] == ["a", "c"]
    assert [row[0] for row in rows(view.runs)] == ["TV", "FBP"]


def test_the_menu_offers_what_can_be_done(qtbot: QtBot, view: ScanView, session: Session) -> None:
    at = middle(view.runs, 1)
    qtbot.mouseClick(view.runs.viewport(), Qt.MouseButton.LeftButton, pos=at)
    view.runs.customContextMenuRequested.emit(at)
    menu = QApplication.activePopupWidget()
    assert isinstance(menu, QMenu)
    assert [action.text() for action in menu.actions()] == ["Show in active pane", "Forget this result"]
    qtbot.keyClick(menu, Qt.Key.Key_Down)
    qtbot.keyClick(menu, Qt.Key.Key_Return)
    assert session.state.panes[1].run == "a"


def test_a_step_of_a_running_run_keeps_the_selection(view: ScanView, session: Session) -> None:
    live = replace(run("c", "TV", None), job=9)
    jobs = (Job(9, "reconstruct", "x", JobPhase.RUNNING),)
    session._set(replace(session.state, runs=(*session.state.runs, live), jobs=jobs))
    view.runs.setCurrentItem(item_at(view.runs, 2))
    stepped = replace(live, steps=(1,), data_residuals=(0.125,), fixed_point_residuals=(1.0,))
    session._set(replace(session.state, runs=(*session.state.runs[:2], stepped)))
    assert rows(view.runs)[0] == ["TV", "0.125", ""]
    assert view.runs.currentItem() is item_at(view.runs, 2)
