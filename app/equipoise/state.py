"""Everything the window shows, as one frozen value, and how an event of the engine changes it. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePath
from typing import assert_never

from equipoise.extent import same_slice
from equipoise.step_fields import titled
from equipoise_engine.client import EngineLost
from equipoise_engine.protocol import (
    Advice,
    CentreFound,
    Event,
    Exported,
    Failed,
    Finished,
    Loaded,
    Needed,
    Opened,
    Pixels,
    Ready,
    Reconstructed,
    ReconstructSettings,
    ResultFacts,
    ScanFacts,
    Seen,
    Slice,
    Started,
    Status,
    Step,
    Trained,
    Tuned,
    Working,
)
from equipoise_engine.recipe import Recipe

METHOD_NAMES = {
    "fbp": "FBP",
    "fdk": "FDK",
    "cgls": "CGLS",
    "sirt": "SIRT",
    "tv": "TV",
    "wavelet": "Wavelets",
    "zerofilled": "Zero-filled",
    "gridding": "Gridding",
    "grappa": "GRAPPA",
    "homodyne": "Homodyne",
    "pocs": "POCS",
    "sense": "CG-SENSE",
    "deq": "Equilibrium",
}
"""Name for people of each method of `ReconstructSettings`."""

REFERENCE = "reference"
"""Method of what was opened to compare with."""

MAX_PANES = 6
MAX_NOTICES = 20


class EnginePhase(Enum):
    """What the engine process is doing."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class JobPhase(Enum):
    """What became of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Engine:
    """The engine process as the window sees it."""

    phase: EnginePhase = EnginePhase.STARTING
    ready: Ready | None = None
    status: Status | None = None
    cause: str = ""
    """Why the last engine was lost."""
    restarts: int = 0
    """Restarts in a row without a successful job between them."""


@dataclass(frozen=True)
class Job:
    """One request that takes a while: open, find the centre, reconstruct, adapt or export."""

    id: int
    kind: str
    title: str
    phase: JobPhase = JobPhase.QUEUED
    stage: str = ""
    done: int = 0
    total: int = 0
    started: float | None = None
    """Monotonic seconds of its first event."""
    seconds: float = 0.0
    """Duration, once it has ended."""
    message: str = ""
    """Why it failed, or what it made."""
    hint: str = ""
    details: str = ""

    @property
    def active(self) -> bool:
        """Whether the engine still owes an answer."""
        return self.phase in (JobPhase.QUEUED, JobPhase.RUNNING, JobPhase.CANCELLING)


@dataclass(frozen=True)
class Run:
    """One reconstruction, from its first iterate on: the curves, and the result once there is one.

    An image volume that was opened to compare with is a run as well, with a result from the beginning.
    """

    run: str
    job: int
    scan: str
    label: str
    """Name for people, unique in the window, as "TV, 1/3 views #2"."""
    settings: ReconstructSettings
    preview_slice: int
    total: int
    steps: tuple[int, ...] = ()
    data_residuals: tuple[float, ...] = ()
    fixed_point_residuals: tuple[float, ...] = ()
    result: ResultFacts | None = None
    held: bool = True
    """Whether the engine still holds its pixels; False after the engine was lost."""
    recipe: Recipe | None = None
    """How the scan was read and prepared when it began."""

    @property
    def is_reference(self) -> bool:
        """Whether it was opened to compare with, not reconstructed."""
        return self.settings.method == REFERENCE


@dataclass(frozen=True)
class Training:
    """One adaptation of the equilibrium model."""

    job: int
    scans: tuple[str, ...]
    out: str
    total: int = 0
    steps: tuple[int, ...] = ()
    terms: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Name of each loss term and its value at each step; the first is the sum."""
    forward_steps: tuple[float, ...] = ()
    backward_steps: tuple[float, ...] = ()
    seconds: float = 0.0
    finished: bool = False


@dataclass(frozen=True)
class Wish:
    """What a pane wants to show: one slice of a result, or of one iterate of a run."""

    run: str
    index: int
    """Slice, counted in the scan."""
    step: int | None
    """Solver step, or None for the result."""


