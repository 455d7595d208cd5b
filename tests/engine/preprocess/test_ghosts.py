"""The ghost of echo-planar images goes once the phases between forward and reversed readouts are taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from equipoise_engine.errors import BadInput
from equipoise_engine.phantoms import random_coil_maps, random_images
from equipoise_engine.preprocess.ghosts import ghost_phase, without_ghosts
from equipoise_engine.preprocess.kspace import to_image, to_kspace

Complex = NDArray[np.complex128]
SIZE = 64
REVERSED = np.arange(SIZE) % 2 == 1
POSITION = np.arange(SIZE) - SIZE // 2


def _coil_images(coils: int = 4) -> Complex:
    """Images `(coil, y, x)` of an object in the middle half of the field of view, so that ghosts lie beside it."""
    generator = torch.Generator().manual_seed(2)
    image = random_images(1, SIZE, generator)[0].numpy() + 0.3
    maps = random_coil_maps(coils, SIZE, generator).numpy().reshape(coils, SIZE, SIZE)
    inside = np.hypot(POSITION[:, None] / 15, POSITION / 26) < 1
    return np.asarray(maps * image * inside * np.exp(0.03j * POSITION), dtype=np.complex128)


def _epi(
    phase_rad: NDArray[np.float64], *, noise: float = 0.0, drift_rad: float = 0.0, readouts: int = 3
) -> tuple[Complex, Complex, Complex]:
    """Return k-space without and with the phase in its reversed lines, and the navigators."""
    images = _coil_images()
    whole = to_kspace(images.copy(), (1, 2))
    generator = np.random.default_rng(5)
    lines = to_image(whole.copy(), (2,))
    lines[:, REVERSED] *= np.exp(1j * phase_rad)
    middle = to_image(whole[:, SIZE // 2].copy(), (1,))
    turns = [np.exp(1j * drift_rad * n) * np.exp(1j * phase_rad * (n % 2)) for n in range(readouts)]
    navigators = to_kspace(np.stack([middle * turn for turn in turns]), (2,))

    def noisy(values: Complex) -> Complex:
        parts = generator.normal(size=(2, *values.shape))
        return values + noise * (parts[0] + 1j * parts[1])

    return whole, noisy(to_kspace(lines, (2,))), noisy(navigators)


def _ghost(kspace: NDArray[np.complexfloating]) -> float:  # type: ignore[type-arg]
    """Root mean square beside the object over that inside it."""
    image = np.linalg.norm(to_image(kspace.astype(np.complex128), (1, 2)), axis=0)
    inside = np.abs(POSITION) < 15
    return float(np.sqrt(np.mean(image[~inside] ** 2) / np.mean(image[inside] ** 2)))


@pytest.mark.parametrize(("offset", "slope"), [(0.7, 0.02), (-2.9, -0.3), (3.1, 0.9)])
def test_a_straight_phase_is_found_through_its_wraps(offset: float, slope: float) -> None:
    phase = offset + slope * POSITION
    whole, measured, navigators = _epi(phase, drift_rad=0.4)
    found = ghost_phase(navigators)
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * phase), atol=1e-6)
    assert _ghost(measured) > 0.1
    corrected = without_ghosts(measured, REVERSED, found)
    assert corrected.dtype == np.complex64
    assert _ghost(corrected) < 0.001
    np.testing.assert_allclose(corrected, whole, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_array_equal(corrected[:, ~REVERSED], measured[:, ~REVERSED].astype(np.complex64))


def test_noise_leaves_hardly_any_ghost() -> None:
    phase = 1.1 - 0.15 * POSITION
    clean, measured, navigators = _epi(phase, noise=0.01 * float(np.abs(_coil_images()).max()), drift_rad=-0.3)
    left = without_ghosts(measured, REVERSED, ghost_phase(navigators))
    # of the same noise without any ghost
    alone = without_ghosts(_epi(0 * phase, noise=0.01 * float(np.abs(_coil_images()).max()))[1], REVERSED, 0 * phase)
    assert np.sqrt(max(_ghost(left) ** 2 - _ghost(alone) ** 2, 0.0)) < 0.01
    assert _ghost(measured) > 0.3
    assert np.linalg.norm(left - clean) < 0.1 * np.linalg.norm(clean)


def test_a_bent_phase_needs_each_position_by_itself() -> None:
    phase = 0.4 + 0.05 * POSITION + 0.8 * np.sin(POSITION / 9)
    _, measured, navigators = _epi(phase)
    ghosts = {
        order: _ghost(without_ghosts(measured, REVERSED, ghost_phase(navigators, order)))
        for order in ("linear", "pointwise")
    }
    assert ghosts["pointwise"] < 0.001
    assert ghosts["linear"] > 0.05


def test_two_navigators_do_and_empty_ones_change_nothing() -> None:
    phase = 0.5 + 0.1 * POSITION
    _, _, navigators = _epi(phase, readouts=2)
    np.testing.assert_allclose(np.exp(1j * ghost_phase(navigators)), np.exp(1j * phase), atol=1e-6)
    _, _, more = _epi(phase, readouts=6, drift_rad=0.2, noise=1e-3)
    np.testing.assert_allclose(ghost_phase(more[:5]), phase, atol=0.02)
    assert not ghost_phase(0 * navigators).any()
    assert not ghost_phase(0 * navigators, "pointwise").any()


def test_what_does_not_fit_is_refused() -> None:
    _, measured, navigators = _epi(0.0 * POSITION)
    with pytest.raises(BadInput, match=r"\(1, 4, 64\) are not \(readout, coil, kx\)"):
        ghost_phase(navigators[:1])
    navigators[1, 2, 3] = np.nan
    with pytest.raises(BadInput, match="1 values of the navigators are not finite"):
        ghost_phase(navigators)
    with pytest.raises(BadInput, match="63 lines and a phase of 64"):
        without_ghosts(measured, REVERSED[1:], np.zeros(SIZE))
