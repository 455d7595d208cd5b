"""fastMRI-style files: axes, mask, field of view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known

Maker = Callable[..., Path]
HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace>'
    "<matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>440</x><y>220</y><z>4.5</z></fieldOfView_mm></encodedSpace></encoding></ismrmrdHeader>"
)


def _noise(*shape: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def _read(path: Path) -> MriAcquisition:
    scan = read(path)
    assert isinstance(scan, MriAcquisition)
    return scan


def test_four_axes_are_slice_coil_ky_kx(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 10, 8)
    scan = _read(fastmri(kspace=kspace))
    assert scan.shape == (2, 3, 10, 8)
    assert np.array_equal(scan.kspace[1], kspace[1])
    assert scan.geometry.sampled.shape == (10, 8)


def test_three_axes_are_one_coil(fastmri: Maker) -> None:
    kspace = _noise(4, 10, 8)
    scan = _read(fastmri(kspace=kspace))
    assert scan.shape == (4, 1, 10, 8)
    assert np.array_equal(scan.kspace[2], kspace[2][None])
    assert np.array_equal(scan.kspace[1:3, 0, :, 4], kspace[1:3, :, 4])


def test_three_axes_with_a_reference_of_one_slice_are_coils(fastmri: Maker) -> None:
    kspace = _noise(4, 10, 8)
    scan = _read(fastmri(kspace=kspace, reconstruction_rss=np.ones((1, 10, 8), np.float32)))
    assert scan.shape == (1, 4, 10, 8)
    assert np.array_equal(scan.kspace[0], kspace)


def test_double_precision_is_read_as_single(fastmri: Maker) -> None:
    scan = _read(fastmri(kspace=_noise(1, 2, 10, 8).astype(np.complex128)))
    assert scan.kspace[0].dtype == np.complex64


def test_without_a_mask_zeros_are_not_measured(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 10, 8)
    kspace[..., 5] = 0
    kspace[0, 0, 3, 3] = 0  # one coil of one slice only: measured all the same
    scan = _read(fastmri(kspace=kspace))
    assert not scan.geometry.sampled[:, 5].any()
    assert scan.geometry.sampled.sum() == 70
    assert any("87.5 %" in warning for warning in scan.warnings)


def test_a_mask_lies_along_kx(fastmri: Maker) -> None:
    mask = np.array([1, 0, 1, 1, 1, 0, 0, 1], np.float32)
    scan = _read(fastmri(mask=mask))
    assert np.array_equal(scan.geometry.sampled, np.broadcast_to(mask != 0, (10, 8)))
    assert any("30 k-space positions outside the mask" in warning for warning in scan.warnings)


def test_a_mask_that_fits_no_axis_is_refused(fastmri: Maker) -> None:
    with pytest.raises(BadInput, match=r"mask has shape \(9,\), which fits neither"):
        read(fastmri(mask=np.ones(9)))


@pytest.mark.parametrize(("x", "y", "field"), [(10, 8, (440.0, 220.0)), (8, 10, (220.0, 440.0))])
def test_the_header_gives_the_field_of_view(fastmri: Maker, x: int, y: int, field: tuple[float, float]) -> None:
    geometry = _read(fastmri(ismrmrd_header=HEADER.format(x=x, y=y))).geometry
    assert geometry.calibrated
    assert geometry.field_of_view_mm == field
    assert geometry.slice_mm == 4.5


@pytest.mark.parametrize("header", ["<not xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a/>"])
def test_a_header_that_says_nothing_is_passed_over(fastmri: Maker, header: str) -> None:
    geometry = _read(fastmri(ismrmrd_header=header)).geometry
    assert not geometry.calibrated
    assert geometry.field_of_view_mm == (10.0, 8.0)


def test_values_that_are_not_finite_are_named(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 10, 8)
    kspace[1, 2, 4, 6] = np.nan
    with pytest.raises(BadInput, match=r"1 of 240 .* slice 1 \(coil, ky, kx\) .* at \(2, 4, 6\)"):
        read(fastmri(kspace=kspace))


def test_zeros_only_are_refused(fastmri: Maker) -> None:
    with pytest.raises(BadInput, match="all values are zero"):
        read(fastmri(kspace=np.zeros((1, 2, 10, 8), np.complex64)))


def test_magnitudes_are_no_kspace(fastmri: Maker) -> None:
    with pytest.raises(BadInput, match="float32"):
        read(fastmri(kspace=np.ones((1, 2, 10, 8), np.float32)))


def test_damaged_kspace_is_named(fastmri: Maker) -> None:
    path = fastmri(kspace=None)
    with h5py.File(path, "r+") as file:
        file["kspace"] = h5py.SoftLink("/nowhere")
    with pytest.raises(BadInput, match="link to /nowhere, which is missing"):
        read(path)


SPACES = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
    "<encodedSpace><matrixSize><x>16</x><y>12</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>400</x><y>240</y><z>5</z></fieldOfView_mm></encodedSpace>"
    "<reconSpace><matrixSize><x>8</x><y>12</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>{kept}</x><y>240</y><z>5</z></fieldOfView_mm></reconSpace>"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>8</maximum><center>{centre}</center>"
    "</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"
)


def _image(kspace: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifftshift(kspace, axes=(-2, -1))
    return np.asarray(np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1)))


def test_what_the_readout_was_oversampled_is_taken_off(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 16, 12)
    scan = _read(fastmri(kspace=kspace, ismrmrd_header=SPACES.format(kept=200, centre=6)))
    assert scan.shape == (2, 3, 8, 12)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.field_of_view_mm == (200.0, 240.0)
    np.testing.assert_allclose(_image(scan.kspace[1]), _image(kspace[1])[:, 4:12], atol=1e-5)
    assert any(match.role == "matrix" and "middle 8 kept" in match.reason for match in scan.matched)


def test_oversampling_may_be_kept(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 16, 12)
    path = fastmri(kspace=kspace, ismrmrd_header=SPACES.format(kept=200, centre=6))
    scan = read(path, Known(keep_oversampling=True))
    assert np.array_equal(scan.kspace[1], kspace[1])  # type: ignore[union-attr]
    assert scan.geometry.field_of_view_mm == (400.0, 240.0)  # type: ignore[union-attr]


def test_an_asymmetric_echo_keeps_its_oversampling(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 16, 12)
    kspace[:, :, :5] = 0
    kspace[..., 3] = 0
    scan = _read(fastmri(kspace=kspace, ismrmrd_header=SPACES.format(kept=200, centre=6)))
    assert scan.shape == (2, 3, 16, 12)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.field_of_view_mm == (400.0, 240.0)
    np.testing.assert_array_equal(scan.geometry.sampled, (kspace != 0).all(axis=(0, 1)))
    np.testing.assert_array_equal(scan.kspace[1], kspace[1])
    assert any(match.role == "matrix" and "partly measured" in match.reason for match in scan.matched)


def test_missing_lines_do_not_keep_the_oversampling(fastmri: Maker) -> None:
    kspace = _noise(2, 3, 16, 12)
    kspace[..., 1::2] = 0
    scan = _read(fastmri(kspace=kspace, ismrmrd_header=SPACES.format(kept=200, centre=6)))
    assert scan.shape == (2, 3, 8, 12)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.sampled.all(axis=0).tolist() == [True, False] * 6


def test_lines_that_were_not_encoded_are_laid_out_around_the_centre(fastmri: Maker) -> None:
    kspace = _noise(1, 3, 16, 9)
    scan = _read(fastmri(kspace=kspace, ismrmrd_header=SPACES.format(kept=400, centre=3)))
    assert scan.shape == (1, 3, 16, 12)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.sampled.any(axis=0).tolist() == [False] * 3 + [True] * 9
    # the line 3 of the file is the one of zero frequency, line 6 of 12
    np.testing.assert_array_equal(scan.kspace[0][..., 3:], kspace[0])
    assert not scan.kspace[0][..., :3].any()
