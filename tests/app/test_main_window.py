"""The whole window, offscreen, with an engine process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QGuiApplication, QImage, QKeySequence, QPalette
from PySide6.QtWidgets import QAbstractButton, QApplication, QMessageBox, QPushButton, QTabBar, QWidget
from pytestqt.qtbot import QtBot

from equipoise.commands import COMMANDS, MENUS, recent_commands
from equipoise.session import Session
from equipoise.settings import Settings, SettingsStore
from equipoise.state import EnginePhase, Job, JobPhase, State, active_jobs
from equipoise.supervisor import Limits
from equipoise.view.dialogs import (
    CITATION,
    AboutDialog,
    ExportDialog,
    PaletteDialog,
    PreferencesDialog,
    libraries,
    system_information,
)
from equipoise.view.jobs import format_duration, time_text
from equipoise.view.main import MainWindow
from equipoise.view.theme import DARK, LIGHT, apply_theme

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")
QUICK = Limits(heartbeat=0.05, answer=3.0, start=20.0, cancel=0.4, delays=(0.05,), losses=5)

Make = Callable[..., MainWindow]


@pytest.fixture
def make(qtbot: QtBot, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a window with a small engine; all are closed at the end."""
    made: list[tuple[MainWindow, list[bool]]] = []

    def build(settings: Settings | None = None, *arguments: str) -> MainWindow:
        store = SettingsStore(tmp_path / "window.ini")
        if settings is not None or not made:
            command = (sys.executable, str(SMALL_ENGINE), *arguments)
            store.save(replace(settings or Settings(), engine_command=command))
        session = Session(store, QUICK)
        window = MainWindow(session, tmp_path)
        ended: list[bool] = []
        session.closed.connect(lambda: ended.append(True))
        made.append((window, ended))
        window.show()
        session.start()
        return window

    yield build
    for window, ended in made:
        window.session.close()
        qtbot.waitUntil(lambda ended=ended: bool(ended), timeout=15_000)  # type: ignore[misc]
        window.hide()
        window.deleteLater()
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    apply_theme(app, "light")


def until(qtbot: QtBot, window: MainWindow, holds: Callable[[State], bool]) -> None:
    qtbot.waitUntil(lambda: holds(window.session.state), timeout=20_000)


def quiet(state: State) -> bool:
    waiting = any(pane.asked is not None for pane in state.panes)
    return state.engine.phase is EnginePhase.READY and not active_jobs(state) and not waiting


def open_scan(qtbot: QtBot, window: MainWindow, path: str = "/data/a.h5") -> None:
    window.session.open(path)
    until(qtbot, window, lambda s: quiet(s) and s.panes[0].picture is not None)


# --- commands -----------------------------------------------------------------------------------------------


def test_every_command_has_a_name_a_menu_a_tip_and_an_effect() -> None:
    for command in COMMANDS:
        assert command.id
        assert command.text.strip()
        assert command.tip.strip()
        assert callable(command.run)
        assert command.menu in MENUS
        assert isinstance(command.enabled(State()), bool)
    assert max(Counter(c.id for c in COMMANDS).values()) == 1


def test_no_two_commands_share_a_shortcut() -> None:
    keys = [QKeySequence(c.shortcut).toString() for c in COMMANDS if c.shortcut]
    assert all(keys)
    assert max(Counter(keys).values()) == 1


def test_every_command_is_in_the_menus(make: Make) -> None:
    window = make()
    found = set()
    for menu_action in window.menuBar().actions():
        menu = menu_action.menu()
        assert menu is not None
        found |= {action.objectName() for action in menu.actions()}
    assert {c.id for c in COMMANDS} <= found


def test_every_command_that_is_enabled_can_be_run(qtbot: QtBot, make: Make) -> None:
    window = make()
    open_scan(qtbot, window)
    for command in COMMANDS:
        if command.id in ("quit", "adapt"):
            continue
        if command.enabled(window.session.state):
            window.actions_by_id[command.id].trigger()
            if window.dialog is not None:
                assert window.dialog.isVisible()
                window.dialog.close()
            until(qtbot, window, quiet)
    assert window.isVisible()


