"""The parallel-beam projector against known line integrals; filtered back-projection against what was projected."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from equipoise_engine.acquisition import ParallelBeam
from equipoise_engine.ct import FBP_WINDOWS, ParallelBeamPhysics, angular_weights
from equipoise_engine.errors import BadInput


def disc(size: int, x0: float, y0: float, radius: float, pixel: float) -> torch.Tensor:
    """A disc with area-weighted edges, coordinates in mm, y up."""
    fine = 4
    axis = (np.arange(size * fine) - (size * fine - 1) / 2) * pixel / fine
    inside = ((axis[None, :] - x0) ** 2 + (-axis[:, None] - y0) ** 2 <= radius**2).astype(np.float64)
    return torch.from_numpy(inside.reshape(size, fine, size, fine).mean((1, 3)))[None]


def analytic_sinogram(geometry: ParallelBeam, columns: int, x0: float, y0: float, radius: float) -> np.ndarray:
    assert geometry.centre_px is not None
    s = (np.arange(columns) - geometry.centre_px) * geometry.pixel_mm
    t = x0 * np.cos(geometry.angle_rad) + y0 * np.sin(geometry.angle_rad)
    return 2 * np.sqrt(np.clip(radius**2 - (s[None, :] - t[:, None]) ** 2, 0, None))


@pytest.mark.parametrize("centre_shift", [0.0, 3.3])
def test_projection_of_a_disc_is_its_chord_and_converges(centre_shift: float) -> None:
    errors = []
    for size in (32, 64, 128):
        pixel = 20.0 / size
        geometry = ParallelBeam(np.linspace(0, np.pi, 40, endpoint=False), pixel, (size - 1) / 2 + centre_shift)
        physics = ParallelBeamPhysics(geometry, size)
        sinogram = physics(disc(size, 2.0, -3.0, 4.0, pixel))[0].numpy()
        exact = analytic_sinogram(geometry, size, 2.0, -3.0, 4.0)
        errors.append(np.linalg.norm(sinogram - exact) / np.linalg.norm(exact))
    assert errors[-1] < 0.012
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


@pytest.mark.parametrize("window", FBP_WINDOWS)
def test_fbp_gives_the_value_and_place_of_an_off_centre_disc(window: str) -> None:
    size, pixel = 96, 0.25
    geometry = ParallelBeam(np.linspace(0, np.pi, 180, endpoint=False), pixel, 44.2)
    physics = ParallelBeamPhysics(geometry, size)
    truth = 0.3 * disc(size, 4.0, 5.0, 3.0, pixel)
    sinogram = 0.3 * torch.from_numpy(analytic_sinogram(geometry, size, 4.0, 5.0, 3.0))[None]
    image = physics.fbp(sinogram, window)
    core = disc(size, 4.0, 5.0, 2.0, pixel) > 0.999
    assert abs(float(image[core].mean()) - 0.3) < 0.003
    assert abs(float(image[truth == 0].mean())) < 0.002
    correlation = np.corrcoef(image.numpy().ravel(), truth.numpy().ravel())[0, 1]
    assert correlation > 0.97


def test_turning_object_and_geometry_together_changes_nothing() -> None:
    geometry = ParallelBeam(np.linspace(0, np.pi, 16, endpoint=False), 1.0, 15.5)
    image = torch.rand((1, 32, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = ParallelBeamPhysics(geometry, 32)(image)
    turned_geometry = replace(geometry, angle_rad=geometry.angle_rad + np.pi / 2)
    turned = ParallelBeamPhysics(turned_geometry, 32)(torch.rot90(image, 1, (-2, -1)))
    torch.testing.assert_close(turned, plain)


def test_views_180_degrees_apart_are_mirrored() -> None:
    geometry = ParallelBeam(np.array([0.4, 0.4 + np.pi]), 1.0, 15.5)
    image = torch.rand((1, 32, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = ParallelBeamPhysics(geometry, 32)(image)[0]
    torch.testing.assert_close(first, second.flip(-1))


def test_angular_weights_share_the_half_turn() -> None:
    even = np.linspace(0, np.pi, 12, endpoint=False)
    np.testing.assert_allclose(angular_weights(even), np.pi / 12)
    repeated = np.append(even, np.pi)
    weights = angular_weights(repeated)
    np.testing.assert_allclose(weights.sum(), np.pi)
    np.testing.assert_allclose(weights[0] + weights[-1], np.pi / 12)
    limited = np.linspace(0, np.pi / 2, 50)
    np.testing.assert_allclose(angular_weights(limited), np.pi / 98, rtol=1e-6)


def test_an_object_larger_than_the_detector_has_a_place_outside() -> None:
    size, wide = 64, 128
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    everything = ParallelBeamPhysics(ParallelBeam(angles, 1.0, (wide - 1) / 2), wide)
    image = 0.02 * disc(wide, 0.0, 0.0, 50.0, 1.0)
    seen = everything(image)[:, :, (wide - size) // 2 : (wide + size) // 2]
    geometry = ParallelBeam(angles, 1.0, (size - 1) / 2)
    plain = ParallelBeamPhysics(geometry, size).fbp(seen)
    roomy = ParallelBeamPhysics(geometry, size, 96)
    framed = roomy.framed(roomy.fbp(seen))
    middle = (..., slice(8, -8), slice(8, -8))
    assert framed.shape == plain.shape
    assert (framed[middle].std() / framed[middle].mean()) < 0.3 * (plain[middle].std() / plain[middle].mean())


@pytest.mark.parametrize("centre", [None, -1.0, 40.0])
def test_an_unusable_centre_is_refused(centre: float | None) -> None:
    with pytest.raises(BadInput, match="rotation centre"):
        ParallelBeamPhysics(ParallelBeam(np.zeros(3), 1.0, centre), 32)


def test_an_unknown_window_is_refused() -> None:
    physics = ParallelBeamPhysics(ParallelBeam(np.zeros(3), 1.0, 15.0), 32)
    with pytest.raises(BadInput, match="unknown filter window 'blackman'"):
        physics.fbp(torch.zeros((1, 3, 32)), "blackman")


def test_the_first_projection_of_a_process_rounds_as_the_later_ones() -> None:
    script = (
        "import numpy as np, torch\n"
        "from equipoise_engine.acquisition import ParallelBeam\n"
        "from equipoise_engine.ct import ParallelBeamPhysics\n"
        "physics = ParallelBeamPhysics(ParallelBeam(np.linspace(0, 3, 12), 0.5, 10.0), 21)\n"
        "y = torch.from_numpy(np.random.default_rng(0).random((1, 12, 21), dtype=np.float32))\n"
        "first = physics.fbp(y)\n"
        "assert torch.equal(first, physics.fbp(y)), (first - physics.fbp(y)).abs().max()\n"
        "assert torch.get_num_threads() == 1\n"
    )
    # torch is given fewer threads than numba, as on a shared computer
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
