"""Image volumes that are opened to compare with: in the list of results, in the panes, and with other values."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PySide6.QtWidgets import QFileDialog
from pytestqt.qtbot import QtBot

from equipoise import state as change
from equipoise.commands import COMMANDS
from equipoise.session import Session
from equipoise.settings import Settings, SettingsStore
from equipoise.state import (
    Engine,
    EnginePhase,
    Job,
    JobPhase,
    Pane,
    Picture,
    Run,
    State,
    is_idle,
    reduce,
    slice_count,
)
from equipoise.supervisor import Limits
from equipoise.view.compare import CompareView
from equipoise.view.main import MainWindow
from equipoise.view.scan import outcome
from equipoise_engine.client import EngineLost
from equipoise_engine.protocol import Loaded, Opened, ReconstructSettings, ResultFacts, ScanFacts
from equipoise_engine.recipe import Recipe

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")
SCAN = ScanFacts(
    scan="s",
    path="/data/tooth.h5",
    kind="ct",
    format="HDF5",
    state="counts",
    shape=(9, 4, 64),
    full_shape=(9, 4, 64),
    recipe=Recipe(),
    slices=4,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("fbp", "tv"),
)
CT_VALUES = ResultFacts(
    result="r",
    scan="s",
    method="reference",
    label="Reference head.nii",
    shape=(10, 64, 48),
    first_slice=0,
    voxel_mm=(1.0, 0.5, 0.5),
    calibrated=True,
    unit="HU",
    outcome="direct",
    iterations=0,
    data_residual=math.nan,
    seconds=0.2,
    low=-1000.0,
    high=1500.0,
)
FBP = msgspec.structs.replace(
    CT_VALUES, result="a", method="fbp", label="FBP", shape=(4, 64, 64), unit="1/mm", low=0.0, high=0.02
)


def opened() -> State:
    """Return a state with a scan and its analytic image in the first of two panes."""
    return State(
        engine=Engine(phase=EnginePhase.READY),
        scans=(SCAN,),
        scan="s",
        slice_index=2,
        runs=(Run("a", 1, "s", "FBP", ReconstructSettings(method="fbp"), 2, 1, result=FBP, recipe=Recipe()),),
        panes=(Pane(run="a"), Pane()),
        jobs=(Job(5, "open", "Open reference head.nii", phase=JobPhase.RUNNING),),
    )


def test_a_reference_is_a_result_in_a_pane_of_its_own() -> None:
    state = reduce(opened(), 5, Loaded(facts=CT_VALUES), None)
    run = state.runs[-1]
    assert run.is_reference
    assert (run.label, run.scan, run.result) == ("Reference head.nii", "s", CT_VALUES)
    assert [pane.run for pane in state.panes] == ["a", "r"]
    assert state.jobs[-1].message == "10 slices of 64 × 48, HU"
    assert outcome(state, run) == "10 slices of 64 × 48, HU"
    assert change.unasked(state)[-1][1].run == "r"
    # the same file again is another one
    again = reduce(state, 6, Loaded(facts=msgspec.structs.replace(CT_VALUES, result="q")), None)
    assert again.runs[-1].label == "Reference head.nii #2"


def test_its_slices_can_be_reached_and_the_first_image_keeps_its_pane() -> None:
    state = reduce(opened(), 5, Loaded(facts=CT_VALUES), None)
    assert slice_count(state) == 10
    assert change.set_slice(state, 99).slice_index == 9
    assert slice_count(change.forget_run(state, "r")) == 4


def test_a_reference_without_a_scan_is_shown_and_joins_the_first_scan() -> None:
    state = State(engine=Engine(phase=EnginePhase.READY))
    state = reduce(state, 5, Loaded(facts=msgspec.structs.replace(CT_VALUES, scan="")), None)
    assert (state.runs[-1].scan, state.slice_index, state.panes[0].run) == ("", 5, "r")
    state = reduce(state, 6, Opened(facts=SCAN), None)
    assert state.runs[-1].scan == "s"
    assert slice_count(state) == 10


def test_the_recipes_of_reconstructions_are_counted_without_references() -> None:
    state = State(engine=Engine(phase=EnginePhase.READY), scans=(SCAN,), scan="s")
    state = reduce(state, 5, Loaded(facts=CT_VALUES), None)
    assert change._label(state, ReconstructSettings(method="fbp"), SCAN) == "FBP"


def test_a_lost_engine_leaves_the_picture_and_says_what_to_do() -> None:
    state = reduce(opened(), 5, Loaded(facts=CT_VALUES), None)
    state = reduce(state, 0, EngineLost(cause="it ended", log=(), expected=False), None)
    assert outcome(state, state.runs[-1]) == "picture kept, data gone: open it again"


def test_a_reference_cannot_be_exported() -> None:
    export = next(command for command in COMMANDS if command.id == "export-tiff")
    state = reduce(State(scans=(SCAN,), scan="s"), 5, Loaded(facts=CT_VALUES), None)
    assert not export.enabled(state)
    assert export.enabled(reduce(opened(), 5, Loaded(facts=CT_VALUES), None))


def test_values_of_another_unit_have_levels_of_their_own(qtbot: QtBot) -> None:
    session = Session()
    flat = np.ones((64, 64), np.float32)
    state = reduce(opened(), 5, Loaded(facts=CT_VALUES), None)
    state = showing(state, Picture("a", 2, None, 0.0, 0.02, flat), Picture("r", 2, None, -900.0, 1200.0, flat))
    session._set(state)
    view = CompareView(session)
    qtbot.addWidget(view)
    assert view.levels.linked()
    assert view.panes[0].levels() == (0.0, 0.02)
    assert view.panes[1].levels() == (-900.0, 1200.0)
    view._take_levels(0.0, 0.01)
    assert [pane.levels() for pane in view.panes] == [(0.0, 0.01), (-900.0, 1200.0)]
    session.changed.connect(view.show_change)
    session.set_active_pane(1)
    view._take_levels(0.0, 100.0)
    assert [pane.levels() for pane in view.panes] == [(0.0, 0.01), (0.0, 100.0)]
    session.deleteLater()


@pytest.mark.parametrize(("reference_mm", "scan_mm"), [(None, 0.2), (0.2, None), (0.5, 0.2)])
def test_without_a_scale_pictures_are_laid_voxel_on_voxel(
    qtbot: QtBot, reference_mm: float | None, scan_mm: float | None
) -> None:
    def scaled(facts: ResultFacts, size: float | None) -> ResultFacts:
        voxel = (1.0, size or 1.0, size or 1.0)
        return msgspec.structs.replace(facts, voxel_mm=voxel, calibrated=size is not None)

    session = Session()
    state = reduce(opened(), 5, Loaded(facts=scaled(CT_VALUES, reference_mm)), None)
    state = dataclasses.replace(
        state, runs=(dataclasses.replace(state.runs[0], result=scaled(FBP, scan_mm)), *state.runs[1:])
    )
    one, other = np.ones((64, 64), np.float32), np.ones((64, 48), np.float32)
    session._set(showing(state, Picture("a", 2, None, 0.0, 0.02, one), Picture("r", 2, None, -900.0, 1200.0, other)))
    view = CompareView(session)
    qtbot.addWidget(view)
    result, reference = (pane.place() for pane in view.panes[:2])
    ratio = 1.0 if None in (reference_mm, scan_mm) else 0.5 / 0.2
    assert reference.height() / result.height() == pytest.approx(ratio)
    session.deleteLater()


def showing(state: State, *pictures: Picture) -> State:
    """Return a state whose panes show these pictures."""
    panes = tuple(Pane(run=picture.run, picture=picture) for picture in pictures)
    return State(engine=state.engine, scans=state.scans, scan=state.scan, slice_index=2, runs=state.runs, panes=panes)


@pytest.mark.parametrize(("high", "apart"), [(0.018, False), (1000.0, True)])
def test_values_without_a_unit_are_judged_by_their_range(qtbot: QtBot, high: float, apart: bool) -> None:
    session = Session()
    flat = np.ones((64, 64), np.float32)
    unnamed = msgspec.structs.replace(CT_VALUES, unit="1/mm", low=0.0, high=high)
    state = reduce(opened(), 5, Loaded(facts=unnamed), None)
    session._set(showing(state, Picture("a", 2, None, 0.0, 0.02, flat), Picture("r", 2, None, 0.0, high, flat)))
    view = CompareView(session)
    qtbot.addWidget(view)
    assert view.panes[1].levels() == ((0.0, high) if apart else (0.0, 0.02))
    assert view.panes[1].caption.text() == "slice 2 · reference"
    assert view.panes[1].residual.text() == ""
    session.deleteLater()


# --- with a process


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path) -> Iterator[MainWindow]:
    store = SettingsStore(tmp_path / "settings.ini")
    store.save(Settings(engine_command=(sys.executable, str(SMALL_ENGINE))))
    session = Session(store, Limits(start=20.0, answer=5.0))
    window = MainWindow(session)
    ended: list[bool] = []
    session.closed.connect(lambda: ended.append(True))
    window.show()
    session.start()
    yield window
    session.close()
    qtbot.waitUntil(lambda: bool(ended), timeout=15_000)
    window.hide()
    window.deleteLater()


def until(qtbot: QtBot, window: MainWindow, holds: Callable[[State], bool]) -> None:
    qtbot.waitUntil(lambda: holds(window.session.state), timeout=20_000)


def test_a_reference_is_opened_by_its_command_shown_and_forgotten(
    qtbot: QtBot, window: MainWindow, tmp_path: Path
) -> None:
    until(qtbot, window, is_idle)
    assert window.pages.currentWidget() is window.welcome
    window.actions_by_id["reference-file"].trigger()
    dialog = window.dialog
    assert isinstance(dialog, QFileDialog)
    dialog.fileSelected.emit(str(tmp_path / "head.nii"))
    dialog.close()
    until(qtbot, window, lambda state: bool(state.runs) and is_idle(state))
    state = window.session.state
    assert state.jobs[-1].title == "Open reference head.nii"
    assert state.runs[-1].label == "Reference head.nii"
    assert state.panes[0].picture is not None
    assert window.pages.currentWidget() is window.splitter
    item = window.scan.runs.topLevelItem(0)
    assert item is not None
    assert item.text(0) == "Reference head.nii"
    window.scan.runs.setCurrentItem(item)
    window.scan.forget_action.trigger()
    assert window.session.state.runs == ()


def test_a_reference_stands_beside_a_scan(qtbot: QtBot, window: MainWindow, tmp_path: Path) -> None:
    until(qtbot, window, is_idle)
    window.session.open(str(tmp_path / "scan.h5"))
    until(qtbot, window, lambda state: bool(state.runs) and is_idle(state))
    window.session.open_reference(str(tmp_path / "head.nii"))
    until(qtbot, window, lambda state: len(state.runs) == 2 and is_idle(state))
    state = window.session.state
    assert state.runs[1].scan == state.scan
    assert [pane.run for pane in state.panes] == [state.runs[0].run, state.runs[1].run]
    assert all(pane.picture is not None for pane in state.panes)
