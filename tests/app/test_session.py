"""The session with engine processes: the real one, and small ones that misbehave in a known way."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from pytestqt.qtbot import QtBot

from equipoise.session import Session
from equipoise.settings import Settings, SettingsStore
from equipoise.state import EnginePhase, JobPhase, State, active_jobs
from equipoise.supervisor import Limits
from equipoise_engine.protocol import CentreFound, Failed, FindCentre, FineTuneSettings, Look, ReconstructSettings, Seen
from equipoise_engine.recipe import AngleRange, Known, NegativeLog, Recipe, Selection

# It speaks the protocol; the name of the file that is opened says what it does.
SMALL_ENGINE = Path(__file__).with_name("small_engine.py")

QUICK = Limits(heartbeat=0.05, answer=0.5, start=20.0, cancel=0.4, steady=10.0, delays=(0.05, 0.05, 0.1), losses=5)

Make = Callable[..., Session]
AS_IT_IS = Recipe()


@pytest.fixture
def make(qtbot: QtBot, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a session with an engine command; all are closed at the end."""
    made: list[tuple[Session, list[bool]]] = []

    def build(*command: str, limits: Limits = QUICK) -> Session:
        store = SettingsStore(tmp_path / f"settings-{len(made)}.ini")
        store.save(Settings(engine_command=tuple(command)))
        session = Session(store, limits)
        ended: list[bool] = []
        session.closed.connect(lambda: ended.append(True))
        made.append((session, ended))
        return session

    yield build
    for session, ended in made:
        session.close()
        qtbot.waitUntil(lambda ended=ended: bool(ended), timeout=15_000)  # type: ignore[misc]


@pytest.fixture
def small() -> tuple[str, ...]:
    """Command of the small engine."""
    return (sys.executable, str(SMALL_ENGINE))


@pytest.fixture
def disc_scan(tmp_path: Path) -> Path:
    """A simulated scan of a disc in the Data Exchange layout, 60 views of 4 slices, 64 columns."""
    views, rows, columns = 60, 4, 64
    offset = np.arange(columns) - (columns - 1) / 2
    path_length = 2 * np.sqrt(np.maximum(20.0**2 - offset**2, 0.0))
    counts = 1e4 * np.exp(-0.02 * path_length)
    file = tmp_path / "disc.h5"
    with h5py.File(file, "w") as stream:
        stream["exchange/data"] = np.broadcast_to(counts, (views, rows, columns)).astype(np.float32)
        stream["exchange/data_white"] = np.full((2, rows, columns), 1e4, np.float32)
        stream["exchange/data_dark"] = np.zeros((2, rows, columns), np.float32)
        stream["exchange/theta"] = np.linspace(0.0, 180.0, views, endpoint=False)
    return file


def until(qtbot: QtBot, session: Session, holds: Callable[[State], bool], seconds: float = 20.0) -> None:
    qtbot.waitUntil(lambda: holds(session.state), timeout=round(seconds * 1000))


def is_ready(state: State) -> bool:
    return state.engine.phase is EnginePhase.READY


def shows(pane: int, run: str | None = None, index: int | None = None) -> Callable[[State], bool]:
    def holds(state: State) -> bool:
        picture = state.panes[pane].picture
        return picture is not None and (run is None or picture.run == run) and (index is None or picture.index == index)

    return holds


def quiet(state: State) -> bool:
    return is_ready(state) and not active_jobs(state) and all(p.asked is None for p in state.panes)


# --- small engines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("import sys; sys.exit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import sys; sys.stdout.write('hello, world, I am no frame'); sys.stdout.flush()", "broken"),
    ],
)
def test_engine_that_ends_is_started_again_and_given_up_at_last(
    qtbot: QtBot, make: Make, script: str, cause: str
) -> None:
    session = make(sys.executable, "-c", script)
    phases: list[tuple[EnginePhase, int]] = []
    session.changed.connect(lambda old, new: phases.append((new.engine.phase, new.engine.restarts)))
    session.start()
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.STOPPED)
    assert cause in session.state.engine.cause
    assert any(cause in n.text and n.severity == "error" for n in session.state.notices)
    assert "5 times in a row" in session.state.notices[-1].text
    assert {n for p, n in phases if p is EnginePhase.RESTARTING} == {0, 1, 2, 3, 4}
    session.open("/nowhere/scan.h5")
    assert session.state.jobs == ()
    assert "stopped" in session.state.notices[-1].text
    # the user may try again, and that starts the count anew
    session.restart_engine()
    until(qtbot, session, lambda s: s.engine.phase is not EnginePhase.STOPPED)
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.STOPPED)


