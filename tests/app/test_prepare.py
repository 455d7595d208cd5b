"""The window "Prepare scan", offscreen, above a main window with a small engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QLabel,
    QLineEdit,
    QSlider,
    QTabBar,
    QWidget,
)
from pytestqt.qtbot import QtBot

from equipoise import state as change
from equipoise.session import Session
from equipoise.settings import Settings, SettingsStore
from equipoise.state import EnginePhase, Job, JobPhase, Run, State, active_jobs, find_scan
from equipoise.supervisor import Limits
from equipoise.view.main import MainWindow
from equipoise.view.prepare.form import NumberField
from equipoise.view.prepare.window import PREVIEW, PrepareWindow
from equipoise.view.theme import apply_theme
from equipoise_engine.protocol import Look
from equipoise_engine.recipe import (
    AngleRange,
    FlatField,
    Known,
    NegativeLog,
    Recipe,
    Rings,
    Selection,
    Step,
)

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")
QUICK = Limits(heartbeat=0.05, answer=5.0, start=20.0, cancel=0.4, delays=(0.05,), losses=5)


def start(folder: Path) -> MainWindow:
    store = SettingsStore(folder / "window.ini")
    store.save(Settings(engine_command=(sys.executable, str(SMALL_ENGINE))))
    session = Session(store, QUICK)
    window = MainWindow(session, folder)
    window.show()
    session.start()
    return window


def end(window: MainWindow) -> None:
    ended: list[bool] = []
    window.session.closed.connect(lambda: ended.append(True))
    window.session.close()
    for _ in range(1500):
        if ended:
            break
        QTest.qWait(10)
    assert ended
    window.hide()
    window.deleteLater()
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    apply_theme(app, "light")


@pytest.fixture(scope="module")
def lasting(qapp: QApplication, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainWindow]:
    """A main window that the tests of this file share; each opens scans of its own in it."""
    window = start(tmp_path_factory.mktemp("prepare"))
    yield window
    end(window)


@pytest.fixture
def main(lasting: MainWindow) -> Iterator[MainWindow]:
    lasting.prepare.tabs.setCurrentIndex(0)
    yield lasting
    lasting.prepare.close()
    for notice in lasting.session.state.notices:
        lasting.session.dismiss(notice.number)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A scan that no other test opens."""
    return f"/data/{request.node.name}.h5"


def until(qtbot: QtBot, holds: Callable[[], bool]) -> None:
    qtbot.waitUntil(holds, timeout=6_000)


def quiet(state: State) -> bool:
    waiting = any(pane.asked is not None for pane in state.panes)
    return state.engine.phase is EnginePhase.READY and not active_jobs(state) and not waiting


def open_scan(qtbot: QtBot, main: MainWindow, path: str) -> None:
    count = len(main.session.state.jobs)
    main.session.open(path)
    until(qtbot, lambda: len(main.session.state.jobs) > count and quiet(main.session.state))


@pytest.fixture
def window(qtbot: QtBot, main: MainWindow, path: str) -> PrepareWindow:
    """The window with an open scan, seen."""
    open_scan(qtbot, main, path)
    action = main.actions_by_id["prepare"]
    assert action.shortcut().toString() == "Ctrl+P"
    action.trigger()
    until(qtbot, main.prepare.isActiveWindow)
    until(qtbot, lambda: not main.session.is_looking(PREVIEW) and not main.prepare.busy.text())
    return main.prepare


def runs_of(main: MainWindow) -> list[Run]:
    """The results of the active scan."""
    return [run for run in main.session.state.runs if run.scan == main.session.state.scan]


def steps(window: PrepareWindow) -> tuple[Step, ...]:
    assert window.draft is not None
    return window.draft.recipe.steps or ()


def show_steps(window: PrepareWindow) -> None:
    window.tabs.setCurrentWidget(window.steps)


def add(window: PrepareWindow, title: str) -> None:
    action = next(a for a in window.steps.menu.actions() if a.text() == title)
    assert action.isEnabled()
    action.trigger()


# --- when it opens, and what it shows ------------------------------------------------------------------------


def test_it_opens_by_its_command_and_shows_the_quick_image(window: PrepareWindow, main: MainWindow, path: str) -> None:
    assert window.isVisible()
    assert window.windowModality() is Qt.WindowModality.NonModal
    assert Path(path).name in window.windowTitle()
    pixels = window.preview.pixels()
    assert pixels is not None
    assert pixels[1, 1] == 9
    assert window.standing.text() == "As opened"
    assert not window.apply_button.isEnabled()
    assert main.isEnabled()


