"""Keeps an engine process running: starts it, notices when it is lost or hangs, and starts it again.

Engines come one after the other, and each numbers its scans and runs from one. Towards the window the ids
stay unique: request ids are counted here, and names of engines after the first carry the engine's number, as
"run-3#2".
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot

from equipoise.state import EnginePhase
from equipoise_engine.client import Client, EngineLost, engine_command
from equipoise_engine.protocol import (
    Cancel,
    Event,
    Export,
    Failed,
    FineTune,
    Finished,
    Forget,
    GetStatus,
    Hello,
    Loaded,
    Opened,
    OpenReference,
    Pixels,
    ReadSlice,
    Ready,
    Reconstruct,
    Reconstructed,
    Request,
    Slice,
    Started,
    Status,
    Step,
)

CANCEL_CAUSE = "the job did not stop in time after its cancel, so its engine was ended"
RESTART_CAUSE = "the engine was ended to be started again, as asked"


@dataclass(frozen=True)
class Limits:
    """How patient the supervisor is, in seconds."""

    heartbeat: float = 1.0
    answer: float = 15.0
    """Without any answer for so long a running engine counts as hung."""
    start: float = 120.0
    """How long an engine may take until it is ready."""
    cancel: float = 5.0
    close: float = 10.0
    steady: float = 10.0
    """An engine that stayed up so long clears the count of losses."""
    delays: tuple[float, ...] = (0.2, 1.0, 2.0, 5.0, 10.0)
    """Waiting time before each restart in a row."""
    losses: int = 5
    """Losses in a row after which no engine is started any more."""


class Supervisor(QObject):
    """Owner of the one engine process; lives in the GUI thread and never waits there.

    Parameters
    ----------
    command
        Command that starts an engine; empty takes that of this installation.
    limits
        How patient to be.
    """

    received = Signal(int, object, object)
    """Id of the request, Event or EngineLost, pixels or None; in the GUI thread, in order."""
    phase = Signal(object, int)
    """EnginePhase, restarts in a row."""
    log_line = Signal(str)
    ended = Signal()
    """After `shutdown`: no engine is left."""

    _arrived = Signal(int, int, object, object)
    _log_arrived = Signal(str)

    def __init__(self, command: Sequence[str], limits: Limits, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.command = tuple(command)
        self.limits = limits
        self._client: Client | None = None
        self._generation = 0
        self._requests = 0
        self._waiting: list[tuple[int, Request]] = []
        self._outer: dict[int, int] = {}
        self._inner: dict[int, int] = {}
        self._hello = 0
        self._ready_at: float | None = None
        self._started_at = 0.0
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._running: int | None = None
        self._cause = ""
        self._losses = 0
        self._closing = False
        self._arrived.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._log_arrived.connect(self.log_line, Qt.ConnectionType.QueuedConnection)
        self._heartbeat = QTimer(self)
        self._heartbeat.timeout.connect(self._beat)
        self._restart = QTimer(self, singleShot=True)
        self._restart.timeout.connect(self.start)

    # --- what the session asks

    @property
    def pid(self) -> int | None:
        """Process id of the engine command, or None."""
        return None if self._client is None else self._client.pid

    @property
    def available(self) -> bool:
        """Whether requests are sent, or will be once the engine that is being started is ready."""
        return not self._closing and (self._client is not None or self._restart.isActive())

    @property
    def running(self) -> int | None:
        """Id of the job that the engine last said to be running."""
        return self._running

    def holds(self, name: str) -> bool:
        """Whether a scan or run of this name can be in the engine that is running now."""
        return self._ready_at is not None and _generation_of(name) == self._generation

    @Slot()
    def start(self) -> None:
        """Start an engine unless there is one."""
        if self._client is not None or self._closing:
            return
        self._restart.stop()
        self._generation += 1
        self._cause = ""
        self._running = self._ready_at = self._pinged_at = None
        self._outer.clear()
        self._inner.clear()
        self._begun.clear()
        self._ended.clear()
        generation = self._generation
        command = list(self.command) or engine_command()
        self.phase.emit(EnginePhase.RESTARTING if self._losses else EnginePhase.STARTING, self._losses)
        self._started_at = self._heard_at = time.monotonic()
        try:
            self._client = Client(command, partial(self._take, generation), self._take_log)
        except OSError as error:
            cause = f"the engine command {command[0]!r} cannot be started: {error.strerror or error}"
            self._arrived.emit(generation, 0, EngineLost(cause, (), False), None)
            return
        self._hello = self._client.send(Hello())
        self._heartbeat.start(round(self.limits.heartbeat * 1000))

    def restart(self) -> None:
        """End the engine, if there is one, and start another at once."""
        self._losses = 0
        if self._client is None:
            self.start()
        else:
            self._kill(RESTART_CAUSE)

    def send(self, request: Request) -> int:
        """Send a request, or keep it until the engine is ready; return its id."""
        self._requests += 1
        if self._client is not None and self._ready_at is not None:
            self._pass_on(self._requests, request)
        else:
            self._waiting.append((self._requests, request))
        return self._requests

    def cancel(self, job: int, keep: bool) -> None:
        """Ask a job to stop; end the engine when it does not obey in time."""
        waiting = [item for item in self._waiting if item[0] == job]
        if waiting:
            self._waiting.remove(waiting[0])
            self.received.emit(job, Finished(cancelled=True), None)
            return
        self.send(Cancel(job=job, keep=keep))
        self._arm(job, self._generation)

    def shutdown(self) -> None:
        """Let the engine save and end; `ended` follows. Does not wait."""
        if self._closing:
            return
        self._closing = True
        self._restart.stop()
        self._heartbeat.stop()
        if self._client is None:
            QTimer.singleShot(0, self.ended.emit)
            return
        # the client's close waits for the process; a thread of its own does that waiting
        closing = partial(self._client.close, self.limits.close)
        threading.Thread(target=closing, name="engine close", daemon=True).start()

    def kill(self) -> None:
        """End the engine at once, without saving."""
        if self._client is not None:
            self._client.kill()

    # --- threads of the client

    def _take(self, generation: int, job: int, event: Event | EngineLost, pixels: Pixels | None) -> None:
        self._heard_at = time.monotonic()
        # the window may be gone by the time that its engine says its last word
        with contextlib.suppress(RuntimeError):
            self._arrived.emit(generation, job, event, pixels)

    def _take_log(self, line: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._log_arrived.emit(line)

    # --- GUI thread

    @Slot(int, int, object, object)
    def _deliver(self, generation: int, job: int, event: Event | EngineLost, pixels: Pixels | None) -> None:
        if generation != self._generation:
            return
        if isinstance(event, EngineLost):
            self._lose(event)
            return
        if job == self._hello and isinstance(event, Failed):
            self._kill(event.message)
            return
        outer = self._outer.get(job, 0) if job else 0
        if job and not outer and not isinstance(event, Ready):
            return
        match event:
            case Ready():
                self._ready_at = time.monotonic()
            case Status():
                running = self._outer.get(event.running) if event.running is not None else None
                self._running = running
                event = msgspec.structs.replace(event, running=running)
            case Finished() | Failed():
                self._ended.add(outer)
                self._outer.pop(job, None)
                self._inner.pop(outer, None)
            case _:
                self._begun.add(outer)
        self.received.emit(outer, _rename(event, partial(_outward, generation=generation)), pixels)
        if isinstance(event, Ready):
            waiting, self._waiting = self._waiting, []
            for number, request in waiting:
                self._pass_on(number, request)

    def _pass_on(self, number: int, request: Request) -> None:
        assert self._client is not None
        if isinstance(request, Cancel):
            request = msgspec.structs.replace(request, job=self._inner.get(request.job, 0))
        else:
            request = _rename_request(request, _inward)
        inner = self._client.send(request)
        # events are handed over through this thread, so none can come before the id is known here
        self._outer[inner] = number
        self._inner[number] = inner

    def _lose(self, lost: EngineLost) -> None:
        now = time.monotonic()
        self._heartbeat.stop()
        self._client = None
        self._waiting.clear()
        if self._ready_at is not None and now - self._ready_at >= self.limits.steady:
            self._losses = 0
        self._ready_at = None
        if self._closing:
            self.received.emit(0, replace(lost, expected=True), None)
            self.ended.emit()
            return
        asked = self._cause == RESTART_CAUSE
        lost = replace(lost, cause=self._cause or lost.cause, expected=False)
        if not asked:
            self._losses += 1
        if self._losses >= self.limits.losses:
            self.received.emit(0, lost, None)
            self.phase.emit(EnginePhase.STOPPED, self._losses)
            return
        delay = 0.0 if asked else self.limits.delays[min(self._losses, len(self.limits.delays)) - 1]
        self._restart.start(round(delay * 1000))
        self.received.emit(0, lost, None)
        self.phase.emit(EnginePhase.RESTARTING, self._losses)

    def _kill(self, cause: str) -> None:
        self._cause = cause
        if self._client is not None:
            self._client.kill()

    @Slot()
    def _beat(self) -> None:
        if self._client is None or self._cause:
            return
        now = time.monotonic()
        if self._ready_at is None:
            if now - self._started_at > self.limits.start:
                self._kill(f"the engine was not ready after {self.limits.start:g} s")
        elif self._pinged_at is None or self._heard_at >= self._pinged_at:
            # the time is taken before the question goes out, so that its answer is surely later
            self._pinged_at = now
            self.send(GetStatus())
        elif now - self._pinged_at > self.limits.answer:
            self._kill(f"the engine did not answer for {self.limits.answer:g} s")

    def _arm(self, job: int, generation: int) -> None:
        QTimer.singleShot(round(self.limits.cancel * 1000), self, partial(self._check, job, generation))

    def _check(self, job: int, generation: int) -> None:
        if generation != self._generation or self._client is None or job in self._ended or self._closing:
            return
        if job in self._begun or self._running in (job, None):
            self._kill(CANCEL_CAUSE)
        else:
            # it still waits behind another job, which is no reason to end the engine
            self._arm(job, generation)


def _outward(name: str, generation: int) -> str:
    return name if generation == 1 else f"{name}#{generation}"


def _inward(name: str) -> str:
    return name.rpartition("#")[0] or name


def _generation_of(name: str) -> int:
    stem, _, number = name.rpartition("#")
    return int(number) if stem and number.isdigit() else 1


def _rename(event: Event, rename: Callable[[str], str]) -> Event:
    change = msgspec.structs.replace
    match event:
        case Opened():
            return change(event, facts=change(event.facts, scan=rename(event.facts.scan)))
        case Started():
            return change(event, run=rename(event.run), scan=rename(event.scan))
        case Step():
            return change(event, run=rename(event.run))
        case Reconstructed() | Loaded():
            facts = event.facts
            scan = rename(facts.scan) if facts.scan else ""
            return change(event, facts=change(facts, result=rename(facts.result), scan=scan))
        case Slice():
            return change(event, result=rename(event.result))
        case _:
            return event


def _rename_request(request: Request, rename: Callable[[str], str]) -> Request:
    change = msgspec.structs.replace
    match request:
        case Reconstruct() | OpenReference():
            return change(request, scan=rename(request.scan))
        case FineTune():
            return change(request, scans=tuple(rename(scan) for scan in request.scans))
        case ReadSlice() | Export():
            return change(request, result=rename(request.result))
        case Forget():
            return change(request, key=rename(request.key))
        case _:
            return request
