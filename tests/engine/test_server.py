"""The server as a real process, asked through the client that the window uses; and what it tells of exceptions."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch

from equipoise_engine import __version__, protocol
from equipoise_engine.client import Client, EngineLost, engine_command
from equipoise_engine.errors import BadInput, EquipoiseError, NumericalTrouble, OutOfMemory, Unsupported
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings
from equipoise_engine.server import failure
from equipoise_engine.weights import read_checkpoint
from equipoise_resources import sample_path

PATIENCE = 90.0
"""Seconds for a job; the first one may compile the kernels."""


class Engine:
    """A running engine and everything that it has said."""

    def __init__(self, argv: list[str]) -> None:
        self.events: list[tuple[int, protocol.Event | EngineLost, protocol.Pixels | None]] = []
        self.log: list[str] = []
        self._changed = threading.Condition()
        self.client = Client(argv, self._on_event, self.log.append)

    def _on_event(self, job: int, event: protocol.Event | EngineLost, pixels: protocol.Pixels | None) -> None:
        with self._changed:
            self.events.append((job, event, pixels))
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), (self.events[-5:], self.log)

    def of(self, job: int) -> list[protocol.Event]:
        return [event for owner, event, _ in self.events if owner == job and not isinstance(event, EngineLost)]

    def ends(self, job: int) -> list[protocol.Finished | protocol.Failed]:
        return [event for event in self.of(job) if isinstance(event, protocol.Finished | protocol.Failed)]

    def heard(self, job: int, kind: type[protocol.Event], count: int = 1) -> None:
        """Wait until `count` events of a kind belong to the job."""
        self.wait(lambda: sum(isinstance(event, kind) for event in self.of(job)) >= count or bool(self.ends(job)))
        assert sum(isinstance(event, kind) for event in self.of(job)) >= count, (self.of(job), self.log)

    def ask(self, request: protocol.Request, seconds: float = PATIENCE) -> list[protocol.Event]:
        """Return all events of a request; the last one ends it."""
        job = self.client.send(request)
        self.wait(lambda: bool(self.ends(job)), seconds)
        assert len(self.ends(job)) == 1
        assert self.of(job)[-1] == self.ends(job)[0]
        return self.of(job)

    def open(self, path: Path) -> str:
        events = self.ask(protocol.Open(path=str(path)))
        (facts,) = [event.facts for event in events if isinstance(event, protocol.Opened)]
        return facts.scan

    def lost(self) -> EngineLost:
        self.wait(lambda: any(isinstance(event, EngineLost) for _, event, _ in self.events), 30)
        (loss,) = [event for _, event, _ in self.events if isinstance(event, EngineLost)]
        return loss


@pytest.fixture(scope="module", name="engine")
def _engine() -> Iterator[Engine]:
    """One engine for the tests that leave it as it was."""
    engine = Engine(engine_command())
    yield engine
    engine.client.close()


@pytest.fixture(name="own")
def _own() -> Iterator[Callable[..., Engine]]:
    """Start an engine for one test."""
    engines: list[Engine] = []

    def start(argv: list[str] | None = None) -> Engine:
        engines.append(Engine(argv or engine_command()))
        return engines[-1]

    yield start
    for engine in engines:
        engine.client.kill()
        engine.client.close(5)


def endless(scan: str) -> protocol.Reconstruct:
    """A reconstruction that ends only when it is stopped: TV does not reach so small a change."""
    settings = ReconstructSettings(method="tv", iterations=10**6, tolerance=1e-300)
    return protocol.Reconstruct(scan=scan, settings=settings, preview_slice=2)


# --- one request, one end --------------------------------------------------------------------------


def test_each_request_ends_once_and_says_what_it_found(engine: Engine) -> None:
    ready, end = engine.ask(protocol.Hello())
    assert isinstance(ready, protocol.Ready)
    assert isinstance(end, protocol.Finished)
    assert (ready.version, ready.package) == (protocol.VERSION, __version__)
    assert ready.torch == torch.__version__
    (refused,) = engine.ask(protocol.Hello(version=protocol.VERSION + 1))
    assert isinstance(refused, protocol.Failed)
    assert refused.kind == "bad-input"
    assert str(protocol.VERSION + 1) in refused.message
    status, end = engine.ask(protocol.GetStatus())
    assert isinstance(status, protocol.Status)
    assert 0 < status.host_used < status.host_total
    assert status.running is None
    wrong: list[tuple[protocol.Request, str]] = [
        (protocol.Open(path="/nowhere/scan.h5"), "/nowhere/scan.h5"),
        (endless("scan-404"), "no scan scan-404"),
        (protocol.ReadSlice(result="run-404", index=0), "no result run-404"),
        (protocol.ReadSlice(result="run-404", index=0, step=1), "no iterates of run-404"),
        (protocol.Export(result="run-404", path="/tmp/x.tif", format="tiff"), "no result run-404"),
        (protocol.FineTune(scans=("scan-404",), settings=FineTuneSettings(steps=1), out="/tmp/x"), "scan-404"),
        (protocol.FineTune(scans=(), settings=FineTuneSettings(steps=1), out="/tmp/x"), "no scan"),
    ]
    for request, text in wrong:
        failed = engine.ask(request)[-1]
        assert isinstance(failed, protocol.Failed), request
        assert (failed.kind, text in failed.message) == ("bad-input", True), failed
        assert "Traceback" in failed.details
    for harmless in (protocol.Forget(key="run-404"), protocol.Cancel(job=404)):
        (end,) = engine.ask(harmless)
        assert isinstance(end, protocol.Finished)


def test_slices_are_read_while_a_job_runs_and_what_it_has_is_kept(engine: Engine, tmp_path: Path) -> None:
    scan = engine.open(sample_path("ct"))
    job = engine.client.send(endless(scan))
    waiting = engine.client.send(endless(scan))
    engine.heard(job, protocol.Step, 3)
    started = engine.of(job)[0]
    assert isinstance(started, protocol.Started)
    began = time.monotonic()
    read = engine.client.send(protocol.ReadSlice(result=started.run, index=2, step=2))
    engine.wait(lambda: bool(engine.ends(read)))
    assert time.monotonic() - began < 5
    assert not engine.ends(job)
    ((event, pixels),) = [
        (event, pixels) for owner, event, pixels in engine.events if owner == read and pixels is not None
    ]
    assert isinstance(event, protocol.Slice)
    assert pixels.shape == (176, 176)
    assert event.low < event.high
    status = engine.ask(protocol.GetStatus())[0]
    assert isinstance(status, protocol.Status)
    assert status.running == job
    # a job that waits is ended at once, not when the running one is done
    engine.ask(protocol.Cancel(job=waiting), 5)
    engine.wait(lambda: bool(engine.ends(waiting)), 5)
    assert engine.of(waiting) == [protocol.Finished(cancelled=True)]
    assert not engine.ends(job)
    engine.ask(protocol.Cancel(job=job, keep=True))
    engine.wait(lambda: bool(engine.ends(job)), 20)
    *_, done, end = engine.of(job)
    assert isinstance(done, protocol.Reconstructed)
    assert isinstance(end, protocol.Finished)
    assert (done.facts.outcome, end.cancelled) == ("stopped", False)
    assert done.facts.shape == (1, 176, 176)
    last = [event for event in engine.of(job) if isinstance(event, protocol.Step)][-1]
    assert last.step == done.facts.iterations
    exported = engine.ask(protocol.Export(result=done.facts.result, path=str(tmp_path / "kept.tif"), format="tiff"))
    assert isinstance(exported[-2], protocol.Exported)
    assert Path(exported[-2].files[0]).stat().st_size == exported[-2].bytes
    engine.ask(protocol.Forget(key=done.facts.result))
    (gone,) = engine.ask(protocol.ReadSlice(result=done.facts.result, index=2))
    assert isinstance(gone, protocol.Failed)


def test_a_cancelled_job_leaves_no_result_and_a_dropped_run_goes_on(engine: Engine) -> None:
    scan = engine.open(sample_path("ct"))
    job = engine.client.send(endless(scan))
    engine.heard(job, protocol.Step)
    started = engine.of(job)[0]
    assert isinstance(started, protocol.Started)
    engine.ask(protocol.Forget(key=started.run))
    seen = len(engine.of(job))
    engine.wait(lambda: len(engine.of(job)) > seen + 2)
    engine.ask(protocol.Cancel(job=job))
    engine.wait(lambda: bool(engine.ends(job)), 20)
    (end,) = engine.ends(job)
    assert isinstance(end, protocol.Finished)
    assert end.cancelled
    assert not any(isinstance(event, protocol.Reconstructed) for event in engine.of(job))
    (gone,) = engine.ask(protocol.ReadSlice(result=started.run, index=2))
    assert isinstance(gone, protocol.Failed)
    # the engine works on
    assert isinstance(engine.ask(protocol.GetStatus())[-1], protocol.Finished)


def test_a_name_that_is_not_utf8_is_a_message_and_no_silence(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file[b"projections\xff"] = np.zeros((2, 3))
    failed = engine.ask(protocol.Open(path=str(path)))[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.kind == "bad-input"


# --- training --------------------------------------------------------------------------------------


def test_training_is_saved_when_cancelled_and_when_the_window_goes_away(
    own: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = own()
    scan = engine.open(sample_path("ct"))
    settings = FineTuneSettings(minutes=60.0, batch=1, views_every=6)
    out = tmp_path / "cancelled.safetensors"
    job = engine.client.send(protocol.FineTune(scans=(scan,), settings=settings, out=str(out)))
    engine.heard(job, protocol.Trained)
    engine.ask(protocol.Cancel(job=job))
    engine.wait(lambda: bool(engine.ends(job)), 30)
    (end,) = engine.ends(job)
    assert isinstance(end, protocol.Finished)
    assert end.cancelled
    assert not any(isinstance(event, protocol.Tuned) for event in engine.of(job))
    steps = sum(isinstance(event, protocol.Trained) for event in engine.of(job))
    assert read_checkpoint(out).step == steps
    # continued, until its window goes away: the requests end
    left = tmp_path / "left.safetensors"
    again = FineTuneSettings(minutes=60.0, resume=str(out))
    job = engine.client.send(protocol.FineTune(scans=(scan,), settings=again, out=str(left)))
    engine.heard(job, protocol.Trained)
    process = psutil.Process(engine.client.pid)
    assert engine.client._process.stdin is not None
    engine.client._outbox.put(None)  # the writer of the client ends and closes its end of the pipe
    process.wait(30)
    assert read_checkpoint(left).step > steps
    assert read_checkpoint(left).optimiser
    assert engine.lost().cause == "the engine has ended"


def test_quitting_during_a_job_ends_the_process_in_order(own: Callable[..., Engine]) -> None:
    engine = own()
    scan = engine.open(sample_path("ct"))
    job = engine.client.send(endless(scan))
    waiting = engine.client.send(endless(scan))
    engine.heard(job, protocol.Step)
    began = time.monotonic()
    engine.client.close(30)
    assert time.monotonic() - began < 20
    assert engine.lost() == EngineLost("the engine has ended", engine.lost().log, expected=True)
    assert len(engine.ends(job)) == 1
    (end,) = engine.ends(waiting)
    assert isinstance(end, protocol.Finished)
    assert end.cancelled


# --- the streams -----------------------------------------------------------------------------------

PRINTING = """
import os, sys, threading
from equipoise_engine.server import serve_standard_streams
def noise():
    while True:
        os.write(1, b"EQP1 a library prints to the descriptor ")
        sys.stdout.write("and to the stream\\n")
        sys.stdout.flush()
        threading.Event().wait(0.002)
