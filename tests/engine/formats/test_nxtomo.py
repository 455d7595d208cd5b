"""NXtomo files: sorting frames by key, reading them lazily, and naming what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read

Maker = Callable[..., Path]
PROJECTIONS = [3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16]
"""Frames that the maker writes with image key 0."""


def _read(path: Path) -> CtAcquisition:
    scan = read(path)
    assert isinstance(scan, CtAcquisition)
    return scan


def test_frames_are_sorted_by_key(nxtomo: Maker) -> None:
    scan = _read(nxtomo())
    assert scan.state is DataState.COUNTS
    assert scan.shape == (12, 3, 16)
    frame = (np.asarray(scan.projections[:, 0, 0], dtype=int) - 1000) // 100
    assert frame.tolist() == PROJECTIONS
    assert scan.flats is not None
    assert scan.darks is not None
    assert ((np.asarray(scan.flats[:, 0, 0], dtype=int) - 1000) // 100).tolist() == [2, 9]
    assert ((np.asarray(scan.darks[:, 0, 0], dtype=int) - 1000) // 100).tolist() == [0, 1, 17]
    assert any("1 frames are marked invalid" in warning for warning in scan.warnings)


@pytest.mark.parametrize(
    "key",
    [
        5,
        -1,
        np.s_[2:9],
        np.s_[::3],
        np.s_[::-1],
        np.s_[8:2:-2],
        np.s_[3:3],
        np.s_[:, 1, :],
        np.s_[4, 1:3, 5],
        np.s_[..., 2],
        np.s_[[0, 6, 11]],
        np.s_[np.array([9, 1]), :, ::2],
    ],
)
def test_slicing_equals_slicing_in_memory(nxtomo: Maker, key: object) -> None:
    path = nxtomo()
    scan = _read(path)
    with h5py.File(path, "r", locking=False) as file:
        whole = file["measurement/tomography/instrument/detector/data"][:][PROJECTIONS]
    assert np.array_equal(scan.projections[key], whole[key])


def test_a_view_beyond_the_end_is_an_index_error(nxtomo: Maker) -> None:
    with pytest.raises(IndexError):
        _read(nxtomo()).projections[12]


@pytest.mark.parametrize(("pixel", "millimetres"), [((2.5, "um"), 0.0025), ((1e-5, "m"), 0.01), ((0.2, "mm"), 0.2)])
def test_pixel_size_with_units_calibrates(nxtomo: Maker, pixel: tuple[float, str], millimetres: float) -> None:
    geometry = _read(nxtomo(pixel=pixel)).geometry
    assert geometry.calibrated
    assert geometry.pixel_mm == pytest.approx(millimetres)


def test_pixel_size_in_unknown_units_is_left_out(nxtomo: Maker) -> None:
    scan = _read(nxtomo(pixel=(3.0, "px")))
    assert not scan.geometry.calibrated
    assert any("3 px; it was not used" in warning for warning in scan.warnings)


def test_a_file_without_keys_is_all_projections(nxtomo: Maker) -> None:
    scan = _read(nxtomo(image_key=None, angle=np.arange(18) * 10.0))
    assert scan.shape[0] == 18
    assert any("no image keys" in warning for warning in scan.warnings)


@pytest.mark.parametrize(("name", "length"), [("image_key", 17), ("angle", 15)])
def test_lengths_that_differ_name_the_index(nxtomo: Maker, name: str, length: int) -> None:
    with pytest.raises(BadInput, match=rf"18 frames in .* but {length} values in .*index {length} and later"):
        read(nxtomo(**{name: np.zeros(length, int)}))


def test_a_key_out_of_range_is_named(nxtomo: Maker) -> None:
    keys = np.zeros(18, int)
    keys[7] = 9
    with pytest.raises(BadInput, match="is 9 at index 7; 0 to 3 are defined"):
        read(nxtomo(image_key=keys))


def test_a_file_of_flats_only_is_refused(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match="none of the 18 image keys is 0"):
        read(nxtomo(image_key=np.ones(18, int)))


def test_missing_angles_say_where_they_were_looked_for(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match=r"no rotation angles: looked for .*sample/rotation_angle"):
        read(nxtomo(angle=None))


def test_missing_frames_are_named(nxtomo: Maker) -> None:
    with pytest.raises(BadInput, match="holds no frames"):
        read(nxtomo(data=None))