def test_command_that_does_not_exist_is_named(qtbot: QtBot, make: Make) -> None:
    session = make("/no/such/engine")
    session.start()
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.STOPPED)
    assert "'/no/such/engine' cannot be started" in session.state.engine.cause


def test_engine_that_is_never_ready_is_ended(qtbot: QtBot, make: Make) -> None:
    limits = replace(QUICK, start=0.3, losses=1)
    session = make(sys.executable, "-c", "import time; time.sleep(600)", limits=limits)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.STOPPED)
    assert "not ready after 0.3 s" in session.state.engine.cause
    assert session.state.jobs[0].phase is JobPhase.FAILED


def test_engine_of_another_version_is_refused_with_its_words(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small, "old", limits=replace(QUICK, losses=1))
    session.start()
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.STOPPED)
    assert "the window speaks protocol 1, this engine 0" in session.state.engine.cause


def test_engine_that_does_not_answer_is_ended(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    until(qtbot, session, is_ready)
    session.open("/data/stuck.h5")
    until(qtbot, session, lambda s: s.engine.phase is EnginePhase.RESTARTING)
    assert session.state.engine.cause == "the engine did not answer for 0.5 s"
    assert session.state.jobs[0].phase is JobPhase.FAILED
    until(qtbot, session, is_ready)


def test_opened_scan_is_shown_at_once_and_scrolls(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, shows(0, "run-2", 2))
    assert [j.kind for j in session.state.jobs] == ["open", "reconstruct"]
    assert session.settings.recent == ("/data/a.h5",)
    for index in (3, 4, 0, 1):
        session.set_slice(index)
    until(qtbot, session, shows(0, "run-2", 1))
    picture = session.state.panes[0].picture
    assert picture is not None
    assert (picture.pixels == 1).all()


def test_one_slice_per_pane_is_under_way_and_the_last_wish_wins(
    qtbot: QtBot, make: Make, small: tuple[str, ...]
) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    asked: list[int] = []

    def note(old: State, new: State) -> None:
        if new.panes[0].asked is not None and new.panes[0].asked != old.panes[0].asked:
            asked.append(new.panes[0].asked)

    session.changed.connect(note)
    for index in (3, 4, 3, 0, 4, 3, 0, 1):
        session.set_slice(index)
    assert len(asked) == 1
    until(qtbot, session, shows(0, index=1))
    assert len(asked) == 2


def test_views_that_change_the_state_see_changes_in_order(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    seen: list[tuple[State, State]] = []

    def meddle(old: State, new: State) -> None:
        if len(new.panes) == 3:
            session.set_pane_count(4)

    session.changed.connect(meddle)
    session.changed.connect(lambda old, new: seen.append((old, new)))
    session.set_pane_count(3)
    assert len(session.state.panes) == 4
    for (_, earlier), (later, _) in pairwise(seen):
        assert earlier is later
    assert seen[-1][1] is session.state


def test_scan_that_ends_the_engine_is_not_opened_again_but_others_are(
    qtbot: QtBot, make: Make, small: tuple[str, ...]
) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    before = session.state.panes[0].picture
    session.open("/data/deadly.h5")
    until(qtbot, session, lambda s: s.engine.phase is not EnginePhase.READY)
    state = session.state
    assert "exit status 7" in state.engine.cause
    assert "small engine starts" in state.notices[-1].details
    assert state.jobs[-1].phase is JobPhase.FAILED
    assert state.panes[0].picture is before
    assert not state.runs[0].held
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan == "scan-1#2")
    assert [j.title for j in session.state.jobs if "deadly" in j.title] == ["Open deadly.h5"]
    assert session.state.jobs[-1].title == "Open a.h5 again"
    # the window goes on working with the engine's new names
    session.reconstruct(ReconstructSettings(method="fbp"))
    until(qtbot, session, shows(0, "run-2#2"))
    assert session.state.runs[-1].label == "FBP #2"
    session.forget("run-2#2")
    assert [r.run for r in session.state.runs] == ["run-2"]


def test_scan_is_given_up_when_work_on_it_ended_two_engines(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    session.reconstruct(ReconstructSettings(method="tv"))
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan == "scan-1#2")
    session.reconstruct(ReconstructSettings(method="tv"))
    until(qtbot, session, lambda s: is_ready(s) and any("not opened again" in n.text for n in s.notices))
    assert session.state.scans[0].scan == "scan-1#2"
    assert not active_jobs(session.state)
    # work on a scan that the engine does not hold is refused with the way out
    session.reconstruct(ReconstructSettings(method="fbp"))
    assert "Open the scan again" in session.state.notices[-1].text
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan == "scan-1#3")


