"""A front end that opens a scan and adapts to it until it is ended; it tells the first step and its engine.

Arguments: scan, weights to write, settings file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PySide6.QtWidgets import QApplication

from equipoise.session import Session
from equipoise.settings import SettingsStore
from equipoise.state import State, is_idle
from equipoise_engine.protocol import FineTuneSettings


def main() -> int:
    scan, weights, settings = sys.argv[1:]
    app = QApplication(["front end"])
    session = Session(SettingsStore(Path(settings)))
    told: list[int] = []

    def look(old: State, new: State) -> None:
        if is_idle(new) and new.panes[0].picture is not None and not new.trainings:
            session.adapt(FineTuneSettings(steps=100_000, batch=1), weights)
        if new.trainings and new.trainings[0].steps and not told:
            told.append(1)
            print(f"training in {session.engine_pid}", flush=True)

    session.changed.connect(look)
    session.start()
    session.open(scan)
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
