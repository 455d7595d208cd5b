"""Hot elements are found, and holes are filled from what is beside them."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise_engine.preprocess.defects import (
    fill_between_views,
    fill_from_rows,
    fill_within_views,
    hot_elements,
    rows_with_holes,
)


def test_hot_elements_are_found() -> None:
    random = np.random.default_rng(0)
    column = np.arange(300)
    mean = 0.7 + 0.2 * np.sin(column / 20) + 0.002 * random.standard_normal((6, 300))
    clean = hot_elements(mean, 12.0)
    assert not clean.any()
    mean[2, 100] += 0.1
    mean[4, 7:9] -= 0.2
    mean[5, 30] = np.nan
    found = hot_elements(mean, 12.0)
    assert {(int(r), int(c)) for r, c in np.argwhere(found)} == {(2, 100), (4, 7), (4, 8)}


def test_a_row_is_judged_by_itself() -> None:
    random = np.random.default_rng(1)
    mean = 1 + random.standard_normal((5, 100)) * np.array([0.001, 0.01, 0.1, 0.0, np.nan])[:, None]
    mean[:4, 50] += 0.05
    expected = [hot_elements(mean[n : n + 1], 10.0)[0] for n in range(5)]
    assert np.array_equal(hot_elements(mean, 10.0), expected)
    assert [bool(row[50]) for row in expected] == [True, False, False, True, False]


def test_holes_within_views() -> None:
    values = np.arange(12, dtype=np.float32)[None, :] * np.ones((5, 1), dtype=np.float32)
    holes = np.zeros(values.shape, dtype=bool)
    holes[:, 4] = holes[1, 8:10] = holes[:, 0] = holes[3] = True
    damaged = np.where(holes, np.nan, values)
    lost = fill_within_views(damaged, holes)
    assert lost.tolist() == [False, False, False, True, False]
    assert damaged[~lost, 1:] == pytest.approx(values[~lost, 1:])
    assert (damaged[~lost, 0] == 1).all()
    assert np.isnan(damaged[3]).all()
    fill_between_views(damaged, lost)
    assert damaged[3, 1:] == pytest.approx(values[3, 1:])


def test_the_logarithm_is_interpolated() -> None:
    values = np.exp(-np.arange(10, dtype=np.float32))[None, :].repeat(2, axis=0)
    holes = np.zeros(values.shape, dtype=bool)
    holes[:, 5] = holes[1, 2] = True
    damaged = np.where(holes, np.nan, values)
    fill_within_views(damaged, holes, 1e-6)
    assert damaged == pytest.approx(values, rel=1e-5)


def test_rows_stand_in_for_each_other() -> None:
    values = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 2, 3), dtype=np.float32)
    lost = np.array([[False, True], [True, True], [False, True], [True, True]])
    values[lost] = np.nan
    assert rows_with_holes(values).tolist() == [0, 1, 2, 3]
    fill_from_rows(values, lost)
    assert values[:, 0, 0].tolist() == [0, 0, 2, 2]
    assert (values[:, 1] == 0).all()
    assert rows_with_holes(values).size == 0
