"""The window "Prepare scan": pages of a recipe, and a quick image of what comes out."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path, PurePath

import qtawesome
from PySide6.QtCore import QEvent, QObject, Qt, QTimer, Slot
from PySide6.QtGui import QCloseEvent, QKeyEvent, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSplitter,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from equipoise import draft as drafts
from equipoise.draft import Draft
from equipoise.extent import same_slice, slices_of
from equipoise.geometry import without_found_centre
from equipoise.recipe_file import RecipeFileError, load_recipe, save_recipe
from equipoise.roles import kind_of
from equipoise.session import Session
from equipoise.state import EnginePhase, JobPhase, State, active_jobs, find_job, find_scan, sentence
from equipoise.view.prepare.centre import CentrePage
from equipoise.view.prepare.index import IndexSlider
from equipoise.view.prepare.page import Page
from equipoise.view.prepare.picture import PictureView, link, percentiles
from equipoise.view.prepare.raw import RawPage
from equipoise.view.prepare.reading import ReadingPage
from equipoise.view.prepare.selection import SelectionPage
from equipoise.view.prepare.steps import StepsPage
from equipoise.view.scan import WarningBox
from equipoise.view.theme import colours
from equipoise_engine.protocol import Failed, Look, Needed, Pixels, ScanFacts, Seen
from equipoise_engine.recipe import Recipe, Selection

PREVIEW = "preview"
"""Purpose of the quick image."""
WAIT_MS = 300
"""So long after the last edit the quick image is asked for."""
RECIPE_FILTER = "Recipes (*.json)"


class PrepareWindow(QWidget):
    """Prepares one scan at a time, the active one or the one that could not be opened; keeps a draft for each.

    Parameters
    ----------
    parent
        The main window, above which this one stays.
    """

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent, Qt.WindowType.Window)
        self._session = session
        self._state = State()
        self._path = ""
        self._drafts: dict[str, Draft] = {}
        self._sent: dict[str, Recipe] = {}
        self._opening: int | None = None
        self._folder = ""
        self._sliced = Selection()
        self._shown_path = ""
        self._asked_path = ""
        self._pending = False
        self.setWindowTitle("Prepare scan[*]")
        self.resize(1280, 800)

        self.scan = QComboBox()
        self.scan.setAccessibleName("Scan that is prepared")
        self.scan.setToolTip("The open scans, and the one that could not be opened; each has a draft of its own")
        self.scan.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.scan.activated.connect(self._choose_scan)
        scan_label = QLabel("Sca&n")
        scan_label.setBuddy(self.scan)
        self._scan_row = QWidget()
        scans = QHBoxLayout(self._scan_row)
        scans.setContentsMargins(0, 0, 0, 0)
        scans.addWidget(scan_label)
        scans.addWidget(self.scan)
        scans.addStretch(1)
        self.warnings = WarningBox()
        self.tabs = QTabWidget()
        self.tabs.setAccessibleName("Pages of the recipe")
        self.tabs.tabBar().setAccessibleName("Pages of the recipe")
        self.reading = ReadingPage(session)
        self.selection = SelectionPage(session)
        self.centre = CentrePage(session)
        self.steps = StepsPage(session)
        self.raw = RawPage(session)
        self.pages: tuple[Page, ...] = (self.reading, self.selection, self.centre, self.steps, self.raw)
        for page in self.pages:
            page.edited.connect(self.edit)
            self.tabs.addTab(page, page.title)

        self.preview = PictureView("Quick image")
        self.preview.setMinimumWidth(280)
        link((self.preview,))
        self.slice = IndexSlider("Slice")
        self.slice.moved.connect(self._want_preview)
        self.busy = QLabel()
        self.busy.setProperty("muted", True)
        self.busy.setAccessibleName("State of the quick image")
        beside = QWidget()
        column = QVBoxLayout(beside)
        column.setContentsMargins(8, 8, 0, 0)
        column.addWidget(self.preview, 1)
        column.addWidget(self.slice)
        column.addWidget(self.busy)
        self.splitter = QSplitter(Qt.Orientation.Horizontal)
        self.splitter.addWidget(self.tabs)
        self.splitter.addWidget(beside)
        self.splitter.setStretchFactor(0, 2)
        self.splitter.setStretchFactor(1, 1)
        self.splitter.setChildrenCollapsible(False)
        self.splitter.setSizes([820, 440])

        self.undo_button = self._button("Undo", "Take the last edit back (Ctrl+Z)", self.undo)
        self.redo_button = self._button("Redo", "Do again what was undone (Ctrl+Shift+Z)", self.redo)
        self.load_button = self._button("&Load recipe …", "Take a recipe from a file", self.ask_load)
        self.save_button = self._button("Sa&ve recipe …", "Write this recipe to a file", self.ask_save)
        self.apply_button = self._button(
            "&Apply", "Open the scan with this recipe; results of earlier ones stay (Ctrl+Enter)", self.apply
        )
        self.close_button = self._button("Close", "Close this window; the draft is kept (Ctrl+W)", self.close)
        self.standing = QLabel()
        self.standing.setAccessibleName("State of the recipe")
        self.standing.setProperty("muted", True)
        row = QHBoxLayout()
        for button in (self.undo_button, self.redo_button, self.load_button, self.save_button):
            row.addWidget(button)
        row.addStretch(1)
        row.addWidget(self.standing)
        row.addSpacing(8)
        row.addWidget(self.apply_button)
        row.addWidget(self.close_button)
        for keys, gesture in (
            ("Ctrl+Z", self.undo),
            ("Ctrl+Shift+Z", self.redo),
            ("Ctrl+Y", self.redo),
            ("Ctrl+Return", self.apply),
            ("Ctrl+Enter", self.apply),
            ("Ctrl+W", self.close),
        ):
            QShortcut(QKeySequence(keys), self).activated.connect(gesture)

        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 10, 10, 10)
        layout.addWidget(self._scan_row)
        layout.addWidget(self.warnings)
        layout.addWidget(self.splitter, 1)
        layout.addLayout(row)

        self._waiting = QTimer(self, singleShot=True, interval=WAIT_MS)
        self._waiting.timeout.connect(self._ask_preview)
        session.changed.connect(self.show_change)
        session.seen.connect(self._take_seen)
        session.look_failed.connect(self._take_failure)
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        app.focusChanged.connect(self._follow_focus)
        self._draw_icons()
        self.show_change(State(), session.state)

    # --- what it holds

    @property
    def draft(self) -> Draft | None:
        """The recipe that is shown, or None while there is no scan."""
        return self._drafts.get(self._path)

    def facts(self) -> ScanFacts | None:
        """The scan that is prepared, where it is open."""
        return next((scan for scan in self._state.scans if scan.path == self._path), None)

    def needed(self) -> Needed | None:
        """What the scan lacks, where it could not be opened."""
        needed = self._state.needed
        return needed if needed is not None and needed.path == self._path else None

    def show_active(self) -> None:
        """Prepare the active scan, where another one is shown."""
        facts = find_scan(self._state, self._state.scan)
        if facts is not None and facts.path != self._path:
            self._take_facts(facts)

    # --- from the state to the widgets

    @Slot(object, object)
    def show_change(self, old: State, new: State) -> None:
        """Follow the scan that is active, or that could not be opened."""
        old, self._state = self._state, new
        facts = find_scan(new, new.scan)
        if new.needed is not None and new.needed is not old.needed:
            self._take_needed(new.needed)
        elif facts is not None and facts is not find_scan(old, old.scan):
            self._take_facts(facts)
        elif old.needed is not None and new.needed is None:
            self._show()
        job = find_job(new, self._opening) if self._opening is not None else None
        if job is not None and not job.active:
            self._opening = None
            if job.phase is JobPhase.FAILED and self.needed() is None:
                self.warnings.show_texts((sentence(job.message, job.hint),))
        if old.scans is not new.scans or old.needed is not new.needed:
            self._list_scans()
        self._enable()
        self._say_busy()

    def _list_scans(self) -> None:
        paths = [scan.path for scan in self._state.scans]
        if self._state.needed is not None and self._state.needed.path not in paths:
            paths.append(self._state.needed.path)
        self.scan.clear()
        for path in paths:
            self.scan.addItem(PurePath(path).name, path)
            self.scan.setItemData(self.scan.count() - 1, path, Qt.ItemDataRole.ToolTipRole)
        self.scan.setCurrentIndex(self.scan.findData(self._path))
        self._scan_row.setVisible(len(paths) > 1)

    @Slot(int)
    def _choose_scan(self, row: int) -> None:
        path, needed = self.scan.itemData(row), self._state.needed
        facts = next((scan for scan in self._state.scans if scan.path == path), None)
        if needed is not None and needed.path == path:
            self._take_needed(needed)
        elif facts is not None:
            self._session.select_scan(facts.scan)
            self.show_active()

    def _take_needed(self, needed: Needed) -> None:
        self._path = needed.path
        if needed.path not in self._drafts:
            self._drafts[needed.path] = drafts.start(needed.path, "", needed.recipe)
        self._show()

    def _take_facts(self, facts: ScanFacts) -> None:
        path = self._path = facts.path
        draft = self._drafts.get(path)
        sent = self._sent.pop(path, None)
        if draft is None:
            draft = drafts.start(path, facts.kind, facts.recipe)
        elif sent == draft.recipe or not drafts.is_changed(draft):
            draft = drafts.settle(draft, facts.kind, facts.recipe)
        else:
            # edited since it was sent, or opened again for another reason: the edits stay
            draft = drafts.rebase(draft, facts.kind, facts.recipe)
        self._drafts[path] = draft
        self._sliced = facts.recipe.selection
        self.slice.set_count(facts.slices)
        self.slice.set_value(self._state.slice_index)
        self._show()

    def _show(self) -> None:
        draft = self.draft
        if draft is None:
            return
        facts, needed = self.facts(), self.needed()
        if self._shown_path != self._path:
            # what was seen of another scan says nothing of this one
            self._shown_path = self._path
            self.preview.set_picture(None, hint="Waiting for the image")
            self.preview.set_problem("")
            self.scan.setCurrentIndex(self.scan.findData(self._path))
        if facts is None:
            self.slice.set_count(0)
        else:
            # the quick image stays at its place in the object while rows are chosen
            before, self._sliced = self._sliced, draft.recipe.selection
            index = same_slice(facts.kind, facts.full_shape, before, self._sliced, self.slice.value())
            self.slice.set_count(slices_of(facts.kind, facts.full_shape, self._sliced))
            self.slice.set_value(index)
        for page in self.pages:
            page.show_draft(facts, needed, draft.recipe)
        self.tabs.setTabVisible(self.tabs.indexOf(self.centre), kind_of(facts, needed) == "ct")
        self.warnings.show_texts(_standing_warnings(facts, needed))
        self._enable()
        self._want_preview()

    def _enable(self) -> None:
        draft = self.draft
        phase = self._state.engine.phase
        there = draft is not None
        opening = any(job.kind in ("open", "reopen") for job in active_jobs(self._state))
        changed = draft is not None and drafts.is_changed(draft)
        self.tabs.setEnabled(there)
        self.undo_button.setEnabled(draft is not None and bool(draft.past))
        self.redo_button.setEnabled(draft is not None and bool(draft.future))
        self.load_button.setEnabled(there)
        self.save_button.setEnabled(there)
        waiting = self.needed() is not None
        self.apply_button.setEnabled((changed or waiting) and phase not in (EnginePhase.STOPPED,))
        self.setWindowModified(changed)
        name = PurePath(self._path).name if self._path else ""
        self.setWindowTitle(f"Prepare {name}[*]" if name else "Prepare scan[*]")
        if draft is None:
            text = "Open a scan first"
        elif opening:
            text = "Opening …"
        elif waiting:
            text = "Not open yet"
        elif changed:
            text = "Changed, not applied"
        else:
            text = "As opened"
        self.standing.setText(text)

    # --- the draft

    @Slot(object)
    def edit(self, recipe: Recipe) -> None:
        """Take over another recipe, which can be undone."""
        draft = self.draft
        if draft is not None:
            self._change(drafts.edit(draft, recipe, time.monotonic()))

    @Slot()
    def undo(self) -> None:
        """Take the last edit back."""
        if self.draft is not None:
            self._change(drafts.undo(self.draft))

    @Slot()
    def redo(self) -> None:
        """Do again what was undone."""
        if self.draft is not None:
            self._change(drafts.redo(self.draft))

    @Slot()
    def apply(self) -> None:
        """Open the scan with the recipe; its analytic image is then shown in the main window."""
        draft = self.draft
        if draft is None or not self.apply_button.isEnabled():
            return
        self._sent[draft.path] = draft.recipe
        self._session.open(draft.path, without_found_centre(self.facts(), draft.recipe))
        newest = self._session.state.jobs[-1:]
        self._opening = newest[0].id if newest and newest[0].kind == "open" else None

    def _change(self, draft: Draft) -> None:
        if draft is self.draft:
            return
        self._drafts[draft.path] = draft
        self._show()

    # --- recipes in files

    @Slot()
    def ask_load(self) -> None:
        """Let the user choose a recipe."""
        if self.draft is None:
            return
        dialog = QFileDialog(self, "Load recipe", self._start_folder(), RECIPE_FILTER)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        self._open_dialog(dialog, self.load)

    @Slot()
    def ask_save(self) -> None:
        """Let the user choose where to write the recipe."""
        if self.draft is None:
            return
        name = f"{PurePath(self._path).stem or 'scan'}-recipe.json"
        dialog = QFileDialog(self, "Save recipe", self._start_folder(), RECIPE_FILTER)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("json")
        dialog.selectFile(name)
        self._open_dialog(dialog, self.save)

    @Slot(str)
    def load(self, path: str) -> None:
        """Take over the recipe in a file, which can be undone."""
        self._folder = str(PurePath(path).parent)
        try:
            recipe = load_recipe(Path(path))
        except RecipeFileError as error:
            self._session.notify("error", str(error))
            self.warnings.show_texts((str(error),))
            return
        self.edit(recipe)

    @Slot(str)
    def save(self, path: str) -> None:
        """Write the recipe to a file."""
        draft = self.draft
        if draft is None:
            return
        self._folder = str(PurePath(path).parent)
        try:
            save_recipe(Path(path), draft.recipe)
        except RecipeFileError as error:
            self._session.notify("error", str(error))
            self.warnings.show_texts((str(error),))
            return
        self.standing.setText(f"Saved as {PurePath(path).name}")

    def _start_folder(self) -> str:
        return self._folder or str(PurePath(self._path).parent)

    def _open_dialog(self, dialog: QFileDialog, take: object) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(take)
        dialog.open()

    # --- the quick image

    @Slot()
    def _want_preview(self) -> None:
        draft, needed = self.draft, self.needed()
        if not self.isVisible() or draft is None:
            return
        if needed is not None and draft.recipe == needed.recipe:
            # the answer is known
            self._waiting.stop()
            self._pending = False
            self.preview.set_picture(None, hint="Shown once nothing is missing")
            self.preview.set_problem("")
        else:
            self._waiting.start()
        self._say_busy()

    @Slot()
    def _ask_preview(self) -> None:
        draft = self.draft
        if draft is not None:
            self._asked_path, self._pending = draft.path, True
            self._session.look(
                PREVIEW, Look(path=draft.path, recipe=draft.recipe, what="image", index=self.slice.value())
            )

    @Slot(str, object, object)
    def _take_seen(self, purpose: str, seen: Seen, pixels: Pixels) -> None:
        if purpose == PREVIEW and seen.path == self._path:
            self.slice.set_count(seen.count)
            self.preview.set_problem("")
            self.preview.set_picture(pixels, seen.caption)
            self.preview.set_levels(*percentiles(pixels, 1.0, 99.8))
            self._pending = False
        self._say_busy()
        for page in self.pages:
            page.show_seen(purpose, seen, pixels)

    @Slot(str, object)
    def _take_failure(self, purpose: str, failed: Failed) -> None:
        if purpose == PREVIEW and self._asked_path == self._path:
            self.preview.set_problem(sentence(failed.message, failed.hint))
            if self.preview.pixels() is None:
                self.preview.set_picture(None, hint="No image yet")
            self._pending = False
        self._say_busy()
        for page in self.pages:
            page.show_failure(purpose, failed)

    def _say_busy(self) -> None:
        busy = self.isVisible() and (self._waiting.isActive() or self._pending)
        running = next((job for job in active_jobs(self._state) if job.started is not None), None)
        if not busy:
            text = ""
        elif running is None or running.kind in ("open", "reopen"):
            text = "Updating …"
        else:
            text = f"Waiting for: {running.title}"
        self.busy.setText(text)

    # --- events

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        """Ask for the picture that was not wanted while nobody saw it."""
        super().showEvent(event)
        self._want_preview()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Hide; the drafts are kept."""
        self._waiting.stop()
        self.busy.setText("")
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Draw the icons anew in the colours of another palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "close_button"):
            self._draw_icons()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's name
        """Let undo mean the recipe, also inside a text field."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.ShortcutOverride:
            wanted = (QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo)
            if any(event.matches(key) for key in wanted):
                event.ignore()
                return True
        return False

    @Slot("QWidget*", "QWidget*")
    def _follow_focus(self, old: QWidget | None, new: QWidget | None) -> None:
        # to be installed twice is to be installed once
        if new is not None and self.isAncestorOf(new):
            new.installEventFilter(self)

    def _button(self, text: str, tip: str, gesture: object) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tip)
        button.setAccessibleName(text.replace("&", ""))
        button.clicked.connect(gesture)
        return button

    def _draw_icons(self) -> None:
        chosen = colours(self.palette())
        icon = partial(qtawesome.icon, color=chosen.text, color_disabled=chosen.disabled)
        for button, name in (
            (self.undo_button, "fa5s.undo"),
            (self.redo_button, "fa5s.redo"),
            (self.load_button, "fa5s.folder-open"),
            (self.save_button, "fa5s.save"),
            (self.apply_button, "fa5s.check"),
        ):
            button.setIcon(icon(name))


def _standing_warnings(facts: ScanFacts | None, needed: Needed | None) -> tuple[str, ...]:
    if needed is not None:
        return (f"{needed.message.rstrip('.')}. Say it here, then Apply.",)
    if facts is not None and facts.guessed:
        names = ", ".join(_GUESSED_NAMES.get(name, name) for name in facts.guessed)
        return (f"The files do not say: {names}. What was taken is a guess; please check.",)
    return ()


_GUESSED_NAMES = {
    "roles": "which part has which role",
    "layout": "whether an image is a projection or a sinogram",
    "transposed": "whether rows and columns of the images are swapped",
    "state": "what the numbers mean",
    "angles": "the angles",
    "clockwise": "the direction of rotation",
    "centre_px": "the rotation centre",
    "pixel_mm": "the size of a detector element",
    "beam": "the lengths of the beam",
    "matrix": "the size of the images",
    "keep_oversampling": "the oversampling",
}
"""Names of `recipe.Known` for people."""
