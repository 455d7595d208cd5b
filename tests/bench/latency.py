"""Measure how quickly the window answers: first image, scrolling through slices, cancelling.

Run: `QT_QPA_PLATFORM=offscreen python tests/bench/latency.py [FOLDER OF THE MEASURED SCANS]`. No test; prints seconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from equipoise.session import Session
from equipoise.settings import SettingsStore
from equipoise.state import State, is_idle
from equipoise.view.main import MainWindow
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TOOTH = "ct-tooth-dxchange/tooth.h5"
BRAIN = "derived/brain8ch_fastmri_like.h5"
VOLUME = "derived/i13_24737_nxtomo.nxs"
CHANGES = 60
CANCELS = 5
LONG = ReconstructSettings(method="tv", iterations=1_000_000, tolerance=1e-14)


class Bench:
    """A window with an engine, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.app = QApplication.instance() or QApplication(["bench"])
        self.session = Session(SettingsStore(folder / f"{time.monotonic_ns()}.ini"))
        self.window = MainWindow(self.session)
        self.window.show()
        # an event now and then, so that waiting for one never lasts
        self._alive = QTimer(interval=50)
        self._alive.timeout.connect(lambda: None)
        self._alive.start()

    def wait(self, holds: Callable[[State], bool], limit: float = 60.0) -> float:
        """Let the event loop run until the state is as wanted; return how many seconds that took."""
        began = time.perf_counter()
        while not holds(self.session.state):
            if time.perf_counter() - began > limit:
                raise TimeoutError(f"not reached: {[job for job in self.session.state.jobs if job.active]}")
            self.app.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
        # what is on the screen counts, not what is on its way there
        self.window.compare.repaint()
        self.app.processEvents()
        return time.perf_counter() - began

    def close(self) -> None:
        ended: list[bool] = []
        self.session.closed.connect(lambda: ended.append(True))
        self.session.close()
        while not ended:
            self.app.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
        self.window.hide()

    def first_image(self, path: Path) -> float:
        """Return the seconds from opening a scan to its image."""
        known = len(self.session.state.runs)
        began = time.perf_counter()
        self.session.open(str(path))
        self.wait(
            lambda s: (
                len(s.runs) > known
                and any(pane.picture is not None and pane.picture.run == s.runs[-1].run for pane in s.panes)
            )
        )
        return time.perf_counter() - began

    def scroll(self, count: int) -> list[float]:
        """Return the seconds from each change of the slice to its picture in the first pane."""
        slices = self.session.state.scans[-1].slices
        taken = []
        for change in range(count):
            index = (self.session.state.slice_index + 1 + 7 * (change % 2)) % slices
            self.session.set_slice(index)
            taken.append(self.wait(lambda s, index=index: s.panes[0].picture.index == index))
        return taken


def cold_and_warm(folder: Path, path: Path) -> tuple[float, float]:
    bench = Bench(folder)
    began = time.perf_counter()
    bench.session.start()
    bench.first_image(path)
    cold = time.perf_counter() - began
    bench.wait(is_idle)
    warm = bench.first_image(path)
    bench.wait(is_idle)
    bench.close()
    return cold, warm


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def spread(seconds: list[float]) -> str:
    return (
        f"median {1000 * statistics.median(seconds):.1f} ms, 95th percentile {1000 * np.percentile(seconds, 95):.1f} ms"
    )


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for scan in (TOOTH, BRAIN):
            cold, warm = cold_and_warm(folder, data / scan)
            say(f"{Path(scan).name}: first image {cold:.2f} s with the engine's start, {warm:.2f} s without")
        bench = Bench(folder)
        bench.session.start()
        bench.first_image(data / VOLUME)
        bench.wait(is_idle)
        shape = bench.session.state.runs[0].result.shape
        say(f"{Path(VOLUME).name}, FBP {shape}, {CHANGES} changes of the slice")
        say(f"  engine idle: {spread(bench.scroll(CHANGES))}")
        bench.session.reconstruct(LONG)
        bench.wait(lambda s: len(s.runs[-1].steps) > 5)
        say(f"  engine busy with TV: {spread(bench.scroll(CHANGES))}")
        bench.session.cancel(bench.session.state.jobs[-1].id)
        bench.wait(is_idle)
        pid = bench.session.engine_pid
        for what in ("TV", "adaptation"):
            taken = []
            for number in range(CANCELS):
                if what == "TV":
                    known = len(bench.session.state.runs)
                    bench.session.reconstruct(LONG)
                    bench.wait(lambda s, known=known: len(s.runs) > known and len(s.runs[-1].steps) > 5)
                else:
                    out = folder / f"{number}.safetensors"
                    bench.session.adapt(FineTuneSettings(steps=10_000, views_every=3), str(out))
                    bench.wait(lambda s: len(s.trainings[-1].steps) >= 1)
                job = bench.session.state.jobs[-1].id
                bench.session.cancel(job)
                taken.append(bench.wait(lambda s, job=job: not any(j.active for j in s.jobs)))
            say(f"cancel {what}: median {1000 * statistics.median(taken):.0f} ms, longest {1000 * max(taken):.0f} ms")
        if bench.session.engine_pid != pid:
            say("the engine had to be ended to cancel")
        bench.close()


if __name__ == "__main__":
    main()
