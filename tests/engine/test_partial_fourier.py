"""One side of k-space follows from the other where the phase is smooth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import j1

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.partial_fourier import (
    homodyne,
    is_partial_fourier,
    partial_fourier,
    projection_onto_convex_sets,
)
from equipoise_engine.preprocess.kspace import to_image, to_kspace


def _image(rows: int, columns: int, phase: float = 1.0) -> np.ndarray:
    """Return two coil images `(coil, y, x)` of ellipses from their exact k-space, under a smooth phase."""
    ky, kx = (np.arange(n) - n // 2 for n in (rows, columns))
    kspace = np.zeros((rows, columns), complex)
    for size, (height, width), (y, x) in (
        (1.0, (0.40, 0.34), (0.0, 0.0)),
        (-0.5, (0.12, 0.08), (0.1, 0.12)),
        (0.8, (0.03, 0.05), (-0.2, -0.1)),
    ):
        radius = 2 * np.pi * np.hypot(height * ky[:, None], width * kx[None, :])
        disc = 2 * np.pi * np.where(radius == 0, 0.5, j1(radius) / np.where(radius == 0, 1, radius))
        place = np.exp(-2j * np.pi * (ky[:, None] * y + kx[None, :] * x))
        kspace += size * height * width * disc * place * np.sqrt(rows * columns)
    real = to_image(kspace, (-2, -1)).real
    y, x = (np.arange(n) / n - 0.5 for n in (rows, columns))
    bends = phase * (2 * np.sin(2.5 * y[:, None]) + 1.5 * np.cos(3 * x[None, :] + y[:, None]))
    sensitivity = np.stack([np.exp(-(y[:, None] ** 2)) + 0 * x, np.exp(-((x - 0.3) ** 2)) + 0 * y[:, None]])
    return sensitivity * real * np.exp(1j * bends)


def _sampled(rows: int, columns: int, first: int, last: int, *, axis: int = -2) -> np.ndarray:
    """Return a mask `(ky, kx)` of the lines from `first` to `last` along an axis."""
    sampled = np.zeros((rows, columns), bool)
    if axis == -2:
        sampled[first : last + 1] = True
    else:
        sampled[:, first : last + 1] = True
    return sampled


def _error(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(image - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("lines", "first", "last", "symmetric", "missing"),
    [
        (64, 0, 40, (24, 40), range(41, 64)),
        (64, 24, 63, (24, 40), range(1, 24)),
        (65, 0, 40, (24, 40), range(41, 65)),
        (65, 26, 64, (26, 38), range(26)),
        (64, 8, 40, (24, 40), range(41, 57)),
        (64, 0, 59, (5, 59), range(60, 64)),
    ],
)
@pytest.mark.parametrize("axis", [-2, -1])
def test_the_missing_side_is_found(
    lines: int, first: int, last: int, symmetric: tuple[int, int], missing: range, axis: int
) -> None:
    shape = (lines, 12) if axis == -2 else (12, lines)
    found = partial_fourier(_sampled(*shape, first, last, axis=axis))
    assert (found.axis, found.first, found.last, found.symmetric) == (axis, first, last, symmetric)
    assert found.missing == missing
    assert found.share == pytest.approx((last - first + 1) / (last - first + 1 + len(missing)))


def _gap() -> np.ndarray:
    sampled = _sampled(64, 48, 0, 44)
    sampled[10:12] = False
    return sampled


def _corner() -> np.ndarray:
    return _sampled(64, 48, 0, 44) & _sampled(64, 48, 0, 34, axis=-1)


@pytest.mark.parametrize(
    ("sampled", "reason"),
    [
        (np.ones((64, 48), bool), "no side to fill in"),
        (np.ones((63, 48), bool), "no side to fill in"),
        (_sampled(64, 48, 1, 63), "no side to fill in"),
        (_sampled(64, 48, 16, 48), "no side to fill in"),
        (_gap(), "has gaps: 2064 of 2160"),
        (_corner(), "along both axes"),
        (_sampled(64, 48, 0, 33), "3 lines around zero"),
        (_sampled(64, 48, 0, 20), "0 lines around zero"),
        (np.zeros((64, 48), bool), "no k-space"),
    ],
)
def test_other_masks_are_refused(sampled: np.ndarray, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        partial_fourier(sampled)
    with pytest.raises(BadInput, match=reason):
        homodyne(np.ones((1, *sampled.shape), complex), sampled)
    with pytest.raises(BadInput, match=reason):
        projection_onto_convex_sets(np.ones((1, *sampled.shape), complex), sampled)


def test_projections_bear_a_phase_that_bends() -> None:
    image = _image(96, 80, phase=1.0)
    sampled = _sampled(96, 80, 0, 59)
    kspace = np.where(sampled, to_kspace(image, (-2, -1)), 0)
    filled = to_image(projection_onto_convex_sets(kspace, sampled), (-2, -1))
    assert _error(filled, image) < 0.3 * _error(to_image(kspace, (-2, -1)), image)
    assert _error(filled, image) < 0.5 * _error(homodyne(kspace, sampled), image)


CASES = {
    "first lines": ((96, 80), 0, 59, -2),
    "last lines": ((96, 80), 36, 95, -2),
    "odd": ((95, 81), 0, 58, -2),
    "columns": ((80, 96), 36, 95, -1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_both_methods_beat_zero_filling(case: str, dtype: type) -> None:
    shape, first, last, axis = CASES[case]
    image = _image(*shape, phase=0.4)
    whole = to_kspace(image, (-2, -1)).astype(dtype)
    sampled = _sampled(*shape, first, last, axis=axis)
    kspace = np.where(sampled, whole, 0).astype(dtype)
    zero_filled = _error(to_image(kspace, (-2, -1)), image)
    filled = projection_onto_convex_sets(kspace, sampled)
    assert filled.dtype == dtype
    assert np.array_equal(filled[:, sampled], whole[:, sampled])
    assert _error(to_image(filled, (-2, -1)), image) < 0.4 * zero_filled
    direct = homodyne(kspace, sampled)
    assert direct.dtype == dtype
    assert _error(direct, image) < 0.5 * zero_filled


@pytest.mark.parametrize(("rows", "first", "last"), [(97, 0, 60), (97, 40, 96), (96, 36, 95), (96, 0, 60)])
def test_an_image_without_phase_is_recovered_exactly(rows: int, first: int, last: int) -> None:
    """A positive image: the other side of k-space is the conjugate one."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:rows, :24] / rows - 0.5
    image = 3 + np.cos(9 * y) + 0.2 * random.normal(size=(1, rows, 24)) + x
    whole = to_kspace(image.astype(complex), (-2, -1))
    sampled = _sampled(rows, 24, first, last)
    if rows % 2 == 0 and first > 0:
        # the line at the edge of an even size is its own mirror image, so that nothing stands in for it
        whole[:, 0] = 0
        image = to_image(whole, (-2, -1)).real
    kspace = np.where(sampled, whole, 0)
    np.testing.assert_allclose(homodyne(kspace, sampled), image, rtol=0, atol=1e-12)
    filled = projection_onto_convex_sets(kspace, sampled, iterations=400, tolerance=1e-13)
    np.testing.assert_allclose(to_image(filled, (-2, -1)), image, rtol=0, atol=1e-8)


