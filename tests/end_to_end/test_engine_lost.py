"""The engine is killed or hangs in the middle of each kind of work, and the window goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from equipoise.state import EnginePhase, Job, JobPhase, Picture, State, is_idle
from equipoise.supervisor import Limits
from equipoise.view.main import MainWindow
from equipoise_engine.protocol import FineTuneSettings, ReconstructSettings

MakeWindow = Callable[..., MainWindow]
OpenScan = Callable[[MainWindow, Path], None]
LONG = ReconstructSettings(method="tv", iterations=100_000, tolerance=1e-12)


def strike_when(window: MainWindow, kind: str, when: Callable[[State, Job], bool], number: int) -> list[State]:
    """Send a signal to the engine at the first moment at which `when` holds for the newest job of a kind."""
    struck: list[State] = []

    def look(old: State, new: State) -> None:
        job = next((job for job in reversed(new.jobs) if job.kind == kind), None)
        pid = window.session.engine_pid
        if not struck and job is not None and pid is not None and when(new, job):
            struck.append(new)
            os.kill(pid, number)

    window.session.changed.connect(look)
    return struck


def running(state: State, job: Job) -> bool:
    return job.phase is JobPhase.RUNNING


def check_loss(window: MainWindow, before: State, struck: list[State], kind: str, cause: str) -> None:
    """Check that the window shows what it showed, and says what has happened."""
    state = window.session.state
    assert struck
    assert window.isVisible()
    job = next(job for job in reversed(state.jobs) if job.kind == kind)
    assert job.phase is JobPhase.FAILED, job
    assert cause in job.message
    told = [n for n in state.notices if n.number > before.noticed and n.severity == "error"]
    assert len(told) == 1, [n.text for n in told]
    assert cause in told[0].text
    assert job.title in told[0].text
    assert window.notices.text.text() == state.notices[-1].text
    for earlier in before.runs:
        now = next(run for run in state.runs if run.run == earlier.run)
        assert now.steps[: len(earlier.steps)] == earlier.steps
        assert now.result == earlier.result
    for number, earlier_pane in enumerate(before.panes):
        if earlier_pane.picture is not None and number == 0:
            assert state.panes[0].picture is earlier_pane.picture
            assert np.array_equal(window.compare.panes[0].pixels(), earlier_pane.picture.pixels)


def work_again(window: MainWindow, until: Callable[..., None], path: Path, first_pid: int) -> Picture:
    """Check that another engine holds the scan again and reconstructs it; return the new picture."""
    until(window, is_idle)
    session = window.session
    assert session.engine_pid not in (None, first_pid)
    assert not psutil.pid_exists(first_pid) or psutil.Process(first_pid).status() == psutil.STATUS_ZOMBIE
    scans = [facts for facts in session.state.scans if facts.path == str(path)]
    assert len(scans) == 1
    assert scans[0].scan.endswith("#2")
    session.reconstruct(ReconstructSettings(method="fbp", window="hann"))
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE
    run = session.state.runs[-1]
    pictures = [pane.picture for pane in session.state.panes if pane.picture is not None]
    assert run.held
    return next(picture for picture in pictures if picture.run == run.run)


def test_killed_while_it_opens_a_scan(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, disc_scan: Path, slow_scan: Path
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    before, pid = window.session.state, window.session.engine_pid
    struck = strike_when(window, "open", running, signal.SIGKILL)
    window.session.open(str(slow_scan))
    until(window, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    check_loss(window, before, struck, "open", "SIGKILL")
    work_again(window, until, disc_scan, pid)
    # what ended the engine is not opened by itself
    assert [facts.path for facts in window.session.state.scans] == [str(disc_scan)]


def test_killed_while_it_reconstructs(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, disc_scan: Path
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    before, pid = window.session.state, window.session.engine_pid
    seen = strike_when(
        window,
        "reconstruct",
        lambda s, job: len(s.runs) == 2 and len(s.runs[1].steps) > 3 and s.panes[1].picture is not None,
        signal.SIGKILL,
    )
    window.session.reconstruct(LONG)
    until(window, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    check_loss(window, before, seen, "reconstruct", "SIGKILL")
    lost = window.session.state.runs[1]
    assert lost.steps[: len(seen[0].runs[1].steps)] == seen[0].runs[1].steps
    assert len(lost.data_residuals) == len(lost.steps) > 3
    # the curve and the last iterate stay where they were
    assert window.session.state.panes[1].picture.run == lost.run
    picture = work_again(window, until, disc_scan, pid)
    assert np.isfinite(picture.pixels).all()
    assert window.session.state.runs[1].steps == lost.steps
    # opening the scan again adds no run: the analytic image, the lost one and the one of now
    assert len(window.session.state.runs) == 3


@pytest.mark.long
def test_killed_while_it_adapts(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, disc_scan: Path, tmp_path: Path
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    session, weights = window.session, tmp_path / "adapted.safetensors"
    session.adapt(FineTuneSettings(steps=1, batch=1), str(weights))
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE
    checkpoint = weights.read_bytes()
    before, pid = session.state, session.engine_pid
    struck = strike_when(window, "adapt", lambda s, job: job.active and len(s.trainings[-1].steps) >= 2, signal.SIGKILL)
    session.adapt(FineTuneSettings(steps=10_000, resume=str(weights)), str(weights))
    until(window, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    check_loss(window, before, struck, "adapt", "SIGKILL")
    lost = session.state.trainings[-1]
    assert lost.finished
    assert len(lost.steps) >= 2
    # steps that were on their way when the engine was struck may follow, none that was shown is lost
    for (name, values), (known, shown) in zip(lost.terms, struck[0].trainings[-1].terms, strict=True):
        assert (name, values[: len(shown)]) == (known, shown)
    work_again(window, until, disc_scan, pid)
    # the last checkpoint was not touched, and goes on as if nothing had happened
    assert weights.read_bytes() == checkpoint
    session.adapt(FineTuneSettings(steps=2, resume=str(weights)), str(weights))
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE, session.state.jobs[-1]
    again = session.state.trainings[-1]
    assert again.steps == (2,)
    assert lost.steps[0] == 2
    for (name, values), (other, first) in zip(again.terms, lost.terms, strict=True):
        assert name == other
        assert values[0] == pytest.approx(first[0], rel=1e-4, abs=1e-9)


@pytest.mark.long
def test_killed_while_it_exports(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, tall_scan: Path, tmp_path: Path
) -> None:
    window = make_window()
    open_scan(window, tall_scan)
    session, target, folder = window.session, tmp_path / "tall.tif", tmp_path / "tall-dicom"
    session.export(session.state.runs[0].run, str(target), "tiff")
    until(window, is_idle)
    written = target.read_bytes()
    before, pid = session.state, session.engine_pid
    struck = strike_when(
        window, "export", lambda s, job: job.active and job.stage == "write" and job.done > 1, signal.SIGKILL
    )
    session.export(session.state.runs[0].run, str(folder), "dicom")
    until(window, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    check_loss(window, before, struck, "export", "SIGKILL")
    # nothing that looks complete is there, and the earlier export is as it was
    assert not folder.exists()
    assert target.read_bytes() == written
    work_again(window, until, tall_scan, pid)
    # a result that went with its engine is not exported in silence
    count = len(session.state.jobs)
    session.export(before.runs[0].run, str(target), "tiff")
    assert len(session.state.jobs) == count
    assert "lost" in session.state.notices[-1].text
    session.export(session.state.runs[-1].run, str(target), "tiff")
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.DONE
    assert tifffile.imread(target).shape == session.state.runs[-1].result.shape


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
def test_hung_engine_is_replaced(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, disc_scan: Path
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    before, pid = window.session.state, window.session.engine_pid
    impatient = replace(Limits(), heartbeat=0.3, answer=3.0, cancel=30.0, delays=(0.1,), steady=0.0)
    # only now: loading torch may keep an engine from answering for longer
    window.session._supervisor.limits = impatient
    struck = strike_when(
        window, "reconstruct", lambda s, job: len(s.runs) == 2 and len(s.runs[1].steps) > 3, signal.SIGSTOP
    )
    window.session.reconstruct(LONG)
    until(window, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    check_loss(window, before, struck, "reconstruct", "did not answer for 3 s")
    window.session._supervisor.limits = replace(impatient, answer=60.0)
    work_again(window, until, disc_scan, pid)


@pytest.mark.long
def test_cancelled_work_ends_by_itself(
    make_window: MakeWindow, until: Callable[..., None], open_scan: OpenScan, disc_scan: Path, tmp_path: Path
) -> None:
    window = make_window()
    open_scan(window, disc_scan)
    session, pid = window.session, window.session.engine_pid
    session.reconstruct(LONG)
    until(window, lambda s: len(s.runs) == 2 and len(s.runs[1].steps) > 3)
    window.actions_by_id["cancel"].trigger()
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.CANCELLED
    assert session.state.runs[1].result is None
    session.reconstruct(LONG)
    until(window, lambda s: len(s.runs) == 3 and len(s.runs[2].steps) > 3)
    session.cancel(session.state.jobs[-1].id, keep=True)
    until(window, is_idle)
    assert session.state.runs[2].result.outcome == "stopped"
    weights = tmp_path / "cancelled.safetensors"
    session.adapt(FineTuneSettings(steps=10_000, batch=1), str(weights))
    until(window, lambda s: len(s.trainings) == 1 and len(s.trainings[0].steps) >= 1)
    session.cancel(session.state.jobs[-1].id)
    until(window, is_idle)
    assert session.state.jobs[-1].phase is JobPhase.CANCELLED
    # the deadline, after which an engine that does not obey is ended, was not needed
    assert session.engine_pid == pid
    assert session.state.engine.restarts == 0
    assert [n for n in session.state.notices if n.severity == "error"] == []
