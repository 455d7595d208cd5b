"""What the user has chosen for good, as one frozen and checked value, and where it is stored."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QByteArray, QSettings

THEMES = ("system", "light", "dark")
MAX_RECENT = 10
MIN_FONT, MAX_FONT = 7, 28


@dataclass(frozen=True)
class Settings:
    """The preferences, and what the window remembers.

    Raises
    ------
    ValueError
        A value is outside its limits; the message names the field, the value and the limit.
    """

    engine_command: tuple[str, ...] = ()
    """Command that starts an engine, as ("ssh", "gpu01", "equipoise-engine", "serve"); empty: our own."""
    theme: str = "system"
    font_size: int = 0
    """Points; 0 takes the system's."""
    recent: tuple[str, ...] = ()
    """Paths of scans, newest first."""
    window_geometry: bytes = b""
    window_state: bytes = b""
    export_folder: str = ""
    cancel_seconds: float = 5.0
    """How long a job may take to obey a cancel before its engine is ended."""

    def __post_init__(self) -> None:
        if not all(isinstance(part, str) and part for part in self.engine_command):
            raise ValueError(f"engine_command: {self.engine_command!r} has an empty part")
        if self.theme not in THEMES:
            raise ValueError(f"theme: {self.theme!r} is none of {', '.join(THEMES)}")
        if self.font_size != 0 and not MIN_FONT <= self.font_size <= MAX_FONT:
            raise ValueError(f"font_size: {self.font_size} is neither 0 nor {MIN_FONT} to {MAX_FONT}")
        if len(self.recent) > MAX_RECENT:
            raise ValueError(f"recent: {len(self.recent)} paths exceed {MAX_RECENT}")
        if not 0.05 <= self.cancel_seconds <= 600.0:
            raise ValueError(f"cancel_seconds: {self.cancel_seconds:g} is not within 0.05 to 600")


def with_recent(settings: Settings, path: str) -> Settings:
    """Return the settings with `path` as the newest of the recent scans."""
    others = tuple(p for p in settings.recent if p != path)
    return replace(settings, recent=(path, *others)[:MAX_RECENT])


def parse_command(text: str) -> tuple[str, ...]:
    """Return the parts of a command line; empty text gives no parts.

    Raises
    ------
    ValueError
        A quotation is not closed.
    """
    posix = os.name != "nt"
    return tuple(part if posix else part.strip('"') for part in shlex.split(text, posix=posix))


def format_command(command: tuple[str, ...]) -> str:
    """Return a command as one line that `parse_command` reads back."""
    if os.name == "nt":
        return " ".join(f'"{part}"' if " " in part else part for part in command)
    return shlex.join(command)


class SettingsStore:
    """The settings in an INI file.

    Parameters
    ----------
    path
        The file; None takes the environment variable EQUIPOISE_SETTINGS, else the user's own place.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None and (named := os.environ.get("EQUIPOISE_SETTINGS")):
            path = Path(named)
        if path is not None:
            self._stored = QSettings(str(path), QSettings.Format.IniFormat)
        else:
            self._stored = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "Equipoise", "Equipoise")

    @property
    def path(self) -> str:
        """Path of the file."""
        return self._stored.fileName()

    def load(self) -> tuple[Settings, tuple[str, ...]]:
        """Return the stored settings, and a sentence for each stored value that was not usable."""
        settings = Settings()
        problems: list[str] = []
        if self._stored.status() is not QSettings.Status.NoError:
            problems.append(f"The settings file {self.path} cannot be read; the defaults are used.")
        for field in fields(Settings):
            if not self._stored.contains(field.name):
                continue
            raw = self._stored.value(field.name)
            try:
                settings = replace(settings, **{field.name: _decode(field.name, raw)})
            except (ValueError, TypeError) as error:
                problems.append(f"A stored setting is not usable and its default is taken: {error}.")
        return settings, tuple(problems)

    def save(self, settings: Settings) -> None:
        """Store the settings."""
        for field in fields(Settings):
            value = getattr(settings, field.name)
            if isinstance(value, tuple):
                # a list of one text would come back as a bare text; a count beside it keeps the difference
                self._stored.setValue(field.name, [str(len(value)), *value])
            elif isinstance(value, bytes):
                self._stored.setValue(field.name, QByteArray(value))
            else:
                self._stored.setValue(field.name, str(value))
        self._stored.sync()


def _decode(name: str, raw: Any) -> Any:
    match name:
        case "engine_command" | "recent":
            parts = [str(part) for part in raw] if isinstance(raw, list) else [str(raw)]
            if not parts or parts[0] != str(len(parts) - 1):
                raise ValueError(f"{name}: the list is damaged")
            return tuple(parts[1:])
        case "window_geometry" | "window_state":
            if not isinstance(raw, QByteArray):
                raise ValueError(f"{name}: no bytes")
            return raw.data()
        case "font_size":
            return _number(name, raw, int)
        case "cancel_seconds":
            return _number(name, raw, float)
        case _:
            if not isinstance(raw, str):
                raise ValueError(f"{name}: no text")
            return raw


def _number(name: str, raw: Any, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(raw)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {raw!r} is no number") from None