def test_cancel_that_is_not_obeyed_ends_the_engine_with_a_notice(
    qtbot: QtBot, make: Make, small: tuple[str, ...]
) -> None:
    session = make(*small)
    session.start()
    session.open("/data/endless.h5")
    until(qtbot, session, lambda s: bool(s.jobs) and s.jobs[0].phase is JobPhase.RUNNING)
    session.cancel(session.state.jobs[0].id)
    assert session.state.jobs[0].phase is JobPhase.CANCELLING
    until(qtbot, session, lambda s: s.jobs[0].phase is JobPhase.FAILED)
    assert "did not stop in time" in session.state.notices[-1].text
    until(qtbot, session, is_ready)


def test_job_that_was_not_sent_yet_is_cancelled_at_once(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    session.cancel(session.state.jobs[0].id)
    assert session.state.jobs[0].phase is JobPhase.CANCELLED
    until(qtbot, session, is_ready)
    qtbot.wait(200)
    assert session.state.scans == ()


def test_restart_on_demand_is_no_loss_in_the_count(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5", Recipe(known=Known(centre_px=2.5)))
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    first = session.engine_pid
    session.restart_engine()
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan == "scan-1#2")
    assert session.engine_pid != first
    assert session.state.engine.restarts == 0
    # what the user has said about the scan is not forgotten
    assert session.state.scans[0].geometry == (("Centre", "2.5"),)
    assert session.asked_recipe("/data/a.h5") == Recipe(known=Known(centre_px=2.5))


def test_bad_stored_settings_are_told(qtbot: QtBot, tmp_path: Path) -> None:
    file = tmp_path / "bad.ini"
    file.write_text("[General]\ntheme=pink\n")
    session = Session(SettingsStore(file), QUICK)
    assert session.settings == Settings()
    assert "pink" in session.state.notices[0].text


def test_export_of_a_lost_result_is_refused(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    session.restart_engine()
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan == "scan-1#2")
    session.export("run-2", "/tmp/never.tif", "tiff")
    assert "lost with its engine" in session.state.notices[-1].text
    session.export("no such run", "/tmp/never.tif", "tiff")
    assert "no finished result" in session.state.notices[-1].text


def test_without_a_scan_jobs_are_refused(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.reconstruct(ReconstructSettings(method="fbp"))
    session.adapt(FineTuneSettings(steps=1), "/tmp/never.safetensors")
    assert session.state.jobs == ()
    assert session.state.notices[-1].text == "Open a scan first."


def look(index: int, path: str = "/data/a.h5", recipe: Recipe = AS_IT_IS) -> Look:
    return Look(path=path, recipe=recipe, what="projection", index=index)


def test_one_picture_of_a_purpose_is_under_way_and_the_newest_wish_wins(
    qtbot: QtBot, make: Make, small: tuple[str, ...]
) -> None:
    session = make(*small)
    session.start()
    seen: list[tuple[str, int, float]] = []
    session.seen.connect(lambda purpose, event, pixels: seen.append((purpose, event.index, float(pixels[0, 0]))))
    for index in range(6):
        session.look("one", look(index))
    session.look("other", look(8))
    assert session.is_looking("one")
    qtbot.waitUntil(lambda: len(seen) == 3, timeout=10_000)
    qtbot.wait(100)
    # the first that was asked for, and the newest of those that waited
    assert seen == [("one", 0, 1.0), ("other", 8, 2.0), ("one", 5, 3.0)]
    assert not session.is_looking("one")
    # pictures are no jobs, and change nothing of the state
    assert session.state.jobs == ()


def test_a_picture_that_fails_raises_no_notice(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    failures: list[tuple[str, Failed]] = []
    session.look_failed.connect(lambda purpose, failed: failures.append((purpose, failed)))
    session.look("one", look(0, recipe=Recipe(selection=Selection(bin=64))))
    qtbot.waitUntil(lambda: len(failures) == 1, timeout=10_000)
    assert failures[0][0] == "one"
    assert "cannot be binned by 64" in failures[0][1].message
    assert session.state.notices == ()
    assert not session.is_looking("one")


def test_a_picture_that_ends_the_engine_is_not_asked_for_again(
    qtbot: QtBot, make: Make, small: tuple[str, ...]
) -> None:
    session = make(*small)
    session.start()
    until(qtbot, session, is_ready)
    failures: list[Failed] = []
    session.look_failed.connect(lambda purpose, failed: failures.append(failed))
    session.look("one", look(0, "/data/crash.h5"))
    session.look("one", look(1, "/data/crash.h5"))
    until(qtbot, session, lambda s: s.engine.phase is not EnginePhase.READY)
    assert "engine was lost" in failures[0].message
    until(qtbot, session, is_ready)
    restarts = session.state.engine.restarts
    session.look("one", look(0, "/data/crash.h5"))
    assert "ended the engine before" in failures[1].message
    qtbot.wait(200)
    assert session.state.engine.phase is EnginePhase.READY
    assert session.state.engine.restarts == restarts
    # others are, and the user's own wish to open it again clears it
    seen: list[Seen] = []
    session.seen.connect(lambda purpose, event, pixels: seen.append(event))
    session.look("one", look(0))
    qtbot.waitUntil(lambda: len(seen) == 1, timeout=10_000)


def test_what_is_missing_is_kept_until_the_scan_is_open(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/needy.h5")
    until(qtbot, session, lambda s: s.needed is not None and not active_jobs(s) and bool(s.notices))
    needed = session.state.needed
    assert needed is not None
    assert (needed.path, needed.missing, needed.recipe) == ("/data/needy.h5", ("angles",), Recipe())
    assert session.state.jobs[0].phase is JobPhase.FAILED
    assert session.settings.recent == ()
    angles = AngleRange(start_deg=0, stop_deg=180)
    session.open("/data/needy.h5", Recipe(known=Known(angles=angles)))
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    assert session.state.needed is None
    assert session.state.scans[0].recipe.known.angles == angles


def test_results_of_an_earlier_recipe_stay_and_are_told_apart(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s))
    session.open("/data/a.h5", Recipe(steps=(NegativeLog(floor=0.25),)))
    until(qtbot, session, lambda s: quiet(s) and len(s.runs) == 2 and s.runs[1].result is not None)
    session.reconstruct(ReconstructSettings(method="fbp"))
    until(qtbot, session, lambda s: quiet(s) and len(s.runs) == 3 and s.runs[2].result is not None)
    session.open("/data/a.h5")
    until(qtbot, session, lambda s: quiet(s) and len(s.runs) == 4 and s.runs[3].result is not None)
    runs = session.state.runs
    assert [r.label for r in runs] == ["FBP", "FBP, recipe 2", "FBP, recipe 2 #2", "FBP #2"]
    assert {r.scan for r in runs} == {session.state.scan}
    assert runs[0].recipe == runs[3].recipe != runs[1].recipe


def test_the_centre_is_a_job_with_an_answer(qtbot: QtBot, make: Make, small: tuple[str, ...]) -> None:
    session = make(*small)
    session.start()
    found: list[CentreFound] = []
    session.centre_found.connect(found.append)
    job = session.find_centre(FindCentre(path="/data/a.h5", recipe=Recipe()))
    until(qtbot, session, lambda s: bool(s.jobs) and not active_jobs(s))
    assert job == session.state.jobs[0].id
    assert session.state.jobs[0].phase is JobPhase.DONE
    assert session.state.jobs[0].message == "agreed"
    assert found[0].centre_px == 1.25


# --- the real engine ----------------------------------------------------------------------------------------

PATIENT = Limits(heartbeat=0.2, delays=(0.1,), steady=0.0)


def test_real_engine_killed_while_idle(qtbot: QtBot, make: Make, disc_scan: Path) -> None:
    session = make(limits=PATIENT)
    session.start()
    session.open(str(disc_scan))
    until(qtbot, session, lambda s: quiet(s) and shows(0)(s), 90)
    before = session.state
    pid = session.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(qtbot, session, lambda s: s.engine.phase is not EnginePhase.READY)
    assert "SIGKILL" in session.state.notices[-1].text
    assert session.state.panes[0].picture is before.panes[0].picture
    until(qtbot, session, lambda s: quiet(s) and s.scans[0].scan.endswith("#2"), 60)
    assert session.state.slice_index == before.slice_index
    session.reconstruct(ReconstructSettings(method="fbp"))
    until(qtbot, session, lambda s: quiet(s) and shows(0, s.runs[-1].run)(s) and len(s.runs) == 2, 60)
