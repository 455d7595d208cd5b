"""A column of widgets that scrolls where the dock is too low for it."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QScrollArea, QVBoxLayout, QWidget


def scrolled_column(owner: QWidget, width: int) -> QVBoxLayout:
    """Fill `owner` with a column at least `width` pixels wide, and return its layout."""
    inside = QWidget()
    inside.setMinimumWidth(width)
    column = QVBoxLayout(inside)
    column.setContentsMargins(8, 8, 8, 8)
    scroll = QScrollArea()
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QFrame.Shape.NoFrame)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    scroll.setWidget(inside)
    # its fields take the keyboard, and are scrolled to
    scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    scroll.setMinimumWidth(width + scroll.verticalScrollBar().sizeHint().width())
    layout = QVBoxLayout(owner)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(scroll)
    return column
