"""Wrong scans and wrong targets, handed to the window: one clear notice each, and nothing that was there is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent

from equipoise.state import JobPhase, State, is_idle
from equipoise.view.main import MainWindow
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings
from equipoise_resources import sample_path


def drop(window: MainWindow, path: Path) -> None:
    """Drop a file or folder on the window."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    window.dropEvent(
        QDropEvent(
            QPointF(50, 50),
            Qt.DropAction.CopyAction,
            data,
            Qt.MouseButton.LeftButton,
            Qt.KeyboardModifier.NoModifier,
        )
    )


def truncated(folder: Path, scan: Path) -> Path:
    path = folder / "truncated.nxs"
    whole = sample_path("ct").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def other_nexus(folder: Path, scan: Path) -> Path:
    path = folder / "scattering.nxs"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXsas"
        entry["data/counts"] = np.ones((20, 30), np.int32)
    return path


def angles_that_do_not_fit(folder: Path, scan: Path) -> Path:
    path = folder / "angles.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "a") as file:
        del file["exchange/theta"]
        file["exchange/theta"] = np.linspace(0, 180, 45)
    return path


def empty_folder(folder: Path, scan: Path) -> Path:
    path = folder / "nothing"
    path.mkdir()
    return path


def not_a_number(folder: Path, scan: Path) -> Path:
    path = folder / "nan.h5"
    shutil.copy(scan, path)
    with h5py.File(path, "a") as file:
        file["exchange/data"][...] = np.nan
    return path


def letter(folder: Path, scan: Path) -> Path:
    path = folder / "letter.h5"
    path.write_bytes(b"Dear reader, this is no scan.")
    return path


def missing(folder: Path, scan: Path) -> Path:
    return folder / "gone.h5"


WRONG_SCANS = {
    truncated: ("truncated.nxs", ("truncated", "damaged", "short")),
    other_nexus: ("scattering.nxs", ("NXsas",)),
    angles_that_do_not_fit: ("angles.h5", ("45",)),
    empty_folder: ("nothing", ("no scan",)),
    not_a_number: ("nan.h5", ("not finite",)),
    letter: ("letter.h5", ("not a scan",)),
    missing: ("gone.h5", ("no such file",)),
}


def told_once(window: MainWindow, before: State) -> str:
    """Return the one notice that has come since; check that nothing else was touched."""
    state = window.session.state
    fresh = [notice for notice in state.notices if notice.number > before.noticed]
    assert len(fresh) == 1, [notice.text for notice in fresh]
    assert fresh[0].severity == "error"
    assert "Traceback" not in fresh[0].text
    assert window.notices.isVisible()
    assert window.notices.text.text() == fresh[0].text
    assert state.jobs[-1].phase is JobPhase.FAILED
    assert state.engine.restarts == 0
    assert [run.run for run in state.runs[: len(before.runs)]] == [run.run for run in before.runs]
    assert state.runs[0].held
    return fresh[0].text


def test_wrong_scans(lasting_window: MainWindow, until: Callable[..., None], disc_scan: Path, tmp_path: Path) -> None:
    window = lasting_window
    session, first, pid = window.session, window.session.state, window.session.engine_pid
    for make, (name, words) in WRONG_SCANS.items():
        before = session.state
        drop(window, make(tmp_path, disc_scan))
        until(window, is_idle)
        text = told_once(window, before)
        assert name in text
        assert any(word in text for word in words), text
        assert session.state.scans == first.scans
        assert session.state.scan == first.scan
        assert session.state.panes[0].picture is first.panes[0].picture
        assert np.array_equal(window.compare.panes[0].pixels(), first.panes[0].picture.pixels)
    session.reconstruct(ReconstructSettings(method="cgls"))
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE
    assert session.engine_pid == pid


def test_wrong_nexus_of_an_instrument(
    lasting_window: MainWindow, until: Callable[..., None], shared_data: Path
) -> None:
    wrong = shared_data / "hard-hdf5" / "IMAT00008300.nxs"
    if not wrong.is_file():
        pytest.skip(f"{wrong} is not there")
    window = lasting_window
    before = window.session.state
    drop(window, wrong)
    until(window, is_idle)
    assert wrong.name in told_once(window, before)
    assert window.session.state.scans == before.scans


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        mount(folder, "ro,size=100k")
        yield folder
        subprocess.run(["umount", str(folder)], check=False, timeout=30)
        return
    if sys.platform == "win32":
        pytest.skip("folders are not made read-only by their mode here")
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 40 kB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted as root")
    folder = tmp_path / "full"
    folder.mkdir()
    mount(folder, "size=40k")
    yield folder
    subprocess.run(["umount", str(folder)], check=False, timeout=30)


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")


@pytest.mark.parametrize("target", ["read_only", "full"])
def test_wrong_targets(
    lasting_window: MainWindow,
    until: Callable[..., None],
    tmp_path: Path,
    target: str,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue(target)
    window = lasting_window
    session = window.session
    run, picture = session.state.runs[0].run, session.state.panes[0].picture
    for name, form in (("disc.tif", "tiff"), ("disc-dicom", "dicom")):
        before = session.state
        session.export(run, str(folder / name), form)
        until(window, is_idle)
        assert str(folder) in told_once(window, before)
        assert list(folder.iterdir()) == []
        assert session.state.panes[0].picture is picture
    before = session.state
    session.adapt(FineTuneSettings(steps=1, batch=1), str(folder / "disc.safetensors"))
    until(window, is_idle)
    assert str(folder) in told_once(window, before)
    assert list(folder.iterdir()) == []
    session.export(run, str(tmp_path / "disc.tif"), "tiff")
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE
