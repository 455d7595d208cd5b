"""What the user says of a scan, the part that is taken, and what it is compared with, through the whole program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from equipoise.state import State, is_idle
from equipoise.view.main import MainWindow
from equipoise_engine.recipe import Role, Span

Until = Callable[..., None]


def write_unclear_scan(path: Path) -> Path:
    """Write a scan whose names say nothing: two stacks that may be the projections."""
    offset = np.arange(64) - 31.5
    counts = 1e4 * np.exp(-2 * np.sqrt(np.maximum(22.4**2 - offset**2, 0.0)) / 64)
    with h5py.File(path, "w") as file:
        file["run/one"] = np.broadcast_to(counts, (60, 4, 64)).astype(np.uint16)
        file["run/two"] = np.broadcast_to(counts, (60, 4, 64)).astype(np.uint16)
        file["run/white"] = np.full((3, 4, 64), 10_000, np.uint16)
    return path


def test_a_scan_that_lacks_something_is_opened_once_it_is_said(
    qtbot: QtBot, make_window: Callable[..., MainWindow], until: Until, tmp_path: Path
) -> None:
    window = make_window()
    until(window, is_idle)
    window.session.open(str(write_unclear_scan(tmp_path / "unclear.h5")))
    until(window, lambda state: state.needed is not None and is_idle(state), 30.0)
    prepare = window.prepare
    assert prepare.isVisible()
    page = prepare.reading
    assert page.role_marks["projections"].word.text() == "needed"
    field = page.sources["projections"]
    names = [field.itemText(row) for row in range(2, field.count())]
    assert any(name.endswith("run/one") for name in names)
    line = field.lineEdit()
    assert line is not None
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "/run/one")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    line = page.sources["flats"].lineEdit()
    assert line is not None
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, "/run/white")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    page.angles_field.setFocus()
    qtbot.keyClick(page.angles_field, Qt.Key.Key_Down)
    qtbot.mouseClick(prepare.apply_button, Qt.MouseButton.LeftButton)
    until(window, lambda state: bool(state.scans) and is_idle(state))
    facts = window.session.state.scans[0]
    assert facts.shape == (60, 4, 64)
    assert facts.recipe.known.angles is not None
    assert Role(role="projections", source="/run/one") in facts.recipe.known.roles
    picture = window.session.state.panes[0].picture
    assert picture is not None
    assert picture.pixels[32, 32] > 0.5 * picture.high


@pytest.mark.long
def test_a_part_of_a_scan_is_chosen_and_its_axis_compared(
    qtbot: QtBot,
    make_window: Callable[..., MainWindow],
    open_scan: Callable[[MainWindow, Path], None],
    until: Until,
    disc_scan: Path,
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    window.prepare_scan()
    prepare = window.prepare
    prepare.tabs.setCurrentWidget(prepare.selection)
    qtbot.waitUntil(lambda: prepare.selection.picture.pixels() is not None, timeout=30_000)
    pixels = prepare.selection.picture.pixels()
    assert pixels is not None
    # raw counts of the whole detector
    assert pixels.shape == (4, 64)
    assert pixels.max() > 9e3
    prepare.selection.last["rows"].setValue(1)
    prepare.tabs.setCurrentWidget(prepare.centre)
    prepare.centre.tabs.setCurrentIndex(1)
    prepare.centre.spacing.setValue(4.0)
    qtbot.mouseClick(prepare.centre.compare_button, Qt.MouseButton.LeftButton)
    gallery = prepare.centre.gallery
    qtbot.waitUntil(lambda: gallery.complete, timeout=60_000)
    images = [candidate.pixels for candidate in gallery.candidates]
    assert all(image is not None for image in images)
    # a wrong axis leaves values below zero beside the disc: Donath et al. 2006, doi:10.1364/JOSAA.23.001048
    below_zero = [float(np.minimum(image, 0.0).sum()) for image in images if image is not None]
    assert int(np.argmax(below_zero)) == 2
    qtbot.mouseClick(prepare.apply_button, Qt.MouseButton.LeftButton)
    until(window, lambda state: state.scans[0].slices == 2 and is_idle(state))
    facts = window.session.state.scans[0]
    assert facts.recipe.selection.rows == Span(first=0, last=2)
    assert facts.full_shape == (60, 4, 64)
    # an axis that was found is not called given after that
    assert prepare.centre.mark.word.text() == "found"


@pytest.mark.long
def test_the_axis_is_estimated(
    qtbot: QtBot,
    make_window: Callable[..., MainWindow],
    open_scan: Callable[[MainWindow, Path], None],
    disc_scan: Path,
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    window.prepare_scan()
    page = window.prepare.centre
    window.prepare.tabs.setCurrentWidget(page)
    qtbot.mouseClick(page.estimate_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: page.methods.topLevelItemCount() > 1, timeout=60_000)
    vote = page.methods.topLevelItem(0)
    assert vote is not None
    assert abs(float(vote.text(1)) - 31.5) < 0.5


def test_an_image_volume_is_compared_with_a_scan(
    qtbot: QtBot,
    make_window: Callable[..., MainWindow],
    open_scan: Callable[[MainWindow, Path], None],
    until: Until,
    disc_scan: Path,
    tmp_path: Path,
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    volume = np.arange(4 * 32 * 48, dtype=np.float32).reshape(4, 32, 48)
    tifffile.imwrite(tmp_path / "known.tif", volume, photometric="minisblack")
    window.session.open_reference(str(tmp_path / "known.tif"))

    def is_shown(state: State) -> bool:
        return is_idle(state) and len(state.runs) == 2 and state.panes[1].picture is not None

    until(window, is_shown, 30.0)
    state = window.session.state
    assert state.runs[1].label == "Reference known.tif"
    assert state.runs[1].scan == state.scan
    picture = state.panes[1].picture
    assert picture is not None
    np.testing.assert_array_equal(picture.pixels, volume[state.slice_index])
