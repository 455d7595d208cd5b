"""Check that a bundle works: start its engine, greet it, and open each of its sample scans.

.venv/bin/python packaging/smoke_bundle.py dist/equipoise
"""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path

from equipoise_engine.client import Client, EngineLost
from equipoise_engine.protocol import Event, Failed, Finished, Hello, Open, Opened, Ready, Request

SECONDS = 180.0
SCAN_ENDINGS = {".h5", ".hdf5", ".nxs"}


class SmokeError(Exception):
    """The bundle does not do what it should; says what."""


class Engine:
    """The engine inside a bundle, asked one thing at a time."""

    def __init__(self, program: Path) -> None:
        self._events: queue.SimpleQueue[tuple[int, Event | EngineLost]] = queue.SimpleQueue()
        self.client = Client(
            [str(program), "--engine", "serve"], lambda job, event, pixels: self._events.put((job, event))
        )

    def ask(self, request: Request) -> list[Event]:
        """Send a request and return its events, the last one being Finished.

        Raises
        ------
        SmokeError
            It failed, the engine was lost, or it took too long.
        """
        job = self.client.send(request)
        deadline = time.monotonic() + SECONDS
        answers: list[Event] = []
        while True:
            try:
                number, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise SmokeError(f"no answer to {request} within {SECONDS:.0f} s") from None
            if isinstance(event, EngineLost):
                raise SmokeError("\n".join([event.cause, *event.log]))
            if number != job:
                continue
            answers.append(event)
            if isinstance(event, Failed):
                raise SmokeError(f"{request} failed: {event.message}\n{event.details}")
            if isinstance(event, Finished):
                return answers


def check(folder: Path) -> None:
    """Start the engine of the bundle in this folder and open its sample scans.

    Raises
    ------
    SmokeError
        Something does not work.
    OSError
        The program is missing or does not start.
    """
    program = folder.resolve() / ("equipoise.exe" if sys.platform == "win32" else "equipoise")
    samples = sorted(
        path
        for path in folder.resolve().rglob("equipoise_resources/**/*")
        if path.suffix in SCAN_ENDINGS and path.is_file()
    )
    if not samples:
        raise SmokeError(f"there are no sample scans in {folder}")
    began = time.monotonic()
    engine = Engine(program)
    try:
        ready = next((event for event in engine.ask(Hello()) if isinstance(event, Ready)), None)
        if ready is None:
            raise SmokeError("the engine did not answer the greeting")
        print(f"engine {ready.package} ready after {time.monotonic() - began:.1f} s: {ready.device}")
        for sample in samples:
            opened = [event for event in engine.ask(Open(path=str(sample))) if isinstance(event, Opened)]
            if not opened:
                raise SmokeError(f"{sample.name} was not opened")
            facts = opened[0].facts
            print(f"{sample.name}: {facts.kind}, {facts.format}, shape {facts.shape}")
    finally:
        engine.client.close()


def main(arguments: list[str]) -> int:
    """Check the bundle named by the one argument; return 0 where it works."""
    if len(arguments) != 1:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        check(Path(arguments[0]))
    except (SmokeError, OSError) as error:
        print(f"the bundle does not work: {error}", file=sys.stderr)
        return 1
    print("the bundle works")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