@dataclass(frozen=True)
class Picture:
    """Pixels that are, or were last, shown in a pane."""

    run: str
    index: int
    """Slice, counted in the scan."""
    step: int | None
    low: float
    high: float
    pixels: Pixels
    """(y, x), float32"""


@dataclass(frozen=True)
class Pane:
    """What one pane is to show, and what it shows now."""

    run: str | None = None
    step: int | None = None
    """Step of the iterate to show; None shows the newest iterate while it runs and the result afterwards."""
    picture: Picture | None = None
    """Kept until the wanted one has come, so that a pane is never blank in between."""
    asked: int | None = None
    """Id of the ReadSlice that is under way for this pane."""
    asked_for: Wish | None = None
    """What that ReadSlice asks for."""
    answered: Wish | None = None
    """The last wish that the engine has answered, with pixels or with an error; it is not asked for again."""


@dataclass(frozen=True)
class Notice:
    """Something the user is told once."""

    number: int
    severity: str
    """info, warning or error."""
    text: str
    details: str = ""


@dataclass(frozen=True)
class State:
    """Everything the window shows."""

    engine: Engine = field(default_factory=Engine)
    scans: tuple[ScanFacts, ...] = ()
    scan: str | None = None
    """The scan that the controls act on."""
    slice_index: int = 0
    """Slice shown in all panes, counted in the scan."""
    runs: tuple[Run, ...] = ()
    trainings: tuple[Training, ...] = ()
    models: tuple[str, ...] = ()
    """Paths of weights that were made or loaded in this session, newest last."""
    jobs: tuple[Job, ...] = ()
    panes: tuple[Pane, ...] = (Pane(), Pane())
    active_pane: int = 0
    needed: Needed | None = None
    """What the last scan lacks that could not be opened; None once it is open."""
    notices: tuple[Notice, ...] = ()
    noticed: int = 0
    """Number of the newest notice so far, so that no number is used twice."""


# --- looking things up -------------------------------------------------------------------------------------


def find_job(state: State, job: int) -> Job | None:
    """Return the job with this id, or None."""
    return next((j for j in state.jobs if j.id == job), None)


def find_run(state: State, run: str | None) -> Run | None:
    """Return the run with this id, or None."""
    return next((r for r in state.runs if r.run == run), None)


def find_scan(state: State, scan: str | None) -> ScanFacts | None:
    """Return the scan with this id, or None."""
    return next((s for s in state.scans if s.scan == scan), None)


def slice_count(state: State) -> int:
    """Return how many slices there are to choose from: those of the active scan and of what it is compared with."""
    facts = find_scan(state, state.scan)
    ends = [facts.slices] if facts is not None else []
    for run in state.runs:
        if run.is_reference and run.result is not None and run.scan == (state.scan or ""):
            ends.append(run.result.first_slice + run.result.shape[0])
    return max(ends, default=0)


def active_jobs(state: State) -> tuple[Job, ...]:
    """Return the jobs to which the engine still owes an answer, oldest first."""
    return tuple(j for j in state.jobs if j.active)


def is_idle(state: State) -> bool:
    """Whether the engine is up, no job runs and no pane waits for pixels."""
    waiting = any(pane.asked is not None for pane in state.panes)
    return state.engine.phase is EnginePhase.READY and not active_jobs(state) and not waiting


def slice_of(state: State, run: Run) -> int:
    """Return the number that the shown slice has in a run, which may come from another selection of the scan."""
    facts = find_scan(state, state.scan)
    if facts is None or run.recipe is None or run.scan != facts.scan:
        return state.slice_index
    here, there = facts.recipe.selection, run.recipe.selection
    return same_slice(facts.kind, facts.full_shape, here, there, state.slice_index)


def wanted(state: State, pane: Pane) -> Wish | None:
    """Return what a pane wants to show, or None where the engine has nothing new for it."""
    run = find_run(state, pane.run)
    if run is None or not run.held:
        return None
    index = slice_of(state, run)
    if index == run.preview_slice and run.steps:
        # iterates are kept for this one slice only
        if pane.step is not None:
            return Wish(run.run, run.preview_slice, pane.step)
        if run.result is None:
            return Wish(run.run, run.preview_slice, run.steps[-1])
    if run.result is None:
        return None
    first, count = run.result.first_slice, run.result.shape[0]
    if first <= index < first + count:
        return Wish(run.run, index, None)
    return None


