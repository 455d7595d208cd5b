"""The demonstration: the whole main job on the sample scans, driven through the session like a user would."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal, Slot
from PySide6.QtWidgets import QWidget

from equipoise.session import Session
from equipoise.state import EnginePhase, Job, JobPhase, State, find_run, is_idle, sentence
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings
from equipoise_resources import sample_path

VIEWS_EVERY = 3
ACCELERATE = 3
ADAPT_STEPS = 16
SETTLE_MILLISECONDS = 600
"""How long the window may take to draw the last change before its picture is saved."""

_WORDS = {JobPhase.DONE: "done", JobPhase.CANCELLED: "cancelled", JobPhase.FAILED: "failed"}

Condition = Callable[[State], bool]


class DemoTrouble(Exception):
    """The demonstration cannot go on."""


class Demo(QObject):
    """Works through the demonstration and tells on stdout where it is.

    Parameters
    ----------
    session
        Its engine need not be ready yet.
    window
        Its picture is saved at the end where `picture` is true.
    folder
        Where exports, adapted weights and the picture go.
    picture
        Whether to save a picture of the window as `screenshot.png`.
    """

    finished = Signal(int)
    """Exit status: 0, or 1 after trouble, which was told on stderr."""

    def __init__(self, session: Session, window: QWidget, folder: Path, *, picture: bool) -> None:
        super().__init__(window)
        self._session, self._window, self._folder, self._picture = session, window, folder, picture
        self._began = time.monotonic()
        self._steps = self._work()
        self._waiting: Condition | None = None
        self._phases: dict[int, JobPhase] = {}
        self._trained = 0
        self._files: list[Path] = []
        self._ended = False

    # --- the state machine

    def start(self) -> None:
        """Begin; `finished` follows."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # not before the event loop runs, which is to end with the status
            reason = f"{self._folder} cannot be made: {error.strerror or error}"
            QTimer.singleShot(0, self, partial(self._fail, reason))
            return
        self._say(f"The demonstration writes to {self._folder}")
        self._session.changed.connect(self._look)
        self._session.closed.connect(self._stop)
        QTimer.singleShot(0, self, self._advance)

    @Slot(object, object)
    def _look(self, old: State, new: State) -> None:
        """Tell what has happened, and go on where what was waited for is there."""
        if self._ended:
            return
        self._tell(new)
        trouble = _trouble(new)
        if trouble:
            self._fail(trouble)
        elif self._waiting is not None and self._waiting(new):
            # the next step changes the state, which the views are taking in right now
            self._waiting = None
            QTimer.singleShot(0, self, self._advance)

    @Slot()
    def _advance(self) -> None:
        if self._ended:
            return
        try:
            self._waiting = next(self._steps)
        except StopIteration:
            self._finish()
            return
        except DemoTrouble as trouble:
            self._fail(str(trouble))
            return
        # it may hold already, and then nothing might change any more
        self._look(self._session.state, self._session.state)

    @Slot()
    def _stop(self) -> None:
        self._ended = True

    def _fail(self, reason: str) -> None:
        self._ended = True
        sys.stderr.write(f"The demonstration has failed: {reason}\n")
        sys.stderr.flush()
        self.finished.emit(1)

    def _finish(self) -> None:
        for notice in self._session.state.notices:
            if notice.severity == "info":
                self._session.dismiss(notice.number)
        self._session.notify("info", f"The demonstration has ended. What it wrote is in {self._folder}.")
        if self._picture:
            QTimer.singleShot(SETTLE_MILLISECONDS, self, self._save_picture)
        else:
            self._conclude()

    @Slot()
    def _save_picture(self) -> None:
        file = self._folder / "screenshot.png"
        if not self._window.grab().save(str(file)):
            self._fail(f"{file} cannot be written")
            return
        self._files.append(file)
        self._conclude()

    def _conclude(self) -> None:
        self._ended = True
        self._say("Done. Written:")
        for file in self._files:
            self._say(f"  {file}")
        self.finished.emit(0)

    # --- the steps; each yields what has to hold before the next one

    def _work(self) -> Iterator[Condition]:
        self._say("Starting the engine")
        yield is_idle
        ready = self._session.state.engine.ready
        if ready is not None:
            self._say(f"The engine computes on {ready.device}, torch {ready.torch}")
        yield from self._work_on_ct()
        yield from self._work_on_mri()
        yield from self._compare()

    def _work_on_ct(self) -> Iterator[Condition]:
        self._say("CT sample: all views first, then as if only one of three had been measured")
        yield from self._open("ct")
        self._ct = self._session.state.scan
        self._session.set_pane_count(4)
        self._shown = []
        for method in ("fbp", "tv", "deq"):
            yield from self._reconstruct(ReconstructSettings(method=method, views_every=VIEWS_EVERY))
            self._shown.append(self._session.state.runs[-1].run)
        weights = self._folder / "ct-adapted.safetensors"
        settings = FineTuneSettings(steps=ADAPT_STEPS, views_every=VIEWS_EVERY)
        self._say("Adapting the model to these measurements, without ground truth")
        yield from self._job(partial(self._session.adapt, settings, str(weights)))
        self._files.append(weights)
        yield from self._reconstruct(
            ReconstructSettings(method="deq", views_every=VIEWS_EVERY, model=str(weights)),
        )
        self._shown.append(self._session.state.runs[-1].run)
        yield from self._export(self._shown[-1], "ct-adapted")

    def _work_on_mri(self) -> Iterator[Condition]:
        self._say("MRI sample: all of k-space first, then one of three lines and the centre")
        yield from self._open("mri")
        for method in ("zerofilled", "sense", "deq"):
            yield from self._reconstruct(ReconstructSettings(method=method, accelerate=ACCELERATE))
        yield from self._export(self._session.state.runs[-1].run, "mri-equilibrium")

    def _compare(self) -> Iterator[Condition]:
        """Put the reconstructions of the CT sample side by side."""
        assert self._ct is not None
        self._session.select_scan(self._ct)
        self._session.set_pane_count(4)
        for pane, run in enumerate(self._shown):
            self._session.show_run(pane, run)
        self._session.set_active_pane(3)
        yield self._all_shown
        labels = [found.label for found in (find_run(self._session.state, run) for run in self._shown) if found]
        self._say(f"Side by side: {', '.join(labels)}, each from one of {VIEWS_EVERY} views")

    def _all_shown(self, state: State) -> bool:
        pictures = [pane.picture for pane in state.panes]
        drawn = [None if picture is None else picture.run for picture in pictures]
        return is_idle(state) and drawn == self._shown

    def _open(self, kind: str) -> Iterator[Condition]:
        yield from self._job(partial(self._session.open, str(sample_path(kind))))

    def _reconstruct(self, settings: ReconstructSettings) -> Iterator[Condition]:
        yield from self._job(partial(self._session.reconstruct, settings))

    def _export(self, run: str, name: str) -> Iterator[Condition]:
        for form, ending in (("tiff", ".tif"), ("dicom", "-dicom")):
            target = self._folder / f"{name}{ending}"
            yield from self._job(partial(self._session.export, run, str(target), form))
            self._files.append(target)

    def _job(self, start: Callable[[], None]) -> Iterator[Condition]:
        before = {job.id for job in self._session.state.jobs}
        start()
        state = self._session.state
        if all(job.id in before for job in state.jobs):
            raise DemoTrouble(state.notices[-1].text if state.notices else "a job was not accepted")
        yield is_idle

    # --- words

    def _tell(self, state: State) -> None:
        for job in state.jobs:
            before = self._phases.get(job.id, JobPhase.QUEUED)
            self._phases[job.id] = job.phase
            if job.phase is before:
                continue
            if job.phase is JobPhase.RUNNING:
                self._say(f"{job.title} …")
            elif not job.active:
                self._say(f"{job.title}: {_ending(job)}")
        training = state.trainings[-1] if state.trainings else None
        if training is not None and len(training.steps) > self._trained:
            self._trained = len(training.steps)
            loss = training.terms[0][1][-1]
            self._say(f"  adaptation step {training.steps[-1]} of {training.total}, loss {loss:.4g}")

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._began:7.1f} s  {text}\n")
        sys.stdout.flush()


def _trouble(state: State) -> str:
    """Return why the demonstration cannot go on, or nothing."""
    for job in state.jobs:
        if job.phase is JobPhase.FAILED:
            return f"{job.title}: {sentence(job.message, job.hint)}"
        if job.phase is JobPhase.CANCELLED:
            return f"{job.title} was cancelled"
    if state.engine.phase is EnginePhase.STOPPED:
        return state.engine.cause or "the engine is stopped"
    return ""


def _ending(job: Job) -> str:
    return f"{job.message or _WORDS[job.phase]} ({job.seconds:.1f} s)"
