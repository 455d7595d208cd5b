"""What every test shares: no display, few threads, its own settings, and no engine left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# before Qt, torch or numba is imported, here and in every engine that a test starts
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "2")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.measured)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the measured scans, which are kept beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the measured scans are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings and the logs of the person who runs the tests out of them."""
    monkeypatch.setenv("EQUIPOISE_SETTINGS", str(tmp_path / "settings" / "equipoise.ini"))
    monkeypatch.setenv("EQUIPOISE_LOGS", str(tmp_path / "logs"))


@pytest.fixture(autouse=True)
def no_engine_left_behind() -> Iterator[None]:
    """Fail a test that leaves an engine process running, and end that process."""
    before = set(_engines())
    yield
    left = [process for process in _engines() if process not in before]
    # an engine that was asked to end may need a moment
    _, left = psutil.wait_procs(left, timeout=5)
    for process in left:
        process.kill()
    if left:
        pytest.fail(f"engine processes left behind: {[process.pid for process in left]}", pytrace=False)


def _engines() -> list[psutil.Process]:
    """Return the running engines that this process, or a program it has started, started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "equipoise_engine" in command or "equipoise-engine" in command or "--engine" in command:
            found.append(process)
    return found