def unasked(state: State) -> tuple[tuple[int, Wish], ...]:
    """Return the panes that should ask the engine now, and for what; a pane asks one thing at a time."""
    found = []
    for number, pane in enumerate(state.panes):
        wish = wanted(state, pane)
        if wish is not None and pane.asked is None and wish != pane.answered:
            found.append((number, wish))
    return tuple(found)


# --- what the user wishes ----------------------------------------------------------------------------------


def add_job(state: State, job: Job) -> State:
    """Append a job that was sent to the engine."""
    return replace(state, jobs=(*state.jobs, job))


def add_training(state: State, training: Training) -> State:
    """Append an adaptation that was sent to the engine."""
    return replace(state, trainings=(*state.trainings, training))


def add_notice(state: State, severity: str, text: str, details: str = "") -> State:
    """Tell the user something; a notice with the same text moves to the end instead of appearing twice."""
    number = state.noticed + 1
    others = tuple(n for n in state.notices if n.text != text)
    notices = (*others, Notice(number, severity, text, details))[-MAX_NOTICES:]
    return replace(state, notices=notices, noticed=number)


def dismiss_notice(state: State, number: int) -> State:
    """Take one notice away."""
    return replace(state, notices=tuple(n for n in state.notices if n.number != number))


def set_asked(state: State, pane: int, job: int, wish: Wish) -> State:
    """Note that a ReadSlice is under way for a pane."""
    return _with_pane(state, pane, replace(state.panes[pane], asked=job, asked_for=wish))


def set_slice(state: State, index: int) -> State:
    """Show another slice in all panes; limited to the active scan and what it is compared with."""
    return replace(state, slice_index=max(0, min(index, slice_count(state) - 1)))


def set_pane_count(state: State, count: int) -> State:
    """Have 1 to 6 panes; new ones take the newest runs of the active scan that no pane shows yet."""
    count = max(1, min(count, MAX_PANES))
    panes = list(state.panes[:count])
    shown = {p.run for p in panes}
    hidden = [r.run for r in state.runs if r.scan == state.scan and r.run not in shown]
    while len(panes) < count:
        panes.append(Pane(run=hidden.pop() if hidden else None))
    return replace(state, panes=tuple(panes), active_pane=min(state.active_pane, count - 1))


def set_active_pane(state: State, pane: int) -> State:
    """Choose the pane that commands act on."""
    return replace(state, active_pane=max(0, min(pane, len(state.panes) - 1)))


def show_run(state: State, pane: int, run: str | None, step: int | None = None) -> State:
    """Show a run, or one of its iterates, in a pane; None empties the pane."""
    if not 0 <= pane < len(state.panes):
        return state
    if run is None:
        return _with_pane(state, pane, Pane())
    if find_run(state, run) is None:
        return state
    return _with_pane(state, pane, replace(state.panes[pane], run=run, step=step))


def select_scan(state: State, scan: str) -> State:
    """Let the controls act on another scan, and show the first and the newest of its runs."""
    facts = find_scan(state, scan)
    if facts is None or scan == state.scan:
        return state
    runs = [r for r in state.runs if r.scan == scan]
    chosen = [r.run for r in (*runs[:1], *runs[1:][-(len(state.panes) - 1) :])][: len(state.panes)]
    panes = []
    for number, pane in enumerate(state.panes):
        if number < len(chosen):
            panes.append(replace(pane, run=chosen[number], step=None))
        else:
            panes.append(Pane())
    counted_alike = [r for r in runs if r.recipe in (None, facts.recipe)]
    index = counted_alike[0].preview_slice if counted_alike else facts.slices // 2
    return replace(state, scan=scan, panes=tuple(panes), slice_index=index)


def forget_run(state: State, run: str) -> State:
    """Take a run out of the window; panes that show it become empty."""
    panes = tuple(
        Pane() if p.run == run else (replace(p, picture=None) if p.picture and p.picture.run == run else p)
        for p in state.panes
    )
    return replace(state, runs=tuple(r for r in state.runs if r.run != run), panes=panes)


