"""Air, the logarithm and beam hardening."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise_engine.preprocess.intensity import negative_log, polynomial, scaled_to_air


def _rows() -> np.ndarray:
    """Return attenuation `(row, view, column)` with 15 columns of air at both ends."""
    column = np.arange(100)
    return np.where((column > 14) & (column < 85), 1.0, 0.0)[None, None, :] * np.ones((2, 3, 1))


@pytest.mark.parametrize("attenuated", [False, True])
def test_air_transmits_everything(attenuated: bool) -> None:
    truth = _rows()
    beam = np.array([0.5, 1.0, 1.7])[None, :, None] * (1 + 0.002 * np.arange(100))
    values = (truth - np.log(beam) if attenuated else np.exp(-truth) * beam).astype(np.float32)
    scaled_to_air(values, 10, "both", attenuated=attenuated)
    assert values == pytest.approx(truth if attenuated else np.exp(-truth), abs=4e-3)


def test_air_on_one_side() -> None:
    values = (np.exp(-_rows()) * 3).astype(np.float32)
    values[:, :, 85:] = 0.1
    values[1, 2, 3] = np.nan
    values[0, 0, :10] = 0
    scaled_to_air(values, 10, "left", attenuated=False)
    assert values[1, :, 40] == pytest.approx(np.exp(-1))
    assert np.isnan(values[0, 0]).all()
    right = (np.exp(-_rows()) * np.linspace(3, 2, 100)).astype(np.float32)
    scaled_to_air(right, 1, "right", attenuated=False)
    assert right[:, :, -1] == pytest.approx(1)
    assert right[:, :, 0] == pytest.approx(1.5)


def test_the_logarithm_counts_what_is_below_the_floor() -> None:
    values = np.full((2, 3, 4), 0.5, dtype=np.float32)
    values[1, 2, :2] = [-1, np.nan]
    below = negative_log(values, np.array([1e-4, 1e-3], dtype=np.float32))
    assert below.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert values[0] == pytest.approx(np.log(2))
    assert values[1, 2, 0] == pytest.approx(np.log(1e3))
    assert np.isnan(values[1, 2, 1])


def test_a_polynomial_makes_attenuation_straight() -> None:
    path = np.linspace(0, 3, 50)
    # two photon energies of equal share
    hardened = (-np.log(0.5 * np.exp(-path) + 0.5 * np.exp(-0.6 * path))).astype(np.float32)
    fit = np.linalg.lstsq(np.stack([hardened**n for n in (1, 2, 3)], axis=1), 0.8 * path, rcond=None)[0]
    assert np.abs(hardened - 0.8 * path).max() > 0.1
    polynomial(hardened, tuple(float(c) for c in fit))
    assert hardened == pytest.approx(0.8 * path, abs=2e-3)
