"""The physics of slices: projections against known line integrals, whatever the beam, the footprint and the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data, transform

from equipoise_engine.ct import TomographyPhysics, natural_size
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import FanBeam, ParallelBeam, SliceGeometry
from equipoise_engine.projection.projector import Engine, Footprint


def disc(size: int, x0: float, y0: float, radius: float, pixel: float) -> torch.Tensor:
    """A disc with area-weighted edges, coordinates in mm, y up."""
    fine = 4
    axis = (np.arange(size * fine) - (size * fine - 1) / 2) * pixel / fine
    inside = ((axis[None, :] - x0) ** 2 + (-axis[:, None] - y0) ** 2 <= radius**2).astype(np.float64)
    return torch.from_numpy(inside.reshape(size, fine, size, fine).mean((1, 3)))[None]


def exact_sinogram(geometry: SliceGeometry, columns: int, x0: float, y0: float, radius: float) -> np.ndarray:
    """Chords of a disc `(view, column)`, averaged over the width of an element as a strip does, where that matters."""
    fine = 9
    positions = (np.arange(columns * fine) - (fine - 1) / 2) / fine
    points, directions = geometry.vectors().rays(positions, np.zeros(columns * fine))
    away = np.array([x0, y0, 0.0]) - points
    distance = away[..., 0] * directions[..., 1] - away[..., 1] * directions[..., 0]
    chords = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return np.asarray(chords.reshape(-1, columns, fine).mean(-1))


def scan(kind: str, pixel: float, columns: int) -> SliceGeometry:
    half = np.linspace(0, np.pi, 40, endpoint=False)
    middle = (columns - 1) / 2
    match kind:
        case "parallel":
            return ParallelBeam(half, pixel, middle)
        case "parallel, off-centre":
            return ParallelBeam(half, pixel, middle + columns / 20)
        case "fan, flat":
            return FanBeam(2 * half, 60.0, 90.0, 1.5 * pixel, middle)
        case "fan, curved":
            return FanBeam(2 * half, 60.0, 90.0, 1.5 * pixel, middle, detector="curved")
        case _:
            return FanBeam(2 * half, 60.0, 90.0, 1.5 * pixel, middle, yaw_rad=0.15)


@pytest.mark.parametrize("kind", ["parallel", "parallel, off-centre", "fan, flat", "fan, curved", "fan, turned"])
@pytest.mark.parametrize(("footprint", "engine"), [("joseph", "matrix-free"), ("joseph", "sparse"), ("strip", "auto")])
def test_projection_of_a_disc_is_its_chord_and_converges(kind: str, footprint: Footprint, engine: Engine) -> None:
    errors = []
    for size in (32, 64, 128):
        pixel = 20.0 / size
        geometry = scan(kind, pixel, size)
        physics = TomographyPhysics(geometry, size, size, footprint=footprint, engine=engine)
        sinogram = physics(disc(size, 2.0, -3.0, 4.0, pixel))[0].numpy()
        exact = exact_sinogram(geometry, size, 2.0, -3.0, 4.0)
        errors.append(np.linalg.norm(sinogram - exact) / np.linalg.norm(exact))
    assert errors[-1] < 0.012
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


@pytest.mark.parametrize("kind", ["parallel", "fan, flat", "fan, curved"])
def test_the_engines_agree_to_rounding(kind: str) -> None:
    image = torch.rand((2, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    geometry = scan(kind, 0.4, 48)
    one, other = (TomographyPhysics(geometry, 48, engine=engine) for engine in ("matrix-free", "sparse"))
    y = one(image)
    torch.testing.assert_close(other(image), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.adjoint(y), one.adjoint(y), rtol=1e-12, atol=1e-12)


def test_half_acquisition_sees_twice_the_detector() -> None:
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    columns, centre, pixel = 60, 9.3, 0.25
    geometry = ParallelBeam(angles, pixel, centre)
    side = natural_size(geometry, columns)
    assert side == 2 * 50 + 1
    physics = TomographyPhysics(geometry, columns)
    truth = 0.3 * disc(side, 4.0, 5.0, 5.0, pixel)
    image = physics.framed(physics.fbp(physics(truth)))
    assert not physics.truncated
    assert image.shape[-1] == side
    assert bool(physics.field_of_view[side // 2 - 12 * 4, side // 2])
    core = disc(side, 4.0, 5.0, 4.0, pixel) > 0.999
    assert abs(float(image[core].mean()) - 0.3) < 0.003
    air = disc(side, -5.0, -5.0, 4.0, pixel) > 0.999
    assert abs(float(image[air].mean())) < 0.003


def test_some_views_of_a_half_acquisition_look_at_the_same_image() -> None:
    geometry = ParallelBeam(np.linspace(0, 2 * np.pi, 90, endpoint=False), 0.25, 9.3)
    physics = TomographyPhysics(geometry, 60)
    some = physics.thinned(torch.arange(90) < 30)
    image = torch.rand((1, *physics.domain), generator=torch.Generator().manual_seed(0))
    assert some.domain == physics.domain
    assert some.framed(image).shape == physics.framed(image).shape
    assert some.truncated == physics.truncated


def test_turning_object_and_geometry_together_changes_nothing() -> None:
    geometry = ParallelBeam(np.linspace(0, np.pi, 16, endpoint=False), 1.0, 15.5)
    image = torch.rand((1, 32, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = TomographyPhysics(geometry, 32)(image)
    turned_geometry = replace(geometry, angle_rad=geometry.angle_rad + np.pi / 2)
    turned = TomographyPhysics(turned_geometry, 32)(torch.rot90(image, 1, (-2, -1)))
    torch.testing.assert_close(turned, plain)


def test_views_180_degrees_apart_are_mirrored() -> None:
    geometry = ParallelBeam(np.array([0.4, 0.4 + np.pi]), 1.0, 15.5)
    image = torch.rand((1, 32, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = TomographyPhysics(geometry, 32)(image)[0]
    torch.testing.assert_close(first, second.flip(-1))


def test_an_object_larger_than_the_detector_has_a_place_outside() -> None:
    size, wide = 64, 128
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    everything = TomographyPhysics(ParallelBeam(angles, 1.0, (wide - 1) / 2), wide)
    image = 0.02 * disc(wide, 0.0, 0.0, 50.0, 1.0)
    seen = everything(image)[:, :, (wide - size) // 2 : (wide + size) // 2]
    geometry = ParallelBeam(angles, 1.0, (size - 1) / 2)
    plain = TomographyPhysics(geometry, size).fbp(seen)
    roomy = TomographyPhysics(geometry, size, 96)
    framed = roomy.framed(roomy.fbp(seen))
    middle = (..., slice(8, -8), slice(8, -8))
    assert framed.shape == plain.shape
    assert (framed[middle].std() / framed[middle].mean()) < 0.3 * (plain[middle].std() / plain[middle].mean())


@pytest.mark.parametrize("centre", [None, -1.0, 40.0])
def test_an_unusable_centre_is_refused(centre: float | None) -> None:
    with pytest.raises(BadInput, match="rotation centre"):
        TomographyPhysics(ParallelBeam(np.zeros(3), 1.0, centre), 32)


def test_an_unknown_window_is_refused() -> None:
    physics = TomographyPhysics(ParallelBeam(np.zeros(3), 1.0, 15.0), 32)
    with pytest.raises(BadInput, match="unknown filter window 'blackman'"):
        physics.fbp(torch.zeros((1, 3, 32)), "blackman")


def test_the_first_projection_of_a_process_rounds_as_the_later_ones() -> None:
    script = (
        "import numpy as np, torch\n"
        "from equipoise_engine.geometry import ParallelBeam\n"
        "from equipoise_engine.ct import TomographyPhysics\n"
        "physics = TomographyPhysics(ParallelBeam(np.linspace(0, 3, 12), 0.5, 10.0), 21)\n"
        "y = torch.from_numpy(np.random.default_rng(0).random((1, 12, 21), dtype=np.float32))\n"
        "first = physics.fbp(y)\n"
        "assert torch.equal(first, physics.fbp(y)), (first - physics.fbp(y)).abs().max()\n"
        "assert torch.get_num_threads() == 1\n"
    )
    # torch is given fewer threads than numba, as on a shared computer
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_agrees_with_scikit_image() -> None:
    size = 129
    phantom = transform.resize(data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    degrees = np.linspace(0, 180, 90, endpoint=False)
    physics = TomographyPhysics(ParallelBeam(np.radians(degrees), 1.0, (size - 1) / 2), size)
    theirs = transform.radon(phantom, degrees, circle=True).T
    ours = physics(torch.from_numpy(phantom)[None])[0].numpy()
    # it turns the image instead of walking along rays
    assert np.linalg.norm(ours - theirs) < 0.005 * np.linalg.norm(theirs)
    image = physics.fbp(torch.from_numpy(np.ascontiguousarray(theirs))[None])[0].numpy()
    other = transform.iradon(theirs.T, degrees, filter_name="ramp", interpolation="linear", circle=True)
    inside = physics.field_of_view.numpy()
    inside &= np.hypot(*np.meshgrid(*2 * [np.arange(size) - size // 2])) < size // 2 - 1
    np.testing.assert_allclose(image[inside], other[inside], atol=1e-12)


def test_a_source_inside_the_image_is_refused() -> None:
    geometry = FanBeam(np.zeros(3), 20.0, 60.0, 1.0, 63.5)
    with pytest.raises(BadInput, match="reaches the source, 20 mm from the axis"):
        TomographyPhysics(geometry, 128, 128)
