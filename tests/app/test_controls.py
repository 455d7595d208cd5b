"""The controls: which parameters each method has, and that they become the right settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QFileDialog
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.state import Engine, EnginePhase, State
from equipoise.view.controls import SENTENCES, ControlsView
from equipoise_engine.protocol import ReconstructSettings, ScanFacts
from equipoise_engine.recipe import Known, NegativeLog, Recipe

CT = ScanFacts(
    scan="ct",
    path="/data/tooth.h5",
    kind="ct",
    format="Data Exchange HDF5",
    state="counts",
    shape=(181, 8, 64),
    full_shape=(181, 8, 64),
    recipe=Recipe(known=Known(centre_px=31.25), steps=(NegativeLog(),)),
    slices=8,
    geometry=(("views", "181"), ("rotation centre", "31.25 px (found)")),
    matched=(),
    warnings=(),
    methods=("fbp", "cgls", "sirt", "tv", "wavelet", "deq"),
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
    methods=("zerofilled", "grappa", "sense", "tv", "wavelet", "deq"),
)
CONE = msgspec.structs.replace(CT, scan="cone", methods=("fdk", "cgls", "sirt", "tv"))
VOLUME = {"views_every", "centre_button"}
ITERATED = VOLUME | {"footprint"}
COILS = {"accelerate"}
MAPS = COILS | {"coil_maps"}
ITERATION = {"iterations", "tolerance"}


class Listener(Session):
    """A session that notes what it would send to the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ReconstructSettings] = []
        self.opened: list[tuple[str, Recipe]] = []

    def reconstruct(self, settings: ReconstructSettings) -> None:
        self.asked.append(settings)

    def open(self, path: str, recipe: Recipe = CT.recipe) -> None:
        self.opened.append((path, recipe))


@pytest.fixture
def session(qtbot: QtBot) -> Iterator[Listener]:
    session = Listener()
    session._set(State(engine=Engine(phase=EnginePhase.READY), scans=(CT, MRI, CONE), scan="ct", slice_index=3))
    yield session
    session.deleteLater()


@pytest.fixture
def view(qtbot: QtBot, session: Listener) -> ControlsView:
    view = ControlsView(session)
    qtbot.addWidget(view)
    session.changed.connect(view.show_change)
    view.resize(320, 640)
    view.show()
    qtbot.waitExposed(view)
    return view


def choose(view: ControlsView, method: str) -> None:
    view.method.setCurrentIndex(view.method.findData(method))
    QApplication.processEvents()


def press(qtbot: QtBot, view: ControlsView) -> None:
    qtbot.mouseClick(view.start_button, Qt.MouseButton.LeftButton)


def test_only_the_methods_of_the_scan_are_offered_by_their_full_names(view: ControlsView, session: Listener) -> None:
    def names() -> list[str]:
        return [view.method.itemText(row) for row in range(view.method.count())]

    assert names() == [
        "Filtered back-projection (FBP)",
        "CGLS",
        "SIRT",
        "Total variation (TV)",
        "Wavelets",
        "Equilibrium model",
    ]
    session.select_scan("mri")
    assert names() == ["Zero-filled", "GRAPPA", "CG-SENSE", "Total variation (TV)", "Wavelets", "Equilibrium model"]
    session.select_scan("cone")
    assert names() == ["Feldkamp (FDK)", "CGLS", "SIRT", "Total variation (TV)"]


@pytest.mark.parametrize(
    ("scan", "method", "fields"),
    [
        ("ct", "fbp", VOLUME | {"filter_window"}),
        ("ct", "cgls", ITERATED | ITERATION | {"weighting"}),
        ("ct", "sirt", ITERATED | ITERATION | {"weighting", "nonnegative", "subsets"}),
        ("ct", "tv", ITERATED | ITERATION | {"strength", "weighting", "nonnegative"}),
        ("ct", "wavelet", ITERATED | ITERATION | {"strength"}),
        ("ct", "deq", ITERATED | ITERATION | {"model"}),
        ("cone", "fdk", VOLUME | {"filter_window"}),
        ("cone", "sirt", VOLUME | ITERATION | {"weighting", "nonnegative", "subsets"}),
        ("mri", "zerofilled", COILS),
        ("mri", "grappa", COILS),
        ("mri", "sense", MAPS | ITERATION | {"strength"}),
        ("mri", "tv", MAPS | ITERATION | {"strength"}),
        ("mri", "wavelet", MAPS | ITERATION | {"strength"}),
        ("mri", "deq", MAPS | ITERATION | {"model"}),
    ],
)
def test_each_method_shows_its_own_parameters(
    view: ControlsView, session: Listener, scan: str, method: str, fields: set[str]
) -> None:
    session.select_scan(scan)
    choose(view, method)
    every = (
        "iterations",
        "tolerance",
        "strength",
        "weighting",
        "nonnegative",
        "subsets",
        "footprint",
        "coil_maps",
        "filter_window",
        "model",
        "views_every",
        "accelerate",
        "centre_button",
    )
    assert {name for name in every if getattr(view, name).isVisible()} == fields
    assert view.sentence.text() == SENTENCES[method]


