"""The page of raw data: what it offers to show of a scan."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.settings import SettingsStore
from equipoise.view.prepare.raw import RawPage
from equipoise_engine.protocol import ScanFacts
from equipoise_engine.recipe import Recipe

MRI = ScanFacts(
    scan="scan-1",
    path="/data/brain.h5",
    kind="mri",
    format="fastMRI-style HDF5",
    state="k-space",
    shape=(4, 8, 64, 64),
    slices=4,
    geometry=(),
    matched=(),
    warnings=(),
    methods=("zerofilled",),
    recipe=Recipe(),
    full_shape=(4, 8, 64, 64),
)


def test_pictures_of_k_space_are_named_in_full_and_noise_is_of_all_coils(qtbot: QtBot, tmp_path: Path) -> None:
    page = RawPage(Session(SettingsStore(tmp_path / "window.ini")))
    qtbot.addWidget(page)
    page.resize(300, 300)
    page.show()
    page.show_draft(MRI, None, Recipe())
    QApplication.processEvents()
    assert page.what.width() >= page.what.sizeHint().width()
    assert page.coil.number.maximum() == 7
    page.what.setCurrentIndex(page.what.findData("noise"))
    assert page.what.currentText() == "Coil noise, correlation"
    assert page.coil.number.maximum() == 0
    assert page.index.number.maximum() == 3
