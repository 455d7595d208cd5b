"""The whole program: a real window, offscreen, with a real engine process, and scans to work on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.settings import SettingsStore
from equipoise.state import JobPhase, State, is_idle
from equipoise.supervisor import Limits
from equipoise.view.main import MainWindow
from equipoise.view.theme import apply_theme

PATIENT = Limits(heartbeat=0.3, answer=60.0, cancel=30.0, delays=(0.1,), steady=0.0)


@pytest.fixture
def make_window(qtbot: QtBot, tmp_path: Path) -> Iterator[Callable[..., MainWindow]]:
    """Return a function that opens a window with an engine of its own; all are closed at the end."""
    made: list[tuple[MainWindow, list[bool]]] = []

    def make(limits: Limits = PATIENT) -> MainWindow:
        session = Session(SettingsStore(tmp_path / f"window-{len(made)}.ini"), limits)
        window = MainWindow(session, tmp_path)
        ended: list[bool] = []
        session.closed.connect(lambda: ended.append(True))
        made.append((window, ended))
        window.show()
        session.start()
        return window

    yield make
    for window, ended in made:
        window.session.close()
        qtbot.waitUntil(lambda ended=ended: bool(ended), timeout=30_000)  # type: ignore[misc]
        window.hide()
        window.deleteLater()
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    apply_theme(app, "light")


@pytest.fixture(scope="module")
def lasting_window(qapp: QApplication, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainWindow]:
    """A window that has opened a scan, shared by the tests of a file that leave its engine alive and its scan open."""
    folder = tmp_path_factory.mktemp("lasting")
    session = Session(SettingsStore(folder / "window.ini"), PATIENT)
    window = MainWindow(session, folder)
    ended: list[bool] = []
    session.closed.connect(lambda: ended.append(True))
    window.show()
    session.start()
    session.open(str(write_scan(folder / "disc.h5", 60, 4, 64)))
    turn_until(lambda: is_idle(session.state) and session.state.panes[0].picture is not None, 120.0)
    assert [job.phase for job in session.state.jobs] == [JobPhase.DONE] * 2, session.state.jobs
    yield window
    session.close()
    turn_until(lambda: bool(ended), 30.0)
    window.hide()
    window.deleteLater()
    apply_theme(qapp, "light")


def turn_until(holds: Callable[[], bool], seconds: float) -> None:
    """Let the event loop turn until something holds, where no test is there whose qtbot could wait."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not reached within {seconds:g} s"
        QTest.qWait(10)


@pytest.fixture
def until(qtbot: QtBot) -> Callable[..., None]:
    """Return a function that waits, while the window lives on, until its state is as wanted."""

    def wait(window: MainWindow, holds: Callable[[State], bool], seconds: float = 120.0) -> None:
        try:
            qtbot.waitUntil(lambda: holds(window.session.state), timeout=round(seconds * 1000))
        except Exception as error:
            state = window.session.state
            jobs = [(job.title, job.phase.value, job.message) for job in state.jobs]
            pytest.fail(f"{error}; jobs {jobs}, notices {[notice.text for notice in state.notices]}")

    return wait


@pytest.fixture
def open_scan(until: Callable[..., None]) -> Callable[[MainWindow, Path], None]:
    """Return a function that opens a scan in a window and waits for its analytic image."""

    def open_it(window: MainWindow, path: Path) -> None:
        window.session.open(str(path))
        until(window, is_idle)
        state = window.session.state
        assert [job.phase for job in state.jobs[-2:]] == [JobPhase.DONE] * 2, state.jobs
        picture = state.panes[0].picture
        assert picture is not None
        assert picture.run == state.runs[-1].run

    return open_it


def write_scan(path: Path, views: int, rows: int, columns: int, *, one_block: bool = False) -> Path:
    """Write a simulated scan of a cylinder in the Data Exchange layout."""
    offset = np.arange(columns) - (columns - 1) / 2
    length = 2 * np.sqrt(np.maximum((0.35 * columns) ** 2 - offset**2, 0.0))
    counts = 1e4 * np.exp(-length / columns)
    with h5py.File(path, "w") as file:
        frames = np.broadcast_to(counts, (views, rows, columns)).astype(np.float32)
        how = {"chunks": frames.shape, "compression": "gzip"} if one_block else {}
        file.create_dataset("exchange/data", data=frames, **how)
        file["exchange/data_white"] = np.full((2, rows, columns), 1e4, np.float32)
        file["exchange/data_dark"] = np.zeros((2, rows, columns), np.float32)
        file["exchange/theta"] = np.linspace(0.0, 180.0, views, endpoint=False)
        file["exchange/theta"].attrs["units"] = "degrees"
    return path


@pytest.fixture
def disc_scan(tmp_path: Path) -> Path:
    """A scan on which everything is quick: 60 views of 4 slices, 64 columns."""
    return write_scan(tmp_path / "disc.h5", 60, 4, 64)


@pytest.fixture
def tall_scan(tmp_path: Path) -> Path:
    """A scan of so many slices that writing the result takes a moment."""
    return write_scan(tmp_path / "tall.h5", 12, 240, 128)


@pytest.fixture
def slow_scan(tmp_path: Path) -> Path:
    """A scan that takes a moment to open: its frames are one large compressed block."""
    return write_scan(tmp_path / "slow.h5", 360, 160, 512, one_block=True)