def test_nothing_typed_leaves_all_to_the_method(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    for method in CT.methods:
        choose(view, method)
        press(qtbot, view)
    assert session.asked == [ReconstructSettings(method=method, slices=(3, 4)) for method in CT.methods]


def test_typed_parameters_become_the_settings_of_tv(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    choose(view, "tv")
    for field, text in (
        (view.iterations, "250"),
        (view.tolerance, "1e-4"),
        (view.strength, "0.05"),
        (view.views_every, "3"),
    ):
        field.setFocus()
        field.selectAll()
        qtbot.keyClicks(field, text)
    assert view.views_used.text() == "uses 61 of 181 views"
    press(qtbot, view)
    assert session.asked == [
        ReconstructSettings(method="tv", iterations=250, tolerance=1e-4, strength=0.05, views_every=3, slices=(3, 4))
    ]


def test_parameters_of_another_method_do_not_leak(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    choose(view, "tv")
    view.strength.setText("0.05")
    view.iterations.setValue(99)
    choose(view, "fbp")
    view.filter_window.setCurrentText("hann")
    press(qtbot, view)
    choose(view, "cgls")
    press(qtbot, view)
    assert session.asked == [
        ReconstructSettings(method="fbp", window="hann", slices=(3, 4)),
        ReconstructSettings(method="cgls", iterations=99, slices=(3, 4)),
    ]


def test_choices_become_settings_of_the_methods_that_have_them(
    qtbot: QtBot, view: ControlsView, session: Listener
) -> None:
    view.slices.setCurrentIndex(1)
    choose(view, "sirt")
    view.subsets.setValue(12)
    view.weighting.setCurrentText("By photon counts")
    view.footprint.setCurrentIndex(1)
    view.nonnegative.setChecked(False)
    press(qtbot, view)
    choose(view, "tv")
    press(qtbot, view)
    view.weighting.setCurrentText("All rays alike")
    press(qtbot, view)
    choose(view, "fbp")
    press(qtbot, view)
    session.select_scan("mri")
    choose(view, "tv")
    view.coil_maps.setCurrentText("Walsh")
    press(qtbot, view)
    view.coil_maps.setCurrentText("ESPIRiT, two sets")
    press(qtbot, view)
    choose(view, "deq")
    assert view.coil_maps.findText("ESPIRiT, two sets") == -1
    press(qtbot, view)
    choose(view, "grappa")
    press(qtbot, view)
    session.select_scan("cone")
    choose(view, "cgls")
    press(qtbot, view)
    assert session.asked == [
        ReconstructSettings(method="sirt", weighting="counts", nonnegative=False, subsets=12, footprint="strip"),
        ReconstructSettings(method="tv", weighting="counts", nonnegative=False, footprint="strip"),
        ReconstructSettings(method="tv", weighting="uniform", nonnegative=False, footprint="strip"),
        ReconstructSettings(method="fbp"),
        ReconstructSettings(method="tv", coil_maps="walsh"),
        ReconstructSettings(method="tv", coil_maps="espirit-2"),
        ReconstructSettings(method="deq"),
        ReconstructSettings(method="grappa"),
        ReconstructSettings(method="cgls"),
    ]


def test_there_are_no_more_subsets_than_views(view: ControlsView) -> None:
    choose(view, "sirt")
    assert view.subsets.maximum() == 181
    view.views_every.setValue(4)
    assert view.subsets.maximum() == 46


def test_acceleration_belongs_to_mri_and_views_to_ct(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    view.views_every.setValue(4)
    session.select_scan("mri")
    choose(view, "sense")
    view.accelerate.setValue(2)
    press(qtbot, view)
    session.select_scan("ct")
    choose(view, "cgls")
    press(qtbot, view)
    mri, ct = session.asked
    assert (mri.accelerate, mri.views_every) == (2, 1)
    assert (ct.accelerate, ct.views_every) == (1, 4)


def test_slices_are_this_one_all_or_a_range(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    session.set_slice(5)
    press(qtbot, view)
    view.slices.setCurrentIndex(1)
    press(qtbot, view)
    view.slices.setCurrentIndex(2)
    assert view.first.isVisible()
    view.first.setValue(2)
    view.last.setValue(6)
    press(qtbot, view)
    view.first.setValue(6)
    view.last.setValue(2)
    press(qtbot, view)
    assert [settings.slices for settings in session.asked] == [(5, 6), None, (2, 7), (2, 7)]
    assert view.last.maximum() == 7


def test_weights_of_the_session_can_be_chosen(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    choose(view, "deq")
    session._set(replace(session.state, models=("/w/tooth-adapted.safetensors",)))
    box = view.model.box
    assert [box.itemText(row) for row in range(box.count())] == [
        "Shipped with Equipoise",
        "tooth-adapted.safetensors",
        "From a file…",
    ]
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Down)
    press(qtbot, view)
    assert session.asked[-1].model == "/w/tooth-adapted.safetensors"
    qtbot.keyClick(box, Qt.Key.Key_Up)
    press(qtbot, view)
    assert session.asked[-1].model is None


def test_weights_can_come_from_a_file(qtbot: QtBot, view: ControlsView, session: Listener, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"x")
    choose(view, "deq")
    box = view.model.box
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_End)
    dialog = view.model.findChild(QFileDialog)
    assert isinstance(dialog, QFileDialog)
    assert box.currentText() == "Shipped with Equipoise", "nothing is chosen before the dialog says so"
    dialog.setDirectory(str(tmp_path))
    dialog.selectFile(str(weights))
    dialog.accept()
    assert view.settings().model == str(weights)
    assert box.currentText() == "mine.safetensors"


def test_the_rotation_centre_is_told_and_its_page_asked_for(
    qtbot: QtBot, view: ControlsView, session: Listener
) -> None:
    asked: list[bool] = []
    view.centre_wanted.connect(lambda: asked.append(True))
    assert view.centre_button.toolTip().startswith("The axis lies at column 31.25.")
    view.centre_button.setFocus()
    qtbot.keyClick(view.centre_button, Qt.Key.Key_Space)
    assert asked == [True]
    assert session.opened == []


def test_nothing_starts_by_itself(view: ControlsView, session: Listener) -> None:
    for method in CT.methods:
        choose(view, method)
    view.iterations.setValue(5)
    session.set_slice(1)
    session.select_scan("mri")
    assert session.asked == []


def test_without_scan_or_engine_the_button_is_dead(qtbot: QtBot, view: ControlsView, session: Listener) -> None:
    assert view.start_button.isEnabled()
    session._set(replace(session.state, engine=Engine(phase=EnginePhase.RESTARTING)))
    assert not view.start_button.isEnabled()
    session._set(replace(session.state, engine=Engine(phase=EnginePhase.READY), scans=(), scan=None))
    assert not view.start_button.isEnabled()
    view.start()
    assert session.asked == []


def test_every_field_can_be_reached_and_says_what_it_is(view: ControlsView) -> None:
    for field in (
        view.method,
        view.iterations,
        view.tolerance,
        view.strength,
        view.weighting,
        view.nonnegative,
        view.subsets,
        view.footprint,
        view.coil_maps,
        view.filter_window,
        view.model.box,
        view.views_every,
        view.accelerate,
        view.slices,
        view.first,
        view.last,
        view.centre_button,
    ):
        assert field.accessibleName()
        assert field.toolTip()
        assert field.focusPolicy() & Qt.FocusPolicy.TabFocus
