"""Fewer, virtual coils that keep the signal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.preprocess.compression import compression
from equipoise_engine.preprocess.kspace import to_image


def _draw(*shape: int) -> np.ndarray:
    random = np.random.default_rng(5)
    return random.normal(size=shape) + 1j * random.normal(size=shape)


def test_coils_that_are_combinations_cost_nothing() -> None:
    data = np.tensordot(_draw(8, 3), _draw(3, 12, 10), 1)
    found = compression(data, virtual_coils=3)
    assert found.matrix.shape == (3, 8)
    assert found.kept == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found.matrix @ found.matrix.conj().T, np.eye(3), rtol=0, atol=1e-12)
    virtual = found.apply(data)
    np.testing.assert_allclose(np.tensordot(found.matrix.conj().T, virtual, 1), data, rtol=0, atol=1e-11)


def test_the_kept_energy_is_that_of_the_singular_values() -> None:
    data = _draw(6, 50) * np.logspace(0, -2, 6)[:, None]
    singular = np.linalg.svd(data, compute_uv=False) ** 2
    for count in range(1, 7):
        found = compression(data, virtual_coils=count)
        assert found.kept == pytest.approx(singular[:count].sum() / singular.sum(), rel=1e-12)
        energy = np.linalg.norm(found.apply(data, axis=0)) ** 2 / np.linalg.norm(data) ** 2
        assert energy == pytest.approx(found.kept, rel=1e-12)
    for share in (0.5, 0.9, 0.999, 1.0):
        found = compression(data, energy=share)
        count = found.matrix.shape[0]
        assert found.kept >= share - 1e-12
        assert count == 1 or compression(data, virtual_coils=count - 1).kept < share


def test_the_coil_axis_may_stand_anywhere() -> None:
    data = _draw(4, 6, 5)
    found = compression(data, virtual_coils=2, axis=1)
    other = compression(np.moveaxis(data, 1, 0), virtual_coils=2)
    assert found.kept == pytest.approx(other.kept)
    assert found.apply(data, axis=1).shape == (4, 2, 5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "either"),
        ({"virtual_coils": 2, "energy": 0.9}, "either"),
        ({"virtual_coils": 5}, "5 virtual coils are outside 1 to 4"),
        ({"energy": 1.5}, "share of 1.5"),
    ],
)
def test_unclear_requests_are_refused(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        compression(_draw(4, 10), **settings)


def test_data_without_signal_are_refused() -> None:
    with pytest.raises(BadInput, match="no signal"):
        compression(np.zeros((4, 10), complex), virtual_coils=2)


def test_half_the_coils_keep_a_measured_brain(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    kspace = np.asarray(scan.kspace[0])
    found = compression(kspace[:, 103:127, 78:102], virtual_coils=4)
    assert found.kept > 0.98
    whole, less = (np.linalg.norm(to_image(data, (-2, -1)), axis=0) for data in (kspace, found.apply(kspace)))
    assert np.linalg.norm(whole - less) < 0.15 * np.linalg.norm(whole)
