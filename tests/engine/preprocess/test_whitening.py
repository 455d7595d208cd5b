"""Receiver noise of known covariance becomes white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sigpy.mri.util

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.preprocess.whitening import noise_covariance, outermost, whitened, whitening_matrix


def _white(*shape: int) -> np.ndarray:
    random = np.random.default_rng(3)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)) / np.sqrt(2)


def _known(coils: int) -> np.ndarray:
    """Return a covariance `(coil, coil)` with strong correlation and gains over three orders of magnitude."""
    mixing = _white(coils, coils) + np.eye(coils)
    gain = np.logspace(-3, 0, coils)[:, None]
    return (gain * mixing) @ (gain * mixing).conj().T


def test_the_covariance_is_found() -> None:
    covariance = _known(4)
    samples = np.linalg.cholesky(covariance) @ _white(4, 200_000) + 7.0
    size = np.sqrt(np.outer(covariance.diagonal().real, covariance.diagonal().real))
    np.testing.assert_allclose(noise_covariance(samples) / size, covariance / size, rtol=0, atol=0.01)


def test_whitened_covariance_is_the_identity() -> None:
    covariance = _known(6)
    matrix = whitening_matrix(covariance)
    np.testing.assert_allclose(matrix @ covariance @ matrix.conj().T, np.eye(6), rtol=0, atol=1e-10)
    assert np.array_equal(matrix, np.tril(matrix))


def test_whitened_samples_are_white() -> None:
    samples = (np.linalg.cholesky(_known(5)) @ _white(5, 4000)).astype(np.complex64)
    white = whitened(samples, whitening_matrix(noise_covariance(samples)), axis=0)
    assert white.dtype == np.complex64
    np.testing.assert_allclose(noise_covariance(white), np.eye(5), rtol=0, atol=1e-5)
    # real and imaginary part have half of it each
    assert np.var(white.real) == pytest.approx(0.5, rel=0.05)


def test_whitening_agrees_with_another_implementation() -> None:
    samples = np.linalg.cholesky(_known(5)) @ _white(5, 4000)
    covariance = noise_covariance(samples)
    assert covariance == pytest.approx(sigpy.mri.util.get_cov(samples.copy()) / 3999, rel=1e-9)
    kspace = _white(5, 12, 10)
    expected = sigpy.mri.util.whiten(kspace, covariance)
    np.testing.assert_allclose(whitened(kspace, whitening_matrix(covariance)), expected, rtol=1e-9)


def test_noise_is_found_at_the_edge_of_kspace() -> None:
    covariance = _known(3)
    kspace = (np.linalg.cholesky(covariance) @ _white(3, 128 * 120)).reshape(3, 128, 120)
    sampled = np.arange(128)[:, None] % 2 == np.zeros(120)
    kspace[:, 40:90, 30:90] += 100.0
    found = noise_covariance(np.where(sampled, kspace, 0)[:, outermost(Cartesian(sampled, (1.0, 1.0)))])
    size = np.sqrt(np.outer(covariance.diagonal().real, covariance.diagonal().real))
    np.testing.assert_allclose(found / size, covariance / size, rtol=0, atol=0.1)


def test_one_coil_is_scaled() -> None:
    assert whitening_matrix(np.full((1, 1), 4.0 + 0j))[0, 0] == pytest.approx(0.5)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(BadInput, match="15 noise samples for 4 coils; the covariance needs at least 16"):
        noise_covariance(_white(4, 15))
    with pytest.raises(BadInput, match="3 noise samples are not finite"):
        noise_covariance(np.where(np.arange(30) < 3, np.nan, _white(1, 30)))
    with pytest.raises(BadInput, match="no position"):
        outermost(Cartesian(np.zeros((8, 8), bool), (1.0, 1.0)))


def test_the_outermost_samples_of_a_spoke_are_its_ends() -> None:
    radius = np.linspace(-16, 16, 41)
    trajectory = np.stack([radius, 0 * radius], axis=-1)[None]
    outer = outermost(NonCartesian(trajectory, (32, 32), (1.0, 1.0)))
    assert outer[0, [0, 1, 39, 40]].all()
    assert not outer[0, 4:37].any()


def test_singular_covariances_are_refused() -> None:
    twice = _white(2, 500)
    with pytest.raises(BadInput, match="is singular"):
        whitening_matrix(noise_covariance(np.concatenate([twice, twice[:1]])))
    with pytest.raises(BadInput, match="coil 1 has no noise"):
        whitening_matrix(np.diag([1.0 + 0j, 0.0]))
    with pytest.raises(BadInput, match="not Hermitian"):
        whitening_matrix(np.array([[1.0, 0.5], [0.1, 1.0]], complex))
    with pytest.raises(BadInput, match="square"):
        whitening_matrix(np.ones((2, 3), complex))


def test_a_measured_brain_is_whitened(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    kspace, outer = np.asarray(scan.kspace[0]), outermost(scan.geometry)
    before = noise_covariance(kspace[:, outer])
    assert np.linalg.cond(before) > 3
    after = noise_covariance(whitened(kspace, whitening_matrix(before))[:, outer])
    np.testing.assert_allclose(after, np.eye(8), rtol=0, atol=1e-5)
