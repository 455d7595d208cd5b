"""Regularly undersampled k-space is filled in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise_engine.errors import BadInput
from equipoise_engine.grappa import Lattice, grappa, lattice
from equipoise_engine.phantoms import random_coil_maps
from equipoise_engine.preprocess.kspace import to_image, to_kspace


def _scan(coils: int = 8, side: int = 96, noise: float = 0.0) -> np.ndarray:
    """Return the k-space `(coil, ky, kx)` of a disc with some structure."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    disc = (np.hypot(y, x) < 0.42) * (1.0 + 0.5 * np.cos(45 * x) * np.cos(35 * y)) * np.exp(2j * x)
    maps = random_coil_maps(coils, side, torch.Generator().manual_seed(4)).numpy()
    random = np.random.default_rng(0)
    drawn = random.normal(size=(2, coils, side, side)) * noise
    return (to_kspace(maps * disc, (-2, -1)) + drawn[0] + 1j * drawn[1]).astype(np.complex64)


def _sampled(rows: int, columns: int = 1, *, side: int = 96, shift: int = 0, centre: int = 24) -> np.ndarray:
    """Return a lattice `(ky, kx)`, shifted by some columns from row to row, with a fully sampled centre."""
    y, x = np.mgrid[:side, :side]
    mask = (y % rows == 0) & ((x + shift * (y // rows)) % columns == 0)
    middle = slice(side // 2 - centre // 2, side // 2 + centre // 2)
    mask[middle, middle if columns > 1 else slice(None)] = True
    return mask


def _error(kspace: np.ndarray, expected: np.ndarray) -> float:
    """Return the distance of the coil-combined magnitudes, as a share of the expected one."""
    image, whole = (np.linalg.norm(to_image(data, (-2, -1)), axis=0) for data in (kspace, expected))
    return float(np.linalg.norm(image - whole) / np.linalg.norm(whole))


@pytest.mark.parametrize(
    ("sampled", "spacing"),
    [
        (_sampled(1), Lattice(1, 1)),
        (_sampled(3), Lattice(3, 1)),
        (_sampled(3).T, Lattice(1, 3)),
        (_sampled(2, 2), Lattice(2, 2)),
        (_sampled(2, 2, shift=1), Lattice(2, 2)),
        (_sampled(1, 4, shift=2), Lattice(1, 4)),
    ],
)
def test_the_spacing_is_found(sampled: np.ndarray, spacing: Lattice) -> None:
    assert lattice(sampled) == spacing


@pytest.mark.parametrize(
    ("sampled", "largest"),
    [
        (_sampled(2), 0.01),
        (_sampled(3), 0.02),
        (_sampled(3).T, 0.02),
        (_sampled(2, 2), 0.03),
        (_sampled(2, 2, shift=1), 0.03),
    ],
    ids=["2 rows", "3 rows", "3 columns", "2 x 2", "2 x 2 shifted"],
)
def test_missing_samples_are_filled_in(sampled: np.ndarray, largest: float) -> None:
    whole = _scan(noise=0.002)
    kspace = np.where(sampled, whole, 0).astype(np.complex64)
    filled = grappa(kspace, sampled)
    assert filled.dtype == np.complex64
    assert np.array_equal(filled[:, sampled], whole[:, sampled])
    assert np.all(filled != 0)
    assert _error(filled, whole) < min(largest, 0.25 * _error(kspace, whole))


def test_kernels_are_exact_where_the_coils_are_harmonics() -> None:
    """Two coils that are waves of one period: every sample is a combination of its neighbours in both."""
    random = np.random.default_rng(2)
    image = random.normal(size=(48, 40)) + 1j * random.normal(size=(48, 40))
    wave = np.exp(2j * np.pi * (np.arange(48) - 24) / 48)[:, None]
    whole = to_kspace(np.stack([image, wave * image]), (-2, -1))
    sampled = _sampled(2, side=48)[:, :40]
    filled = grappa(np.where(sampled, whole, 0), sampled, regularisation=0.0)
    np.testing.assert_allclose(filled[:, 1:-1], whole[:, 1:-1], rtol=0, atol=1e-6)


def test_the_weights_are_the_least_squares_ones() -> None:
    """One missing sample in a fully sampled field, against a fit written out."""
    whole = _scan(coils=2, side=40).astype(np.complex128)
    whole += 0.1 * np.random.default_rng(1).normal(size=whole.shape)
    sampled = np.zeros((40, 40), bool)
    sampled[8:32] = True
    sampled[33] = True
    filled = grappa(np.where(sampled, whole, 0), sampled, regularisation=0.0)
    # spacing 2: three rows either side, of which above the line at 32 those at 29, 30, 31 and below 33 alone
    rows = [(dy, dx) for dy in (-3, -2, -1, 1) for dx in range(-2, 3)]
    equations = [(y, x) for y in range(11, 29) for x in range(2, 38)]
    left = np.array([[whole[c, y + dy, x + dx] for c in range(2) for dy, dx in rows] for y, x in equations])
    right = np.array([whole[:, y, x] for y, x in equations])
    weights = np.linalg.lstsq(left, right, rcond=None)[0]
    at = np.array([whole[c, 32 + dy, 20 + dx] for c in range(2) for dy, dx in rows])
    np.testing.assert_allclose(filled[:, 32, 20], at @ weights, rtol=1e-6)


def test_what_was_not_within_the_scan_stays_empty() -> None:
    sampled = _sampled(2)
    sampled[70:] = False
    filled = grappa(np.where(sampled, _scan(), 0), sampled)
    assert np.all(filled[:, :69] != 0)
    # row 68 is the last that was measured
    assert np.all(filled[:, 69:] == 0)


def test_a_full_scan_is_returned_as_it_is() -> None:
    whole = _scan(coils=2, side=32)
    assert np.array_equal(grappa(whole, np.ones((32, 32), bool)), whole)


def test_regularisation_lowers_the_noise() -> None:
    sampled = _sampled(3)
    noisy, clean = _scan(noise=0.03), _scan()
    errors = [
        np.linalg.norm((grappa(np.where(sampled, noisy, 0), sampled, regularisation=share) - clean)[:, ~sampled])
        for share in (1e-9, 1e-3)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_a_missing_sample_without_a_source_in_reach_is_refused() -> None:
    sampled = np.zeros((96, 96), bool)
    sampled[::2, :10] = True
    sampled[1::2, -10:] = True
    sampled[36:60] = False
    sampled[36:60, 36:60] = True
    with pytest.raises(BadInput, match=r"missing samples have no source in reach, the first at \(ky, kx\) = \(1, 0\)"):
        grappa(_scan(coils=2), sampled)


@pytest.mark.parametrize(
    ("sampled", "reason"),
    [
        (np.arange(96)[:, None] % 2 == np.zeros(96), "centre of k-space is 1 x .*too small"),
        (_sampled(3, centre=4), "too small to fit kernels of 8 coils for samples 3 x 1 apart"),
        (np.zeros((96, 96), bool), "no position"),
        (np.ones((96, 95), bool), "does not fit"),
    ],
)
def test_scans_that_cannot_be_filled_are_refused(sampled: np.ndarray, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        grappa(_scan(), sampled)


def test_a_centre_without_signal_is_refused() -> None:
    with pytest.raises(BadInput, match="no signal"):
        grappa(np.zeros((2, 96, 96), complex), _sampled(2))
    with pytest.raises(BadInput, match="negative"):
        grappa(_scan(), _sampled(2), regularisation=-1.0)


def test_an_irregular_pattern_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = np.random.default_rng(0).random((96, 96)) < 0.5
    sampled[24:72, 24:72] = True
    monkeypatch.setattr("equipoise_engine.grappa.MAX_PATTERNS", 500)
    with pytest.raises(BadInput, match="no regular undersampling"):
        grappa(_scan(coils=2), sampled)


def test_a_measured_brain_is_filled_in(shared_data: Path) -> None:
    folder = shared_data / "mri-bart-cfl"
    whole, kspace = (
        np.fromfile(folder / name, np.complex64).reshape(8, 180, 230).transpose(0, 2, 1)
        for name in ("full.cfl", "und2x2.cfl")
    )
    sampled = np.abs(kspace).sum(axis=0) > 0
    filled = grappa(kspace, sampled)
    assert _error(filled, whole) < 0.07
    assert _error(kspace, whole) > 0.2
