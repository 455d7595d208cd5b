"""Specks go, everything else stays."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise_engine.preprocess.zingers import without_zingers

ROWS, VIEWS, COLUMNS = 24, 40, 120


def _views(seed: int = 0) -> np.ndarray:
    """Return noisy counts `(row, view, column)` of a ball with sharp grains in it that turn."""
    random = np.random.default_rng(seed)
    row, column = np.meshgrid(np.arange(ROWS) - 11.5, np.arange(COLUMNS) - 59.5, indexing="ij")
    path = np.sqrt(np.maximum(45.0**2 - row**2 - column**2, 0)) / 45
    views = np.empty((ROWS, VIEWS, COLUMNS), dtype=np.float32)
    for view in range(VIEWS):
        angle = np.pi * view / VIEWS
        grain = np.hypot(row - 3, column - 30 * np.cos(angle)) < 2
        views[:, view] = random.poisson(8000 * np.exp(-1.2 * path - 1.0 * grain))
    return views


def test_clean_data_are_hardly_touched() -> None:
    for values in (_views(), _views()[11:12]):
        result, specks = without_zingers(values, 8.0, 3, attenuated=False)
        assert specks.mean() < 1e-4
        assert np.array_equal(result[~specks], values[~specks])


@pytest.mark.parametrize("attenuated", [False, True])
def test_specks_are_found_and_replaced(attenuated: bool) -> None:
    clean = _views(1)
    values = clean.copy()
    random = np.random.default_rng(5)
    place = random.integers(ROWS, size=150), random.integers(VIEWS, size=150), random.integers(COLUMNS, size=150)
    values[place] += 9000
    if attenuated:
        clean, values = (-np.log(each / 8000) for each in (clean, values))
    result, specks = without_zingers(values, 8.0, 3, attenuated=attenuated)
    assert specks[place].mean() > 0.97
    error = np.abs(result[place] - clean[place])[specks[place]]
    assert np.median(error) < 4 * np.std(clean[:, :, :5])


def test_a_larger_speck_needs_a_larger_median() -> None:
    values = _views(2)
    values[10:13, 20, 50:53] += 20_000
    assert without_zingers(values, 8.0, 3, attenuated=False)[1][10:13, 20, 50:53].sum() < 9
    assert without_zingers(values, 8.0, 7, attenuated=False)[1][10:13, 20, 50:53].all()


def test_what_stands_in_every_view_is_no_speck() -> None:
    values = _views(3)
    values[5, :, 40] += 20_000
    assert not without_zingers(values, 8.0, 3, attenuated=False)[1][5, :, 40].any()
    # of a single view nothing else can be told
    assert without_zingers(values[:, :1], 8.0, 3, attenuated=False)[1][5, 0, 40]


def test_values_without_noise_are_left_alone() -> None:
    values = np.ones((4, 6, 30), dtype=np.float32)
    values[:, :, 10:20] = 0.5
    assert not without_zingers(values, 3.0, 3, attenuated=False)[1].any()
