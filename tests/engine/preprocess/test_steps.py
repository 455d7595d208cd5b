"""Steps of a recipe: their order, their effect, and that rows do not depend on which others are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess import chain
from equipoise_engine.preprocess.attenuation import attenuation, check_steps, default_steps, prepare, stages
from equipoise_engine.recipe import (
    CT_STEPS,
    AirNormalisation,
    BeamHardening,
    CompressCoils,
    DeadPixels,
    FlatField,
    NegativeLog,
    PhaseRetrieval,
    Recipe,
    Rings,
    Step,
    Tilt,
    Zingers,
)

VIEWS, ROWS, COLUMNS = 24, 150, 60
EVERYTHING = (
    FlatField(average="median"),
    DeadPixels(hot_above=25.0),
    Zingers(),
    PhaseRetrieval(delta_beta=50.0, pixel_mm=0.01),
    Tilt(angle_deg=1.5),
    AirNormalisation(columns=4),
    NegativeLog(),
    BeamHardening(coefficients=(1.0, 0.05)),
    Rings(size=5),
)


class Watched:
    """An array that remembers which rows were read."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.rows: set[int] = set()

    def __getitem__(self, key: Any) -> np.ndarray:
        self.rows |= set(range(self.shape[1])[key[1]])
        return self._values[key]


