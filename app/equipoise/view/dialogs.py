"""Dialogs: export, preferences, about, command palette, and the question before closing with running jobs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import PySide6
from PySide6.QtCore import QEvent, QObject, Qt, Slot
from PySide6.QtGui import QFontDatabase, QGuiApplication, QKeyEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMessageBox,
    QPlainTextEdit,
    QPushButton,
    QSpinBox,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from equipoise.commands import Command
from equipoise.settings import MAX_FONT, MIN_FONT, THEMES, Settings, format_command, parse_command
from equipoise.state import Job, Run, State
from equipoise_engine import __version__
from equipoise_resources import licence_text

CITATION = """@misc{mehta2025equivariant,
  title         = {Equivariant Deep Equilibrium Models for Imaging Inverse Problems},
  author        = {Mehta, Alexander and Kitichotkul, Ruangrawee and Goyal, Vivek K and Tachella, Juli{\\'a}n},
  year          = {2025},
  eprint        = {2511.18667},
  archivePrefix = {arXiv},
  primaryClass  = {eess.IV},
  doi           = {10.48550/arXiv.2511.18667}
}"""

LIBRARIES = (
    ("PySide6-Essentials", "Qt for Python", "LGPL-3.0"),
    ("pyqtgraph", "plots and images", "MIT"),
    ("QtAwesome", "icons", "MIT; Font Awesome: SIL OFL 1.1"),
    ("torch", "computing", "BSD-3-Clause"),
    ("numpy", "arrays", "BSD-3-Clause"),
    ("scipy", "numerics", "BSD-3-Clause"),
    ("numba", "compiled projections", "BSD-2-Clause"),
    ("h5py", "HDF5 files", "BSD-3-Clause"),
    ("hdf5plugin", "HDF5 filters", "MIT and others"),
    ("tifffile", "TIFF files", "BSD-3-Clause"),
    ("pydicom", "DICOM files", "MIT"),
    ("msgspec", "messages", "BSD-3-Clause"),
    ("safetensors", "weights", "Apache-2.0"),
    ("platformdirs", "folders", "MIT"),
    ("psutil", "memory figures", "BSD-3-Clause"),
)


def libraries() -> tuple[tuple[str, str, str], ...]:
    """Return name, use and licence of each library that this installation requires."""
    try:
        required = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requires("equipoise") or ()}
    except PackageNotFoundError:
        return LIBRARIES
    return tuple(library for library in LIBRARIES if library[0].lower() in required)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not found"


def system_information(state: State, settings: Settings) -> str:
    """Return versions and the machine as text for a report; names no files."""
    lines = [
        f"Equipoise {__version__}",
        f"System: {platform.platform()}",
        f"Python: {platform.python_version()}",
        f"Qt for Python: {PySide6.__version__}, platform {QGuiApplication.platformName()}",
        f"Engine command: {format_command(settings.engine_command) or 'own'}",
        f"Engine: {state.engine.phase.value}, {state.engine.restarts} restarts in a row",
    ]
    ready = state.engine.ready
    if ready is not None:
        lines += [
            f"Engine package: {ready.package}, Python {ready.python}, torch {ready.torch}",
            f"Device: {ready.device}, {ready.threads} threads",
        ]
    status = state.engine.status
    if status is not None:
        lines.append(f"Engine memory: {status.host_used / 1e9:.2f} of {status.host_total / 1e9:.1f} GB")
        if status.device_total:
            lines.append(f"Device memory: {status.device_used / 1e9:.2f} of {status.device_total / 1e9:.1f} GB")
    if state.engine.cause:
        lines.append(f"Last engine loss: {state.engine.cause}")
    lines += [f"{name}: {_version(name)}" for name, _, _ in libraries()]
    return "\n".join(lines)


class AboutDialog(QDialog):
    """Versions, licences and the citation."""

    def __init__(self, state: State, settings: Settings, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("About Equipoise")
        self.resize(680, 460)
        heading = QLabel(f"<h2>Equipoise {__version__}</h2>")
        what = QLabel(
            "Opens raw CT and MRI scans, reconstructs them, and adapts a deep equilibrium model to them "
            "without ground truth. Not for diagnostic use.",
            wordWrap=True,
        )
        tabs = QTabWidget()
        cite = QWidget()
        column = QVBoxLayout(cite)
        column.addWidget(
            QLabel("The equilibrium model and its adaptation follow this paper; please cite it:", wordWrap=True)
        )
        self.citation = self._text(CITATION, "Citation")
        column.addWidget(self.citation, 1)
        self.copy_citation = self._copy_button("Copy citation", self.citation)
        column.addWidget(self.copy_citation, 0, Qt.AlignmentFlag.AlignRight)
        tabs.addTab(cite, "Citation")
        system = QWidget()
        column = QVBoxLayout(system)
        self.system = self._text(system_information(state, settings), "System information")
        column.addWidget(self.system, 1)
        self.copy_system = self._copy_button("Copy system information", self.system)
        column.addWidget(self.copy_system, 0, Qt.AlignmentFlag.AlignRight)
        tabs.addTab(system, "Versions")
        others = "\n".join(f"{name} ({use}): {licence}" for name, use, licence in libraries())
        licences = f"Equipoise: BSD-3-Clause\n\n{others}\n\n{licence_text()}"
        tabs.addTab(self._text(licences, "Licences"), "Licences")
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for widget in (heading, what):
            layout.addWidget(widget)
        layout.addWidget(tabs, 1)
        layout.addWidget(buttons)

    def _text(self, content: str, name: str) -> QPlainTextEdit:
        text = QPlainTextEdit(content, readOnly=True)
        text.setAccessibleName(name)
        text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        return text

    def _copy_button(self, label: str, source: QPlainTextEdit) -> QPushButton:
        button = QPushButton(label)
        button.setToolTip("Put this text on the clipboard")
        button.clicked.connect(lambda: QGuiApplication.clipboard().setText(source.toPlainText()))
        return button


class ExportDialog(QDialog):
    """Which result to export, as what, and where to.

    Parameters
    ----------
    runs
        The runs with a result that the engine holds; not empty.
    run
        The one that is chosen at first, or None.
    kind
        "tiff" or "dicom".
    folder
        Folder that is offered at first.
    """

    def __init__(self, runs: tuple[Run, ...], run: str | None, kind: str, folder: str, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Export")
        self.setMinimumWidth(560)
        self._folder = folder
        self._suggested = ""
        self.result_box = QComboBox()
        self.result_box.setAccessibleName("Result")
        self.result_box.setToolTip("Which result to write")
        self._results = {r.run: r.result for r in runs}
        for candidate in runs:
            self.result_box.addItem(candidate.label, candidate.run)
        self.result_box.setCurrentIndex(max(0, self.result_box.findData(run)))
        self.format_box = QComboBox()
        self.format_box.setAccessibleName("Format")
        self.format_box.setToolTip("TIFF: one file with all slices. DICOM: a folder with one file for each slice")
        self.format_box.addItem("TIFF, 32-bit floating point", "tiff")
        self.format_box.addItem("DICOM series", "dicom")
        self.format_box.setCurrentIndex(max(0, self.format_box.findData(kind)))
        self.path_field = QLineEdit()
        self.path_field.setAccessibleName("File or folder to write")
        self.path_field.setToolTip("The file (TIFF) or the folder (DICOM) to write")
        self.browse_button = QPushButton("Browse …")
        self.browse_button.setToolTip("Choose where to write")
        self.browse_button.clicked.connect(self._browse)
        row = QHBoxLayout()
        row.addWidget(self.path_field, 1)
        row.addWidget(self.browse_button)
        self.facts = QLabel(wordWrap=True)
        self.facts.setProperty("muted", True)
        form = QFormLayout()
        form.addRow("Result", self.result_box)
        form.addRow("Format", self.format_box)
        form.addRow("Write to", row)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.export_button = self.buttons.addButton("Export", QDialogButtonBox.ButtonRole.AcceptRole)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.facts)
        layout.addWidget(self.buttons)
        self.result_box.currentIndexChanged.connect(self._suggest)
        self.format_box.currentIndexChanged.connect(self._suggest)
        self.path_field.textChanged.connect(self._check)
        self._suggest()

    def choice(self) -> tuple[str, str, str]:
        """Return run, path and format."""
        return (
            str(self.result_box.currentData()),
            self.path_field.text().strip(),
            str(self.format_box.currentData()),
        )

    @Slot()
    def _suggest(self) -> None:
        facts = self._results[str(self.result_box.currentData())]
        assert facts is not None
        count, rows, columns = facts.shape
        size = " × ".join(f"{mm:.4g}" for mm in facts.voxel_mm)
        scale = f"voxel {size} mm" if facts.calibrated else "pixel size not known: it is written as 1"
        self.facts.setText(f"{count} slices of {rows} × {columns}, {scale}, values in {facts.unit}.")
        if self.path_field.text().strip() in ("", self._suggested):
            label = self.result_box.currentText().lower().replace(" ", "-")
            name = "".join(c for c in label if c.isalnum() or c == "-")
            ending = ".tif" if self.format_box.currentData() == "tiff" else "-dicom"
            self._suggested = str(Path(self._folder) / f"{name}{ending}")
            self.path_field.setText(self._suggested)
        self._check()

    @Slot()
    def _check(self) -> None:
        path = self.path_field.text().strip()
        self.export_button.setEnabled(bool(path) and Path(path).parent.is_dir())

    @Slot()
    def _browse(self) -> None:
        dialog = QFileDialog(self, "Export", self.path_field.text())
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        if self.format_box.currentData() == "tiff":
            dialog.setNameFilter("TIFF (*.tif *.tiff)")
            dialog.setDefaultSuffix("tif")
        dialog.fileSelected.connect(self.path_field.setText)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.open()


class PreferencesDialog(QDialog):
    """The settings that the user changes by hand."""

    def __init__(self, settings: Settings, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Preferences")
        self.setMinimumWidth(560)
        self._settings = settings
        self.theme_box = QComboBox()
        self.theme_box.setAccessibleName("Colours")
        self.theme_box.setToolTip("Colours of the whole window")
        for theme in THEMES:
            self.theme_box.addItem(theme.capitalize(), theme)
        self.theme_box.setCurrentIndex(self.theme_box.findData(settings.theme))
        self.own_font = QCheckBox("Own font size")
        self.own_font.setToolTip("Off takes the font size of the system")
        self.own_font.setChecked(settings.font_size != 0)
        self.font_box = QSpinBox(suffix=" pt", minimum=MIN_FONT, maximum=MAX_FONT)
        self.font_box.setAccessibleName("Font size")
        self.font_box.setToolTip("Font size of the whole window")
        self.font_box.setValue(settings.font_size or max(MIN_FONT, parent.font().pointSize()))
        self.font_box.setEnabled(settings.font_size != 0)
        self.own_font.toggled.connect(self.font_box.setEnabled)
        self.engine_field = QLineEdit(format_command(settings.engine_command))
        self.engine_field.setPlaceholderText("engine of this installation")
        self.engine_field.setAccessibleName("Engine command")
        self.engine_field.setToolTip(
            "Command that starts the engine, as “ssh gpu01 equipoise-engine serve”; empty takes the one of "
            "this installation. Takes effect when the engine is started again. Paths are then those of that "
            "machine."
        )
        self.export_field = QLineEdit(settings.export_folder)
        self.export_field.setAccessibleName("Export folder")
        self.export_field.setToolTip("Folder that is offered for exports at first")
        self.cancel_box = QDoubleSpinBox(suffix=" s", minimum=0.5, maximum=600.0, decimals=1)
        self.cancel_box.setAccessibleName("Time to obey a cancel")
        self.cancel_box.setToolTip("A job that has not stopped after this time is stopped by ending its engine")
        self.cancel_box.setValue(settings.cancel_seconds)
        self.problem = QLabel(wordWrap=True)
        font_row = QHBoxLayout()
        font_row.addWidget(self.own_font)
        font_row.addWidget(self.font_box)
        font_row.addStretch(1)
        form = QFormLayout()
        form.addRow("Colours", self.theme_box)
        form.addRow("Font", font_row)
        form.addRow("Engine command", self.engine_field)
        form.addRow("Export folder", self.export_field)
        form.addRow("Time to obey a cancel", self.cancel_box)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self._accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.problem)
        layout.addWidget(self.buttons)

    def chosen(self, settings: Settings) -> Settings:
        """Return `settings` with what was chosen here.

        Raises
        ------
        ValueError
            A value is not usable.
        """
        return replace(
            settings,
            theme=str(self.theme_box.currentData()),
            font_size=self.font_box.value() if self.own_font.isChecked() else 0,
            engine_command=parse_command(self.engine_field.text()),
            export_folder=self.export_field.text().strip(),
            cancel_seconds=self.cancel_box.value(),
        )

    @Slot()
    def _accept(self) -> None:
        try:
            self.chosen(self._settings)
        except ValueError as error:
            self.problem.setText(f"Not usable: {error}.")
            return
        self.accept()


class PaletteDialog(QDialog):
    """All commands, filtered by what the user types; Return runs the chosen one.

    Parameters
    ----------
    commands
        The commands and whether each can be run now.
    """

    def __init__(self, commands: tuple[tuple[Command, bool], ...], parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Command palette")
        self.resize(560, 420)
        self.chosen: Command | None = None
        self._commands = commands
        self.filter = QLineEdit(placeholderText="Type to search the commands")
        self.filter.setAccessibleName("Search commands")
        self.filter.textChanged.connect(self._refill)
        self.filter.returnPressed.connect(self._run)
        self.filter.installEventFilter(self)
        self.list = QListWidget()
        self.list.setAccessibleName("Commands")
        self.list.itemActivated.connect(self._run)
        layout = QVBoxLayout(self)
        layout.addWidget(self.filter)
        layout.addWidget(self.list, 1)
        self._refill()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Let the arrow keys move in the list while the focus stays in the search field."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1}.get(Qt.Key(event.key()), 0)
            if step and self.list.count():
                self.list.setCurrentRow((self.list.currentRow() + step) % self.list.count())
                return True
        return super().eventFilter(watched, event)

    @Slot()
    def _refill(self) -> None:
        words = self.filter.text().casefold().split()
        self.list.clear()
        for command, enabled in self._commands:
            searched = f"{command.menu} {command.text} {command.tip}".casefold()
            if not all(word in searched for word in words):
                continue
            keys = f"    {command.shortcut}" if command.shortcut else ""
            item = QListWidgetItem(f"{command.menu}: {command.text}{keys}")
            item.setData(Qt.ItemDataRole.UserRole, command.id)
            item.setToolTip(command.tip)
            if not enabled:
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEnabled)
            self.list.addItem(item)
        usable = [row for row in range(self.list.count()) if self.list.item(row).flags() & Qt.ItemFlag.ItemIsEnabled]
        self.list.setCurrentRow(usable[0] if usable else -1)

    @Slot()
    def _run(self) -> None:
        item = self.list.currentItem()
        if item is None or not item.flags() & Qt.ItemFlag.ItemIsEnabled:
            return
        wanted = item.data(Qt.ItemDataRole.UserRole)
        self.chosen = next(command for command, _ in self._commands if command.id == wanted)
        self.accept()


def closing_question(jobs: tuple[Job, ...], parent: QWidget) -> QMessageBox:
    """Return the dialog that asks whether to close although jobs run; its accept role stands for closing."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Question)
    box.setWindowTitle("Close Equipoise")
    box.setText("Jobs are still running." if len(jobs) > 1 else "A job is still running.")
    titles = "\n".join(f"• {job.title}" for job in jobs)
    saved = (
        " A running adaptation saves its weights and can be continued later."
        if any(job.kind == "adapt" for job in jobs)
        else " What is not finished is not kept."
    )
    box.setInformativeText(f"{titles}\n\nClosing stops {'them' if len(jobs) > 1 else 'it'}.{saved}")
    box.addButton("Stop jobs and close", QMessageBox.ButtonRole.AcceptRole)
    stay = box.addButton("Keep working", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay)
    box.setEscapeButton(stay)
    return box


def home_folder(settings: Settings) -> str:
    """Return the folder that is offered for exports at first."""
    if settings.export_folder and os.path.isdir(settings.export_folder):
        return settings.export_folder
    return str(Path.home())
