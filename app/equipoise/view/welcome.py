"""The page that fills the window while no scan is open: what to do first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import PurePath

import qtawesome
from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from equipoise.commands import Command
from equipoise.session import Session
from equipoise.settings import Settings
from equipoise.state import State, active_jobs
from equipoise.view.theme import colours

SHOWN_RECENT = 5


class WelcomeView(QWidget):
    """Ways to open a scan.

    Parameters
    ----------
    commands
        The commands that are offered as buttons.
    run
        Runs a command.
    """

    def __init__(self, session: Session, commands: tuple[Command, ...], run: Callable[[Command], None]) -> None:
        super().__init__()
        self._session = session
        self.picture = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        heading = QLabel("<h1>Drop a scan here</h1>", alignment=Qt.AlignmentFlag.AlignCenter)
        what = QLabel(
            "Raw CT projections or MRI k-space, a file or a folder. The format is recognised by its content, "
            "and a first image appears at once.",
            wordWrap=True,
            alignment=Qt.AlignmentFlag.AlignCenter,
        )
        what.setProperty("muted", True)
        what.setFixedWidth(520)
        what.setMinimumHeight(what.heightForWidth(520))
        self.busy = QLabel(alignment=Qt.AlignmentFlag.AlignCenter)
        self.buttons: dict[str, QPushButton] = {}
        self._icons: dict[str, str] = {}
        row = QHBoxLayout()
        row.addStretch(1)
        for command in commands:
            button = QPushButton(command.text)
            button.setToolTip(command.tip)
            button.setIconSize(QSize(18, 18))
            button.setMinimumHeight(36)
            button.clicked.connect(partial(_pressed, run, command))
            self.buttons[command.id] = button
            self._icons[command.id] = command.icon
            row.addWidget(button)
        row.addStretch(1)
        self.recent_heading = QLabel("<b>Recent</b>", alignment=Qt.AlignmentFlag.AlignCenter)
        self._recent = QVBoxLayout()
        self._recent.setSpacing(0)
        layout = QVBoxLayout(self)
        layout.setSpacing(12)
        layout.addStretch(2)
        layout.addWidget(self.picture)
        layout.addWidget(heading)
        layout.addWidget(what, 0, Qt.AlignmentFlag.AlignHCenter)
        layout.addLayout(row)
        layout.addWidget(self.busy)
        layout.addWidget(self.recent_heading)
        layout.addLayout(self._recent)
        layout.addStretch(3)
        session.settings_changed.connect(self.show_settings)
        self.show_settings(session.settings)
        self.show_change(State(), session.state)
        self._draw_icons()

    def show_change(self, old: State, new: State) -> None:
        """Say what is being opened."""
        opening = [job.title for job in active_jobs(new) if job.kind in ("open", "reopen")]
        self.busy.setText(f"{opening[-1]} …" if opening else "")

    def show_settings(self, settings: Settings) -> None:
        """Offer the recent scans."""
        while (item := self._recent.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        for path in settings.recent[:SHOWN_RECENT]:
            button = QPushButton(PurePath(path).name)
            button.setFlat(True)
            button.setToolTip(f"Open {path}")
            button.clicked.connect(partial(_open, self._session, path))
            self._recent.addWidget(button, 0, Qt.AlignmentFlag.AlignHCenter)
        self.recent_heading.setVisible(bool(settings.recent))

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Draw the icons anew in the colours of another palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "buttons"):
            self._draw_icons()

    def _draw_icons(self) -> None:
        chosen = colours(self.palette())
        self.picture.setPixmap(qtawesome.icon("fa5s.file-import", color=chosen.muted).pixmap(64, 64))
        for name, button in self.buttons.items():
            button.setIcon(qtawesome.icon(self._icons[name], color=chosen.text))


def _pressed(run: Callable[[Command], None], command: Command, checked: bool = False) -> None:
    run(command)


def _open(session: Session, path: str, checked: bool = False) -> None:
    session.open(path)
