"""The one object of the window that changes: it holds the state, sends requests and takes in events."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import PurePath

from PySide6.QtCore import QObject, Signal, Slot

from equipoise import state as change
from equipoise.extent import first_slices
from equipoise.settings import Settings, SettingsStore, with_recent
from equipoise.state import (
    METHOD_NAMES,
    EnginePhase,
    Job,
    State,
    Training,
    active_jobs,
    find_job,
    find_run,
    find_scan,
)
from equipoise.supervisor import CANCEL_CAUSE, RESTART_CAUSE, Limits, Supervisor
from equipoise_engine.client import EngineLost
from equipoise_engine.protocol import (
    CentreFound,
    Event,
    Export,
    Failed,
    FindCentre,
    FineTune,
    FineTuneSettings,
    Finished,
    Forget,
    Look,
    Open,
    Opened,
    OpenReference,
    Pixels,
    ReadSlice,
    Ready,
    Reconstruct,
    ReconstructSettings,
    Request,
    ScanFacts,
    Seen,
)
from equipoise_engine.recipe import Recipe

_log = logging.getLogger(__name__)
_engine_log = logging.getLogger("equipoise.engine")

_AS_IT_IS = Recipe()
"""What is not told is taken from the files, or found."""
_EXPORT_NAMES = {"tiff": "TIFF", "dicom": "DICOM"}


class Session(QObject):
    """State, engine and settings of one window. All methods return at once; results are changes of the state.

    Parameters
    ----------
    store
        Where the settings are kept; None takes the user's own place.
    limits
        How patient to be with the engine; None takes the defaults, and the cancel deadline of the settings.
    """

    changed = Signal(object, object)
    """Old State, new State."""
    settings_changed = Signal(object)
    """The new Settings."""
    log_line = Signal(str)
    seen = Signal(str, object, object)
    """Purpose of a `look`, Seen, pixels."""
    look_failed = Signal(str, object)
    """Purpose of a `look`, Failed."""
    centre_found = Signal(object)
    """CentreFound."""
    closed = Signal()
    """After `close`: the engine has ended."""

    def __init__(
        self, store: SettingsStore | None = None, limits: Limits | None = None, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._store = store if store is not None else SettingsStore()
        self._settings, problems = self._store.load()
        self._state = State()
        for problem in problems:
            self._state = change.add_notice(self._state, "warning", problem)
        self._emitted = self._state
        self._emitting = False
        self._requests: dict[int, Request] = {}
        self._recipes: dict[str, Recipe] = {}
        self._looking: dict[str, tuple[int, Look]] = {}
        self._to_look: dict[str, Look] = {}
        self._deadly: set[Look] = set()
        self._blame: Counter[str] = Counter()
        self._blocked: set[str] = set()
        if limits is None:
            limits = Limits(cancel=self._settings.cancel_seconds)
        self._supervisor = Supervisor(self._settings.engine_command, limits, self)
        self._supervisor.received.connect(self._receive)
        self._supervisor.phase.connect(self._follow_phase)
        self._supervisor.log_line.connect(self._log_engine)
        self._supervisor.ended.connect(self.closed)

    # --- what it holds

    @property
    def state(self) -> State:
        """Everything the window shows."""
        return self._state

    @property
    def settings(self) -> Settings:
        """The preferences."""
        return self._settings

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine command, or None while there is none."""
        return self._supervisor.pid

    # --- the engine

    def start(self) -> None:
        """Start the engine."""
        self._supervisor.start()

    def close(self) -> None:
        """Let the engine save and end; `closed` follows within the closing limit."""
        self._supervisor.shutdown()

    def restart_engine(self) -> None:
        """End the engine, where there is one, and start another; also after it was given up."""
        self._supervisor.restart()

    # --- jobs

    def open(self, path: str, recipe: Recipe = _AS_IT_IS) -> None:
        """Open a scan, then show its analytic image.

        Parameters
        ----------
        recipe
            How it is read, cut and prepared; what it does not say is taken from the files, or found.
        """
        path = os.path.abspath(path)
        self._blocked.discard(path)
        self._blame.pop(path, None)
        self._deadly = {wish for wish in self._deadly if wish.path != path}
        self._send_job(Open(path=path, recipe=recipe), "open", f"Open {PurePath(path).name}")

    def open_reference(self, path: str) -> None:
        """Open an image volume to compare with what is made of the active scan."""
        path = os.path.abspath(path)
        wish = OpenReference(path=path, scan=self._state.scan or "")
        self._send_job(wish, "open", f"Open reference {PurePath(path).name}")

    def asked_recipe(self, path: str) -> Recipe | None:
        """The recipe that an open scan was asked for with, without what the engine has found; None where it is not."""
        return self._recipes.get(path)

    def look(self, purpose: str, wish: Look) -> None:
        """Ask for a picture of what was measured; `seen` or `look_failed` follows with the same purpose.

        Of each purpose one picture is under way at a time; of the wishes meanwhile, the newest is kept.
        """
        if not self._supervisor.available:
            self._to_look.pop(purpose, None)
            message = "The engine is stopped. Use Engine > Restart engine."
            self.look_failed.emit(purpose, Failed(kind="internal", message=message))
        elif wish in self._deadly:
            self._to_look.pop(purpose, None)
            message = "This picture ended the engine before. Change the recipe, or open the scan again."
            self.look_failed.emit(purpose, Failed(kind="internal", message=message))
        elif purpose not in self._looking:
            self._looking[purpose] = (self._supervisor.send(wish), wish)
        elif self._looking[purpose][1] == wish:
            self._to_look.pop(purpose, None)
        else:
            self._to_look[purpose] = wish

    def is_looking(self, purpose: str) -> bool:
        """Whether a picture of this purpose is under way."""
        return purpose in self._looking

    def find_centre(self, wish: FindCentre) -> int | None:
        """Estimate the rotation centre; `centre_found` follows. Return the id of the job, or None."""
        return self._send_job(wish, "centre", f"Find the rotation centre of {PurePath(wish.path).name}")

    def reconstruct(self, settings: ReconstructSettings) -> None:
        """Reconstruct the active scan; the iterates of the slice that is shown are kept for looking at."""
        scan = self._usable_scan()
        if scan is not None:
            self._reconstruct(scan, settings)

    def adapt(self, settings: FineTuneSettings, out: str) -> None:
        """Adapt the equilibrium model to the active scan and write the weights to `out`."""
        scan = self._usable_scan()
        if scan is None:
            return
        title = f"Adapt to {self._scan_name(scan)}"
        job = self._send_job(FineTune(scans=(scan,), settings=settings, out=out), "adapt", title)
        if job is not None:
            training = Training(job=job, scans=(scan,), out=out, total=settings.steps)
            self._set(change.add_training(self._state, training))

    def export(self, run: str, path: str, format: str) -> None:  # noqa: A002 - the protocol's word
        """Write the result of a run to a file or folder, as "tiff" or "dicom"."""
        found = find_run(self._state, run)
        if found is None or found.result is None:
            self.notify("warning", "There is no finished result to export.")
            return
        if not found.held:
            self.notify("warning", f"{found.label} was lost with its engine. Reconstruct it again, then export.")
            return
        folder = str(PurePath(os.path.abspath(path)).parent)
        self.change_settings(replace(self._settings, export_folder=folder))
        title = f"Export {found.label} as {_EXPORT_NAMES.get(format, format)}"
        self._send_job(Export(result=run, path=os.path.abspath(path), format=format), "export", title)

    def cancel(self, job: int, keep: bool = False) -> None:
        """Stop a job; with `keep`, what it has so far becomes its result."""
        found = find_job(self._state, job)
        if found is None or not found.active:
            return
        self._set(change.set_cancelling(self._state, job))
        self._supervisor.cancel(job, keep)

    # --- what is shown

    def show_run(self, pane: int, run: str | None, step: int | None = None) -> None:
        """Show a run, or one of its iterates, in a pane."""
        self._set(change.show_run(self._state, pane, run, step))

    def set_slice(self, index: int) -> None:
        """Show another slice in all panes."""
        self._set(change.set_slice(self._state, index))

    def set_pane_count(self, count: int) -> None:
        """Have 1 to 6 panes."""
        self._set(change.set_pane_count(self._state, count))

    def set_active_pane(self, pane: int) -> None:
        """Choose the pane that commands act on."""
        self._set(change.set_active_pane(self._state, pane))

    def select_scan(self, scan: str) -> None:
        """Let the controls act on another scan."""
        self._set(change.select_scan(self._state, scan))

    def forget(self, run: str) -> None:
        """Take a run out of the window and out of the engine's memory."""
        found = find_run(self._state, run)
        if found is None:
            return
        job = find_job(self._state, found.job)
        if job is not None and job.active:
            self.notify("warning", f"{found.label} is still running; cancel it first.")
            return
        if found.held and self._supervisor.holds(run):
            self._supervisor.send(Forget(key=run))
        self._set(change.forget_run(self._state, run))

    def dismiss(self, number: int) -> None:
        """Take a notice away."""
        self._set(change.dismiss_notice(self._state, number))

    def notify(self, severity: str, text: str, details: str = "") -> None:
        """Tell the user something: severity info, warning or error."""
        self._set(change.add_notice(self._state, severity, text, details))

    def clear_ended_jobs(self) -> None:
        """Take the jobs that have ended out of the list."""
        self._set(change.clear_ended_jobs(self._state))

    def change_settings(self, settings: Settings) -> None:
        """Take over and store other preferences; another engine command takes effect with the next engine."""
        if settings == self._settings:
            return
        self._settings = settings
        self._store.save(settings)
        self._supervisor.command = settings.engine_command
        self._supervisor.limits = replace(self._supervisor.limits, cancel=settings.cancel_seconds)
        self.settings_changed.emit(settings)

    # --- inside

    def _scan_name(self, scan: str) -> str:
        facts = find_scan(self._state, scan)
        return PurePath(facts.path).name if facts is not None else scan

    def _usable_scan(self) -> str | None:
        """Return the active scan where the engine holds it; tell the user where it does not."""
        scan = self._state.scan
        if scan is None:
            self.notify("warning", "Open a scan first.")
        elif not self._supervisor.holds(scan):
            name = self._scan_name(scan)
            self.notify("warning", f"The engine does not hold {name} any more. Open the scan again.")
        else:
            return scan
        return None

    def _reconstruct(self, scan: str, settings: ReconstructSettings) -> None:
        method = METHOD_NAMES.get(settings.method, settings.method)
        request = Reconstruct(scan=scan, settings=settings, preview_slice=self._state.slice_index)
        self._send_job(request, "reconstruct", f"{method} of {self._scan_name(scan)}")

    def _send_job(self, request: Request, kind: str, title: str) -> int | None:
        if not self._supervisor.available:
            self.notify("warning", f"{title}: the engine is stopped. Use Engine > Restart engine, then try again.")
            return None
        job = self._supervisor.send(request)
        self._requests[job] = request
        _log.info("job %d: %s", job, kind)
        self._set(change.add_job(self._state, Job(id=job, kind=kind, title=title)))
        return job

    @Slot(int, object, object)
    def _receive(self, job: int, event: Event | EngineLost, pixels: Pixels | None) -> None:
        before = self._state
        if isinstance(event, EngineLost):
            _log.log(logging.INFO if event.expected else logging.ERROR, "engine ended: %s", event.cause)
            self._assign_blame(event)
            self._stop_looking(event)
        if self._take_look(job, event, pixels):
            return
        request = self._requests.get(job)
        if isinstance(event, Opened) and isinstance(request, Open):
            self._recipes[event.facts.path] = request.recipe
        self._set(change.stamp(change.reduce(before, job, event, pixels), time.monotonic()))
        if isinstance(event, Ready):
            self._reopen()
        elif isinstance(event, Opened):
            self._after_open(before, job, event)
        elif isinstance(event, CentreFound):
            self.centre_found.emit(event)
        found = find_job(self._state, job)
        if found is not None and not found.active:
            self._requests.pop(job, None)

    def _take_look(self, job: int, event: Event | EngineLost, pixels: Pixels | None) -> bool:
        """Pass a picture on; return whether the event belonged to one."""
        purpose = next((name for name, (number, _) in self._looking.items() if number == job), None)
        if purpose is None or not job:
            return False
        following = self._to_look.get(purpose)
        # nobody looks at the other scan any more
        late = following is not None and following.path != self._looking[purpose][1].path
        if isinstance(event, Finished | Failed):
            del self._looking[purpose]
            if following is not None:
                del self._to_look[purpose]
                self.look(purpose, following)
        if isinstance(event, Seen) and pixels is not None:
            self.seen.emit(purpose, event, pixels)
        elif isinstance(event, Failed) and not late:
            self.look_failed.emit(purpose, event)
        return True

    def _stop_looking(self, lost: EngineLost) -> None:
        """Give up the pictures that are under way, and do not ask for them again where they ended the engine."""
        purposes = tuple(self._looking)
        guilty = not lost.expected and lost.cause not in (CANCEL_CAUSE, RESTART_CAUSE)
        if guilty and not any(job.started is not None for job in active_jobs(self._state)):
            self._deadly |= {wish for _, wish in self._looking.values()}
        self._looking.clear()
        self._to_look.clear()
        if not lost.expected:
            for purpose in purposes:
                failed = Failed(kind="internal", message=f"The engine was lost: {lost.cause}.")
                self.look_failed.emit(purpose, failed)

    def _after_open(self, before: State, job: int, event: Opened) -> None:
        facts = event.facts
        old = next((s for s in before.scans if s.path == facts.path), None)
        if old is not None and old.scan != facts.scan and self._supervisor.holds(old.scan):
            self._supervisor.send(Forget(key=old.scan))
        found = find_job(self._state, job)
        if found is None or found.kind == "reopen":
            return
        self.change_settings(with_recent(self._settings, facts.path))
        if facts.guessed and old is None:
            name = PurePath(facts.path).name
            self.notify("info", f"{name}: its files do not say everything. Check what was guessed in Prepare scan.")
        self._show_first(facts)

    def _show_first(self, facts: ScanFacts) -> None:
        """Make the analytic image of a scan that was opened, or of its middle slices where it is large."""
        if not facts.methods:
            return
        name = PurePath(facts.path).name
        if facts.methods[0] == "fdk" and facts.memory is not None and facts.memory.host_bytes > facts.memory.host_free:
            self.notify("warning", f"{name} is too large: {facts.memory.text}. Take a part of it in Prepare scan.")
            return
        some = first_slices(facts)
        if some is not None:
            first, last = some[0], some[1] - 1
            said = f"slice {first} was" if first == last else f"slices {first} to {last} were"
            self.notify("info", f"{name} is large: only {said} reconstructed now. Reconstruct makes the others.")
        self._reconstruct(facts.scan, ReconstructSettings(method=facts.methods[0], slices=some))

    def _reopen(self) -> None:
        """Open the scans that an earlier engine held, but for those that ended it."""
        coming = {r.path for r in self._requests.values() if isinstance(r, Open)}
        for facts in self._state.scans:
            if self._supervisor.holds(facts.scan) or facts.path in coming:
                continue
            name = PurePath(facts.path).name
            if facts.path in self._blocked:
                self.notify(
                    "warning",
                    f"{name} was not opened again, because work on it ended the engine. Open it yourself.",
                )
                continue
            request = Open(path=facts.path, recipe=self._recipes.get(facts.path, facts.recipe))
            self._send_job(request, "reopen", f"Open {name} again")

    def _assign_blame(self, lost: EngineLost) -> None:
        requests, self._requests = self._requests, {}
        if lost.expected or lost.cause in (CANCEL_CAUSE, RESTART_CAUSE):
            return
        active = active_jobs(self._state)
        begun = [j for j in active if j.started is not None]
        running = [j for j in active if j.id == self._supervisor.running]
        for job in (running or begun or list(active))[:1]:
            request = requests.get(job.id)
            scans: tuple[str, ...] = ()
            match request:
                case Open():
                    self._blocked.add(request.path)
                case Reconstruct():
                    scans = (request.scan,)
                case FineTune():
                    scans = request.scans
                case Export():
                    run = find_run(self._state, request.result)
                    scans = (run.scan,) if run is not None else ()
                case _:
                    pass
            for scan in scans:
                facts = find_scan(self._state, scan)
                if facts is not None:
                    self._blame[facts.path] += 1
                    if self._blame[facts.path] >= 2:
                        self._blocked.add(facts.path)

    @Slot(object, int)
    def _follow_phase(self, phase: EnginePhase, restarts: int) -> None:
        state = change.set_engine_phase(self._state, phase, restarts)
        if phase is EnginePhase.STOPPED and self._state.engine.phase is not EnginePhase.STOPPED:
            state = change.add_notice(
                state,
                "error",
                f"The engine was lost {restarts} times in a row and is not started any more. "
                "Use Engine > Restart engine to try again.",
            )
        self._set(state)

    @Slot(str)
    def _log_engine(self, line: str) -> None:
        _engine_log.info("%s", line)
        self.log_line.emit(line)

    def _set(self, state: State) -> None:
        """Take over a state, ask the engine for what the panes now want, and tell the views."""
        if state is self._state:
            return
        for pane, wish in change.unasked(state):
            if self._supervisor.holds(wish.run):
                job = self._supervisor.send(ReadSlice(result=wish.run, index=wish.index, step=wish.step))
                state = change.set_asked(state, pane, job, wish)
        self._state = state
        if self._emitting:
            return
        # a view may change the state while it takes in a change; the others then get both as one, in order
        self._emitting = True
        try:
            while self._emitted is not self._state:
                old, self._emitted = self._emitted, self._state
                self.changed.emit(old, self._state)
        finally:
            self._emitting = False
