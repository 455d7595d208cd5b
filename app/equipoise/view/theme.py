"""Colours of the window: light, dark, or as the system has it. Widgets and plots take them from there."""

from __future__ import annotations

from dataclasses import dataclass

import pyqtgraph as pg
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory


@dataclass(frozen=True)
class Colours:
    """The colours of one theme, as #rrggbb; text has a contrast of 4.5 to 1 or more on its background."""

    name: str
    window: str
    base: str
    alternate: str
    button: str
    text: str
    muted: str
    disabled: str
    accent: str
    on_accent: str
    border: str
    info: str
    """Background of a notice; likewise below."""
    warning: str
    error: str
    good: str
    bad: str


LIGHT = Colours(
    name="light",
    window="#f3f4f6",
    base="#ffffff",
    alternate="#f7f8fa",
    button="#e9ebef",
    text="#1b1f24",
    muted="#57606a",
    disabled="#8c959f",
    accent="#0b62c4",
    on_accent="#ffffff",
    border="#cdd2d9",
    info="#dcecfb",
    warning="#fbefcf",
    error="#fbdedd",
    good="#1a7f37",
    bad="#b3261e",
)

DARK = Colours(
    name="dark",
    window="#24272d",
    base="#16181c",
    alternate="#1d2025",
    button="#32363e",
    text="#e8eaed",
    muted="#a3abb5",
    disabled="#6d7580",
    accent="#5aa9f8",
    on_accent="#0c1116",
    border="#454c57",
    info="#1d3a56",
    warning="#4d3d14",
    error="#57211f",
    good="#57c774",
    bad="#ff8a80",
)


def colours(palette: QPalette) -> Colours:
    """Return the colours that go with a palette."""
    return DARK if palette.color(QPalette.ColorRole.Window).lightness() < 128 else LIGHT


def system_theme(app: QApplication) -> str:
    """Return "dark" where the system asks for it, else "light"."""
    return "dark" if app.styleHints().colorScheme() is Qt.ColorScheme.Dark else "light"


def apply_theme(app: QApplication, theme: str, font_size: int = 0) -> None:
    """Give all widgets and plots the colours of a theme.

    Parameters
    ----------
    theme
        "light", "dark" or "system".
    font_size
        Points; 0 takes the system's.
    """
    name = system_theme(app) if theme == "system" else theme
    chosen = DARK if name == "dark" else LIGHT
    style = app.style()
    if style is None or style.name().lower() != "fusion":
        app.setStyle(QStyleFactory.create("Fusion"))
    font = app.font()
    default = app.property("equipoise_font_size")
    if default is None:
        default = font.pointSize()
        app.setProperty("equipoise_font_size", default)
    size = font_size or int(default)
    if size > 0 and font.pointSize() != size:
        font.setPointSize(size)
        app.setFont(font)
    app.setPalette(_palette(chosen))
    app.setStyleSheet(_style_sheet(chosen))
    pg.setConfigOptions(background=chosen.base, foreground=chosen.text, imageAxisOrder="row-major")


def _palette(chosen: Colours) -> QPalette:
    role = QPalette.ColorRole
    palette = QPalette()
    for where, colour in (
        (role.Window, chosen.window),
        (role.WindowText, chosen.text),
        (role.Base, chosen.base),
        (role.AlternateBase, chosen.alternate),
        (role.ToolTipBase, chosen.base),
        (role.ToolTipText, chosen.text),
        (role.PlaceholderText, chosen.muted),
        (role.Text, chosen.text),
        (role.Button, chosen.button),
        (role.ButtonText, chosen.text),
        (role.BrightText, chosen.bad),
        (role.Link, chosen.accent),
        (role.LinkVisited, chosen.accent),
        (role.Highlight, chosen.accent),
        (role.HighlightedText, chosen.on_accent),
        (role.Accent, chosen.accent),
        (role.Light, chosen.base),
        (role.Midlight, chosen.button),
        (role.Mid, chosen.border),
        (role.Dark, chosen.border),
        (role.Shadow, "#000000"),
    ):
        palette.setColor(where, QColor(colour))
    for where in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, where, QColor(chosen.disabled))
    palette.setColor(QPalette.ColorGroup.Disabled, role.Highlight, QColor(chosen.border))
    palette.setColor(QPalette.ColorGroup.Disabled, role.HighlightedText, QColor(chosen.disabled))
    return palette


def _style_sheet(chosen: Colours) -> str:
    return f"""
    QToolTip {{
        color: {chosen.text}; background: {chosen.base}; border: 1px solid {chosen.border}; padding: 3px;
    }}
    QToolBar {{ border: 0; border-bottom: 1px solid {chosen.border}; spacing: 2px; padding: 3px; }}
    QStatusBar {{ border-top: 1px solid {chosen.border}; }}
    QStatusBar::item {{ border: 0; }}
    QDockWidget::title {{ background: {chosen.button}; padding: 5px 8px; }}
    QMainWindow::separator {{ background: {chosen.border}; width: 3px; height: 3px; }}
    QFrame#notice[severity="info"] {{ background: {chosen.info}; }}
    QFrame#notice[severity="warning"] {{ background: {chosen.warning}; }}
    QFrame#notice[severity="error"] {{ background: {chosen.error}; }}
    QCheckBox::indicator:unchecked {{
        border: 1px solid {chosen.muted}; background: {chosen.base}; border-radius: 2px;
        width: 12px; height: 12px;
    }}
    QLabel[muted="true"] {{ color: {chosen.muted}; }}
    """