def test_lines_beyond_both_sides_stay_empty() -> None:
    whole = to_kspace(_image(96, 40), (-2, -1))
    sampled = _sampled(96, 40, 16, 60)
    filled = projection_onto_convex_sets(np.where(sampled, whole, 0), sampled)
    assert np.abs(filled[:, 61:81]).min() > 0
    assert np.abs(filled[:, :16]).max() < 1e-12
    assert np.abs(filled[:, 81:]).max() < 1e-12


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="0 iterations"):
        projection_onto_convex_sets(np.ones((1, 64, 8), complex), _sampled(64, 8, 0, 40), iterations=0)
    with pytest.raises(BadInput, match="does not fit"):
        homodyne(np.ones((64, 8), complex), _sampled(64, 8, 0, 40))


def test_a_measured_brain_is_completed(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    whole = np.asarray(scan.kspace[0])
    sampled = _sampled(230, 180, 85, 229)
    kspace = np.where(sampled, whole, 0).astype(np.complex64)
    filled = projection_onto_convex_sets(kspace, sampled)
    expected, zero_filled, image = (
        np.linalg.norm(to_image(data, (-2, -1)), axis=0) for data in (whole, kspace, filled)
    )
    assert _error(image, expected) < 0.92 * _error(zero_filled, expected)
    # near the centre, where there is more signal than noise, the filled lines are like the measured ones
    near = slice(70, 85), slice(60, 120)
    overlap = np.vdot(whole[:, *near], filled[:, *near])
    assert overlap.real > 0.7 * np.linalg.norm(whole[:, *near]) * np.linalg.norm(filled[:, *near])


@pytest.mark.parametrize(("first", "last"), [(0, 63), (1, 62), (1, 63), (20, 43)])
def test_a_line_without_a_mirror_image_is_no_missing_side(first: int, last: int) -> None:
    sampled = np.zeros((64, 32), dtype=np.bool_)
    sampled[first : last + 1] = True
    assert not is_partial_fourier(sampled)