def set_cancelling(state: State, job: int) -> State:
    """Note that the user wants a job to stop."""
    found = find_job(state, job)
    if found is None or not found.active:
        return state
    return _with_job(state, replace(found, phase=JobPhase.CANCELLING))


def clear_ended_jobs(state: State) -> State:
    """Take the jobs that have ended out of the list."""
    return replace(state, jobs=active_jobs(state))


def set_engine_phase(state: State, phase: EnginePhase, restarts: int) -> State:
    """Note what the engine process is doing."""
    return replace(state, engine=replace(state.engine, phase=phase, restarts=restarts))


def stamp(state: State, now: float) -> State:
    """Note when jobs began, and how long those took that ended without a duration from the engine.

    Parameters
    ----------
    now
        Monotonic seconds.
    """
    changed = False
    jobs = []
    for job in state.jobs:
        if job.started is None and job.phase is JobPhase.RUNNING:
            job, changed = replace(job, started=now), True
        elif not job.active and job.seconds == 0.0 and job.started is not None:
            job, changed = replace(job, seconds=max(now - job.started, 1e-3)), True
        jobs.append(job)
    return replace(state, jobs=tuple(jobs)) if changed else state


# --- what the engine says ----------------------------------------------------------------------------------


def reduce(state: State, job: int, event: Event | EngineLost, pixels: Pixels | None) -> State:
    """Return the state after an event of the engine.

    Pictures are only ever replaced, never taken away; each job ends once, later ends are ignored.

    Parameters
    ----------
    job
        Id of the request that the event belongs to; 0 for none.
    pixels
        `(y, x)`, float32; only with `Slice`.
    """
    match event:
        case Ready():
            return replace(state, engine=replace(state.engine, phase=EnginePhase.READY, ready=event))
        case Status():
            return replace(state, engine=replace(state.engine, status=event))
        case Working():
            return _progress(state, job, event.stage, event.done, event.total)
        case Opened():
            return _opened(state, job, event.facts)
        case Needed():
            # a picture that lacks something says so where it would be shown
            return state if find_job(state, job) is None else replace(state, needed=event)
        case Loaded():
            return _loaded(state, job, event.facts)
        case Seen():
            return state
        case CentreFound():
            return _say(_progress_kept(state, job), job, event.text)
        case Started():
            return _started(state, job, event)
        case Step():
            return _step(state, job, event)
        case Reconstructed():
            return _reconstructed(state, job, event.facts)
        case Trained():
            return _trained(state, job, event)
        case Advice():
            return add_notice(state, "warning", event.text)
        case Tuned():
            return _tuned(state, job, event)
        case Slice():
            return _slice(state, job, event, pixels)
        case Exported():
            return _exported(state, job, event)
        case Finished():
            phase = JobPhase.CANCELLED if event.cancelled else JobPhase.DONE
            return _end(_answered(state, job), job, phase, seconds=event.seconds)
        case Failed():
            return _failed(state, job, event)
        case EngineLost():
            return _lost(state, event)
        case _:
            assert_never(event)


def _with_job(state: State, job: Job) -> State:
    return replace(state, jobs=tuple(job if j.id == job.id else j for j in state.jobs))


def _with_run(state: State, run: Run) -> State:
    return replace(state, runs=tuple(run if r.run == run.run else r for r in state.runs))


def _with_pane(state: State, number: int, pane: Pane) -> State:
    return replace(state, panes=(*state.panes[:number], pane, *state.panes[number + 1 :]))


def _progress(state: State, job: int, stage: str = "", done: int = 0, total: int = 0) -> State:
    found = find_job(state, job)
    if found is None or not found.active:
        return state
    phase = JobPhase.RUNNING if found.phase is JobPhase.QUEUED else found.phase
    return _with_job(state, replace(found, phase=phase, stage=stage, done=done, total=total))


def _say(state: State, job: int, message: str) -> State:
    found = find_job(state, job)
    if found is None or not found.active:
        return state
    return _with_job(state, replace(found, message=message))