@pytest.mark.parametrize(
    ("name", "opens"), [("/data/plain.h5", False), ("/data/guessed.h5", False), ("/data/needy.h5", True)]
)
def test_it_opens_by_itself_where_something_is_missing(qtbot: QtBot, main: MainWindow, name: str, opens: bool) -> None:
    open_scan(qtbot, main, name)
    assert main.prepare.isVisible() is opens
    if opens:
        assert main.prepare.warnings.isVisible()
        assert "angles" in main.prepare.warnings.text.text()
    # to open it once more does not open the window once more
    main.prepare.close()
    if "needy" not in name:
        open_scan(qtbot, main, name)
        assert not main.prepare.isVisible()


def test_what_is_missing_can_be_said_and_the_scan_opened(qtbot: QtBot, main: MainWindow) -> None:
    open_scan(qtbot, main, "/data/another-needy.h5")
    window = main.prepare
    assert window.apply_button.isEnabled()
    assert window.standing.text() == "Not open yet"
    assert window.draft is not None
    angles = AngleRange(start_deg=0, stop_deg=180)
    window.edit(replace(window.draft.recipe, known=Known(angles=angles)))
    window.apply()
    until(qtbot, lambda: main.session.state.needed is None and quiet(main.session.state))
    assert main.session.state.scans[-1].recipe.known.angles == angles
    assert window.standing.text() == "As opened"
    assert not window.warnings.isVisible()
    # the steps that were found are shown, and the edit can still be undone
    assert steps(window) == (NegativeLog(),)
    window.undo()
    assert window.draft.recipe == Recipe()


def test_what_was_guessed_is_told_and_checked_by_a_button(qtbot: QtBot, main: MainWindow) -> None:
    open_scan(qtbot, main, "/data/plain-2.h5")
    assert not main.scan.check_button.isVisible()
    assert main.session.state.notices == ()
    open_scan(qtbot, main, "/data/guessed-2.h5")
    assert [notice.severity for notice in main.session.state.notices] == ["info"]
    assert "guessed-2.h5" in main.session.state.notices[0].text
    main.prepare.tabs.setCurrentWidget(main.prepare.raw)
    main.scan.check_button.setFocus()
    qtbot.keyClick(main.scan.check_button, Qt.Key.Key_Space)
    assert main.prepare.isVisible()
    assert main.prepare.tabs.currentWidget() is main.prepare.reading
    assert "the angles" in main.prepare.warnings.text.text()


def test_a_scan_that_cannot_be_opened_shows_nothing_of_another_and_leads_back(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow, path: str
) -> None:
    show_steps(window)
    until(qtbot, lambda: bool(window.steps.words.text()))
    open_scan(qtbot, main, "/data/needy-3.h5")
    assert window.tabs.currentWidget() is window.reading
    assert "needy-3.h5" in window.windowTitle()
    for picture in (window.preview, window.centre.picture, window.selection.picture, *window.steps.pictures):
        assert picture.pixels() is None
    # what is missing is said once
    assert not window.preview.problem.isVisible()
    assert window.steps.words.text() == ""
    assert window.centre.centre.cleanText() == ""
    assert not window.centre.line.isVisible()
    assert window.selection.last["views"].text() == ""
    # the scan that is open can be chosen again, and the other one too
    names = [window.scan.itemText(row) for row in range(window.scan.count())]
    assert names[-1] == "needy-3.h5"
    for name in (Path(path).name, "needy-3.h5", Path(path).name):
        window.scan.setFocus()
        row = names.index(name)
        window.scan.setCurrentIndex(row)
        window.scan.activated.emit(row)
        assert name in window.windowTitle()
        assert window.scan.currentText() == name
    until(qtbot, lambda: window.preview.pixels() is not None)
    assert not window.warnings.isVisible()


def test_the_buttons_of_the_main_window_prepare_the_active_scan(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow, path: str
) -> None:
    open_scan(qtbot, main, "/data/needy-4.h5")
    window.close()
    button = main.controls.centre_button
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    assert window.isVisible()
    assert window.tabs.currentWidget() is window.centre
    assert Path(path).name in window.windowTitle()


def test_a_picture_of_another_scan_that_fails_late_is_not_told(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow, path: str
) -> None:
    seen: list[str] = []
    failed: list[str] = []
    main.session.seen.connect(lambda purpose, event, pixels: seen.append(event.path))
    main.session.look_failed.connect(lambda purpose, event: failed.append(purpose))
    impossible = Recipe(selection=Selection(bin=64))
    main.session.look("test", Look(path=path, recipe=impossible, what="image"))
    main.session.look("test", Look(path="/data/other.h5", recipe=Recipe(), what="image"))
    until(qtbot, lambda: "/data/other.h5" in seen)
    assert failed == []


