"""Bringing encoded k-space into place, against the k-space of an ellipse, which is known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import j1

from equipoise_engine.errors import BadInput
from equipoise_engine.preprocess.kspace import (
    coil_combinations,
    embedded,
    to_image,
    to_kspace,
    without_oversampling,
)


def _ellipse(
    rows: int, columns: int, centre: tuple[float, float] = (0.0, 0.0), zero: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the k-space `(ky, kx)` of an ellipse of half axes 0.3 and 0.2 of a square field of view of 64 pixels."""
    at = zero or (rows // 2, columns // 2)
    ky, kx = (np.arange(rows) - at[0])[:, None] / 64, (np.arange(columns) - at[1])[None, :] / 64
    radius = 2 * np.pi * np.hypot(0.3 * 64 * ky, 0.2 * 64 * kx)
    disc = np.where(radius == 0, 0.5, j1(radius) / np.where(radius == 0, 1, radius))
    shape = 2 * np.pi * 0.3 * 0.2 * 64 * disc
    return shape * np.exp(-2j * np.pi * (ky * centre[0] + kx * centre[1]))


def _draw(*shape: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=shape) + 1j * random.normal(size=shape)


@pytest.mark.parametrize("zero", [(32, 32), (12, 32), (30, 9), (0, 63)])
def test_an_asymmetric_echo_comes_to_its_place(zero: tuple[int, int]) -> None:
    kspace, mask = embedded(_ellipse(64, 64, zero=zero), (96, 80), zero)
    expected = _ellipse(96, 80)
    assert np.count_nonzero(mask) == np.count_nonzero(kspace != 0) > 1900
    np.testing.assert_allclose(kspace[mask], expected[mask], rtol=0, atol=1e-14)
    assert np.all(kspace[~mask] == 0)
    assert mask[48, 40]


def test_embedding_can_be_undone() -> None:
    kspace = _draw(2, 3, 20, 17).astype(np.complex64)
    larger, mask = embedded(kspace, (31, 40))
    back, whole = embedded(larger, (20, 17), sampled=mask)
    assert np.array_equal(back, kspace)
    assert back.dtype == np.complex64
    assert whole.all()
    assert mask.sum() == 20 * 17


def test_embedding_keeps_the_mask_of_an_undersampled_scan() -> None:
    sampled = np.arange(20)[:, None] % 3 == np.zeros(16)
    _, mask = embedded(_draw(1, 20, 16), (24, 16), (9, 8), sampled=sampled)
    # zero frequency was at line 9, which was sampled
    assert np.array_equal(np.flatnonzero(mask[:, 5]), 12 - 9 + np.arange(0, 20, 3))


def test_embedding_takes_three_axes() -> None:
    kspace = _draw(2, 4, 5, 6)
    larger, mask = embedded(kspace, (6, 8, 6), (0, 2, 3))
    assert np.array_equal(larger[:, 3:, 2:7], kspace[:, :3])
    assert mask.sum() == 3 * 5 * 6


@pytest.mark.parametrize(
    ("matrix", "centre", "reason"),
    [((8, 0), None, "does not fit"), ((8, 8), (8, 0), "outside"), ((8, 8), (1,), "outside"), ((8,) * 4, None, "fit")],
)
def test_impossible_places_are_refused(matrix: tuple[int, ...], centre: tuple[int, ...] | None, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        embedded(_draw(2, 8, 8), matrix, centre)


@pytest.mark.parametrize(("size", "wide"), [(32, 64), (33, 64), (32, 51), (31, 47)])
def test_oversampling_is_taken_out_exactly(size: int, wide: int) -> None:
    image = _draw(3, size, 10)
    padded = np.zeros((3, wide, 10), complex)
    start = wide // 2 - size // 2
    padded[:, start : start + size] = image
    kspace = without_oversampling(to_kspace(padded, (-2, -1)), -2, size)
    np.testing.assert_allclose(kspace, to_kspace(image, (-2, -1)), rtol=0, atol=1e-13)


def test_taking_out_oversampling_keeps_noise_white() -> None:
    noise = _draw(1, 64, 4000)
    kept = without_oversampling(noise, -2, 32)[0]
    covariance = kept @ kept.conj().T / 4000
    np.testing.assert_allclose(covariance, 2 * np.eye(32), rtol=0, atol=0.2)


def test_a_larger_matrix_than_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="33 pixels cannot be cut out of 32"):
        without_oversampling(_draw(1, 32, 8), -2, 33)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_coils_are_combined_along_any_axis(axis: int) -> None:
    values, matrix = _draw(4, 4, 4), _draw(2, 4)
    expected = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    np.testing.assert_allclose(coil_combinations(values, matrix, axis=axis), expected, rtol=0, atol=1e-13)
    with pytest.raises(BadInput, match="does not fit"):
        coil_combinations(values, _draw(2, 3), axis=axis)


def test_a_measured_readout_is_oversampled_twice(shared_data: Path) -> None:
    twixtools = pytest.importorskip("twixtools", reason="twixtools reads the measured scan")
    scan = twixtools.read_twix(str(shared_data / "mri-siemens-twix" / "gre.dat"), verbose=False)
    lines = [block for block in scan[-1]["mdb"] if block.is_image_scan()]
    kspace = np.zeros((lines[0].data.shape[0], 160, lines[0].data.shape[1]), np.complex64)
    for block in lines:
        kspace[:, block.cLin] = block.data
    cropped = without_oversampling(kspace, -1, 160)
    whole = np.linalg.norm(to_image(kspace, (-2, -1)), axis=0)
    middle = np.linalg.norm(to_image(cropped, (-2, -1)), axis=0)
    np.testing.assert_allclose(middle, whole[:, 80:240], rtol=0, atol=1e-5 * whole.max())
    # what is cut off is noise
    assert np.linalg.norm(whole[:, :80]) < 0.2 * np.linalg.norm(middle)
