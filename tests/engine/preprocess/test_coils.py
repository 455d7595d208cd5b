"""Coil sensitivities: what they are for, combining the coils."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import sigpy.mri.app

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.preprocess import coils
from equipoise_engine.preprocess.coils import calibration_size, coil_maps
from equipoise_resources import sample_path


def _images(kspace: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifftshift(kspace, axes=(-2, -1))
    return np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))


def _unexplained(kspace: np.ndarray, maps: np.ndarray) -> float:
    """Return the share of the coil images that no single image times the maps can explain."""
    images = _images(kspace)
    combined = np.sum(maps.conj() * images, axis=0)
    return float(np.linalg.norm(images - maps * combined) / np.linalg.norm(images))


def test_maps_explain_the_sample_scan() -> None:
    scan = read(sample_path("mri"))
    kspace = scan.kspace[0] if isinstance(scan, MriAcquisition) else np.zeros(0)
    maps = coil_maps(kspace, np.ones(kspace.shape[1:], bool))
    assert maps.shape == kspace.shape
    assert maps.dtype == np.complex64
    assert np.sum(np.abs(maps) ** 2, axis=0) == pytest.approx(1.0, abs=1e-4)
    assert _unexplained(kspace, maps) < 0.05


def test_maps_agree_with_another_implementation() -> None:
    scan = read(sample_path("mri"))
    kspace = scan.kspace[1] if isinstance(scan, MriAcquisition) else np.zeros(0)
    maps = coil_maps(kspace, np.ones(kspace.shape[1:], bool))
    calibration = sigpy.mri.app.EspiritCalib(
        kspace, calib_width=24, kernel_width=6, thresh=0.02, crop=0.0, show_pbar=False
    )
    images = _images(kspace)
    signal = np.sqrt(np.sum(np.abs(images) ** 2, axis=0))
    # the phase common to all coils is free
    likeness = np.abs(np.sum(calibration.run().conj() * maps, axis=0))
    assert likeness[signal > 0.1 * signal.max()].min() > 0.9999


def test_blocks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = read(sample_path("mri"))
    kspace = scan.kspace[0] if isinstance(scan, MriAcquisition) else np.zeros(0)
    sampled = np.ones(kspace.shape[1:], bool)
    whole = coil_maps(kspace, sampled)
    monkeypatch.setattr(coils, "BLOCK_VALUES", 7 * 16 * 160)
    assert coil_maps(kspace, sampled) == pytest.approx(whole, abs=1e-5)


def test_the_combined_image_has_no_phase_jumps() -> None:
    scan = read(sample_path("mri"))
    kspace = scan.kspace[0] if isinstance(scan, MriAcquisition) else np.zeros(0)
    image = np.sum(coil_maps(kspace, np.ones(kspace.shape[1:], bool)).conj() * _images(kspace), axis=0)
    bright = np.abs(image) > 0.2 * np.abs(image).max()
    step = np.angle(image[1:] * image[:-1].conj())[bright[1:] & bright[:-1]]
    assert np.abs(step).max() < 0.6


def test_only_the_measured_centre_is_used() -> None:
    scan = read(sample_path("mri"))
    kspace = scan.kspace[0] if isinstance(scan, MriAcquisition) else np.zeros(0)
    sampled = np.zeros(kspace.shape[1:], bool)
    sampled[::4] = True
    sampled[68:92] = True
    maps = coil_maps(np.where(sampled, kspace, 0).astype(np.complex64), sampled)
    assert np.array_equal(maps, coil_maps(kspace, sampled))
    assert _unexplained(kspace, maps) < 0.05


def test_one_coil_is_one_everywhere() -> None:
    maps = coil_maps(np.ones((1, 12, 10), np.complex64), np.ones((12, 10), bool))
    assert np.array_equal(maps, np.ones((1, 12, 10), np.complex64))


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [
        (slice(0, 64), slice(0, 48), (24, 24)),
        (slice(24, 40), slice(0, 48), (16, 24)),
        (slice(0, 9), slice(0, 48), (0, 0)),
    ],
)
def test_the_calibration_region_is_found(rows: slice, columns: slice, size: tuple[int, int]) -> None:
    sampled = np.zeros((64, 48), bool)
    sampled[rows, columns] = True
    assert calibration_size(sampled) == size


def test_too_small_a_centre_is_refused() -> None:
    sampled = np.zeros((32, 32), bool)
    sampled[14:18] = True
    with pytest.raises(BadInput, match="is 4 x 24; coil sensitivities need at least 8 x 8"):
        coil_maps(np.ones((2, 32, 32), np.complex64), sampled)


def test_a_centre_without_signal_is_refused() -> None:
    with pytest.raises(BadInput, match="no signal"):
        coil_maps(np.zeros((2, 32, 32), np.complex64), np.ones((32, 32), bool))


def test_maps_explain_a_brain(shared_data: Path) -> None:
    scan = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(scan, MriAcquisition)
    kspace = scan.kspace[0]
    start = time.perf_counter()
    maps = coil_maps(kspace, scan.geometry.sampled)
    assert time.perf_counter() - start < 10.0
    assert _unexplained(kspace, maps) < 0.13