def test_what_the_quick_image_waits_for_is_told(qtbot: QtBot, window: PrepareWindow, main: MainWindow) -> None:
    before = main.session.state
    job = Job(id=9999, kind="reconstruct", title="TV of bone.h5", phase=JobPhase.RUNNING, started=1.0)
    main.session._set(change.add_job(before, job))
    add(window, "Rings")
    assert window.busy.text() == "Waiting for: TV of bone.h5"
    main.session._set(before)
    assert window.busy.text() == "Updating …"
    until(qtbot, lambda: window.busy.text() == "")


def test_every_widget_that_takes_the_keyboard_has_a_name_and_a_tip(window: PrepareWindow) -> None:
    kinds = (QAbstractButton, QAbstractSpinBox, QComboBox, QSlider, QLineEdit)
    for page in window.pages:
        window.tabs.setCurrentWidget(page)
        QApplication.processEvents()
        for widget in page.findChildren(QWidget):
            inner = isinstance(widget.parentWidget(), QAbstractSpinBox | QComboBox)
            if not isinstance(widget, kinds) or inner or not widget.isVisible():
                continue
            if widget.focusPolicy() & Qt.FocusPolicy.TabFocus:
                assert widget.accessibleName() or getattr(widget, "text", str)(), widget
                assert widget.toolTip(), widget


def test_no_two_things_that_are_seen_share_a_key(window: PrepareWindow) -> None:
    for page in window.pages:
        window.tabs.setCurrentWidget(page)
        QApplication.processEvents()
        texts = [
            widget.text()
            for widget in window.findChildren(QWidget)
            if isinstance(widget, QAbstractButton | QLabel) and widget.isVisible() and "&nbsp;" not in widget.text()
        ]
        bars = [bar for bar in window.findChildren(QTabBar) if bar.isVisible()]
        texts += [bar.tabText(number) for bar in bars for number in range(bar.count()) if bar.isTabVisible(number)]
        keys = [key.lower() for text in texts for key in re.findall(r"&(\w)", text)]
        assert len(keys) == len(set(keys)), (page.title, sorted(keys))


# --- the steps -----------------------------------------------------------------------------------------------


