"""The window: the comparison in the middle, panels around it, and everything that commands need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import qtawesome
from PySide6.QtCore import QEvent, Qt, Slot
from PySide6.QtGui import (
    QAction,
    QActionGroup,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QGuiApplication,
    QKeySequence,
)
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QDockWidget,
    QFileDialog,
    QLabel,
    QMainWindow,
    QMenu,
    QScrollArea,
    QSplitter,
    QStackedWidget,
    QToolBar,
    QVBoxLayout,
    QWidget,
)

from equipoise.commands import COMMANDS, MENUS, Command, recent_commands
from equipoise.session import Session
from equipoise.settings import Settings
from equipoise.state import EnginePhase, State, active_jobs
from equipoise.view.adapt import AdaptView
from equipoise.view.compare import CompareView
from equipoise.view.controls import ControlsView
from equipoise.view.dialogs import (
    AboutDialog,
    ExportDialog,
    PaletteDialog,
    PreferencesDialog,
    closing_question,
    home_folder,
    system_information,
)
from equipoise.view.iterations import IterationsView
from equipoise.view.jobs import JobsView
from equipoise.view.log import LogView
from equipoise.view.notices import NoticeBar
from equipoise.view.prepare.window import PrepareWindow
from equipoise.view.scan import ScanView
from equipoise.view.theme import apply_theme, colours
from equipoise.view.welcome import WelcomeView
from equipoise_resources import sample_path

LAYOUT_VERSION = 1
_PHASES = {
    EnginePhase.STARTING: "Engine starting …",
    EnginePhase.READY: "Engine ready",
    EnginePhase.RESTARTING: "Engine restarting …",
    EnginePhase.STOPPED: "Engine stopped",
}
_PHASE_ICONS = {
    EnginePhase.STARTING: "fa5s.hourglass-half",
    EnginePhase.READY: "fa5s.check-circle",
    EnginePhase.RESTARTING: "fa5s.sync",
    EnginePhase.STOPPED: "fa5s.times-circle",
}


class MainWindow(QMainWindow):
    """The window of one session.

    Parameters
    ----------
    log_folder
        Where the log files are; None where none is written.
    """

    def __init__(self, session: Session, log_folder: Path | None = None) -> None:
        super().__init__()
        self._session = session
        self._closing = False
        self._dialog: QDialog | None = None
        self.setWindowTitle("Equipoise")
        self.setAcceptDrops(True)
        self.setDockNestingEnabled(True)
        self.resize(1440, 900)

        self.compare = CompareView(session)
        self.iterations = IterationsView(session)
        self.scan = ScanView(session)
        self.controls = ControlsView(session)
        self.adapt_view = AdaptView(session)
        self.jobs = JobsView(session)
        self.log = LogView(session, log_folder)
        self.notices = NoticeBar(session)
        self.prepare = PrepareWindow(session, self)
        self.scan.change_wanted.connect(partial(self._prepare_active, self.prepare.reading))
        self.controls.centre_wanted.connect(partial(self._prepare_active, self.prepare.centre))
        offered = tuple(c for c in COMMANDS if c.id.startswith("open-"))
        self.welcome = WelcomeView(session, offered, self.run_command)

        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.addWidget(self.compare)
        self.splitter.addWidget(self.iterations)
        self.splitter.setStretchFactor(0, 3)
        self.splitter.setStretchFactor(1, 1)
        self.splitter.setChildrenCollapsible(False)
        self.pages = QStackedWidget()
        self.pages.addWidget(self.welcome)
        self.pages.addWidget(self.splitter)
        centre = QWidget()
        column = QVBoxLayout(centre)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.notices)
        column.addWidget(self.pages, 1)
        self.setCentralWidget(centre)

        self.docks = {
            "scan": self._dock("scan", "Scans", self.scan),
            "controls": self._dock("controls", "Reconstruct", self.controls),
            "adapt": self._dock("adapt", "Adapt", self.adapt_view),
            "jobs": self._dock("jobs", "Jobs", self.jobs),
            "log": self._dock("log", "Log", self.log),
        }
        self.setCorner(Qt.Corner.BottomLeftCorner, Qt.DockWidgetArea.LeftDockWidgetArea)
        self.setCorner(Qt.Corner.BottomRightCorner, Qt.DockWidgetArea.BottomDockWidgetArea)

        self.actions_by_id: dict[str, QAction] = {}
        self._commands: dict[str, Command] = {}
        self._icon_names: dict[str, str] = {}
        self._make_actions()
        self.recent_menu = QMenu("Open recent", self)
        self._make_menus()
        self._make_toolbar()
        self._make_status_bar()

        session.changed.connect(self.show_change)
        session.settings_changed.connect(self._show_settings)
        self._show_settings(session.settings)
        self._draw_icons()
        self._arrange()
        settings = session.settings
        if settings.window_geometry:
            self.restoreGeometry(settings.window_geometry)
        if settings.window_state:
            self.restoreState(settings.window_state, LAYOUT_VERSION)
        self.show_change(State(), session.state)

    @property
    def session(self) -> Session:
        """The session that the window shows."""
        return self._session

    # --- from the state to the widgets

    @Slot(object, object)
    def show_change(self, old: State, new: State) -> None:
        """Bring every part of the window up to date."""
        if self._closing:
            return
        self.pages.setCurrentWidget(self.splitter if new.scans or new.runs else self.welcome)
        for view in (
            self.notices,
            self.compare,
            self.iterations,
            self.scan,
            self.controls,
            self.adapt_view,
            self.jobs,
            self.welcome,
        ):
            view.show_change(old, new)
        self._enable(new)
        if old.engine is not new.engine or not self.engine_label.text():
            self._show_engine(new)
        if new.needed is not None and new.needed is not old.needed:
            self.prepare.tabs.setCurrentWidget(self.prepare.reading)
            self.prepare_scan()
        count = len(active_jobs(new))
        self.docks["jobs"].setWindowTitle(f"Jobs ({count} running)" if count else "Jobs")

    def _enable(self, state: State) -> None:
        settings = self._session.settings
        for name, action in self.actions_by_id.items():
            command = self._commands[name]
            action.setEnabled(command.enabled(state))
            if command.checked is not None:
                action.setChecked(command.checked(state, settings))

    def _show_engine(self, state: State) -> None:
        engine = state.engine
        self.engine_label.setText(_PHASES[engine.phase])
        chosen = colours(self.palette())
        colour = {EnginePhase.READY: chosen.good, EnginePhase.STOPPED: chosen.bad}.get(engine.phase, chosen.muted)
        icon = qtawesome.icon(_PHASE_ICONS[engine.phase], color=colour)
        self.engine_icon.setPixmap(icon.pixmap(14, 14))
        tip = f"The engine process: {engine.phase.value}"
        if engine.cause:
            tip += f"\nLast loss: {engine.cause}"
        self.engine_label.setToolTip(tip)
        ready, status = engine.ready, engine.status
        if ready is not None:
            self.device_label.setText(ready.device)
            self.device_label.setToolTip(f"Computes on {ready.device}, {ready.threads} threads, torch {ready.torch}")
        if status is None:
            self.memory_label.setText("")
            return
        text = f"Engine {status.host_used / 1e9:.1f} of {status.host_total / 1e9:.0f} GB"
        if status.device_total:
            text += f", GPU {status.device_used / 1e9:.1f} of {status.device_total / 1e9:.0f} GB"
        self.memory_label.setText(text)

    @Slot(object)
    def _show_settings(self, settings: Settings) -> None:
        app = cast(QApplication, QApplication.instance())
        wished = (settings.theme, settings.font_size)
        if app.property("equipoise_theme") != list(wished):
            app.setProperty("equipoise_theme", list(wished))
            apply_theme(app, *wished)
        self.recent_menu.clear()
        for command in recent_commands(settings):
            action = self.recent_menu.addAction(command.text)
            action.setToolTip(command.tip)
            action.triggered.connect(partial(self._triggered, command))
        self.recent_menu.setEnabled(bool(settings.recent))
        self._enable(self._session.state)

    # --- how it is built

    def _dock(self, name: str, title: str, view: QWidget) -> QDockWidget:
        dock = QDockWidget(title, self)
        dock.setObjectName(name)
        dock.setAccessibleName(title)
        if name in ("scan", "controls", "adapt"):
            scroll = QScrollArea(widgetResizable=True)
            scroll.setFrameShape(QScrollArea.Shape.NoFrame)
            scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
            scroll.setWidget(view)
            scroll.setMinimumWidth(max(270, view.minimumSizeHint().width() + 20))
            dock.setWidget(scroll)
        else:
            dock.setWidget(view)
        return dock

    def _arrange(self) -> None:
        areas = {
            "scan": Qt.DockWidgetArea.LeftDockWidgetArea,
            "controls": Qt.DockWidgetArea.RightDockWidgetArea,
            "jobs": Qt.DockWidgetArea.BottomDockWidgetArea,
        }
        for name, dock in self.docks.items():
            dock.setFloating(False)
            self.removeDockWidget(dock)
            if name in areas:
                self.addDockWidget(areas[name], dock)
        self.tabifyDockWidget(self.docks["controls"], self.docks["adapt"])
        self.tabifyDockWidget(self.docks["jobs"], self.docks["log"])
        for dock in self.docks.values():
            dock.show()
        self.docks["controls"].raise_()
        self.docks["jobs"].raise_()
        self.resizeDocks([self.docks["scan"], self.docks["controls"]], [290, 310], Qt.Orientation.Horizontal)
        self.resizeDocks([self.docks["jobs"]], [170], Qt.Orientation.Vertical)
        self.splitter.setSizes([600, 220])

    def _make_actions(self) -> None:
        group: dict[str, QActionGroup] = {}
        for command in COMMANDS:
            action = QAction(command.text, self)
            action.setObjectName(command.id)
            if command.shortcut:
                action.setShortcut(QKeySequence(command.shortcut))
            keys = f" ({action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)})"
            action.setToolTip(command.tip + (keys if command.shortcut else ""))
            action.setStatusTip(command.tip)
            if command.toolbar:
                action.setIconText(command.toolbar)
            if command.checked is not None:
                action.setCheckable(True)
                kind = command.id.partition("-")[0]
                group.setdefault(kind, QActionGroup(self)).addAction(action)
            action.triggered.connect(partial(self._triggered, command))
            self.actions_by_id[command.id] = action
            self._commands[command.id] = command
            self._icon_names[command.id] = command.icon
            self.addAction(action)

    def _make_menus(self) -> None:
        for title in MENUS:
            menu = self.menuBar().addMenu(f"&{title}")
            menu.setToolTipsVisible(True)
            last = ""
            for command in COMMANDS:
                if command.menu != title:
                    continue
                section = command.id.partition("-")[0]
                if last and (last, section) in _SEPARATED:
                    menu.addSeparator()
                menu.addAction(self.actions_by_id[command.id])
                if command.id == "open-folder":
                    menu.addMenu(self.recent_menu)
                last = section
            if title == "View":
                menu.addSeparator()
                panels = menu.addMenu("Panels")
                for dock in self.docks.values():
                    panels.addAction(dock.toggleViewAction())

    def _make_toolbar(self) -> None:
        self.toolbar = QToolBar("Toolbar")
        self.toolbar.setObjectName("toolbar")
        self.toolbar.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toolbar.setMovable(False)
        menu = ""
        for command in COMMANDS:
            if not command.toolbar and not command.id.startswith("panes-"):
                continue
            if command.id.startswith("panes-") and not command.icon:
                continue
            if menu and command.menu != menu:
                self.toolbar.addSeparator()
            menu = command.menu
            self.toolbar.addAction(self.actions_by_id[command.id])
        self.addToolBar(self.toolbar)

    def _make_status_bar(self) -> None:
        bar = self.statusBar()
        self.engine_icon = QLabel()
        self.engine_label = QLabel()
        self.engine_label.setAccessibleName("Engine")
        self.device_label = QLabel()
        self.device_label.setAccessibleName("Device")
        self.memory_label = QLabel()
        self.memory_label.setAccessibleName("Memory")
        self.memory_label.setToolTip("Memory that the engine uses, of that of its machine")
        self.pixel_label = QLabel()
        self.pixel_label.setAccessibleName("Pixel value")
        self.pixel_label.setToolTip("Position and value under the mouse")
        self.compare.hovered.connect(self.pixel_label.setText)
        bar.addWidget(self.engine_icon)
        bar.addWidget(self.engine_label)
        bar.addWidget(self.device_label)
        bar.addPermanentWidget(self.pixel_label)
        bar.addPermanentWidget(self.memory_label)

    def _draw_icons(self) -> None:
        chosen = colours(self.palette())
        for name, action in self.actions_by_id.items():
            if self._icon_names[name]:
                action.setIcon(
                    qtawesome.icon(self._icon_names[name], color=chosen.text, color_disabled=chosen.disabled)
                )
        self._show_engine(self._session.state)

    # --- commands

    def run_command(self, command: Command) -> None:
        """Run a command if it can be run now."""
        if command.enabled(self._session.state):
            command.run(self)

    def _triggered(self, command: Command, checked: bool = False) -> None:
        self.run_command(command)
        # a choice that is chosen again stays chosen
        self._enable(self._session.state)

    def ask_open_file(self) -> None:
        """Let the user choose files and open them."""
        dialog = QFileDialog(self, "Open scan", self._last_folder())
        dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
        dialog.setNameFilters(["Scans (*.h5 *.hdf5 *.hdf *.nxs *.nx5 *.mrd)", "All files (*)"])
        dialog.filesSelected.connect(self._open_all)
        self._open_dialog(dialog)

    def ask_open_folder(self) -> None:
        """Let the user choose a folder and open it."""
        dialog = QFileDialog(self, "Open folder", self._last_folder())
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setOption(QFileDialog.Option.ShowDirsOnly)
        dialog.filesSelected.connect(self._open_all)
        self._open_dialog(dialog)

    def _prepare_active(self, page: QWidget) -> None:
        self.prepare.show_active()
        self.prepare.tabs.setCurrentWidget(page)
        self.prepare_scan()

    def ask_reference(self, *, folder: bool) -> None:
        """Let the user choose an image volume to compare with, a file or a folder, and open it."""
        dialog = QFileDialog(self, "Open reference", self._last_folder())
        dialog.setFileMode(QFileDialog.FileMode.Directory if folder else QFileDialog.FileMode.ExistingFile)
        if folder:
            dialog.setOption(QFileDialog.Option.ShowDirsOnly)
        else:
            dialog.setNameFilters(
                ["Image volumes (*.dcm *.nii *.nii.gz *.nrrd *.nhdr *.tif *.tiff *.h5 *.hdf5)", "All files (*)"]
            )
        dialog.fileSelected.connect(self._session.open_reference)
        self._open_dialog(dialog)

    def open_sample(self, kind: str) -> None:
        """Open the sample scan, "ct" or "mri"."""
        self._session.open(str(sample_path(kind)))

    def prepare_scan(self) -> None:
        """Show the window that prepares the scan."""
        self.prepare.show()
        self.prepare.raise_()
        self.prepare.activateWindow()

    def reconstruct(self) -> None:
        """Reconstruct with the parameters in the controls."""
        self._raise("controls")
        self.controls.start()

    def adapt(self) -> None:
        """Adapt with the parameters in the adapt panel."""
        self._raise("adapt")
        self.adapt_view.start()

    def ask_export(self, kind: str) -> None:
        """Let the user choose what to export as "tiff" or "dicom", and where to."""
        state = self._session.state
        runs = tuple(r for r in state.runs if r.result is not None and r.held and not r.is_reference)
        if not runs:
            return
        shown = state.panes[state.active_pane].run
        chosen = shown if any(run.run == shown for run in runs) else runs[-1].run
        dialog = ExportDialog(runs, chosen, kind, home_folder(self._session.settings), self)
        dialog.accepted.connect(lambda: self._session.export(*dialog.choice()))
        self._open_dialog(dialog)

    def reset_zoom(self) -> None:
        """Show the whole slice in all panes."""
        self.compare.reset_zoom()

    def auto_levels(self) -> None:
        """Choose black and white by the picture."""
        self.compare.auto_levels()

    def set_theme(self, theme: str) -> None:
        """Change the colours: "light", "dark" or "system"."""
        self._session.change_settings(replace(self._session.settings, theme=theme))

    def toggle_full_screen(self) -> None:
        """Fill the screen, or stop doing so."""
        if self.isFullScreen():
            self.showNormal()
        else:
            self.showFullScreen()

    def reset_layout(self) -> None:
        """Put all panels back to where they were at first."""
        self._arrange()

    def show_palette(self) -> None:
        """Show all commands, to be searched."""
        state = self._session.state
        commands = (*COMMANDS, *recent_commands(self._session.settings))
        dialog = PaletteDialog(tuple((c, c.enabled(state)) for c in commands if c.id != "palette"), self)
        dialog.accepted.connect(lambda: self.run_command(dialog.chosen) if dialog.chosen else None)
        self._open_dialog(dialog)

    def show_preferences(self) -> None:
        """Let the user change the preferences."""
        dialog = PreferencesDialog(self._session.settings, self)

        def take_over() -> None:
            before = self._session.settings
            after = dialog.chosen(before)
            self._session.change_settings(after)
            if after.engine_command != before.engine_command:
                self._session.notify("info", "The new engine command takes effect with Engine > Restart engine.")

        dialog.accepted.connect(take_over)
        self._open_dialog(dialog)

    def copy_system_info(self) -> None:
        """Copy versions and the machine for a report."""
        text = system_information(self._session.state, self._session.settings)
        QGuiApplication.clipboard().setText(text)
        self._session.notify("info", "The system information is on the clipboard.", text)

    def show_about(self) -> None:
        """Show versions, licences and the citation."""
        self._open_dialog(AboutDialog(self._session.state, self._session.settings, self))

    # --- events

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Accept files and folders of this machine."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Open what was dropped."""
        paths = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        event.acceptProposedAction()
        self._open_all(paths)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Draw the icons anew in the colours of another palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "engine_label"):
            self._draw_icons()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Ask where jobs are running; then hide and let the engine save and end."""
        if self._closing:
            event.accept()
            return
        jobs = active_jobs(self._session.state)
        if jobs:
            event.ignore()
            question = closing_question(jobs, self)
            question.accepted.connect(self._close_anyway)
            self._open_dialog(question)
            return
        self._end()
        event.accept()

    @Slot()
    def _close_anyway(self) -> None:
        self._end()
        self.close()

    def _end(self) -> None:
        self._closing = True
        self.prepare.close()
        settings = replace(
            self._session.settings,
            window_geometry=bytes(self.saveGeometry().data()),
            window_state=bytes(self.saveState(LAYOUT_VERSION).data()),
        )
        self._session.change_settings(settings)
        self._session.close()

    # --- inside

    def _open_all(self, paths: list[str]) -> None:
        for path in paths:
            self._session.open(path)

    def _last_folder(self) -> str:
        recent = self._session.settings.recent
        return str(Path(recent[0]).parent) if recent else str(Path.home())

    def _raise(self, name: str) -> None:
        self.docks[name].show()
        self.docks[name].raise_()

    def _open_dialog(self, dialog: QDialog) -> None:
        """Show a dialog without an event loop of its own, so that nothing else has to wait."""
        if self._dialog is not None:
            self._dialog.close()
        self._dialog = dialog
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        forget: Callable[[int], None] = partial(self._forget_dialog, dialog)
        dialog.finished.connect(forget)
        dialog.open()

    def _forget_dialog(self, dialog: QDialog, result: int) -> None:
        if self._dialog is dialog:
            self._dialog = None

    @property
    def dialog(self) -> QDialog | None:
        """The dialog that is open, or None."""
        return self._dialog


_SEPARATED = {
    ("open", "reference"),
    ("reference", "export"),
    ("export", "preferences"),
    ("preferences", "quit"),
    ("prepare", "reconstruct"),
    ("adapt", "cancel"),
    ("previous", "panes"),
    ("panes", "reset"),
    ("auto", "theme"),
    ("theme", "full"),
    ("palette", "system"),
}
