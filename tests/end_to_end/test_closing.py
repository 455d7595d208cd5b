"""The end of the window, asked for or not, while the model is being adapted: the work is saved, no engine stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QMessageBox
from pytestqt.qtbot import QtBot

from equipoise.state import JobPhase, is_idle
from equipoise.view.main import MainWindow
from equipoise_engine.protocol import FineTuneSettings
from equipoise_engine.weights import read_checkpoint

FRONT_END = Path(__file__).with_name("front_end.py")

MakeWindow = Callable[..., MainWindow]
OpenScan = Callable[[MainWindow, Path], None]


def continue_from(window: MainWindow, until: Callable[..., None], weights: Path) -> None:
    """Check that a checkpoint holds the state of a training, and take one more step from it in another window."""
    checkpoint = read_checkpoint(weights)
    assert checkpoint.step >= 1
    assert checkpoint.optimiser
    assert len(checkpoint.manifest["losses"]) == checkpoint.step
    settings = FineTuneSettings(steps=checkpoint.step + 1, resume=str(weights))
    window.session.adapt(settings, str(weights))
    until(window, is_idle)
    assert window.session.state.jobs[-1].phase is JobPhase.DONE, window.session.state.jobs[-1]
    assert window.session.state.trainings[-1].steps == (checkpoint.step + 1,)


def test_closing_the_window_saves_the_adaptation(
    qtbot: QtBot,
    make_window: MakeWindow,
    until: Callable[..., None],
    open_scan: OpenScan,
    disc_scan: Path,
    lasting_window: MainWindow,
    tmp_path: Path,
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    weights = tmp_path / "adapted.safetensors"
    window.session.adapt(FineTuneSettings(steps=100_000, batch=1), str(weights))
    until(window, lambda s: len(s.trainings) == 1 and len(s.trainings[0].steps) >= 1)
    engine = psutil.Process(window.session.engine_pid)
    ended: list[bool] = []
    window.session.closed.connect(lambda: ended.append(True))
    window.close()
    # the user is asked first
    assert window.isVisible()
    question = window.dialog
    assert isinstance(question, QMessageBox)
    assert "saves its weights" in question.informativeText()
    button = next(b for b in question.findChildren(QAbstractButton) if "close" in b.text().lower())
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    # the window is gone at once, while the engine is still about to save
    assert not window.isVisible()
    assert not ended
    qtbot.waitUntil(lambda: bool(ended), timeout=30_000)
    assert not engine.is_running()
    continue_from(lasting_window, until, weights)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")
def test_engine_outlives_a_killed_window_only_to_save(
    until: Callable[..., None], disc_scan: Path, lasting_window: MainWindow, tmp_path: Path
) -> None:
    weights = tmp_path / "adapted.safetensors"
    command = [sys.executable, str(FRONT_END), str(disc_scan), str(weights), str(tmp_path / "front.ini")]
    front = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    engine: psutil.Process | None = None
    try:
        assert front.stdout is not None
        line = front.stdout.readline()
        assert line.startswith("training in "), line
        engine = psutil.Process(int(line.split()[-1]))
        assert engine.is_running()
        assert not weights.exists()
        os.kill(front.pid, signal.SIGKILL)
        front.wait(10)
        engine.wait(60)
        assert weights.is_file()
        assert [path.name for path in tmp_path.glob("*adapted*")] == [weights.name]
    finally:
        front.kill()
        front.communicate()
        if engine is not None and engine.is_running():
            engine.kill()
    continue_from(lasting_window, until, weights)
