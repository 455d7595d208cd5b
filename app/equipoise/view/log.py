"""The log panel: what the engine and the window report, to be searched and copied."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from PySide6.QtCore import QUrl, Slot
from PySide6.QtGui import QDesktopServices, QFontDatabase, QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from equipoise.session import Session
from equipoise.state import State

MAX_LINES = 5000


class LogView(QWidget):
    """The newest log lines.

    Parameters
    ----------
    folder
        Where the log files are, for "open folder"; None where none is written.
    """

    def __init__(self, session: Session, folder: Path | None = None) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._folder = folder
        self.text = QPlainTextEdit(readOnly=True)
        self.text.setMaximumBlockCount(MAX_LINES)
        self.text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.text.setAccessibleName("Log")
        self.text.setPlaceholderText("What the engine reports appears here.")
        self.filter = QLineEdit(placeholderText="Show only lines with …", clearButtonEnabled=True)
        self.filter.setAccessibleName("Filter of the log")
        self.filter.setToolTip("Show only the lines that contain this text")
        self.filter.textChanged.connect(self._refill)
        self.copy_button = QPushButton("Copy")
        self.copy_button.setToolTip("Copy the lines that are shown")
        self.copy_button.clicked.connect(self._copy)
        self.folder_button = QPushButton("Open folder")
        self.folder_button.setToolTip("Open the folder with the log files")
        self.folder_button.setEnabled(folder is not None)
        self.folder_button.clicked.connect(self._open_folder)
        row = QHBoxLayout()
        row.addWidget(self.filter, 1)
        row.addWidget(self.copy_button)
        row.addWidget(self.folder_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addLayout(row)
        layout.addWidget(self.text, 1)
        session.log_line.connect(self.add)

    def show_change(self, old: State, new: State) -> None:
        """Take in nothing: the log has its own signal."""

    @Slot(str)
    def add(self, line: str) -> None:
        """Append one line."""
        self._lines.append(line)
        if self._matches(line):
            self.text.appendPlainText(line)

    def _matches(self, line: str) -> bool:
        return self.filter.text().casefold() in line.casefold()

    @Slot()
    def _refill(self) -> None:
        self.text.setPlainText("\n".join(line for line in self._lines if self._matches(line)))

    @Slot()
    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.text.toPlainText())

    @Slot()
    def _open_folder(self) -> None:
        if self._folder is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._folder)))
