"""From counts to attenuation: the right numbers, and repairs that are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.attenuation import attenuation, prepare, stages
from equipoise_engine.recipe import DeadPixels, FlatField, NegativeLog, Recipe

VIEWS, ROWS, COLUMNS = 20, 4, 40


def _truth() -> np.ndarray:
    """Return smooth line integrals `(view, row, column)`."""
    view, row, column = np.meshgrid(np.arange(VIEWS), np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    return 1.0 + 0.5 * np.sin(column / 9 + view / 15) + 0.1 * row


def _scan(
    projections: np.ndarray,
    flats: np.ndarray | None = None,
    darks: np.ndarray | None = None,
    state: DataState = DataState.COUNTS,
) -> CtAcquisition:
    return CtAcquisition(
        path=Path("made.h5"),
        format="made",
        state=state,
        projections=projections,
        geometry=ParallelBeam(np.linspace(0, np.pi, projections.shape[0], endpoint=False)),
        flats=flats,
        darks=darks,
    )


def _counts(dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return projections, flats and darks whose means are exact."""
    random = np.random.default_rng(0)
    dark = 50 + 5 * random.random((ROWS, COLUMNS))
    beam = 40_000 * (1 + 0.1 * random.random((ROWS, COLUMNS)))
    wobble = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])[:, None, None]
    return (dark + beam * np.exp(-_truth())).astype(dtype), dark + beam + wobble, dark + wobble / 10


def test_counts_become_line_integrals() -> None:
    result = prepare(_scan(*_counts()), slice(None))
    assert result.sinograms.shape == (ROWS, VIEWS, COLUMNS)
    assert result.sinograms.dtype == np.float32
    assert result.sinograms == pytest.approx(_truth().transpose(1, 0, 2), abs=1e-4)
    assert (result.repaired_pixels, result.clipped) == (0, 0)


def test_rows_are_chosen() -> None:
    scan = _scan(*_counts())
    whole = attenuation(scan, slice(None))
    assert np.array_equal(attenuation(scan, slice(1, 3)), whole[1:3])
    assert np.array_equal(attenuation(scan, slice(3, None)), whole[3:])
    with pytest.raises(BadInput, match="no slices in 4:4; the scan has 4"):
        attenuation(scan, slice(4, 9))


def test_dead_pixels_are_interpolated_and_counted() -> None:
    projections, flats, darks = _counts()
    flats[:, 1, 7] = darks[:, 1, 7].mean()  # no more than the dark
    flats[:, 2, 0] = 0.0
    flats[:, 3, 39] = np.nan
    projections[:, 1, 7] = 0.0
    result = prepare(_scan(projections, flats, darks), slice(None))
    truth = _truth().transpose(1, 0, 2)
    assert result.repaired_pixels == 3
    assert result.clipped == 0
    assert result.sinograms[1, :, 7] == pytest.approx((truth[1, :, 6] + truth[1, :, 8]) / 2, abs=1e-4)
    assert result.sinograms[2, :, 0] == pytest.approx(truth[2, :, 1], abs=1e-4)
    assert result.sinograms[3, :, 39] == pytest.approx(truth[3, :, 38], abs=1e-4)


def test_a_flat_value_that_is_not_finite_in_one_frame_is_left_out() -> None:
    projections, flats, darks = _counts()
    flats[2, 1, 5] = np.nan  # the frame whose wobble is zero
    result = prepare(_scan(projections, flats, darks), slice(None))
    assert result.repaired_pixels == 0
    assert result.sinograms == pytest.approx(_truth().transpose(1, 0, 2), abs=1e-4)


def test_transmissions_that_are_not_positive_are_clipped_and_counted() -> None:
    projections, flats, darks = _counts()
    projections[3, 0, 4] = 0.0
    projections[9, 2, 8] = -20.0
    result = prepare(_scan(projections, flats, darks), slice(None))
    assert result.clipped == 2
    assert np.isfinite(result.sinograms).all()
    # half a count of about 42 000
    assert result.sinograms[0, 3, 4] == pytest.approx(np.log(42_000 / 0.5), abs=0.1)


def test_values_that_are_not_finite_are_repaired() -> None:
    projections, flats, darks = _counts()
    projections[5, 1, 10] = np.nan
    projections[8, 2, :] = np.nan  # a view without a good value in this row
    result = prepare(_scan(projections, flats, darks), slice(None))
    truth = _truth().transpose(1, 0, 2)
    assert result.repaired_pixels == 1 + COLUMNS
    assert result.sinograms[1, 5, 10] == pytest.approx((truth[1, 5, 9] + truth[1, 5, 11]) / 2, abs=1e-4)
    assert result.sinograms[2, 8] == pytest.approx((truth[2, 7] + truth[2, 9]) / 2, abs=1e-4)


def test_too_many_values_that_are_not_finite_are_refused() -> None:
    projections, flats, darks = _counts()
    projections[2:, 3, 30:] = np.inf
    with pytest.raises(BadInput, match=r"180 of 1600 values \(11.2 %, at most 5 %.*= \(2, 3, 30\)"):
        prepare(_scan(projections, flats, darks), slice(2, 4))