def _end(
    state: State,
    job: int,
    phase: JobPhase,
    *,
    seconds: float = 0.0,
    failure: Failed | None = None,
) -> State:
    found = find_job(state, job)
    if found is None or not found.active:
        return state
    ended = replace(found, phase=phase, seconds=seconds)
    if failure is not None:
        ended = replace(ended, message=failure.message, hint=failure.hint, details=failure.details)
    elif phase is JobPhase.DONE and ended.total:
        ended = replace(ended, done=ended.total)
    trainings = tuple(replace(t, finished=True) if t.job == job else t for t in state.trainings)
    return _with_job(replace(state, trainings=trainings), ended)


def _answered(state: State, job: int) -> State:
    """Note that the ReadSlice `job`, if it is one, brings nothing more."""
    panes = tuple(
        replace(p, asked=None, asked_for=None, answered=p.asked_for) if p.asked == job and job else p
        for p in state.panes
    )
    return replace(state, panes=panes)


def _opened(state: State, job: int, facts: ScanFacts) -> State:
    found = find_job(state, job)
    again = found is not None and found.kind == "reopen"
    before, shown = next((s for s in state.scans if s.path == facts.path), None), state.scan
    if before is None:
        # what was opened to compare with before there was a scan belongs to the first
        runs = tuple(r if r.scan else replace(r, scan=facts.scan) for r in state.runs)
        state = replace(state, scans=(*state.scans, facts), runs=runs)
    else:
        key, selected = before.scan, state.scan == before.scan
        state = replace(
            state,
            scans=tuple(facts if s.scan == key else s for s in state.scans),
            scan=facts.scan if selected else state.scan,
            runs=tuple(replace(r, scan=facts.scan) if r.scan == key else r for r in state.runs),
            trainings=tuple(
                replace(t, scans=tuple(facts.scan if s == key else s for s in t.scans)) for t in state.trainings
            ),
        )
    if state.needed is not None and state.needed.path == facts.path:
        state = replace(state, needed=None)
    if not again and before is not None and before.scan == shown:
        # another recipe of the scan that is looked at: the same slice stays, where it is still there
        here, there = before.recipe.selection, facts.recipe.selection
        index = same_slice(facts.kind, facts.full_shape, here, there, state.slice_index)
        state = set_slice(state, index)
    elif not again:
        state = replace(state, scan=facts.scan, slice_index=facts.slices // 2)
    elif state.scan == facts.scan:
        state = set_slice(state, state.slice_index)
    return _say(
        _progress(state, job),
        job,
        f"{facts.format}, {facts.slices} {'slice' if facts.slices == 1 else 'slices'}",
    )


def _label(state: State, settings: ReconstructSettings, scan: ScanFacts | None) -> str:
    name = METHOD_NAMES.get(settings.method, settings.method)
    if settings.method == "deq" and settings.model is not None:
        name += " (adapted)"
    if settings.weighting:
        name += f", {settings.weighting}"
    if settings.subsets > 1:
        name += f", {settings.subsets} subsets"
    if settings.views_every > 1:
        name += f", 1/{settings.views_every} views"
    if settings.accelerate > 1:
        name += f", {settings.accelerate}x"
    if scan is not None:
        made = [r for r in state.runs if r.scan == scan.scan and not r.is_reference]
        recipes = list(dict.fromkeys(r.recipe for r in made))
        number = recipes.index(scan.recipe) + 1 if scan.recipe in recipes else len(recipes) + 1
        if number > 1:
            name += f", recipe {number}"
    return _unique(state, name)


def _unique(state: State, name: str) -> str:
    """Return a label that no run has yet."""
    taken = {r.label for r in state.runs}
    number = 1
    label = name
    while label in taken:
        number += 1
        label = f"{name} #{number}"
    return label


def _pane_for(state: State, run: Run) -> int:
    """Return the pane in which a new run is shown.

    The first analytic image of a scan takes the first pane. Others take the first pane that is empty or shows
    another scan, else the active one, but leave an analytic image alone while another pane can be taken.
    """

    def analytic(candidate: Run | None) -> bool:
        scan = find_scan(state, candidate.scan) if candidate is not None else None
        return candidate is not None and scan is not None and candidate.settings.method in scan.methods[:1]

    if analytic(run) and not any(r.scan == run.scan and r.held and not r.is_reference for r in state.runs):
        return 0
    runs = [find_run(state, p.run) for p in state.panes]
    for number, shown in enumerate(runs):
        if shown is None or shown.scan != run.scan:
            return number
    if not analytic(runs[state.active_pane]):
        return state.active_pane
    others = [number for number, shown in enumerate(runs) if not analytic(shown)]
    return others[-1] if others else state.active_pane


def _started(state: State, job: int, event: Started) -> State:
    if find_run(state, event.run) is not None:
        return state
    scan = find_scan(state, event.scan)
    run = Run(
        run=event.run,
        job=job,
        scan=event.scan,
        label=_label(state, event.settings, scan),
        settings=event.settings,
        preview_slice=event.preview_slice,
        total=event.total,
        recipe=scan.recipe if scan is not None else None,
    )
    number = _pane_for(state, run)
    state = replace(state, runs=(*state.runs, run))
    state = _with_pane(state, number, replace(state.panes[number], run=run.run, step=None))
    return _progress(state, job, "reconstruct", 0, event.total)


def _loaded(state: State, job: int, facts: ResultFacts) -> State:
    """Return the state with a reference volume, which belongs to the active scan where it names none."""
    if find_run(state, facts.result) is not None:
        return state
    run = Run(
        run=facts.result,
        job=job,
        scan=facts.scan or state.scan or "",
        label=_unique(state, facts.label),
        settings=ReconstructSettings(method=REFERENCE),
        preview_slice=facts.first_slice + facts.shape[0] // 2,
        total=0,
        result=facts,
    )
    number = _pane_for(state, run)
    state = replace(state, runs=(*state.runs, run))
    state = _with_pane(state, number, replace(state.panes[number], run=run.run, step=None))
    if state.scan is None:
        state = set_slice(state, run.preview_slice)
    count, rows, columns = facts.shape
    text = f"{count} {'slice' if count == 1 else 'slices'} of {rows} × {columns}, {facts.unit}"
    return _say(_progress(state, job), job, text)


def _step(state: State, job: int, event: Step) -> State:
    run = find_run(state, event.run)
    if run is None or (run.steps and event.step <= run.steps[-1]):
        return state
    run = replace(
        run,
        steps=(*run.steps, event.step),
        data_residuals=(*run.data_residuals, event.data_residual),
        fixed_point_residuals=(*run.fixed_point_residuals, event.fixed_point_residual),
    )
    found = find_job(state, job)
    state = _with_run(state, run)
    # a volume reports its own progress with Working; the iterates of the preview slice must not hide that
    if found is not None and found.stage not in ("", "reconstruct"):
        return _progress(state, job, found.stage, found.done, found.total)
    return _progress(state, job, "reconstruct", event.step, max(run.total, event.step))


_OUTCOMES = {
    "converged": "converged",
    "max_steps": "stopped at the largest number of iterations",
    "diverged": "diverged",
    "direct": "done",
    "stopped": "stopped and kept",
}


def _reconstructed(state: State, job: int, facts: ResultFacts) -> State:
    run = find_run(state, facts.result)
    if run is None:
        return state
    state = _with_run(state, replace(run, result=facts))
    text = _OUTCOMES.get(facts.outcome, facts.outcome)
    if facts.outcome != "direct":
        text += f", {facts.iterations} {'iteration' if facts.iterations == 1 else 'iterations'}"
    state = _say(_progress_kept(state, job), job, f"{text}, data residual {facts.data_residual:.3g}")
    if facts.outcome == "diverged":
        state = add_notice(state, "warning", f"{run.label} diverged; its result is not to be trusted.")
    return state


def _progress_kept(state: State, job: int) -> State:
    """Mark a job as running and leave its counts."""
    found = find_job(state, job)
    return state if found is None else _progress(state, job, found.stage, found.done, found.total)


def _trained(state: State, job: int, event: Trained) -> State:
    trainings = []
    for training in state.trainings:
        if training.job == job and not (training.steps and event.step <= training.steps[-1]):
            training = _with_terms(training, event)
        trainings.append(training)
    state = replace(state, trainings=tuple(trainings))
    return _progress(state, job, "train", event.step, event.total)


def _with_terms(training: Training, event: Trained) -> Training:
    before = dict(training.terms)
    missing = (float("nan"),) * len(training.steps)
    terms = [(name, (*before.pop(name, missing), value)) for name, value in event.terms]
    terms += [(name, (*values, float("nan"))) for name, values in before.items()]
    return replace(
        training,
        total=event.total,
        steps=(*training.steps, event.step),
        terms=tuple(terms),
        forward_steps=(*training.forward_steps, event.forward_steps),
        backward_steps=(*training.backward_steps, event.backward_steps),
        seconds=event.seconds,
    )


def _tuned(state: State, job: int, event: Tuned) -> State:
    models = (*(m for m in state.models if m != event.path), event.path)
    trainings = tuple(replace(t, seconds=event.seconds) if t.job == job else t for t in state.trainings)
    state = replace(state, models=models, trainings=trainings)
    name = PurePath(event.path).name
    ended = "stopped and kept after" if event.stopped else "after"
    state = _say(
        _progress_kept(state, job),
        job,
        f"{name} written, {ended} {event.steps} {'step' if event.steps == 1 else 'steps'}",
    )
    return add_notice(
        state, "info", f"The adapted model {name} is ready; choose it as model of the equilibrium method."
    )


def _slice(state: State, job: int, event: Slice, pixels: Pixels | None) -> State:
    panes = []
    for pane in state.panes:
        if pane.asked != job or not job:
            panes.append(pane)
            continue
        asked = pane.asked_for
        pane = replace(pane, asked=None, asked_for=None, answered=asked)
        wish = wanted(state, pane)
        if pixels is not None and wish is not None and asked is not None and _still_wanted(pane, asked, wish):
            picture = Picture(event.result, event.index, event.step, event.low, event.high, pixels)
            pane = replace(pane, picture=picture)
        panes.append(pane)
    return replace(state, panes=tuple(panes))


def _still_wanted(pane: Pane, asked: Wish, wish: Wish) -> bool:
    if asked == wish:
        return True
    # the solver may be faster than the pipe: an iterate that is not quite the newest is shown all the same
    follows = pane.step is None and asked.step is not None
    return follows and (asked.run, asked.index) == (wish.run, wish.index)


def _exported(state: State, job: int, event: Exported) -> State:
    count = len(event.files)
    text = f"{count} {'file' if count == 1 else 'files'}, {event.bytes / 1e6:.1f} MB, read back and compared"
    state = _say(_progress_kept(state, job), job, text)
    return add_notice(state, "info", f"Exported to {event.path}: {text}.", "\n".join(event.files))


def _failed(state: State, job: int, event: Failed) -> State:
    state = _answered(state, job)
    found = find_job(state, job)
    if found is None:
        # failed look-ups of slices and late cancels are no news; a failure outside any request is
        return add_notice(state, "error", sentence(event.message, event.hint), event.details) if job == 0 else state
    if not found.active:
        return state
    state = _end(state, job, JobPhase.FAILED, failure=event)
    text = sentence(event.message, event.hint)
    name = text.partition(": ")[0]
    if found.title.endswith(f" {name}"):
        # the title has named the file
        text = text[len(name) + 2 :]
    return add_notice(state, "error", f"{found.title}: {text}", event.details)


def sentence(message: str, hint: str = "") -> str:
    """Return what went wrong and what to do about it, the steps called by their names for people."""
    message = message.strip()
    if message and hint and message[-1] not in ".!?…":
        message += "."
    return titled(f"{message} {hint}".strip())


def _lost(state: State, event: EngineLost) -> State:
    log = "\n".join(event.log)
    failure = Failed(kind="internal", message=event.cause, hint="", details=log)
    lost = active_jobs(state)
    for job in lost:
        state = _end(state, job.id, JobPhase.FAILED, failure=failure)
    panes = tuple(replace(p, asked=None, asked_for=None, answered=None) for p in state.panes)
    runs = tuple(replace(r, held=False) for r in state.runs)
    phase = EnginePhase.STOPPED if event.expected else EnginePhase.RESTARTING
    engine = replace(state.engine, phase=phase, status=None, cause=event.cause)
    state = replace(state, panes=panes, runs=runs, engine=engine)
    if event.expected:
        return state
    text = f"The engine was lost: {event.cause}."
    if lost:
        text += f" Failed with it: {', '.join(j.title for j in lost)}."
    return add_notice(state, "error", text, log)