def test_steps_are_added_moved_and_removed_with_the_keyboard_and_all_of_it_undone(
    qtbot: QtBot, window: PrepareWindow
) -> None:
    show_steps(window)
    page = window.steps
    page.list.setFocus()
    assert steps(window) == (NegativeLog(),)
    add(window, "Rings")
    add(window, "Flat field")
    assert steps(window) == (FlatField(), NegativeLog(), Rings())
    assert [a.text() for a in page.menu.actions() if not a.isEnabled()] == ["Flat field", "Negative logarithm", "Rings"]
    assert page.list.currentRow() == 0
    qtbot.keyClick(page.list, Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)
    assert steps(window) == (NegativeLog(), FlatField(), Rings())
    assert page.list.currentRow() == 1
    qtbot.keyClick(page.list, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    assert steps(window) == (FlatField(), NegativeLog(), Rings())
    qtbot.keyClick(page.list, Qt.Key.Key_Down)
    qtbot.keyClick(page.list, Qt.Key.Key_Delete)
    assert steps(window) == (FlatField(), Rings())
    for _ in range(5):
        qtbot.keyClick(page.list, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert steps(window) == (NegativeLog(),)
    assert not window.undo_button.isEnabled()
    shift = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
    for _ in range(5):
        qtbot.keyClick(page.list, Qt.Key.Key_Z, shift)
    assert steps(window) == (FlatField(), Rings())
    assert window.isWindowModified()


def test_the_form_has_the_limits_of_the_recipe_and_changes_the_step(qtbot: QtBot, window: PrepareWindow) -> None:
    show_steps(window)
    floor = window.steps.form.field("floor")
    assert isinstance(floor, NumberField)
    assert (floor.minimum(), floor.maximum()) == (0, 0.5)
    floor.setFocus()
    floor.selectAll()
    qtbot.keyClicks(floor, "2.5e-3")
    assert steps(window) == (NegativeLog(),)
    qtbot.keyClick(floor, Qt.Key.Key_Return)
    assert steps(window) == (NegativeLog(floor=0.0025),)
    assert "floor 0.0025" in window.steps.list.item(0).text()
    assert floor.text() == "0.0025"
    # undo means the recipe, also inside the field
    qtbot.keyClick(floor, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert steps(window) == (NegativeLog(),)
    assert floor.text() == "0"
    add(window, "Flat field")
    average, monitor = window.steps.form.field("average"), window.steps.form.field("monitor")
    assert isinstance(average, QComboBox)
    assert isinstance(monitor, QCheckBox)
    assert "beam monitor" in monitor.toolTip()
    average.setFocus()
    qtbot.keyClick(average, Qt.Key.Key_Down)
    qtbot.keyClick(monitor, Qt.Key.Key_Space)
    assert steps(window)[0] == FlatField(average="median", monitor=False)


def test_a_list_of_numbers_that_cannot_be_read_is_told_and_not_taken(qtbot: QtBot, window: PrepareWindow) -> None:
    show_steps(window)
    add(window, "Beam hardening")
    line = window.steps.form.field("coefficients")
    assert isinstance(line, QLineEdit)
    before = steps(window)
    line.setText("1, zwei")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert "'zwei' is not a number" in window.steps.form.problem.text()
    assert steps(window) == before
    line.setText("1 0.25")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert steps(window) != before
    assert not window.steps.form.problem.isVisible()


def test_usual_steps_come_back(qtbot: QtBot, window: PrepareWindow) -> None:
    show_steps(window)
    assert not window.steps.usual_button.isEnabled()
    window.steps.list.setFocus()
    qtbot.keyClick(window.steps.list, Qt.Key.Key_Delete)
    assert steps(window) == ()
    assert "taken as they were read" in window.steps.note.text()
    for picture in window.steps.pictures:
        assert picture.pixels() is None
        assert picture.hint.text() == "No step to show"
    assert window.steps.words.text() == ""
    qtbot.mouseClick(window.steps.usual_button, Qt.MouseButton.LeftButton)
    assert steps(window) == (NegativeLog(),)


def test_the_data_before_and_after_the_selected_step_are_compared(qtbot: QtBot, window: PrepareWindow) -> None:
    show_steps(window)
    page = window.steps
    add(window, "Flat field")
    page.list.setCurrentRow(1)

    def values() -> tuple[float, ...]:
        return tuple(float(p[1, 1]) if (p := v.pixels()) is not None else -1 for v in page.pictures)

    until(qtbot, lambda: values() == (1, 2, 1))
    until(qtbot, lambda: page.words.text().startswith("16 changed (100.0 %), 0 negative, 0 NaN"))
    assert "not marked" in page.words.text()
    levels = page.change.levels()
    assert levels is not None
    assert levels[0] == -levels[1]
    page.list.setCurrentRow(0)
    until(qtbot, lambda: values() == (0, 1, 1))
    page.what.setCurrentIndex(page.what.findData("sinogram"))
    until(qtbot, lambda: "sinogram" in page.before.view.accessibleDescription() or page.index.label.text() == "Row")
    assert page.index.number.maximum() == 4


# --- recipes, and where they lead -------------------------------------------------------------------------------


def test_apply_opens_the_scan_with_the_recipe_and_keeps_earlier_results(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow
) -> None:
    add(window, "Rings")
    assert window.standing.text() == "Changed, not applied"
    qtbot.mouseClick(window.apply_button, Qt.MouseButton.LeftButton)
    state = main.session.state
    assert [job.kind for job in active_jobs(state)] == ["open"]
    until(qtbot, lambda: len(runs_of(main)) == 2 and quiet(main.session.state))
    assert window.standing.text() == "As opened"
    assert not window.isWindowModified()
    assert [", recipe 2" in run.label for run in runs_of(main)] == [False, True]
    rows = [main.scan.facts.topLevelItem(n) for n in range(main.scan.facts.topLevelItemCount())]
    facts = {item.text(0): item.text(1) for item in rows if item is not None}
    assert facts["Step 1"].startswith("Negative logarithm")
    assert facts["Step 2"].startswith("Rings: method sorting")
    # the way back is still there
    window.undo()
    assert window.standing.text() == "Changed, not applied"


def test_a_recipe_that_cannot_be_applied_is_told_and_kept(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow
) -> None:
    assert window.draft is not None
    window.edit(replace(window.draft.recipe, selection=Selection(bin=63)))
    window.apply()
    until(qtbot, window.warnings.isVisible)
    assert "cannot be opened binned by 63" in window.warnings.text.text()
    assert window.standing.text() == "Changed, not applied"
    assert len(runs_of(main)) == 1
    window.undo()
    assert not window.warnings.isVisible()


def test_edits_that_are_made_while_it_opens_stay(qtbot: QtBot, window: PrepareWindow, main: MainWindow) -> None:
    add(window, "Rings")
    window.apply()
    add(window, "Zingers")
    until(qtbot, lambda: len(runs_of(main)) == 2 and quiet(main.session.state))
    assert len(steps(window)) == 3
    assert window.standing.text() == "Changed, not applied"


def test_a_draft_outlives_its_engine_and_the_scan_is_opened_again_as_it_was(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow, path: str
) -> None:
    add(window, "Rings")
    window.apply()
    until(qtbot, lambda: len(runs_of(main)) == 2 and quiet(main.session.state))
    add(window, "Zingers")
    draft = steps(window)
    main.session.restart_engine()
    until(qtbot, lambda: all("#2" in scan.scan for scan in main.session.state.scans) and quiet(main.session.state))
    facts = find_scan(main.session.state, main.session.state.scan)
    assert facts is not None
    assert facts.path == path
    assert facts.recipe.steps == (NegativeLog(), Rings())
    assert steps(window) == draft


def test_each_scan_has_a_draft_of_its_own(qtbot: QtBot, window: PrepareWindow, main: MainWindow, path: str) -> None:
    add(window, "Rings")
    open_scan(qtbot, main, "/data/other.h5")
    assert "other.h5" in window.windowTitle()
    assert steps(window) == (NegativeLog(),)
    first = next(scan.scan for scan in main.session.state.scans if scan.path == path)
    main.session.select_scan(first)
    assert steps(window) == (NegativeLog(), Rings())
    assert window.isWindowModified()


def test_a_quick_image_that_fails_says_why_and_leaves_the_last_one(
    qtbot: QtBot, window: PrepareWindow, main: MainWindow
) -> None:
    assert window.draft is not None
    before = window.preview.pixels()
    window.edit(replace(window.draft.recipe, selection=Selection(bin=64)))
    until(qtbot, window.preview.problem.isVisible)
    assert "cannot be binned by 64" in window.preview.problem.text()
    assert window.preview.pixels() is before
    assert main.session.state.notices == ()
    window.undo()
    until(qtbot, lambda: not window.preview.problem.isVisible())


def test_quick_edits_ask_for_one_image(qtbot: QtBot, window: PrepareWindow, main: MainWindow) -> None:
    assert window.draft is not None
    until(qtbot, lambda: not main.session.is_looking(PREVIEW))
    seen: list[str] = []
    main.session.seen.connect(lambda purpose, event, pixels: seen.append(purpose))
    for number in range(8):
        window.edit(replace(window.draft.recipe, known=replace(window.draft.recipe.known, centre_px=float(number))))
    until(qtbot, lambda: PREVIEW in seen)
    qtbot.wait(400)
    assert seen.count(PREVIEW) == 1
    assert len(window.draft.past) == 1


def test_recipes_are_saved_and_loaded_with_dialogs(qtbot: QtBot, window: PrepareWindow, tmp_path: Path) -> None:
    def answer(path: Path) -> None:
        dialog = next(d for d in window.findChildren(QFileDialog) if d.isVisible())
        dialog.selectFile(str(path))
        dialog.fileSelected.emit(str(path))
        dialog.close()

    add(window, "Rings")
    saved = steps(window)
    qtbot.mouseClick(window.save_button, Qt.MouseButton.LeftButton)
    answer(tmp_path / "mine.json")
    assert "mine.json" in window.standing.text()
    window.undo()
    qtbot.mouseClick(window.load_button, Qt.MouseButton.LeftButton)
    answer(tmp_path / "mine.json")
    assert steps(window) == saved
    (tmp_path / "bad.json").write_text('{"steps": [{"step": "rings", "size": 1}]}')
    window.load(str(tmp_path / "bad.json"))
    assert "step 1, size must be at least 3" in window.warnings.text.text()
    assert steps(window) == saved
    window.undo()
    assert not window.warnings.isVisible()


def test_raw_data_are_shown_as_they_were_read(qtbot: QtBot, window: PrepareWindow) -> None:
    add(window, "Rings")
    window.tabs.setCurrentWidget(window.raw)
    picture = window.raw.picture
    until(qtbot, lambda: picture.pixels() is not None)
    pixels = picture.pixels()
    assert pixels is not None
    assert pixels[1, 1] == 0
    assert window.raw.words.text()
    window.raw.index.number.setValue(3)
    until(qtbot, lambda: "projection 3" in picture.view.accessibleDescription())


def test_both_themes_can_be_drawn(window: PrepareWindow, main: MainWindow) -> None:
    for theme in ("dark", "light"):
        main.set_theme(theme)
        QApplication.processEvents()
        assert not window.grab().toImage().isNull()


def test_it_closes_with_the_main_window(qapp: QApplication, tmp_path: Path) -> None:
    main = start(tmp_path)
    main.prepare_scan()
    assert main.prepare.isVisible()
    main.close()
    assert not main.prepare.isVisible()
    end(main)
