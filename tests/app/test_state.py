"""What events and wishes do to the state. No Qt, no engine."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import state as change
from equipoise.state import (
    EnginePhase,
    Job,
    JobPhase,
    Pane,
    Run,
    State,
    Training,
    Wish,
    find_job,
    find_run,
    reduce,
    unasked,
    wanted,
)
from equipoise_engine.client import EngineLost
from equipoise_engine.protocol import (
    Advice,
    Event,
    Exported,
    Failed,
    Finished,
    Needed,
    Opened,
    Pixels,
    Ready,
    Reconstructed,
    ReconstructSettings,
    ResultFacts,
    ScanFacts,
    Slice,
    Started,
    Status,
    Step,
    Trained,
    Tuned,
    Working,
)
from equipoise_engine.recipe import Recipe, Selection, Span

PIXELS = np.arange(6, dtype=np.float32).reshape(2, 3)
READY = Ready(version=1, package="0.1.0", device="cpu", python="3.11", torch="2.13", threads=2)
STATUS = Status(device="cpu", host_used=1, host_total=2, device_used=0, device_total=0, running=None)


def scan(key: str = "scan-1", path: str = "/data/tooth.h5", slices: int = 5) -> ScanFacts:
    return ScanFacts(
        scan=key,
        path=path,
        kind="ct",
        format="Data Exchange",
        state="counts",
        shape=(181, slices, 640),
        full_shape=(181, slices, 640),
        recipe=Recipe(),
        slices=slices,
        geometry=(),
        matched=(),
        warnings=(),
        methods=("fbp", "cgls", "tv", "deq"),
    )


def result(run: str, slices: int = 5, outcome: str = "direct", first: int = 0) -> ResultFacts:
    return ResultFacts(
        result=run,
        scan="scan-1",
        method="fbp",
        label="FBP",
        shape=(slices, 2, 3),
        first_slice=first,
        voxel_mm=(1.0, 1.0, 1.0),
        calibrated=True,
        unit="1/mm",
        outcome=outcome,
        iterations=1,
        data_residual=0.1,
        seconds=1.0,
        low=0.0,
        high=1.0,
    )


def started(run: str, method: str = "fbp", preview: int = 2, model: str | None = None) -> Started:
    settings_ = ReconstructSettings(method=method, model=model)
    return Started(run=run, scan="scan-1", settings=settings_, preview_slice=preview, total=10)


def step(run: str, number: int) -> Step:
    return Step(run=run, step=number, data_residual=1.0 / number, fixed_point_residual=0.5 / number)


def slice_of(run: str, index: int, number: int | None = None) -> Slice:
    return Slice(result=run, index=index, step=number, low=0.0, high=1.0)


def play(state: State, *events: tuple[int, Event | EngineLost]) -> State:
    for job, event in events:
        state = reduce(state, job, event, PIXELS if isinstance(event, Slice) else None)
    return state


def with_job(state: State, job: int, kind: str = "reconstruct") -> State:
    return change.add_job(state, Job(id=job, kind=kind, title=f"job {job}"))


def opened() -> State:
    return play(with_job(State(), 1, "open"), (0, READY), (1, Opened(facts=scan())), (1, Finished(seconds=2.0)))


def with_result() -> State:
    """FBP of five slices in pane 0, its slice 2 shown."""
    state = with_job(opened(), 2)
    state = play(state, (2, started("run-1")), (2, Reconstructed(facts=result("run-1"))), (2, Finished()))
    number, wish = unasked(state)[0]
    state = change.set_asked(state, number, 3, wish)
    return play(state, (3, slice_of("run-1", 2)), (3, Finished()))


def test_opened_scan_is_selected_at_its_middle_slice() -> None:
    state = opened()
    assert state.scan == "scan-1"
    assert state.slice_index == 2
    job = find_job(state, 1)
    assert job is not None
    assert (job.phase, job.seconds) == (JobPhase.DONE, 2.0)
    assert "Data Exchange" in job.message


def test_same_path_replaces_the_entry_and_keeps_slice_runs_and_selection_when_reopened() -> None:
    state = change.set_slice(with_result(), 4)
    state = play(with_job(state, 9, "reopen"), (9, Opened(facts=scan("scan-1#2"))))
    assert [s.scan for s in state.scans] == ["scan-1#2"]
    assert state.scan == "scan-1#2"
    assert state.slice_index == 4
    assert {r.scan for r in state.runs} == {"scan-1#2"}


def test_reopening_another_scan_leaves_the_selection() -> None:
    state = play(with_job(opened(), 5, "reopen"), (5, Opened(facts=scan("scan-7", "/data/other.h5", 9))))
    assert (state.scan, state.slice_index, len(state.scans)) == ("scan-1", 2, 2)


def test_labels_are_names_for_people_and_unique() -> None:
    state = opened()
    for number, (method, model) in enumerate(
        [
            ("fbp", None),
            ("fbp", None),
            ("sense", None),
            ("deq", None),
            ("deq", "a"),
            ("deq", "b"),
            ("new", None),
        ]
    ):
        state = play(state, (9, started(f"run-{number}", method, model=model)))
    assert [r.label for r in state.runs] == [
        "FBP",
        "FBP #2",
        "CG-SENSE",
        "Equilibrium",
        "Equilibrium (adapted)",
        "Equilibrium (adapted) #2",
        "new",
    ]


def test_labels_say_what_part_of_the_scan_was_used() -> None:
    tv = started("run-1", "tv")
    sense = started("run-2", "sense")
    state = play(
        opened(),
        (2, msgspec.structs.replace(tv, settings=ReconstructSettings(method="tv", views_every=3))),
        (3, msgspec.structs.replace(sense, settings=ReconstructSettings(method="sense", accelerate=4))),
    )
    assert [run.label for run in state.runs] == ["TV, 1/3 views", "CG-SENSE, 4x"]


def test_first_analytic_image_takes_pane_0_and_others_the_next_place() -> None:
    state = play(opened(), (2, started("run-1")))
    assert [p.run for p in state.panes] == ["run-1", None]
    state = play(state, (3, started("run-2", "tv")))
    assert [p.run for p in state.panes] == ["run-1", "run-2"]
    # the active pane shows the analytic image, which stays
    state = play(state, (4, started("run-3", "deq")))
    assert [p.run for p in state.panes] == ["run-1", "run-3"]
    state = play(change.set_pane_count(state, 3), (5, started("run-4", "cgls")))
    assert state.panes[0].run == "run-1"
    assert "run-4" in [p.run for p in state.panes]


def test_new_run_goes_to_the_active_pane_when_none_is_empty() -> None:
    state = play(opened(), (2, started("run-1")), (3, started("run-2", "tv")))
    state = change.set_pane_count(state, 3)
    state = play(state, (4, started("run-3", "cgls")))
    state = play(change.set_active_pane(state, 1), (5, started("run-4", "deq")))
    assert [p.run for p in state.panes] == ["run-1", "run-4", "run-3"]


def test_new_run_takes_the_only_pane_even_from_the_analytic_image() -> None:
    state = change.set_pane_count(play(opened(), (2, started("run-1"))), 1)
    state = play(state, (3, started("run-2", "tv")))
    assert [p.run for p in state.panes] == ["run-2"]


def test_run_of_another_scan_takes_panes_of_the_old_scan_and_keeps_their_picture() -> None:
    state = with_result()
    state = play(with_job(state, 8, "open"), (8, Opened(facts=scan("scan-2", "/data/b.h5"))))
    assert state.panes[0].picture is not None
    other = Started(run="run-5", scan="scan-2", settings=ReconstructSettings(method="fbp"), preview_slice=2, total=1)
    state = play(state, (9, other))
    assert state.panes[0].run == "run-5"
    assert state.panes[0].picture is not None
    assert state.panes[0].picture.run == "run-1"


def test_pane_follows_the_newest_iterate_and_then_the_result() -> None:
    state = play(with_job(opened(), 2), (2, started("run-1", "tv")))
    assert wanted(state, state.panes[0]) is None
    state = play(state, (2, step("run-1", 1)), (2, step("run-1", 2)))
    assert wanted(state, state.panes[0]) == Wish("run-1", 2, 2)
    state = play(state, (2, Reconstructed(facts=result("run-1"))))
    assert wanted(state, state.panes[0]) == Wish("run-1", 2, None)


def test_iterates_are_wanted_on_the_preview_slice_only() -> None:
    state = play(opened(), (2, started("run-1", "tv")), (2, step("run-1", 1)))
    state = change.show_run(state, 0, "run-1", 1)
    elsewhere = change.set_slice(state, 4)
    assert wanted(elsewhere, elsewhere.panes[0]) is None
    finished = play(elsewhere, (2, Reconstructed(facts=result("run-1"))))
    assert wanted(finished, finished.panes[0]) == Wish("run-1", 4, None)
    back = change.set_slice(finished, 2)
    assert wanted(back, back.panes[0]) == Wish("run-1", 2, 1)


@pytest.mark.parametrize(("index", "expected"), [(0, None), (1, 1), (3, 3), (4, None)])
def test_slice_outside_the_result_is_not_wanted(index: int, expected: int | None) -> None:
    state = play(opened(), (2, started("run-1")), (2, Reconstructed(facts=result("run-1", 3, first=1))))
    state = change.set_slice(state, index)
    wish = wanted(state, state.panes[0])
    assert (None if wish is None else wish.index) == expected


def test_slice_that_is_no_longer_wanted_is_dropped_and_the_newest_wish_asked_next() -> None:
    state = change.set_slice(with_result(), 3)
    assert unasked(state) == ((0, Wish("run-1", 3, None)),)
    state = change.set_asked(state, 0, 7, Wish("run-1", 3, None))
    state = change.set_slice(state, 4)
    assert unasked(state) == ()
    state = play(state, (7, slice_of("run-1", 3)))
    picture = state.panes[0].picture
    assert picture is not None
    assert picture.index == 2
    assert unasked(state) == ((0, Wish("run-1", 4, None)),)


def test_iterate_that_is_not_quite_the_newest_is_shown() -> None:
    state = play(opened(), (2, started("run-1", "tv")), (2, step("run-1", 1)))
    state = change.set_asked(state, 0, 7, Wish("run-1", 2, 1))
    state = play(state, (2, step("run-1", 2)), (7, slice_of("run-1", 2, 1)))
    picture = state.panes[0].picture
    assert picture is not None
    assert picture.step == 1
    assert unasked(state) == ((0, Wish("run-1", 2, 2)),)


def test_nearest_iterate_answers_the_wish_for_good() -> None:
    state = play(opened(), (2, started("run-1", "tv")), (2, step("run-1", 1)), (2, step("run-1", 2)))
    state = change.show_run(state, 0, "run-1", 2)
    state = change.set_asked(state, 0, 7, Wish("run-1", 2, 2))
    state = play(state, (7, slice_of("run-1", 2, 1)), (7, Finished()))
    assert state.panes[0].picture is not None
    assert unasked(state) == ()


def test_failed_slice_is_not_asked_for_again_and_is_no_notice() -> None:
    state = change.set_slice(with_result(), 3)
    state = change.set_asked(state, 0, 7, Wish("run-1", 3, None))
    state = play(state, (7, Failed(kind="bad-input", message="gone")))
    assert unasked(state) == ()
    assert state.notices == ()
    assert state.panes[0].picture is not None


def test_job_ends_once() -> None:
    state = play(with_job(opened(), 2), (2, Working(stage="read", done=1, total=4)), (2, Finished(seconds=3.0)))
    later = play(
        state,
        (2, Failed(kind="internal", message="late")),
        (2, Finished(cancelled=True)),
        (2, Working(stage="read", done=2, total=4)),
    )
    assert later.jobs == state.jobs
    assert later.notices == state.notices


def test_cancel_is_shown_until_the_job_ends() -> None:
    state = change.set_cancelling(with_job(opened(), 2), 2)
    state = play(state, (2, Working(stage="read", done=1, total=4)))
    job = find_job(state, 2)
    assert job is not None
    assert job.phase is JobPhase.CANCELLING
    job = find_job(play(state, (2, Finished(cancelled=True))), 2)
    assert job is not None
    assert job.phase is JobPhase.CANCELLED


def test_a_failure_names_the_file_once_and_steps_as_people_call_them() -> None:
    state = change.add_job(State(), Job(id=2, kind="open", title="Open my scan.h5"))
    state = play(state, (2, Failed(kind="bad-input", message="my scan.h5: the numbers are counts", hint="Add 'log'.")))
    assert state.notices[-1].text == "Open my scan.h5: the numbers are counts. Add “Negative logarithm”."
    assert change.sentence("after step 2 (dead-pixels)") == "after step 2 (Dead pixels)"
    assert change.sentence("Is that so?", "No.") == "Is that so? No."


def test_failed_job_tells_what_and_the_way_out() -> None:
    failure = Failed(kind="bad-input", message="a.h5: 3 angles", hint="Give 4.", details="trace")
    state = play(with_job(State(), 2, "open"), (2, failure))
    job = find_job(state, 2)
    assert job is not None
    assert (job.phase, job.message, job.hint, job.details) == (
        JobPhase.FAILED,
        "a.h5: 3 angles",
        "Give 4.",
        "trace",
    )
    assert state.notices[-1].severity == "error"
    assert "a.h5: 3 angles. Give 4." in state.notices[-1].text


def test_lost_engine_fails_jobs_and_keeps_pictures_and_curves() -> None:
    state = with_result()
    state = play(with_job(state, 4), (4, started("run-2", "tv")), (4, step("run-2", 1)))
    state = change.add_training(with_job(state, 5, "adapt"), Training(job=5, scans=("scan-1",), out="w"))
    before = state
    state = play(state, (0, EngineLost("the engine was killed (SIGKILL)", ("a", "b"), False)))
    assert state.engine.phase is EnginePhase.RESTARTING
    assert "SIGKILL" in state.engine.cause
    for number in (4, 5):
        job = find_job(state, number)
        assert job is not None
        assert job.phase is JobPhase.FAILED
        assert "SIGKILL" in job.message
    assert not any(run.held for run in state.runs)
    assert [run.steps for run in state.runs] == [run.steps for run in before.runs]
    assert [p.picture for p in state.panes] == [p.picture for p in before.panes]
    assert all(t.finished for t in state.trainings)
    notice = state.notices[-1]
    assert (notice.severity, notice.details) == ("error", "a\nb")
    assert unasked(state) == ()


def test_expected_end_of_the_engine_is_no_news() -> None:
    state = play(opened(), (0, EngineLost("the engine has ended", (), True)))
    assert state.engine.phase is EnginePhase.STOPPED
    assert state.notices == ()


def test_training_terms_stay_as_long_as_the_steps() -> None:
    state = change.add_training(with_job(opened(), 2, "adapt"), Training(job=2, scans=("scan-1",), out="w"))

    def trained(number: int, **terms: float) -> Trained:
        return Trained(
            step=number,
            total=5,
            terms=tuple(terms.items()),
            forward_steps=4.0,
            backward_steps=5.0,
            seconds=float(number),
        )

    state = play(state, (2, trained(1, sum=2.0, data=1.0)), (2, trained(2, sum=1.0, equivariance=0.5)))
    training = state.trainings[0]
    assert training.steps == (1, 2)
    assert all(len(values) == 2 for _, values in training.terms)
    assert training.terms[0] == ("sum", (2.0, 1.0))
    job = find_job(state, 2)
    assert job is not None
    assert (job.done, job.total) == (2, 5)
    tuned = Tuned(path="/out/w.safetensors", steps=2, seconds=3.0, losses=(2.0, 1.0), stopped=False)
    state = play(state, (2, tuned), (2, tuned), (2, Finished()))
    assert state.models == ("/out/w.safetensors",)
    assert state.trainings[0].finished


def test_advice_is_shown_as_a_warning_and_ends_nothing() -> None:
    state = play(with_job(State(), 6, "finetune"), (6, Advice(text="The group flip brings no information.")))
    assert [(notice.severity, notice.text) for notice in state.notices] == [
        ("warning", "The group flip brings no information.")
    ]
    job = find_job(state, 6)
    assert job is not None
    assert not job.message


def test_export_says_what_was_written() -> None:
    state = with_job(with_result(), 6, "export")
    state = play(state, (6, Exported(path="/out", files=("a", "b"), bytes=3_000_000)), (6, Finished()))
    job = find_job(state, 6)
    assert job is not None
    assert "2 files, 3.0 MB" in job.message
    assert "/out" in state.notices[-1].text


def test_notice_numbers_are_never_used_twice() -> None:
    state = change.add_notice(State(), "info", "one")
    state = change.dismiss_notice(state, state.notices[0].number)
    state = change.add_notice(change.add_notice(state, "info", "two"), "error", "two")
    assert [(n.number, n.severity) for n in state.notices] == [(3, "error")]


def test_wishes_are_limited() -> None:
    state = opened()
    assert change.set_slice(state, 99).slice_index == 4
    assert change.set_slice(state, -1).slice_index == 0
    assert len(change.set_pane_count(state, 99).panes) == 6
    assert len(change.set_pane_count(state, 0).panes) == 1
    assert change.set_active_pane(state, 9).active_pane == 1
    assert change.show_run(state, 9, None) is state
    assert change.show_run(state, 0, "no such run") is state


def test_selecting_a_scan_shows_its_runs() -> None:
    state = play(with_result(), (4, started("run-2", "tv")))
    state = play(with_job(state, 8, "open"), (8, Opened(facts=scan("scan-2", "/data/b.h5", 9))))
    state = change.select_scan(state, "scan-1")
    assert (state.scan, state.slice_index) == ("scan-1", 2)
    assert [p.run for p in state.panes] == ["run-1", "run-2"]
    state = change.select_scan(state, "scan-2")
    assert (state.slice_index, [p.run for p in state.panes]) == (4, [None, None])


def test_forgotten_run_leaves_the_panes() -> None:
    state = change.forget_run(with_result(), "run-1")
    assert find_run(state, "run-1") is None
    assert state.panes[0] == Pane()


def test_jobs_are_stamped_when_they_begin_and_when_they_end_without_a_duration() -> None:
    state = play(with_job(State(), 2), (2, Working(stage="read", done=1, total=4)))
    state = change.stamp(state, 100.0)
    assert change.stamp(state, 101.0) is state
    state = change.stamp(play(state, (0, EngineLost("gone", (), False))), 103.0)
    job = find_job(state, 2)
    assert job is not None
    assert (job.started, job.seconds) == (100.0, 3.0)


RUNS = st.sampled_from(["run-1", "run-2", "run-3"])
JOBS = st.integers(0, 12)
NUMBERS = st.integers(1, 6)
EVENTS: st.SearchStrategy[Event | EngineLost] = st.one_of(
    st.just(READY),
    st.just(STATUS),
    st.builds(lambda key, path: Opened(facts=scan(key, path)), st.sampled_from(["scan-1", "scan-2"]), RUNS),
    st.builds(lambda n: Working(stage="read", done=n, total=6), NUMBERS),
    st.builds(started, RUNS, st.sampled_from(["fbp", "tv", "deq"]), st.integers(0, 4)),
    st.builds(step, RUNS, NUMBERS),
    st.builds(lambda run: Reconstructed(facts=result(run)), RUNS),
    st.builds(slice_of, RUNS, st.integers(0, 4), st.one_of(st.none(), NUMBERS)),
    st.builds(lambda cancelled: Finished(cancelled=cancelled), st.booleans()),
    st.just(Failed(kind="internal", message="m")),
    st.builds(lambda expected: EngineLost("gone", (), expected), st.booleans()),
    st.builds(
        lambda n: Trained(step=n, total=6, terms=(("sum", 1.0),), forward_steps=1.0, backward_steps=1.0, seconds=1.0),
        NUMBERS,
    ),
    st.just(Tuned(path="w", steps=1, seconds=1.0, losses=(), stopped=True)),
    st.just(Advice(text="a")),
    st.just(Exported(path="x", files=("x",), bytes=1)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(JOBS, EVENTS), max_size=40))
def test_no_sequence_of_events_blanks_a_picture_or_ends_a_job_twice(
    events: list[tuple[int, Event | EngineLost]],
) -> None:
    state = with_result()
    state = change.add_training(with_job(state, 5, "adapt"), Training(job=5, scans=("scan-1",), out="w"))
    for number in (6, 7, 8):
        state = with_job(state, number)
    ends: dict[int, JobPhase] = {job.id: job.phase for job in state.jobs if not job.active}
    asked = 20
    for job, event in events:
        pixels: Pixels | None = PIXELS if isinstance(event, Slice) else None
        before = state
        state = reduce(state, job, event, pixels)
        for pane, earlier in zip(state.panes, before.panes, strict=True):
            assert pane.picture is not None or earlier.picture is None
        for one in state.jobs:
            if one.id in ends:
                assert one.phase is ends[one.id]
            elif not one.active:
                ends[one.id] = one.phase
        for run in state.runs:
            assert len(run.steps) == len(run.data_residuals) == len(run.fixed_point_residuals)
            assert list(run.steps) == sorted(set(run.steps))
        assert len({run.label for run in state.runs}) == len(state.runs)
        assert 0 <= state.active_pane < len(state.panes)
        for number, wish in unasked(state):
            asked += 1
            state = change.set_asked(state, number, asked % 13, wish)
    lost = reduce(state, 0, EngineLost("gone", (), False), None)
    assert not change.active_jobs(lost)


def test_picture_shares_the_pixels_of_the_event() -> None:
    picture = with_result().panes[0].picture
    assert picture is not None
    assert picture.pixels is PIXELS


def test_run_is_frozen() -> None:
    run = with_result().runs[0]
    assert isinstance(run, Run)
    with pytest.raises(AttributeError):
        run.label = "x"  # type: ignore[misc]
    assert replace(run, label="x").label == "x"


def test_the_same_slice_is_shown_of_results_with_another_selection_of_rows() -> None:
    whole = msgspec.structs.replace(scan(slices=100), methods=("fbp",))
    rows = Selection(rows=Span(first=40, last=80, step=2), bin=2)
    part = msgspec.structs.replace(whole, scan="scan-2", shape=(181, 10, 320), slices=10, recipe=Recipe(selection=rows))
    state = play(with_job(State(), 1, "open"), (1, Opened(facts=whole)), (1, Finished()))
    state = play(with_job(state, 2), (2, started("a")), (2, Reconstructed(facts=result("a", 100))), (2, Finished()))
    # rows 60 to 63 of the file, of which 60 and 62 are put together
    state = change.set_slice(state, 61)
    state = play(with_job(state, 3, "open"), (3, Opened(facts=part)), (3, Finished()))
    assert state.slice_index == 5
    assert wanted(state, Pane(run="a")) == Wish("a", 61, None)
    made = msgspec.structs.replace(started("b"), scan="scan-2")
    facts = msgspec.structs.replace(result("b", 10), scan="scan-2")
    state = play(with_job(state, 4), (4, made), (4, Reconstructed(facts=facts)), (4, Finished()))
    assert wanted(state, Pane(run="b")) == Wish("b", 5, None)
    back = msgspec.structs.replace(whole, scan="scan-3")
    state = play(with_job(state, 5, "open"), (5, Opened(facts=back)), (5, Finished()))
    assert state.slice_index == 61
    assert wanted(state, Pane(run="b")) == Wish("b", 5, None)
    # a slice that the selection left out is not shown
    state = change.set_slice(state, 10)
    assert wanted(state, Pane(run="b")) is None
    assert wanted(state, Pane(run="a")) == Wish("a", 10, None)


def test_what_a_scan_lacks_is_kept_for_opening_only() -> None:
    needed = Needed(path="/data/x.h5", recipe=Recipe(), missing=("angles",), sources=(), message="no angles")
    assert play(State(), (7, needed)).needed is None
    state = play(with_job(State(), 1, "open"), (1, needed), (1, Failed(kind="bad-input", message="no angles")))
    assert state.needed == needed
    # another scan that opens leaves it, the scan itself ends it
    state = play(with_job(state, 2, "open"), (2, Opened(facts=scan())))
    assert state.needed == needed
    assert play(with_job(state, 3, "open"), (3, Opened(facts=scan("scan-2", "/data/x.h5")))).needed is None
