"""Start the engine process, send requests and receive events.

Imports nothing but the standard library and the protocol.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from equipoise_engine.protocol import (
    Event,
    Pixels,
    ProtocolError,
    Quit,
    Request,
    read_event,
    write,
)


@dataclass(frozen=True)
class EngineLost:
    """The engine process has ended, whether asked to or not.

    Parameters
    ----------
    cause
        One sentence: exit code, signal, or a broken frame.
    log
        The engine's last log lines, oldest first.
    expected
        Whether `close()` or `kill()` had been called.
    """

    cause: str
    log: tuple[str, ...]
    expected: bool


ENDING_SECONDS = 5.0
"""How long an engine that has closed its side of the pipe may take to end."""

OnEvent = Callable[[int, "Event | EngineLost", "Pixels | None"], None]
OnLog = Callable[[str], None]


def engine_command() -> list[str]:
    """Return the command that starts an engine of this installation."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "--engine", "serve"]
    return [sys.executable, "-m", "equipoise_engine", "serve"]


class Client:
    """One engine process.

    All callbacks come from threads of the client, never from the caller's thread; `send` never blocks on the
    pipe.

    Parameters
    ----------
    argv
        Command that starts the engine and connects its stdin and stdout; may be
        `ssh host equipoise-engine serve`.
    on_event
        Called with the id of the request, the event and the pixels of a slice. The last call carries
        `EngineLost`.
    on_log
        Called with each line of the engine's log.

    Raises
    ------
    OSError
        The command cannot be started.
    """

    def __init__(self, argv: Sequence[str], on_event: OnEvent, on_log: OnLog = lambda line: None) -> None:
        self._on_event = on_event
        self._on_log = on_log
        self._ids = count(1)
        self._closing = False
        self._killed = False
        self._log: deque[str] = deque(maxlen=40)
        self._outbox: queue.SimpleQueue[tuple[int, Request] | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a console interrupt is for the window alone; it then ends the engine in order
            start_new_session=sys.platform != "win32",
        )
        self._threads = [
            threading.Thread(target=target, name=f"engine {target.__name__.strip('_')}", daemon=True)
            for target in (self._write_requests, self._read_log, self._read_events)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id of the engine command."""
        return self._process.pid

    def send(self, request: Request) -> int:
        """Queue a request and return its id."""
        job = next(self._ids)
        self._outbox.put((job, request))
        return job

    def kill(self) -> None:
        """End the engine at once."""
        self._closing = True
        self._kill()

    def close(self, timeout: float = 10.0) -> None:
        """Ask the engine to save and end; kill it when it has not ended after `timeout` seconds. Waits."""
        self._closing = True
        self._outbox.put((next(self._ids), Quit()))
        self._outbox.put(None)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _write_requests(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdin as stream:
            while (item := self._outbox.get()) is not None:
                write(stream, *item)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                self._log.append(line)
                self._on_log(line)

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        broken = ""
        with self._process.stdout as stream:
            try:
                while (frame := read_event(stream)) is not None:
                    self._on_event(*frame)
            except (ProtocolError, OSError) as error:
                broken = str(error)
            self._outbox.put(None)
            # an engine that dies within a frame breaks it, too: its own end says more than the frame
            try:
                code = self._process.wait(1.0 if broken else ENDING_SECONDS)
                cause = describe_exit(code)
            except subprocess.TimeoutExpired:
                broken = broken or "it closed its side of the pipe and went on"
                code = 0
                self._kill()
                self._process.wait()
        if broken and code == 0:
            cause = f"the engine's answer was broken: {broken}"
        elif self._killed:
            cause = "the engine was ended by this program"
        self._threads[1].join(2.0)
        self._on_event(0, EngineLost(cause, tuple(self._log), self._closing), None)

    def _kill(self) -> None:
        """Kill the engine and what it has started, as the shell or srun in front of it."""
        if self._process.poll() is not None:
            return
        self._killed = True
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """Return a sentence for the exit status of the engine process."""
    if code == 0:
        return "the engine has ended"
    if code > 0:
        return f"the engine ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    match name:
        case "SIGKILL":
            return "the engine was killed (SIGKILL); the system does this when memory runs out"
        case "SIGSEGV" | "SIGBUS" | "SIGABRT" | "SIGFPE" | "SIGILL":
            return f"the engine crashed ({name})"
        case _:
            return f"the engine was ended by {name}"