def test_a_row_without_beam_is_named() -> None:
    projections, flats, darks = _counts()
    flats[:, 3, :] = 0.0
    with pytest.raises(BadInput, match="detector row 3 has no open-beam signal in any of its 40 pixels"):
        prepare(_scan(projections, flats, darks), slice(2, None))


def test_without_darks_zero_is_taken() -> None:
    projections, flats, darks = _counts()
    dark = darks.mean(axis=0)
    result = attenuation(_scan(projections - dark, flats - dark), slice(None))
    assert result == pytest.approx(_truth().transpose(1, 0, 2), abs=1e-4)


def test_without_flats_the_brightest_pixels_are_the_open_beam() -> None:
    truth = _truth()
    truth[:, :, :4] = 0.0
    result = attenuation(_scan(30_000 * np.exp(-truth)), slice(None))
    assert result == pytest.approx(truth.transpose(1, 0, 2), abs=1e-3)


def test_transmission_and_attenuation_are_taken_as_they_are() -> None:
    truth = _truth()
    through = attenuation(_scan(np.exp(-truth), state=DataState.TRANSMISSION), slice(None))
    assert through == pytest.approx(truth.transpose(1, 0, 2), abs=1e-4)
    through = attenuation(_scan(truth, state=DataState.ATTENUATION), slice(1, 2))
    assert through == pytest.approx(truth.transpose(1, 0, 2)[1:2], abs=1e-6)


def test_tooth_is_clean(shared_data: Path) -> None:
    scan = read(shared_data / "ct-tooth-dxchange" / "tooth.h5")
    assert isinstance(scan, CtAcquisition)
    result = prepare(scan, slice(None))
    assert (result.repaired_pixels, result.clipped) == (0, 0)
    assert np.abs(result.sinograms[:, :, :30]).mean() < 0.03  # air
    assert 1.8 < result.sinograms.max() < 2.1


def test_the_dead_pixel_of_the_synchrotron_scan_is_repaired(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "i13_24737_nxtomo.nxs")
    assert isinstance(scan, CtAcquisition)
    result = prepare(scan, slice(0, 2))
    assert result.repaired_pixels == 1
    assert np.array_equal(result.sinograms[0, :, 0], result.sinograms[0, :, 1])


def test_an_element_that_always_counts_the_same_is_made_up() -> None:
    projections, flats, darks = _counts()
    projections[:, 1, 12] = 9_000.0
    done = prepare(_scan(projections, flats, darks), slice(None))
    assert done.repaired_pixels == 1
    beside = _truth().transpose(1, 0, 2)[1, :, [11, 13]].mean(axis=0)
    assert done.sinograms[1, :, 12] == pytest.approx(beside, abs=1e-4)
    alone = prepare(_scan(projections, flats, darks), slice(1, 2))
    assert np.array_equal(alone.sinograms[0], done.sinograms[1])
    scan = _scan(projections, flats, darks)
    careless = replace(scan, recipe=Recipe(steps=(FlatField(), DeadPixels(still_below=0.0), NegativeLog())))
    assert prepare(careless, slice(None)).repaired_pixels == 0
    # a projection is repaired as its sinograms are
    view, _ = stages(scan, None, view=4)
    assert np.array_equal(view, done.sinograms[:, 4])


def test_an_element_that_stands_still_is_found_behind_a_monitor() -> None:
    projections, flats, darks = _counts()
    beam = np.random.default_rng(1).uniform(0.9, 1.1, VIEWS)
    projections = (projections - darks.mean(axis=0)) * beam[:, None, None] + darks.mean(axis=0)
    projections[:, 1, 12] = 9_000.0
    done = prepare(replace(_scan(projections, flats, darks), monitor=beam), slice(None))
    assert done.repaired_pixels == 1


def test_views_without_beam_are_made_up_and_counted() -> None:
    projections, flats, darks = _counts()
    random = np.random.default_rng(2)
    off = [0, 7, 8, VIEWS - 1]
    projections[off] = darks[0] + random.normal(0.0, 3.0, (len(off), *projections.shape[1:]))
    projections[9] = darks[0] + 0.3 * (projections[9] - darks[0])  # less beam is no lost beam
    scan = _scan(projections, flats, darks)
    done = prepare(scan, slice(None))
    assert done.unlit == len(off)
    said = next(change for change in done.changes if change.step == "flat-field")
    assert (said.count, said.text) == (4, "views without beam, made up from those before and after")
    assert done.repaired_pixels == 0
    assert done.clipped == 0
    assert done.sinograms[:, 0] == pytest.approx(done.sinograms[:, 1])
    assert done.sinograms[:, 7] == pytest.approx((2 * done.sinograms[:, 6] + done.sinograms[:, 9]) / 3, abs=1e-5)
    for view in (7, 8, 9):
        picture, _ = stages(scan, 1, view=view)
        assert np.isnan(picture).all() == (view in off)


def test_an_object_that_hides_the_beam_little_by_little_is_kept() -> None:
    angle = np.linspace(0, np.pi, 180, endpoint=False)
    through = np.minimum(1.2 / np.maximum(np.abs(np.cos(angle)), 1e-3), 12.0)
    projections = np.broadcast_to(40_000 * np.exp(-through)[:, None, None], (180, 2, COLUMNS)).copy()
    flats = np.full((1, 2, COLUMNS), 40_000.0)
    assert prepare(_scan(projections, flats), slice(None)).unlit == 0
