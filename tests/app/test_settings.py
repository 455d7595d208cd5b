"""Settings survive the file, and bad stored values do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QByteArray, QSettings

from equipoise.settings import (
    MAX_RECENT,
    Settings,
    SettingsStore,
    format_command,
    parse_command,
    with_recent,
)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(engine_command=("equipoise-engine",), recent=("/one, two",)),
        Settings(
            engine_command=("ssh", "gpu 01", "equipoise-engine serve"),
            theme="dark",
            font_size=12,
            recent=("/a/ü, ;b.h5", "@C:\\x.h5"),
            window_geometry=bytes(range(256)),
            window_state=b"\x00\xff",
            export_folder="/tmp/ä",
            cancel_seconds=0.25,
        ),
    ],
)
def test_settings_come_back_from_the_file(tmp_path: Path, settings: Settings) -> None:
    file = tmp_path / "settings.ini"
    SettingsStore(file).save(settings)
    assert SettingsStore(file).load() == (settings, ())


def test_place_of_the_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_SETTINGS", str(tmp_path / "named.ini"))
    store = SettingsStore()
    store.save(Settings(theme="light"))
    assert Path(store.path) == tmp_path / "named.ini"
    assert "light" in (tmp_path / "named.ini").read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("theme", "pink"),
        ("font_size", "many"),
        ("font_size", "3"),
        ("cancel_seconds", "-1"),
        ("cancel_seconds", "nan"),
        ("engine_command", "ssh host"),
        ("recent", ["5", "/a"]),
        ("window_state", "text"),
        ("window_geometry", 7),
        ("export_folder", QByteArray(b"x")),
    ],
)
def test_bad_value_falls_back_with_a_sentence_and_leaves_the_others(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "settings.ini"
    SettingsStore(file).save(Settings(font_size=11, theme="dark", export_folder="/x", cancel_seconds=2.0))
    stored = QSettings(str(file), QSettings.Format.IniFormat)
    stored.setValue(key, value)
    stored.sync()
    settings, problems = SettingsStore(file).load()
    assert getattr(settings, key) == getattr(Settings(), key)
    assert len(problems) == 1
    assert key in problems[0]
    assert key == "theme" or settings.theme == "dark"


def test_file_that_is_no_ini_gives_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.ini"
    file.write_bytes(bytes(range(256)) * 20)
    assert SettingsStore(file).load()[0] == Settings()


@pytest.mark.parametrize(
    "values",
    [
        {"theme": "pink"},
        {"font_size": 3},
        {"cancel_seconds": 0.0},
        {"engine_command": ("",)},
        {"recent": ("x",) * (MAX_RECENT + 1)},
    ],
)
def test_settings_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings(**values)  # type: ignore[arg-type]


def test_recent_scans_are_newest_first_without_repeats_and_limited() -> None:
    settings = Settings()
    for number in range(15):
        settings = with_recent(settings, f"/{number}")
    settings = with_recent(settings, "/10")
    assert settings.recent[:3] == ("/10", "/14", "/13")
    assert len(settings.recent) == MAX_RECENT
    assert len(set(settings.recent)) == MAX_RECENT


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters='"\\\0'), min_size=1), max_size=4))
def test_command_line_is_read_back(command: list[str]) -> None:
    assert parse_command(format_command(tuple(command))) == tuple(command)


def test_open_quotation_is_refused() -> None:
    with pytest.raises(ValueError, match="quotation"):
        parse_command("ssh 'gpu")
