"""Stripes go, the object stays."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.ndimage import median_filter

from equipoise_engine.acquisition import CtAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.preprocess.rings import Method, without_rings

METHODS: tuple[Method, ...] = get_args(Method)
VIEWS, COLUMNS = 180, 200


def _phantom() -> np.ndarray:
    """Return the noisy sinogram of three discs off the axis `(view, column)`."""
    angle = np.linspace(0, np.pi, VIEWS, endpoint=False)[:, None]
    column = np.arange(COLUMNS)[None, :] - 99.5
    sinogram = np.zeros((VIEWS, COLUMNS))
    for x, y, radius, density in ((8, 5, 60, 0.01), (25, -20, 12, 0.02), (-30, 10, 9, -0.01)):
        away = column - x * np.cos(angle) - y * np.sin(angle)
        sinogram += 2 * density * np.sqrt(np.maximum(radius**2 - away**2, 0))
    noise = np.random.default_rng(0).standard_normal(sinogram.shape)
    return (sinogram + 0.01 * noise).astype(np.float32)


def _stripes(sinogram: np.ndarray) -> float:
    """Return how much columns differ from those beside, averaged over all views."""
    mean = sinogram.mean(axis=0)
    return float(np.std(mean - median_filter(mean, 9)))


@pytest.mark.parametrize("method", METHODS)
def test_stripes_are_taken_out(method: Method) -> None:
    clean = _phantom()
    striped = clean + 0.03 * np.random.default_rng(1).standard_normal(COLUMNS).astype(np.float32)
    result = without_rings(striped, method, 11, 3.0)
    assert result.dtype == np.float32
    assert _stripes(result) < 0.35 * _stripes(striped)
    if method != "fitting":  # which is for objects that change slowly from view to view
        assert np.mean((result - clean) ** 2) < 0.5 * np.mean((striped - clean) ** 2)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "fitting"])
def test_a_scan_without_stripes_is_hardly_changed(method: Method) -> None:
    clean = _phantom()
    result = without_rings(clean, method, 11, 3.0)
    assert np.sqrt(np.mean((result - clean) ** 2)) < 0.05 * clean.std()


def test_a_dead_column_is_made_up() -> None:
    clean = _phantom()
    damaged = clean.copy()
    damaged[:, 120] = 0.6 + 0.3 * np.random.default_rng(2).standard_normal(VIEWS)
    result = without_rings(damaged, "all", 11, 3.0)
    assert np.abs(result - clean)[:, 120].mean() < 0.05 * np.abs(damaged - clean)[:, 120].mean()


def test_size_and_strength_matter() -> None:
    striped = _phantom() + 0.03 * np.random.default_rng(1).standard_normal(COLUMNS).astype(np.float32)
    for method in METHODS:
        assert not np.array_equal(without_rings(striped, method, 3, 3.0), without_rings(striped, method, 31, 3.0))
    for method in ("filtering", "wavelet-fourier", "all"):
        assert not np.array_equal(without_rings(striped, method, 11, 1.2), without_rings(striped, method, 11, 9.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 16), (9, 300), (400, 17), (64, 33)])
def test_sinograms_of_any_size(method: Method, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).random(shape).astype(np.float32)
    if method == "wavelet-fourier" and min(shape) < 30:
        with pytest.raises(BadInput, match="too few for wavelets"):
            without_rings(values, method, 501, 3.0)
        return
    result = without_rings(values, method, 501, 3.0)
    assert result.shape == shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_air(method: Method) -> None:
    assert np.abs(without_rings(np.zeros((60, 70), dtype=np.float32), method, 11, 3.0)).max() < 1e-5


def test_too_few_views_are_told() -> None:
    with pytest.raises(BadInput, match="7 views of 40 columns are too few to tell rings"):
        without_rings(np.zeros((7, 40), dtype=np.float32), "sorting", 11, 3.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ct-tooth-dxchange/tooth.h5", "ct-wood-neutron-sino/woodsino_0200.tif"])
def test_rings_of_real_scans(shared_data: Path, name: str, method: Method) -> None:
    scan = read(shared_data / name)
    assert isinstance(scan, CtAcquisition)
    sinogram = attenuation(scan, slice(0, 1))[0]
    assert _stripes(without_rings(sinogram, method, 11, 3.0)) < 0.25 * _stripes(sinogram)
