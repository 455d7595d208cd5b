"""Coil sensitivities: what they are for, combining the coils."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import sigpy.mri.app
import torch

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.formats import read
from equipoise_engine.phantoms import random_coil_maps
from equipoise_engine.preprocess import coils
from equipoise_engine.preprocess.coils import calibration_size, coil_map_sets, coil_maps, walsh_maps
from equipoise_engine.preprocess.kspace import to_image, to_kspace
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


def _true_maps(coil_count: int = 8, side: int = 96) -> np.ndarray:
    """Return smooth maps `(coil, y, x)` with sum of squares one."""
    return random_coil_maps(coil_count, side, torch.Generator().manual_seed(4)).numpy()


def _disc(side: int = 96) -> np.ndarray:
    """Return a disc `(y, x)` with some structure inside."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    return (np.hypot(y, x) < 0.35) * (1.0 + 0.3 * np.cos(40 * x) * np.cos(35 * y)) * np.exp(2j * x)


def _likeness(maps: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the magnitude of the inner product over the coils `(y, x)`, 1 for maps equal up to phase."""
    return np.abs(np.sum(maps.conj() * expected, axis=0))


def test_true_maps_are_found_up_to_phase() -> None:
    expected, image = _true_maps(), _disc()
    inside = np.abs(image) > 0
    kspace = to_kspace(expected * image, (-2, -1)).astype(np.complex64)
    assert _likeness(coil_maps(kspace, np.ones((96, 96), bool)), expected)[inside].min() > 0.999
    walsh = walsh_maps(to_image(kspace, (-2, -1)))
    assert walsh.dtype == np.complex64
    assert np.sum(np.abs(walsh) ** 2, axis=0)[inside] == pytest.approx(1.0, abs=1e-4)
    # the maps vary within the window
    assert _likeness(walsh, expected)[inside].min() > 0.998


def test_the_adaptive_combination_sees_through_noise() -> None:
    expected, image = _true_maps(), _disc()
    random = np.random.default_rng(0)
    noise = random.normal(size=expected.shape) + 1j * random.normal(size=expected.shape)
    noisy = expected * image + 0.1 * noise
    maps = walsh_maps(noisy)
    inside = np.abs(image) > 0
    # of noise, the combination keeps one coil's worth, the root of the sum of squares all of them
    combined = np.abs(np.sum(maps.conj() * noisy, axis=0))
    magnitude = np.linalg.norm(noisy, axis=0)
    assert np.abs(combined - np.abs(image))[inside].mean() < 0.85 * np.abs(magnitude - np.abs(image))[inside].mean()
    assert combined[:10].mean() < 0.8 * magnitude[:10].mean()


def test_the_window_of_the_adaptive_combination_is_that_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = (_true_maps(3, 40) * _disc(40) + 0.01).astype(np.complex64)
    whole = walsh_maps(images, window=5)
    y, x = 20, 17
    near = images[:, y - 2 : y + 3, x - 2 : x + 3].reshape(3, -1)
    _, vectors = np.linalg.eigh(near @ near.conj().T)
    assert np.abs(np.vdot(vectors[:, -1], whole[:, y, x])) == pytest.approx(1.0, abs=1e-5)
    monkeypatch.setattr(coils, "BLOCK_VALUES", 9 * 40 * 6)
    assert walsh_maps(images, window=5) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("window", [0, 4, 41])
def test_windows_that_have_no_middle_or_do_not_fit_are_refused(window: int) -> None:
    with pytest.raises(BadInput, match=f"a window of {window} pixels"):
        walsh_maps(np.ones((2, 40, 40), np.complex64), window=window)
    with pytest.raises(BadInput, match="no signal"):
        walsh_maps(np.zeros((2, 40, 40), np.complex64))


def _wrapped() -> tuple[np.ndarray, np.ndarray]:
    """Return the coil images `(coil, y, x)` of a disc that wraps, and where two places of it fall together `(y, x)`."""
    seen = _true_maps() * _disc()
    side = 60
    first, last = 48 - side // 2, 48 + side // 2
    middle = seen[:, :, first:last].copy()
    overlap = np.zeros((96, side), bool)
    overlap[:, -first:] |= np.abs(seen[0, :, :first]) > 0
    overlap[:, :first] |= np.abs(seen[0, :, last:]) > 0
    middle[:, :, -first:] += seen[:, :, :first]
    middle[:, :, :first] += seen[:, :, last:]
    return middle, overlap & (np.abs(_disc()[:, first:last]) > 0)


def test_two_sets_explain_an_object_that_wraps() -> None:
    images, overlap = _wrapped()
    assert overlap.sum() > 100
    kspace = to_kspace(images, (-2, -1)).astype(np.complex64)
    found = coil_map_sets(kspace, np.ones(images.shape[1:], bool), threshold=0.8)
    left = []
    for count in (1, 2):
        maps = found.maps[:count]
        explained = np.einsum("scyx,sdyx,dyx->cyx", maps, maps.conj(), images)
        left.append(np.linalg.norm((images - explained)[:, overlap]) / np.linalg.norm(images[:, overlap]))
    assert left[0] > 0.1
    assert left[1] < 0.35 * left[0]
    assert found.eigenvalues[0].max() == pytest.approx(1.0, abs=0.01)
    assert np.median(found.eigenvalues[1][overlap]) > 0.95
    # elsewhere a second set is left out
    kept = np.abs(found.maps[1]).max(axis=0) > 0
    assert np.array_equal(kept, found.eigenvalues[1] >= 0.8)
    product = np.einsum("scyx,tcyx->styx", found.maps.conj(), found.maps)[:, :, kept]
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(2)[:, :, None], product.shape), rtol=0, atol=1e-5)


def test_the_first_set_is_the_single_one() -> None:
    kspace = to_kspace(_true_maps() * _disc(), (-2, -1)).astype(np.complex64)
    sampled = np.ones((96, 96), bool)
    sets = coil_map_sets(kspace, sampled, sets=1)
    assert sets.maps.shape == (1, 8, 96, 96)
    inside = np.abs(_disc()) > 0
    assert sets.maps[0][:, inside] == pytest.approx(coil_maps(kspace, sampled)[:, inside], abs=2e-3)


def test_eigenvalues_agree_with_another_implementation() -> None:
    kspace = to_kspace(_wrapped()[0], (-2, -1)).astype(np.complex64)
    found = coil_map_sets(kspace, np.ones(kspace.shape[1:], bool), sets=1)
    _, eigenvalues = sigpy.mri.app.EspiritCalib(
        kspace, calib_width=24, kernel_width=6, thresh=0.02, crop=0.0, show_pbar=False, output_eigenvalue=True
    ).run()
    inside = np.linalg.norm(_wrapped()[0], axis=0) > 0.1
    apart = np.abs(found.eigenvalues[0] - np.squeeze(eigenvalues))[inside]
    # the power iteration there has not converged where two eigenvalues are nearly equal
    assert np.quantile(apart, 0.95) < 2e-3
    assert apart.max() < 0.03


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(BadInput, match="3 sets of coil sensitivities are outside 1 to 2"):
        coil_map_sets(np.ones((2, 32, 32), np.complex64), np.ones((32, 32), bool), sets=3)
    with pytest.raises(BadInput, match=r"threshold of 1\.5"):
        coil_map_sets(np.ones((2, 32, 32), np.complex64), np.ones((32, 32), bool), threshold=1.5)
