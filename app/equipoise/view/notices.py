"""The bar at the top of the window that tells the user something, without getting in the way."""

from __future__ import annotations

import qtawesome
from PySide6.QtCore import QEvent, Qt, QTimer, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QSizePolicy

from equipoise.session import Session
from equipoise.state import Notice, State
from equipoise.view.theme import colours

_ICONS = {"info": "fa5s.info-circle", "warning": "fa5s.exclamation-triangle", "error": "fa5s.times-circle"}
_SPOKEN = {"info": "Information", "warning": "Warning", "error": "Error"}
INFO_SECONDS = 20


class NoticeBar(QFrame):
    """Shows the newest notice, and how many more there are."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._notice: Notice | None = None
        self.setObjectName("notice")
        self.icon = QLabel()
        self.text = QLabel(wordWrap=True)
        self.text.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.text.setTextFormat(Qt.TextFormat.PlainText)
        self.text.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.more = QLabel()
        self.copy_button = QPushButton("Copy details")
        self.copy_button.setToolTip("Copy the text and its details for a report")
        self.copy_button.clicked.connect(self._copy)
        self.dismiss_button = QPushButton("Dismiss")
        self.dismiss_button.setToolTip("Take this notice away")
        self.dismiss_button.clicked.connect(self._dismiss)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 6, 10, 6)
        for widget in (self.icon, self.text, self.more, self.copy_button, self.dismiss_button):
            layout.addWidget(widget, 1 if widget is self.text else 0)
        # good news does not have to be taken away by hand
        self._fade = QTimer(self, singleShot=True, interval=INFO_SECONDS * 1000)
        self._fade.timeout.connect(self._dismiss)
        self.hide()
        self.show_change(State(), session.state)

    def show_change(self, old: State, new: State) -> None:
        """Follow the notices."""
        if old.notices is new.notices:
            return
        self._notice = new.notices[-1] if new.notices else None
        self.setVisible(self._notice is not None)
        self._fade.stop()
        if self._notice is None:
            return
        if self._notice.severity == "info":
            self._fade.start()
        self.text.setText(self._notice.text)
        self.text.setAccessibleName(f"{_SPOKEN.get(self._notice.severity, 'Notice')}: {self._notice.text}")
        self.text.setToolTip(self._notice.details)
        count = len(new.notices)
        self.more.setText(f"1 of {count}" if count > 1 else "")
        self.setProperty("severity", self._notice.severity)
        self.style().polish(self)
        self._draw_icon()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Follow the palette."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "_notice"):
            self._draw_icon()

    def _draw_icon(self) -> None:
        if self._notice is not None:
            name = _ICONS.get(self._notice.severity, _ICONS["info"])
            self.icon.setPixmap(qtawesome.icon(name, color=colours(self.palette()).text).pixmap(18, 18))

    @Slot()
    def _copy(self) -> None:
        if self._notice is not None:
            QGuiApplication.clipboard().setText(f"{self._notice.text}\n\n{self._notice.details}".strip())

    @Slot()
    def _dismiss(self) -> None:
        if self._notice is not None:
            self._session.dismiss(self._notice.number)
