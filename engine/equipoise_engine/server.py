"""The engine process: a control lane that never waits, and one worker that computes.

The control lane (the main thread) reads requests, answers reads and status at once, and passes cancellation to the
running job. The worker runs the other requests one after the other. One place turns exceptions into `Failed`.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import msgspec
import torch

from equipoise_engine import __version__, jobs, protocol
from equipoise_engine.ct import compile_kernels
from equipoise_engine.device import choose_device, device_name, memory
from equipoise_engine.errors import BadInput, EquipoiseError, NumericalTrouble, OutOfMemory, Unsupported
from equipoise_engine.opening import OpenScans
from equipoise_engine.progress import Cancelled, Progress
from equipoise_engine.volume import Store

log = logging.getLogger(__name__)

EVENTS_PER_SECOND = 20
MAX_TEXT = 100_000
"""Longest message and traceback that is sent, in characters."""


class _Task:
    """A request on its way through the worker."""

    def __init__(self, job: int, request: protocol.Request) -> None:
        self.job = job
        self.request = request
        self.cancelled = threading.Event()
        self.keep = False
        self._taken = threading.Lock()

    def take(self) -> bool:
        """Whether the caller is the first to take the task, and so the one that ends it."""
        return self._taken.acquire(blocking=False)

    def watch(self, progress: Progress) -> None:
        """Stop the computation at this iterate when it was cancelled."""
        if self.cancelled.is_set():
            raise jobs.StopAndKeep if self.keep else Cancelled

    def cancel(self, *, keep: bool) -> None:
        """Ask the computation to stop."""
        self.keep = keep
        self.cancelled.set()


class Server:
    """Serves one client over two binary streams.

    Parameters
    ----------
    requests, events
        Streams of frames in and out.
    """

    def __init__(self, requests: BinaryIO, events: BinaryIO) -> None:
        self._requests = requests
        self._events = events
        self._writing = threading.Lock()
        self._store = Store()
        self._looked = OpenScans()
        self._device = choose_device()
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._tasks: dict[int, _Task] = {}
        self._running: int | None = None
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)

    def serve(self) -> None:
        """Answer requests until the client quits or goes away; then save what is running."""
        self._worker.start()
        try:
            while (frame := protocol.read_request(self._requests)) is not None:
                job, request = frame
                if isinstance(request, protocol.Quit):
                    self._send(job, protocol.Finished())
                    break
                self._take(job, request)
        except protocol.ProtocolError as error:
            log.error("the client sent something that is not a request: %s", error)
        for task in list(self._tasks.values()):
            task.cancel(keep=True)
        self._queue.put(None)
        self._worker.join()

    def _take(self, job: int, request: protocol.Request) -> None:
        """Answer at once, or queue for the worker."""
        match request:
            case protocol.Hello() | protocol.GetStatus() | protocol.ReadSlice() | protocol.Forget() | protocol.Cancel():
                self._answer(job, request, partial(self._control, job, request))
            case _:
                task = _Task(job, request)
                self._tasks[job] = task
                self._queue.put(task)

    def _control(self, job: int, request: protocol.Request) -> None:
        match request:
            case protocol.Hello():
                if request.version != protocol.VERSION:
                    raise BadInput(
                        f"the window speaks protocol {request.version}, this engine {protocol.VERSION}",
                        "Install the same version of both.",
                    )
                self._send(
                    job,
                    protocol.Ready(
                        version=protocol.VERSION,
                        package=__version__,
                        device=device_name(self._device),
                        python=platform.python_version(),
                        torch=torch.__version__,
                        threads=torch.get_num_threads(),
                    ),
                )
            case protocol.GetStatus():
                now = memory(self._device)
                self._send(
                    job,
                    protocol.Status(
                        device=device_name(self._device),
                        host_used=now.host_used,
                        host_total=now.host_total,
                        device_used=now.device_used,
                        device_total=now.device_total,
                        running=self._running,
                    ),
                )
            case protocol.ReadSlice():
                event, pixels = jobs.read_slice(request, self._store)
                self._send(job, event, pixels)
            case protocol.Forget():
                self._store.forget(request.key)
            case protocol.Cancel():
                task = self._tasks.get(request.job)
                if task is not None:
                    task.cancel(keep=request.keep)
                    if task.take():
                        # it waited in the queue; nobody else will answer it
                        self._tasks.pop(task.job, None)
                        self._send(task.job, protocol.Finished(cancelled=True))

    def _work(self) -> None:
        try:
            compile_kernels()
        except Exception:  # each job that needs them will say so itself
            log.exception("the CT kernels could not be compiled ahead")
        while (task := self._queue.get()) is not None:
            if not task.take():
                continue
            if task.cancelled.is_set():
                self._send(task.job, protocol.Finished(cancelled=True))
            else:
                self._running = task.job
                self._answer(task.job, task.request, partial(self._compute, task))
                self._running = None
            self._tasks.pop(task.job, None)

    def _compute(self, task: _Task) -> None:
        thinned = _Thinned(lambda event: self._send(task.job, event))

        def watch(progress: Progress) -> None:
            task.watch(progress)
            if progress.stage not in ("solve", "backward", "train", "slices"):
                thinned(protocol.Working(stage=progress.stage, done=progress.step, total=progress.total))

        match task.request:
            case protocol.Open():
                jobs.open_scan(task.request, self._store, thinned, watch, self._device)
            case protocol.OpenReference():
                jobs.open_reference(task.request, self._store, thinned, watch)
            case protocol.Look():
                jobs.look(task.request, self._looked, partial(self._send, task.job), watch)
            case protocol.FindCentre():
                jobs.find_centre(task.request, self._looked, thinned, watch)
            case protocol.Reconstruct():
                jobs.reconstruct(task.request, self._store, thinned, watch, self._device)
            case protocol.FineTune():
                jobs.fine_tune(task.request, self._store, thinned, watch, self._device)
            case protocol.Export():
                jobs.export(task.request, self._store, thinned, watch)
            case _:
                raise BadInput(f"{type(task.request).__name__} is not a job")
        thinned.flush()

    def _answer(self, job: int, request: protocol.Request, action: Callable[[], None]) -> None:
        """Run `action` and end the request with exactly one Finished or Failed."""
        began = time.monotonic()
        end: protocol.Event
        try:
            action()
            end = protocol.Finished(seconds=time.monotonic() - began)
        except Cancelled:
            end = protocol.Finished(seconds=time.monotonic() - began, cancelled=True)
        except Exception as error:  # the one place where exceptions become Failed
            end = failure(error)
            log.info("%s failed: %s", type(request).__name__, end.kind)
            log.debug("%s", end.details)
        self._send(job, end)

    def _send(self, job: int, event: protocol.Event, pixels: protocol.Pixels | None = None) -> None:
        try:
            with self._writing:
                protocol.write(self._events, job, event, pixels)
        except OSError:
            # the window has gone; the end of its requests ends the engine
            log.warning("the window no longer reads: %s was not delivered", type(event).__name__)


class _Thinned:
    """Pass events on, the frequent kinds at most `EVENTS_PER_SECOND` a second each; the last one always."""

    def __init__(self, send: jobs.Emit) -> None:
        self._send = send
        self._sent: dict[type[Any], float] = {}
        self._held: dict[type[Any], protocol.Event] = {}

    def __call__(self, event: protocol.Event) -> None:
        kind = type(event)
        if kind not in (protocol.Step, protocol.Working):
            self.flush()
            self._send(event)
            return
        now = time.monotonic()
        if now - self._sent.get(kind, -1.0) < 1 / EVENTS_PER_SECOND:
            self._held[kind] = event
            return
        self._held.pop(kind, None)
        self._sent[kind] = now
        self._send(event)

    def flush(self) -> None:
        """Send what was held back."""
        for event in self._held.values():
            self._send(event)
        self._held.clear()


def failure(error: Exception) -> protocol.Failed:
    """Return what the user is told of an exception."""
    told = _told(error)
    return msgspec.structs.replace(
        told,
        message=_sendable(told.message),
        hint=_sendable(told.hint),
        details=_sendable("".join(traceback.format_exception(error))),
    )


def _sendable(text: str) -> str:
    """Return the text without what has no encoding, as names that are not UTF-8 have, and not beyond `MAX_TEXT`."""
    return text.encode("utf-8", "replace").decode()[-MAX_TEXT:]


def _told(error: Exception) -> protocol.Failed:
    match error:
        case EquipoiseError():
            kinds = {
                BadInput: "bad-input",
                Unsupported: "unsupported",
                OutOfMemory: "out-of-memory",
                NumericalTrouble: "numerical-trouble",
            }
            return protocol.Failed(kind=kinds.get(type(error), "internal"), message=error.message, hint=error.hint)
        case MemoryError() | torch.OutOfMemoryError():
            return protocol.Failed(
                kind="out-of-memory",
                message=f"the work does not fit into memory: {error}",
                hint="Take fewer slices, or close other programs.",
            )
        case OSError() if error.filename is not None:
            return protocol.Failed(
                kind="bad-input",
                message=f"{error.filename}: {error.strerror or error}",
                hint="Check that it is there and can be used, then try again.",
            )
        case RuntimeError() if "allocate memory" in str(error):
            return protocol.Failed(
                kind="out-of-memory",
                message="the work does not fit into the memory of this computer",
                hint="Take fewer slices, or close other programs.",
            )
        case _:
            return protocol.Failed(
                kind="internal",
                message=f"an error inside the program: {type(error).__name__}: {error}",
                hint="Copy the details into a report.",
            )


def serve_standard_streams() -> None:
    """Serve the client at the other end of stdin and stdout.

    Both are taken away from everything else first: what a library prints goes to the log, and nothing else reads
    requests.
    """
    if sys.platform == "win32":
        import msvcrt  # exists on Windows alone

        for descriptor in (0, 1):
            msvcrt.setmode(descriptor, os.O_BINARY)
    requests = os.fdopen(os.dup(0), "rb")
    events = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Server(requests, events).serve()