def _truth() -> np.ndarray:
    view, row, column = np.meshgrid(np.arange(VIEWS), np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    body = np.sqrt(np.maximum(20.0**2 - (column - 29.5 - 4 * np.sin(view / 4)) ** 2, 0)) / 20
    return body * (1 + 0.2 * np.sin(row / 7))


def _scan(**changes: Any) -> CtAcquisition:
    random = np.random.default_rng(0)
    gain = 20_000 * (1 + 0.2 * random.random((ROWS, COLUMNS)))
    flats = random.poisson(gain, (5, ROWS, COLUMNS)).astype(np.float32) + 100
    projections = random.poisson(gain * np.exp(-_truth())).astype(np.float32) + 100
    return replace(
        CtAcquisition(
            path=Path("made.h5"),
            format="made",
            state=DataState.COUNTS,
            projections=projections,
            geometry=ParallelBeam(np.linspace(0, np.pi, VIEWS, endpoint=False)),
            flats=flats,
            darks=np.full((3, ROWS, COLUMNS), 100, dtype=np.float32),
        ),
        **changes,
    )


def _with(scan: CtAcquisition, *steps: Step) -> CtAcquisition:
    return replace(scan, recipe=Recipe(steps=steps))


def _damaged(scan: CtAcquisition) -> CtAcquisition:
    projections = np.array(scan.projections)
    random = np.random.default_rng(1)
    place = random.integers(VIEWS, size=60), random.integers(ROWS, size=60), random.integers(COLUMNS, size=60)
    projections[place] += 20_000
    projections[3, 70, 20] = np.nan
    projections[7, 60:90] = np.inf
    projections[:, 72, 33] += 8_000
    flats = np.array(scan.flats)
    flats[:, 75, 31] = 0
    return replace(scan, projections=projections, flats=flats)


# --- order ---------------------------------------------------------------------------------------


def test_the_usual_steps_are_what_is_done_without_a_recipe() -> None:
    scan = _scan()
    assert default_steps(scan) == (FlatField(), DeadPixels(), NegativeLog())
    assert np.array_equal(attenuation(scan, slice(3, 5)), attenuation(_with(scan, *default_steps(scan)), slice(3, 5)))
    assert default_steps(_scan(state=DataState.TRANSMISSION)) == (NegativeLog(),)
    assert default_steps(_scan(state=DataState.ATTENUATION)) == ()
    with pytest.raises(BadInput, match=r"made.h5: k-space cannot be turned into attenuation"):
        default_steps(_scan(state=DataState.KSPACE))


@pytest.mark.parametrize(
    ("state", "steps", "message"),
    [
        ("counts", (NegativeLog(),), r"step 1 \(log\) takes transmission; the numbers are counts$"),
        (
            "attenuation",
            (Rings(), BeamHardening(), NegativeLog()),
            r"step 3 \(log\) takes transmission; the numbers are attenuation already",
        ),
        ("transmission", (FlatField(), NegativeLog()), r"step 1 \(flat-field\) takes counts; .* transmission already"),
        ("counts", (Zingers(), DeadPixels()), r"step 2 \(dead-pixels\) takes transmission or attenuation; .* counts$"),
        ("transmission", (Rings(), NegativeLog()), r"step 1 \(rings\) takes attenuation; .* are transmission$"),
        ("counts", (FlatField(), DeadPixels()), r"after step 2 \(dead-pixels\) the numbers are transmission"),
        ("counts", (), "without any step the numbers are counts"),
        ("counts", (FlatField(), NegativeLog(), CompressCoils()), r"step 3 \(compress\) is one for k-space"),
        ("transmission", (Zingers(size=4), NegativeLog()), r"step 1 \(zingers\): the size 4 is even"),
        ("transmission", (PhaseRetrieval(), NegativeLog()), "phase retrieval needs the size of a pixel"),
        ("attenuation", (AirNormalisation(columns=30),), r"step 1 \(air\): 30 columns of air at both leave none of 60"),
        ("attenuation", (BeamHardening(coefficients=(1.0, np.inf)),), "a coefficient is not finite"),
    ],
)
def test_an_impossible_order_is_told(state: str, steps: tuple[Step, ...], message: str) -> None:
    scan = _scan(state=DataState(state))
    with pytest.raises(BadInput, match=message) as told:
        check_steps(scan, steps)
    assert told.value.message.startswith("made.h5: ")
    with pytest.raises(BadInput, match=message):
        attenuation(_with(scan, *steps), slice(0, 1))


def test_a_single_row_is_not_turned() -> None:
    scan = _scan(projections=np.ones((VIEWS, 1, COLUMNS)), state=DataState.ATTENUATION)
    with pytest.raises(BadInput, match=r"step 1 \(tilt\): a single detector row cannot be turned"):
        check_steps(scan, (Tilt(angle_deg=1.0),))
    check_steps(scan, (Tilt(),))


def test_every_kind_of_step_has_its_place() -> None:
    assert {type(step) for step in EVERYTHING} == set(CT_STEPS)
    check_steps(_scan(), EVERYTHING)


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        *((FlatField(), DeadPixels(), step, NegativeLog()) for step in EVERYTHING[2:6]),
        (Zingers(), FlatField(), DeadPixels(hot_above=25.0), NegativeLog(), Rings(size=5)),
        (FlatField(), NegativeLog(), Rings(size=5), Zingers(), Tilt(angle_deg=-2.0), DeadPixels(hot_above=25.0)),
        EVERYTHING,
    ],
)
@pytest.mark.parametrize("flats", [True, False])
def test_rows_do_not_depend_on_others(steps: tuple[Step, ...], flats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = _with(_damaged(_scan()), *steps)
    scan = scan if flats else replace(scan, flats=None)
    whole = attenuation(scan, slice(None))
    assert np.isfinite(whole).all()
    # parts of the views at a time make no difference either
    monkeypatch.setattr(chain, "BLOCK_BYTES", 40_000)
    for rows in (slice(0, 1), slice(74, 76), slice(20, 149, 64), slice(149, None)):
        _assert_like(attenuation(scan, rows), whole[rows])
    _assert_like(attenuation(scan, slice(76, 73, -1)), whole[76:73:-1])


def _assert_like(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    # what is sorted by the removal of rings may change places where values differ in the last bits only
    assert np.quantile(np.abs(one - other), 0.995) < 1e-4
    assert np.abs(one - other).max() < 5e-3


def test_no_more_rows_are_read_than_are_needed() -> None:
    scan = _scan()
    for step, most in ((Zingers(size=5), 5), (PhaseRetrieval(delta_beta=1.0, pixel_mm=0.01), 9), (Tilt(), 1)):
        watched = Watched(np.asarray(scan.projections))
        attenuation(_with(replace(scan, projections=watched), FlatField(), step, NegativeLog()), slice(70, 71))
        assert 70 in watched.rows
        assert len(watched.rows) <= most
    watched = Watched(np.asarray(scan.projections))
    spread = _with(replace(scan, projections=watched), FlatField(), Zingers(), NegativeLog())
    assert attenuation(spread, slice(10, None, 40)).shape[0] == 4
    assert sorted(watched.rows) == [9, 10, 11, 49, 50, 51, 89, 90, 91, 129, 130, 131]


def test_the_scan_is_not_changed() -> None:
    scan = _scan(projections=_truth().astype(np.float32)[:, :1], state=DataState.ATTENUATION)
    before = np.array(scan.projections)
    attenuation(_with(scan, BeamHardening(coefficients=(2.0,))), slice(None))
    assert np.array_equal(scan.projections, before)


# --- single steps ----------------------------------------------------------------------------------


def test_the_monitor_takes_out_what_the_beam_did() -> None:
    scan = _scan()
    beam = 1 + 0.3 * np.sin(np.arange(VIEWS))
    projections = (np.asarray(scan.projections) - 100) * beam[:, None, None] + 100
    wobbling = replace(scan, projections=projections, monitor=beam)
    steady = attenuation(scan, slice(0, 2))
    assert attenuation(wobbling, slice(0, 2)) == pytest.approx(steady, abs=1e-4)
    without = _with(wobbling, FlatField(monitor=False), NegativeLog())
    assert np.abs(attenuation(without, slice(0, 2)) - steady).max() > 0.2
    beam[5] = 0.0
    with pytest.raises(BadInput, match="the beam monitor reads 0 in view 5"):
        attenuation(replace(scan, monitor=beam), slice(0, 2))


def test_the_median_of_flats_leaves_out_a_bad_frame() -> None:
    scan = _scan()
    flats = np.array(scan.flats)
    flats[2, 4] *= 3
    scan = replace(scan, flats=flats)
    truth = _truth()[:, 4]
    assert np.abs(attenuation(scan, slice(4, 5))[0] - truth).mean() > 0.2
    assert (
        np.abs(attenuation(_with(scan, FlatField(average="median"), NegativeLog()), slice(4, 5))[0] - truth).mean()
        < 0.02
    )


def test_the_floor_is_that_of_the_step() -> None:
    scan = _scan(projections=np.full((VIEWS, 2, COLUMNS), 1e-3), state=DataState.TRANSMISSION)
    assert attenuation(_with(scan, NegativeLog(floor=0.1)), slice(0, 1)) == pytest.approx(np.log(10))
    assert prepare(_with(scan, NegativeLog(floor=0.1)), slice(0, 1)).clipped == VIEWS * COLUMNS
    assert attenuation(scan, slice(0, 1)) == pytest.approx(np.log(1e3))


def test_a_share_of_the_beam_makes_an_element_dead() -> None:
    scan = _scan()
    flats = np.array(scan.flats)
    flats[:, 9, 9] = 100 + 2000
    scan = replace(scan, flats=flats)
    assert prepare(scan, slice(9, 10)).repaired_pixels == 0
    done = prepare(_with(scan, FlatField(), DeadPixels(dead_below=0.5), NegativeLog()), slice(9, 10))
    assert done.repaired_pixels == 1
    assert done.sinograms[0, :, 9] == pytest.approx(done.sinograms[0, :, [8, 10]].mean(axis=0), abs=1e-5)


def test_what_grows_beyond_all_bounds_is_told() -> None:
    scan = _with(_scan(), FlatField(), NegativeLog(), BeamHardening(coefficients=(1.0, 3e38, 3e38)))
    with pytest.raises(BadInput, match="values are missing"):
        attenuation(scan, slice(0, 1))
    dark = _scan(projections=np.zeros((VIEWS, 1, COLUMNS)), state=DataState.TRANSMISSION)
    with pytest.raises(BadInput, match="1440 of 1440 values are missing"):
        attenuation(_with(dark, AirNormalisation(), NegativeLog()), slice(0, 1))


def test_without_dead_pixels_only_what_cannot_be_divided_is_made_up() -> None:
    scan = _scan()
    flats = np.array(scan.flats)
    flats[:, 9, 9] = 0
    done = prepare(_with(replace(scan, flats=flats), FlatField(), NegativeLog()), slice(9, 10))
    assert done.repaired_pixels == 1
    assert np.isfinite(done.sinograms).all()


def test_what_was_done_is_counted_once() -> None:
    scan = _with(_damaged(_scan()), *EVERYTHING)
    done = prepare(scan, slice(70, 80))
    counts = {(change.step, change.text.split(",")[0]): change.count for change in done.changes}
    # one view of ten rows, and the value in view 3
    assert counts["", "values that are not finite"] == 10 * COLUMNS + 1
    assert counts["dead-pixels", "detector elements"] == 2
    assert counts["log", "values below the smallest transmission"] == 0
    assert 0 < counts["rings", "values changed by more than a hundredth of their spread"] < 10 * VIEWS * COLUMNS
    every = prepare(scan, slice(None))
    specks = next(change.count for change in every.changes if change.step == "zingers")
    assert 45 <= specks <= 62
    assert (every.repaired_pixels, every.clipped) == (30 * COLUMNS + 1 + 2, 0)


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_between_steps() -> None:
    scan = _with(_damaged(_scan()), *EVERYTHING)
    raw, state = stages(scan, 0, view=3)
    assert state is DataState.COUNTS
    assert np.array_equal(raw, np.asarray(scan.projections)[3], equal_nan=True)
    assert np.isnan(raw[70, 20])
    meant = [DataState.COUNTS, *[DataState.TRANSMISSION] * 6, *[DataState.ATTENUATION] * 3]
    for stage, state in enumerate(meant):
        projection, of_view = stages(scan, stage, view=5)
        sinogram, of_row = stages(scan, stage, row=71)
        assert (of_view, of_row) == (state, state)
        assert (projection.shape, sinogram.shape) == ((ROWS, COLUMNS), (VIEWS, COLUMNS))
        assert projection.dtype == sinogram.dtype == np.float32
        assert projection[71] == pytest.approx(sinogram[5], rel=1e-3, abs=1e-3), stage
    last, _ = stages(scan, None, row=71)
    assert last == pytest.approx(attenuation(scan, slice(71, 72))[0], abs=1e-5)


def test_a_picture_of_a_dead_row_is_shown() -> None:
    scan = _scan()
    flats = np.array(scan.flats)
    flats[:, 9] = 0
    picture, _ = stages(replace(scan, flats=flats), 3, view=0)
    assert np.isnan(picture[9]).all()
    assert np.isfinite(np.delete(picture, 9, axis=0)).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stage": 4, "view": 0}, "there is no stage 4; the preparation has 3 steps"),
        ({"stage": 0}, "that of a view or of a row"),
        ({"stage": 0, "view": 0, "row": 0}, "that of a view or of a row"),
        ({"stage": None, "view": VIEWS}, "there is no view 24; the scan has 24"),
        ({"stage": None, "row": -1}, "there is no row -1"),
    ],
)
def test_what_is_not_there_cannot_be_shown(asked: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        stages(_scan(), **asked)  # type: ignore[arg-type]


# --- a measured scan ---------------------------------------------------------------------------------


def test_all_steps_on_a_synchrotron_scan(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "i13_24737_nxtomo.nxs")
    assert isinstance(scan, CtAcquisition)
    plain = attenuation(scan, slice(60, 62))
    careful = _with(scan, FlatField(), DeadPixels(hot_above=20.0), Zingers(), NegativeLog())
    done = prepare(careful, slice(None))
    share = sum(change.count for change in done.changes if change.step == "zingers") / done.sinograms.size
    assert share < 1e-4
    assert np.abs(done.sinograms[60:62] - plain).mean() < 1e-3
    phase = _with(scan, FlatField(), DeadPixels(), PhaseRetrieval(pixel_mm=0.004), NegativeLog())
    smooth = attenuation(phase, slice(60, 62))
    assert smooth.mean() == pytest.approx(plain.mean(), rel=0.05)
    assert np.diff(smooth, axis=2).std() < 0.6 * np.diff(plain, axis=2).std()