def later():
    threading.Event().wait(0.2)  # once the server has taken the streams
    noise()
threading.Thread(target=later, daemon=True).start()
serve_standard_streams()
"""


def test_what_libraries_print_does_not_reach_the_frames(own: Callable[..., Engine]) -> None:
    engine = own([sys.executable, "-c", PRINTING])
    for _ in range(30):
        status, end = engine.ask(protocol.GetStatus())
        assert isinstance(status, protocol.Status)
        assert isinstance(end, protocol.Finished)
        time.sleep(0.02)
    assert any("a library prints to the descriptor" in line for line in engine.log)
    assert any("and to the stream" in line for line in engine.log)


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "starts with b'GET '"),
        (struct.pack("<4sIQ", b"EQP1", protocol.MAX_HEADER + 1, 0), "exceeds"),
        (struct.pack("<4sIQ", b"EQP1", 2, protocol.MAX_PIXELS + 1) + b"{}", "exceeds"),
        (struct.pack("<4sIQ", b"EQP1", 30, 0) + b"{}", "28 bytes before the end"),
    ],
    ids=["no frame", "large header", "large pixels", "cut short"],
)
def test_what_is_no_request_ends_the_engine(sent: bytes, logged: str) -> None:
    done = subprocess.run([*engine_command()], input=sent, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == b""
    assert logged in done.stderr.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_an_interrupt_of_the_console_does_not_reach_the_engine(own: Callable[..., Engine]) -> None:
    engine = own()
    engine.ask(protocol.Hello())
    process = psutil.Process(engine.client.pid)
    assert process.pid != psutil.Process().pid
    # Ctrl+C goes to the process group of the console, which is not the engine's
    assert os.getpgid(process.pid) != os.getpgid(0)
    process.send_signal(signal.SIGKILL)
    assert "SIGKILL" in engine.lost().cause


# --- what the user is told -------------------------------------------------------------------------


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadInput("a is wrong", "do b"), "bad-input"),
        (Unsupported("a is wrong", "do b"), "unsupported"),
        (OutOfMemory("a is wrong", "do b"), "out-of-memory"),
        (NumericalTrouble("a is wrong", "do b"), "numerical-trouble"),
        (EquipoiseError("a is wrong", "do b"), "internal"),
    ],
)
def test_our_errors_keep_their_words(error: EquipoiseError, kind: str) -> None:
    told = failure(raised(error))
    assert (told.kind, told.message, told.hint) == (kind, "a is wrong", "do b")
    assert "Traceback" in told.details


def test_memory_that_runs_out_is_recognised() -> None:
    with pytest.raises(MemoryError) as numpy_refuses:
        np.empty((1 << 60,), dtype=np.uint8)
    with pytest.raises(RuntimeError) as torch_refuses:
        torch.empty((1 << 60,), dtype=torch.uint8)
    for error in (numpy_refuses.value, torch_refuses.value, torch.OutOfMemoryError("CUDA out of memory")):
        told = failure(error)
        assert told.kind == "out-of-memory"
        assert "does not fit into" in told.message
        assert told.hint


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as gone:
        (tmp_path / "gone.h5").read_bytes()
    told = failure(gone.value)
    assert told.kind == "bad-input"
    assert told.message == f"{tmp_path / 'gone.h5'}: No such file or directory"


def test_any_other_error_is_internal_and_can_always_be_sent() -> None:
    told = failure(raised(ZeroDivisionError("division by zero")))
    assert told.kind == "internal"
    assert "ZeroDivisionError: division by zero" in told.message
    assert failure(RuntimeError("shapes do not fit")).kind == "internal"
    # a file name that is not UTF-8, and a text without end
    odd = failure(raised(BadInput("cannot read \udcff.h5 " + "x" * 1_000_000)))
    assert len(odd.message) < 200_000
    protocol.write(io.BytesIO(), 1, odd)