def test_commands_are_enabled_by_the_state(qtbot: QtBot, make: Make) -> None:
    window = make()
    assert not window.actions_by_id["reconstruct"].isEnabled()
    assert not window.actions_by_id["export-tiff"].isEnabled()
    assert not window.actions_by_id["cancel"].isEnabled()
    open_scan(qtbot, window)
    assert window.actions_by_id["reconstruct"].isEnabled()
    assert window.actions_by_id["export-tiff"].isEnabled()
    assert not window.actions_by_id["cancel"].isEnabled()
    window.session.open("/data/endless.h5")
    assert window.actions_by_id["cancel"].isEnabled()


def test_keys_change_the_slice(qtbot: QtBot, make: Make) -> None:
    window = make()
    open_scan(qtbot, window)
    qtbot.keyClick(window, Qt.Key.Key_PageUp)
    assert window.session.state.slice_index == 3
    qtbot.keyClick(window, Qt.Key.Key_PageDown)
    qtbot.keyClick(window, Qt.Key.Key_PageDown)
    assert window.session.state.slice_index == 1
    until(qtbot, window, lambda s: s.panes[0].picture is not None and s.panes[0].picture.index == 1)


def test_pane_commands_show_which_is_chosen(make: Make) -> None:
    window = make()
    window.actions_by_id["panes-4"].trigger()
    assert len(window.session.state.panes) == 4
    checked = [c.id for c in COMMANDS if c.id.startswith("panes-") and window.actions_by_id[c.id].isChecked()]
    assert checked == ["panes-4"]
    window.actions_by_id["panes-4"].trigger()
    assert window.actions_by_id["panes-4"].isChecked()


# --- opening ------------------------------------------------------------------------------------------------


def test_welcome_gives_way_to_the_comparison(qtbot: QtBot, make: Make) -> None:
    window = make()
    assert window.pages.currentWidget() is window.welcome
    assert {"open-file", "open-folder", "open-sample-ct", "open-sample-mri"} <= set(window.welcome.buttons)
    open_scan(qtbot, window)
    assert window.pages.currentWidget() is window.splitter
    assert window.session.settings.recent == ("/data/a.h5",)
    assert [c.text for c in recent_commands(window.session.settings)] == ["a.h5 (/data)"]
    assert [a.text() for a in window.recent_menu.actions()] == ["a.h5 (/data)"]


def test_dropped_files_and_folders_are_opened(qtbot: QtBot, make: Make, tmp_path: Path) -> None:
    window = make()
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile("/data/a.h5"), QUrl.fromLocalFile(str(tmp_path))])
    buttons, keys, action = (
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.DropAction.CopyAction,
    )
    enter = QDragEnterEvent(QPoint(50, 50), action, data, buttons, keys)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(window, QDropEvent(QPointF(50, 50), action, data, buttons, keys))
    until(qtbot, window, lambda s: len(s.scans) == 2)
    assert {s.path for s in window.session.state.scans} == {"/data/a.h5", str(tmp_path)}


