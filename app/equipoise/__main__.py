"""Start of the window: arguments, log, crash hook. In a frozen build it is also the way into the engine."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import logging.handlers
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import platformdirs
from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtWidgets import QApplication

from equipoise.demo import Demo
from equipoise.session import Session
from equipoise.settings import SettingsStore
from equipoise.state import is_idle
from equipoise.view.main import MainWindow
from equipoise.view.theme import apply_theme
from equipoise_engine import __version__

_log = logging.getLogger("equipoise")
SCREENSHOT_SECONDS = 180
WITHOUT_DISPLAY = ("offscreen", "minimal")
"""Qt platforms on which nobody sees the window."""


@dataclass(frozen=True)
class Application:
    """What `build` makes: the parts of the running program."""

    app: QApplication
    session: Session
    window: MainWindow


def main() -> int:
    """Run the window, or with `--engine ...` the engine; return the exit status."""
    if sys.argv[1:2] == ["--engine"]:
        # a frozen build has one executable; the engine then runs in this process
        sys.argv = ["equipoise-engine", *sys.argv[2:]]
        runpy.run_module("equipoise_engine", run_name="__main__", alter_sys=True)
        return 0
    return run(sys.argv[1:])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="equipoise",
        description="Open raw CT and MRI scans, reconstruct them, adapt a deep equilibrium model to them.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="scan to open, a file or a folder")
    parser.add_argument("--version", action="version", version=f"Equipoise {__version__}")
    parser.add_argument("--theme", choices=("system", "light", "dark"), help="colours for this time")
    parser.add_argument(
        "--screenshot",
        metavar="FILE",
        help="save a picture of the window once nothing runs any more, then end",
    )
    parser.add_argument(
        "--demo",
        metavar="FOLDER",
        help="work on the sample scans and write the results to FOLDER; without a display save a picture and end",
    )
    return parser.parse_args(argv)


def build(store: SettingsStore | None = None) -> Application:
    """Return application, session and window; the engine is not started yet and the window not shown."""
    running = QApplication.instance()
    app = running if isinstance(running, QApplication) else QApplication(["equipoise"])
    app.setApplicationName("Equipoise")
    app.setApplicationDisplayName("Equipoise")
    app.setApplicationVersion(__version__)
    app.setQuitOnLastWindowClosed(False)
    session = Session(store)
    folder = start_log(session)
    window = MainWindow(session, folder)
    app.styleHints().colorSchemeChanged.connect(partial(_follow_system, app, session))
    session.closed.connect(app.quit)
    return Application(app, session, window)


def run(argv: Sequence[str]) -> int:
    """Run the window until it is closed; return the exit status."""
    arguments = parse(argv)
    parts = build()
    catch_errors(parts.session)
    if arguments.theme is not None:
        apply_theme(parts.app, arguments.theme, parts.session.settings.font_size)
    parts.session.start()
    for path in arguments.paths:
        parts.session.open(path)
    parts.window.show()
    # Python takes in signals between its own steps; the heartbeat of the engine makes sure there are some
    signal.signal(signal.SIGINT, lambda number, frame: parts.window.close())
    if arguments.screenshot:
        _Screenshot(parts, Path(arguments.screenshot), bool(arguments.paths))
    if not arguments.demo:
        return parts.app.exec()
    statuses: list[int] = []
    unseen = parts.app.platformName() in WITHOUT_DISPLAY
    demo = Demo(parts.session, parts.window, Path(arguments.demo).absolute(), picture=unseen)
    demo.finished.connect(statuses.append)
    if unseen:
        demo.finished.connect(partial(end, parts))
    demo.start()
    # with a display the window stays open, and closing it says whether the demonstration went well
    return parts.app.exec() or sum(statuses)


def end(parts: Application, status: int) -> None:
    """Close the window and, once the engine has ended in order, the program with an exit status."""
    parts.session.closed.disconnect(parts.app.quit)
    parts.session.closed.connect(partial(parts.app.exit, status))
    parts.session.close()


class _Screenshot(QObject):
    """Saves a picture of the window once nothing runs any more, then ends the program."""

    def __init__(self, parts: Application, file: Path, needs_picture: bool) -> None:
        super().__init__(parts.window)
        self._parts, self._file, self._needs_picture = parts, file, needs_picture
        self._quiet = 0
        self._until = time.monotonic() + SCREENSHOT_SECONDS
        self._timer = QTimer(self, interval=200)
        self._timer.timeout.connect(self._look)
        self._timer.start()

    def _look(self) -> None:
        state = self._parts.session.state
        ended = [job for job in state.jobs if not job.active]
        done = is_idle(state) and (not self._needs_picture or bool(ended))
        self._quiet = self._quiet + 1 if done else 0
        if self._quiet < 4 and time.monotonic() < self._until:
            return
        self._timer.stop()
        saved = self._parts.window.grab().save(str(self._file))
        if not saved or self._quiet < 4:
            _log.error("screenshot %s: %s", self._file, "cannot be written" if not saved else "window still busy")
        code = 0 if saved and self._quiet >= 4 else 1
        end(self._parts, code)


class _LogRelay(QObject):
    line = Signal(str)


class _PanelHandler(logging.Handler):
    """Brings the window's own log lines to the log panel, from whatever thread."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._relay = _LogRelay(session)
        self._relay.line.connect(session.log_line, Qt.ConnectionType.QueuedConnection)

    def emit(self, record: logging.LogRecord) -> None:
        # lines of the engine reach the panel by themselves
        if record.name == "equipoise.engine":
            return
        try:
            self._relay.line.emit(self.format(record))
        except RuntimeError:
            # the window is gone
            logging.getLogger().removeHandler(self)


def start_log(session: Session) -> Path | None:
    """Write a log file of limited size, and show the log in the panel; return the folder of the file."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    panel = _PanelHandler(session)
    panel.setFormatter(form)
    root.addHandler(panel)
    named = os.environ.get("EQUIPOISE_LOGS")
    folder = Path(named or platformdirs.user_log_dir("Equipoise", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            folder / "equipoise.log", maxBytes=2_000_000, backupCount=3, encoding="utf-8", delay=False
        )
        # it stays open for as long as the program runs
        crashes = (folder / "crash.log").open("a", encoding="utf-8")
    except OSError as error:
        session.notify("warning", f"No log file is written: {folder}: {error.strerror or error}.")
        return None
    file.setFormatter(form)
    root.addHandler(file)
    # a crash of the interpreter itself still leaves the stacks of all threads in the log
    faulthandler.enable(crashes)
    _log.info("Equipoise %s starts", __version__)
    return folder


def catch_errors(session: Session) -> None:
    """Log errors that nobody has caught, and tell the user, instead of ending the program."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        details = "".join(traceback.format_exception(kind, error, trace))
        _log.error("error in the window\n%s", details)
        session.notify("error", f"Something went wrong in the window: {error or kind.__name__}", details)

    def report_thread(arguments: threading.ExceptHookArgs) -> None:
        # the session belongs to the main thread; the log can be written from any
        trace = traceback.format_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        _log.error("error in a thread of the window\n%s", "".join(trace))

    sys.excepthook = report
    threading.excepthook = report_thread


def _follow_system(app: QApplication, session: Session, scheme: Qt.ColorScheme) -> None:
    if session.settings.theme == "system":
        apply_theme(app, "system", session.settings.font_size)


if __name__ == "__main__":
    sys.exit(main())
