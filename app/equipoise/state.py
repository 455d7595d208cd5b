"""Everything the window shows, as one frozen value, and how an event of the engine changes it. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from equipoise_engine.protocol import Pixels, Ready, ReconstructSettings, ResultFacts, ScanFacts, Status


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
    """One request that takes a while: open, reconstruct, adapt or export."""

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
    """One reconstruction, from its first iterate on: the curves, and the result once there is one."""

    run: str
    job: int
    scan: str
    label: str
    """Name for people, unique in the window, as "TV 2"."""
    settings: ReconstructSettings
    preview_slice: int
    total: int
    steps: tuple[int, ...] = ()
    data_residuals: tuple[float, ...] = ()
    fixed_point_residuals: tuple[float, ...] = ()
    result: ResultFacts | None = None
    held: bool = True
    """Whether the engine still holds its pixels; False after the engine was lost."""


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
    notices: tuple[Notice, ...] = ()