def test_dropped_text_is_not_accepted(make: Make) -> None:
    window = make()
    data = QMimeData()
    data.setText("hello")
    enter = QDragEnterEvent(
        QPoint(5, 5),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    enter.ignore()
    QApplication.sendEvent(window, enter)
    assert not enter.isAccepted()


# --- notices, jobs, engine ----------------------------------------------------------------------------------


def test_notice_is_shown_copied_and_dismissed(qtbot: QtBot, make: Make) -> None:
    window = make()
    window.session.notify("info", "first")
    window.session.notify("error", "it broke", "line 1\nline 2")
    bar = window.notices
    assert bar.isVisible()
    assert bar.text.text() == "it broke"
    assert bar.more.text() == "1 of 2"
    bar.copy_button.click()
    assert QGuiApplication.clipboard().text() == "it broke\n\nline 1\nline 2"
    bar.dismiss_button.click()
    assert bar.text.text() == "first"
    bar.dismiss_button.click()
    assert not bar.isVisible()


def test_killed_engine_leaves_window_picture_and_a_failed_job(qtbot: QtBot, make: Make) -> None:
    window = make()
    open_scan(qtbot, window)
    before = window.session.state.panes[0].picture
    window.session.open("/data/endless.h5")
    until(qtbot, window, lambda s: s.jobs[-1].phase is JobPhase.RUNNING)
    pid = window.session.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(qtbot, window, lambda s: s.engine.phase is not EnginePhase.READY)
    assert window.isVisible()
    assert "restarting" in window.engine_label.text()
    assert "SIGKILL" in window.notices.text.text()
    assert window.session.state.panes[0].picture is before
    row = [window.jobs.table.item(0, column) for column in range(5)]
    texts = [item.text() if item is not None else "" for item in row]
    assert texts[:2] == ["Open endless.h5", "Failed"]
    assert "SIGKILL" in texts[4]
    until(qtbot, window, lambda s: quiet(s) and s.scans[0].scan == "scan-1#2")
    assert window.engine_label.text() == "Engine ready"


def test_job_is_cancelled_with_its_button(qtbot: QtBot, make: Make) -> None:
    window = make()
    window.session.open("/data/endless.h5")
    until(qtbot, window, lambda s: s.jobs[-1].phase is JobPhase.RUNNING)
    box = window.jobs.table.cellWidget(0, 5)
    buttons = {b.objectName(): b for b in box.findChildren(QPushButton)}
    assert buttons["cancel"].isVisibleTo(box)
    assert not buttons["keep"].isVisibleTo(box)
    assert "1 running" in window.docks["jobs"].windowTitle()
    buttons["cancel"].click()
    assert window.session.state.jobs[-1].phase is JobPhase.CANCELLING
    assert not buttons["cancel"].isEnabled()
    until(qtbot, window, lambda s: s.jobs[-1].phase is JobPhase.FAILED)
    window.jobs.clear_button.click()
    assert window.jobs.table.rowCount() == 0


def test_engine_log_is_shown_filtered_and_copied(qtbot: QtBot, make: Make) -> None:
    window = make()
    qtbot.waitUntil(lambda: "small engine starts" in window.log.text.toPlainText(), timeout=20_000)
    window.session.log_line.emit("another line")
    window.log.filter.setText("ANOTHER")
    assert window.log.text.toPlainText() == "another line"
    window.log.copy_button.click()
    assert QGuiApplication.clipboard().text() == "another line"
    window.log.filter.clear()
    assert "small engine starts" in window.log.text.toPlainText()


def test_times_of_jobs_are_told() -> None:
    job = Job(id=1, kind="open", title="t")
    assert time_text(job, 5.0) == ""
    job = replace(job, phase=JobPhase.RUNNING, started=10.0, done=1, total=4)
    assert time_text(job, 20.0) == "10.0 s, 30.0 s left"
    assert time_text(replace(job, phase=JobPhase.DONE, seconds=61.0), 99.0) == "1:01 min"
    assert format_duration(7384) == "2:03 h"


def test_status_bar_tells_device_memory_and_pixel(qtbot: QtBot, make: Make) -> None:
    window = make()
    qtbot.waitUntil(lambda: "GB" in window.memory_label.text(), timeout=20_000)
    assert window.device_label.text() == "small"
    window.compare.hovered.emit("x 3 y 4: 0.5")
    assert window.pixel_label.text() == "x 3 y 4: 0.5"


# --- closing ------------------------------------------------------------------------------------------------


def test_closing_with_a_running_job_asks_and_never_waits(qtbot: QtBot, make: Make) -> None:
    window = make()
    open_scan(qtbot, window)
    window.session.open("/data/endless.h5")
    until(qtbot, window, lambda s: s.jobs[-1].phase is JobPhase.RUNNING)
    window.close()
    assert window.isVisible()
    question = window.dialog
    assert isinstance(question, QMessageBox)
    assert "Open endless.h5" in question.informativeText()

    def press(role: QMessageBox.ButtonRole) -> None:
        dialog = window.dialog
        assert isinstance(dialog, QMessageBox)
        button = next(b for b in dialog.buttons() if dialog.buttonRole(b) is role)
        assert isinstance(button, QAbstractButton)
        button.click()

    press(QMessageBox.ButtonRole.RejectRole)
    assert window.isVisible()
    assert window.dialog is None
    window.close()
    with qtbot.waitSignal(window.session.closed, timeout=15_000):
        began = time.monotonic()
        press(QMessageBox.ButtonRole.AcceptRole)
        assert time.monotonic() - began < 0.5
        assert not window.isVisible()


def test_layout_is_remembered_and_can_be_reset(qtbot: QtBot, make: Make) -> None:
    window = make()
    window.docks["scan"].hide()
    window.close()
    assert not window.isVisible()
    assert window.session.settings.window_state
    again = make()
    assert not again.docks["scan"].isVisible()
    again.actions_by_id["reset-layout"].trigger()
    assert all(dock.isVisibleTo(again) for name, dock in again.docks.items() if name in ("scan", "jobs"))
    qtbot.wait(50)
    bars = [bar for bar in again.findChildren(QTabBar) if bar.parent() is again and bar.count()]
    tabs = [[bar.tabText(number) for number in range(bar.count())] for bar in bars]
    assert sorted(tabs) == [["Jobs", "Log"], ["Reconstruct", "Adapt"]]


def test_layout_that_is_damaged_does_no_harm(make: Make) -> None:
    window = make(Settings(window_state=b"nonsense", window_geometry=b"\x01\x02"))
    assert window.isVisible()


# --- dialogs and theme --------------------------------------------------------------------------------------


def test_theme_changes_all_colours_at_once(qtbot: QtBot, make: Make) -> None:
    window = make(Settings(theme="light"))
    open_scan(qtbot, window)
    for theme, colours in (("dark", DARK), ("light", LIGHT)):
        window.actions_by_id[f"theme-{theme}"].trigger()
        assert window.session.settings.theme == theme
        assert window.actions_by_id[f"theme-{theme}"].isChecked()
        for widget in (window, window.scan, window.controls, window.jobs.table):
            assert widget.palette().color(QPalette.ColorRole.Window).name() == colours.window
        image = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
        assert image.pixelColor(5, window.height() - 5).name() == colours.window


@pytest.mark.parametrize("chosen", [LIGHT, DARK])
def test_text_has_enough_contrast(chosen: object) -> None:
    assert chosen in (LIGHT, DARK)
    colours = LIGHT if chosen is LIGHT else DARK

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    pairs = [(colours.text, back) for back in (colours.window, colours.base, colours.alternate, colours.button)]
    pairs += [(colours.text, back) for back in (colours.info, colours.warning, colours.error)]
    pairs += [(text, colours.window) for text in (colours.muted, colours.good, colours.bad, colours.accent)]
    pairs += [(colours.on_accent, colours.accent)]
    for text, back in pairs:
        high, low = sorted((luminance(text), luminance(back)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


def test_palette_finds_and_runs_a_command(qtbot: QtBot, make: Make) -> None:
    window = make()
    window.actions_by_id["palette"].trigger()
    dialog = window.dialog
    assert isinstance(dialog, PaletteDialog)
    assert dialog.list.count() >= len(COMMANDS) - 1
    qtbot.keyClicks(dialog.filter, "dark col")
    assert dialog.list.count() == 1
    qtbot.keyClick(dialog.filter, Qt.Key.Key_Return)
    assert window.session.settings.theme == "dark"
    assert window.dialog is None


def test_export_dialog_suggests_and_asks_the_engine(qtbot: QtBot, make: Make, tmp_path: Path) -> None:
    window = make(Settings(export_folder=str(tmp_path)))
    open_scan(qtbot, window)
    window.actions_by_id["export-tiff"].trigger()
    dialog = window.dialog
    assert isinstance(dialog, ExportDialog)
    assert dialog.path_field.text() == str(tmp_path / "fbp.tif")
    assert "5 slices of 4 × 4" in dialog.facts.text()
    dialog.format_box.setCurrentIndex(1)
    assert dialog.path_field.text() == str(tmp_path / "fbp-dicom")
    dialog.path_field.setText(str(tmp_path / "nowhere" / "x.tif"))
    assert not dialog.export_button.isEnabled()
    dialog.path_field.setText(str(tmp_path / "mine"))
    dialog.export_button.click()
    job = window.session.state.jobs[-1]
    assert (job.kind, job.title) == ("export", "Export FBP as DICOM")


def test_preferences_are_taken_over_and_checked(qtbot: QtBot, make: Make) -> None:
    window = make()
    before = window.session.settings.engine_command
    window.actions_by_id["preferences"].trigger()
    dialog = window.dialog
    assert isinstance(dialog, PreferencesDialog)
    dialog.theme_box.setCurrentIndex(dialog.theme_box.findData("dark"))
    dialog.own_font.setChecked(True)
    dialog.font_box.setValue(13)
    dialog.engine_field.setText("ssh 'gpu")
    dialog.buttons.accepted.emit()
    assert dialog.isVisible()
    assert "quotation" in dialog.problem.text()
    dialog.engine_field.setText("ssh gpu01 equipoise-engine serve")
    dialog.buttons.accepted.emit()
    settings = window.session.settings
    assert settings.engine_command == ("ssh", "gpu01", "equipoise-engine", "serve") != before
    assert (settings.theme, settings.font_size) == ("dark", 13)
    assert window.font().pointSize() == 13
    assert "Restart engine" in window.notices.text.text()


def test_about_copies_the_citation(qtbot: QtBot, make: Make) -> None:
    window = make()
    until(qtbot, window, lambda s: s.engine.ready is not None)
    window.actions_by_id["about"].trigger()
    dialog = window.dialog
    assert isinstance(dialog, AboutDialog)
    dialog.copy_citation.click()
    assert QGuiApplication.clipboard().text() == CITATION
    assert "2511.18667" in CITATION
    text = system_information(window.session.state, window.session.settings)
    assert "Device: small" in text
    assert dialog.system.toPlainText().startswith("Equipoise ")
    names = {name for name, _, _ in libraries()}
    assert {"PySide6-Essentials", "torch", "msgspec"} <= names
    assert "not found" not in text


def test_every_control_has_a_name_and_a_tip(qtbot: QtBot, make: Make) -> None:
    window = make()
    open_scan(qtbot, window)
    unnamed = []
    for view in (window.notices, window.jobs, window.log, window.welcome):
        for widget in view.findChildren(QWidget):
            if isinstance(widget, QPushButton) and not (widget.text() and widget.toolTip()):
                unnamed.append((type(view).__name__, widget.text()))
    assert unnamed == []


# --- the program --------------------------------------------------------------------------------------------


def test_program_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("Equipoise ")


def test_program_opens_a_scan_takes_a_screenshot_and_ends(tmp_path: Path) -> None:
    settings, picture = tmp_path / "own.ini", tmp_path / "window.png"
    SettingsStore(settings).save(Settings(engine_command=(sys.executable, str(SMALL_ENGINE))))
    environment = {
        **os.environ,
        "EQUIPOISE_SETTINGS": str(settings),
        "EQUIPOISE_LOGS": str(tmp_path / "logs"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "--screenshot", str(picture), "/data/a.h5"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    image = QImage(str(picture))
    assert image.width() >= 800
    assert "small engine starts" in (tmp_path / "logs" / "equipoise.log").read_text()
    assert SettingsStore(settings).load()[0].recent == ("/data/a.h5",)


def test_frozen_program_enters_the_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "--engine", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equipoise-engine" in done.stdout
    assert "serve" in done.stdout
