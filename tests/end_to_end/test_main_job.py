"""The main job once through, by the gestures of a user: open, compare, look back, adapt, export, check the exports."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import tifffile
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QDialogButtonBox
from pytestqt.qtbot import QtBot

from equipoise.state import JobPhase, State, find_job, is_idle
from equipoise.view.dialogs import ExportDialog
from equipoise.view.main import MainWindow
from equipoise.view.pane import PaneView
from equipoise_resources import sample_path

MakeWindow = Callable[..., MainWindow]


@dataclass(frozen=True)
class Case:
    """A scan and how much work is done on it; large slices get less."""

    name: str
    iterative: str
    undersampling: int
    iterations: int
    adapt_steps: int
    file: str = ""
    adapt_binned: int = 1
    """Detector columns put into one before the model is adapted; a step on a large slice takes most of a minute."""


CASES = (
    Case("sample CT", "tv", 3, 40, 2),
    Case("sample MRI", "sense", 3, 12, 2),
    Case("tooth", "tv", 6, 3, 1, "ct-tooth-dxchange/tooth.h5", adapt_binned=4),
    Case("brain", "sense", 3, 12, 2, "derived/brain8ch_fastmri_like.h5"),
)


@pytest.fixture(
    params=[pytest.param(case, id=case.name, marks=[pytest.mark.long] if case.file else []) for case in CASES]
)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def scan(case: Case, request: pytest.FixtureRequest) -> Path:
    if not case.file:
        return sample_path("ct" if "CT" in case.name else "mri")
    folder: Path = request.getfixturevalue("shared_data")
    if not (folder / case.file).is_file():
        pytest.skip(f"{case.file} is not in {folder}")
    return folder / case.file


@pytest.fixture
def stalls(qtbot: QtBot) -> Iterator[list[float]]:
    """Seconds between two turns of the event loop, noted every few milliseconds."""
    gaps: list[float] = []
    last = [time.perf_counter()]

    def beat() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    timer = QTimer(interval=5)
    timer.timeout.connect(beat)
    timer.start()
    yield gaps
    timer.stop()


def test_main_job(
    qtbot: QtBot,
    make_window: MakeWindow,
    until: Callable[..., None],
    case: Case,
    scan: Path,
    stalls: list[float],
    tmp_path: Path,
) -> None:
    window = make_window()
    until(window, is_idle)
    assert window.session.engine_pid not in (None, os.getpid())
    # an engine that has just loaded torch is no part of what is measured here
    stalls.clear()
    session = window.session
    session.open(str(scan))
    until(window, lambda s: is_idle(s) and s.panes[0].picture is not None)
    assert session.state.scans[0].path == str(scan)
    assert [run.settings.method for run in session.state.runs] == list(session.state.scans[0].methods[:1])
    assert np.isfinite(session.state.panes[0].picture.pixels).all()

    # side by side, iterates live
    session.set_pane_count(3)
    live: dict[str, set[int]] = {}

    def note(old: State, new: State) -> None:
        for pane in new.panes:
            run = next((r for r in new.runs if r.run == pane.run), None)
            if run is None or pane.picture is None or pane.picture.run != run.run:
                continue
            job = find_job(new, run.job)
            if pane.picture.step is not None and job is not None and job.active and run.result is None:
                live.setdefault(run.settings.method, set()).add(pane.picture.step)

    session.changed.connect(note)
    for pane, method in ((1, case.iterative), (2, "deq")):
        session.set_active_pane(pane)
        choose(window, method, case)
        qtbot.mouseClick(window.controls.start_button, Qt.MouseButton.LeftButton)
        assert session.state.jobs[-1].kind == "reconstruct"
    until(window, is_idle)
    assert [job.phase for job in session.state.jobs] == [JobPhase.DONE] * 4, session.state.jobs
    assert [pane.picture.run for pane in session.state.panes] == [run.run for run in session.state.runs]
    assert len(live["deq"]) >= 2, live
    assert all(len(run.steps) >= 2 for run in session.state.runs[1:])
    falling = session.state.runs[1].data_residuals
    assert falling[-1] < falling[0]
    # CG-SENSE of a small slice may be done before the first of its iterates can be asked for
    assert case.iterative == "sense" or live[case.iterative], live
    session.changed.disconnect(note)

    # look back at an early iterate
    learned = session.state.runs[-1]
    result = session.state.panes[2].picture
    session.set_active_pane(2)
    window.iterations.slider.setFocus()
    qtbot.keyClick(window.iterations.slider, Qt.Key.Key_Home)
    until(window, lambda s: is_idle(s) and s.panes[2].picture.step is not None)
    early = session.state.panes[2].picture
    assert early.run == learned.run
    assert early.step == learned.steps[0]
    assert f"iterate {early.step}" in window.compare.panes[2].caption.text()
    assert early.pixels.shape == result.pixels.shape
    assert not np.allclose(early.pixels, result.pixels)
    assert np.array_equal(window.compare.panes[2].pixels(), early.pixels)
    window.iterations.slider.setValue(window.iterations.slider.maximum())
    until(window, lambda s: is_idle(s) and s.panes[2].picture.step is None)
    assert np.array_equal(session.state.panes[2].picture.pixels, result.pixels)

    # adapt to this scan, then use what was learned
    if case.adapt_binned > 1:
        session.open(str(bin_columns(scan, tmp_path / f"binned-{scan.name}", case.adapt_binned)))
        until(window, is_idle)
        assert session.state.scan == session.state.scans[1].scan
    weights = tmp_path / "adapted.safetensors"
    adapt = window.adapt_view
    adapt.limit_kind.setCurrentIndex(1)
    adapt.steps.setValue(case.adapt_steps)
    adapt.batch.setValue(1)
    (adapt.views_every if session.state.scans[0].kind == "ct" else adapt.accelerate).setValue(case.undersampling)
    adapt.out.field.setText(str(weights))
    qtbot.mouseClick(adapt.start_button, Qt.MouseButton.LeftButton)
    until(window, is_idle, 240)
    training = session.state.trainings[-1]
    assert session.state.jobs[-1].phase is JobPhase.DONE, session.state.jobs[-1]
    assert training.finished
    assert training.steps == tuple(range(1, case.adapt_steps + 1))
    assert np.isfinite(training.terms[0][1]).all()
    assert session.state.models == (str(weights),)
    session.select_scan(session.state.scans[0].scan)
    choose(window, "deq", case)
    window.controls.model.choose(str(weights))
    session.set_active_pane(2)
    qtbot.mouseClick(window.controls.start_button, Qt.MouseButton.LeftButton)
    until(window, is_idle)
    adapted = session.state.runs[-1]
    assert adapted.settings.model == str(weights)
    assert adapted.scan == session.state.scans[0].scan
    assert adapted.result is not None
    assert session.state.panes[2].picture.run == adapted.run
    assert not np.array_equal(session.state.panes[2].picture.pixels, result.pixels)

    # what is written is what is seen
    session.set_active_pane(2)
    tiff, dicom = tmp_path / "adapted.tif", tmp_path / "adapted-dicom"
    for form, target in (("tiff", tiff), ("dicom", dicom)):
        window.ask_export(form)
        dialog = window.dialog
        assert isinstance(dialog, ExportDialog)
        dialog.path_field.setText(str(target))
        qtbot.mouseClick(dialog.export_button, Qt.MouseButton.LeftButton)
        assert dialog.buttons.button(QDialogButtonBox.StandardButton.Cancel) is not None
        until(window, is_idle)
        assert session.state.jobs[-1].phase is JobPhase.DONE, session.state.jobs[-1]
    assert session.settings.export_folder == str(tmp_path)
    picture = session.state.panes[2].picture
    page = picture.index - adapted.result.first_slice
    with tifffile.TiffFile(tiff) as file:
        assert file.is_imagej
        assert len(file.pages) == adapted.result.shape[0]
        assert np.array_equal(file.pages[page].asarray(), picture.pixels)
    check_dicom(dicom, page, picture.pixels, adapted.result.voxel_mm)
    check_orientation(window.compare.panes[2], picture.pixels)

    print(f"\n{case.name}: longest stall of the event loop {1000 * max(stalls):.0f} ms over {len(stalls)} turns")
    assert max(stalls) < 1.0


def bin_columns(scan: Path, path: Path, width: int) -> Path:
    """Write a Data Exchange scan with the means of every `width` detector columns."""
    with h5py.File(scan, "r", locking=False) as whole, h5py.File(path, "w") as binned:
        for name in ("data", "data_white", "data_dark"):
            frames = whole[f"exchange/{name}"][()]
            binned[f"exchange/{name}"] = frames.reshape(*frames.shape[:-1], -1, width).mean(-1)
        whole.copy("exchange/theta", binned["exchange"])
    return path


def choose(window: MainWindow, method: str, case: Case) -> None:
    """Set the controls to a method with the undersampling and iterations of a case, for the slice that is shown."""
    controls = window.controls
    controls.method.setCurrentIndex(controls.method.findData(method))
    controls.iterations.setValue(case.iterations)
    controls.tolerance.setText("1e-9")
    controls.slices.setCurrentIndex(0)
    kind = window.session.state.scans[0].kind
    (controls.views_every if kind == "ct" else controls.accelerate).setValue(case.undersampling)
    assert controls.settings().method == method


def check_dicom(folder: Path, page: int, pixels: np.ndarray, voxel_mm: tuple[float, float, float]) -> None:
    """Compare a DICOM series with the pixels `(y, x)` that were shown, and let dciodvfy judge its attributes."""
    files = sorted(folder.glob("*.dcm"))
    read = sorted((pydicom.dcmread(file) for file in files), key=lambda data: int(data.InstanceNumber))
    shown = read[page]
    # MR images have no rescale slope of their own
    mapping = shown.RealWorldValueMappingSequence[0]
    slope, intercept = float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    assert shown.Modality != "CT" or (float(shown.RescaleSlope), float(shown.RescaleIntercept)) == (slope, intercept)
    stored = shown.pixel_array * slope + intercept
    assert stored.shape == pixels.shape
    assert np.abs(stored - pixels).max() <= 0.51 * slope + 1e-6 * np.abs(pixels).max()
    assert [float(mm) for mm in shown.PixelSpacing] == pytest.approx(voxel_mm[1:], rel=1e-6)
    across, down = np.asarray(shown.ImageOrientationPatient, float).reshape(2, 3)
    assert abs(across @ down) < 1e-9
    if shutil.which("dciodvfy") is None:
        return
    for file in files[:2]:
        done = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, timeout=60)
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))]
        assert said == []


def check_orientation(pane: PaneView, pixels: np.ndarray) -> None:
    """Compare what a pane has drawn with pixels `(y, x)`: row 0 at the top, column 0 at the left."""
    drawn = pane.view.grab().toImage()
    corners = pane.view.mapFromScene(pane.image.mapRectToScene(pane.image.boundingRect())).boundingRect()
    scale = drawn.devicePixelRatio()
    low, high = pane.levels()
    height, width = pixels.shape
    # the middles of a grid of pixels, and the same places in the picture when it is turned or mirrored
    rows, columns = np.meshgrid(np.arange(height // 20, height, 3), np.arange(width // 20, width, 3), indexing="ij")
    seen = np.empty(rows.shape)
    for place, (row, column) in enumerate(zip(rows.flat, columns.flat, strict=True)):
        x = int((corners.left() + (column + 0.5) / width * corners.width()) * scale)
        y = int((corners.top() + (row + 0.5) / height * corners.height()) * scale)
        # the picture may end a fraction of a pixel outside the view
        seen.flat[place] = drawn.pixelColor(min(x, drawn.width() - 1), min(y, drawn.height() - 1)).valueF()

    def sampled(image: np.ndarray) -> np.ndarray:
        down, across = rows * image.shape[0] // height, columns * image.shape[1] // width
        return np.clip((image[down, across] - low) / (high - low), 0, 1)

    turns = [image for turn in range(4) for image in (np.rot90(pixels, turn), np.rot90(pixels, turn).T)]
    likeness = [np.corrcoef(seen.ravel(), sampled(image).ravel())[0, 1] for image in turns]
    assert likeness[0] > 0.9
    assert int(np.argmax(likeness)) == 0, likeness
