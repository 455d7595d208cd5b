"""Nonuniform sampling against sums written out, other programs, objects known in k-space, and a measured scan."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from scipy.special import j1
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import NonCartesian
from equipoise_engine.krylov import conjugate_gradients
from equipoise_engine.mri import CartesianPhysics, centred_fft
from equipoise_engine.noncartesian import (
    NonCartesianPhysics,
    calibration_kspace,
    cartesian_positions,
    density_compensation,
    noncartesian_maps,
    radial_trajectory,
    shift_field_of_view,
    spiral_trajectory,
)
from equipoise_engine.operators import adjoint_error, adjoint_tolerance, operator_norm
from equipoise_engine.phantoms import random_coil_maps


def geometry(trajectory: np.ndarray, matrix: tuple[int, int], density: np.ndarray | None = None) -> NonCartesian:
    return NonCartesian(trajectory, matrix, (float(matrix[0]), float(matrix[1])), density)


def smooth_maps(coils: int, matrix: tuple[int, int], slices: int = 1) -> Tensor:
    drawn = [random_coil_maps(coils, max(matrix), torch.Generator().manual_seed(7 + i)) for i in range(slices)]
    return torch.stack(drawn)[:, :, : matrix[0], : matrix[1]]


def physics_of(trajectory: np.ndarray, matrix: tuple[int, int], coils: int = 3, slices: int = 1) -> NonCartesianPhysics:
    return NonCartesianPhysics(smooth_maps(coils, matrix, slices).to(torch.complex128), geometry(trajectory, matrix))


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(value: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected))


def ellipse_kspace(
    positions: np.ndarray, matrix: int, radii: tuple[float, float], middle: tuple[float, float]
) -> Tensor:
    """K-space of an ellipse of density one, with radii and middle along (y, x) in pixels."""
    scaled = 2 * np.pi * np.linalg.norm(positions * np.array(radii) / matrix, axis=-1)
    safe = np.where(scaled > 0, scaled, 1.0)
    shape = np.where(scaled > 0, 2 * j1(safe) / safe, 1.0)
    phase = np.exp(-2j * np.pi * (positions @ np.array(middle)) / matrix)
    return torch.from_numpy(np.pi * radii[0] * radii[1] * shape * phase / matrix)


PHYSICS = {
    "radial": lambda: physics_of(radial_trajectory(16, 48, 24), (24, 24)),
    "golden, not square": lambda: physics_of(radial_trajectory(15, 40, (21, 30), golden=True), (21, 30), 2),
    "spiral, one coil": lambda: physics_of(spiral_trajectory(6, 160, 26), (26, 26), 1),
    "slices of their own": lambda: physics_of(radial_trajectory(14, 40, 20), (20, 20), 3, slices=2),
    "some readouts": lambda: physics_of(radial_trajectory(20, 48, 24), (24, 24)).thinned(torch.arange(20) % 3 > 0),
    "Cartesian": lambda: physics_of(cartesian_positions((18, 22)), (18, 22)),
}


@pytest.fixture(params=PHYSICS, name="physics")
def _physics(request: pytest.FixtureRequest) -> NonCartesianPhysics:
    return PHYSICS[request.param]()


def test_adjoint_is_exact(physics: NonCartesianPhysics) -> None:
    generator = torch.Generator().manual_seed(0)
    for operator in (physics, physics.H):
        error = adjoint_error(operator, generator=generator, complex_values=True, batch=2)
        assert error < adjoint_tolerance(operator, 2)


def test_adjoint_is_exact_in_single_precision(physics: NonCartesianPhysics) -> None:
    x, y = (drawn((2, *shape), seed, torch.complex64) for seed, shape in enumerate((physics.domain, physics.range)))
    ax, ahy = physics.forward(x), physics.adjoint(y)
    assert ax.dtype == ahy.dtype == torch.complex64
    left = torch.sum(ax.to(torch.complex128) * y.conj())
    right = torch.sum(x.to(torch.complex128) * ahy.conj())
    scale = torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y)
    assert float((left - right).abs() / scale) < 50 * torch.finfo(torch.float32).eps


def test_single_precision_is_good_to_its_rounded_positions(physics: NonCartesianPhysics) -> None:
    x = drawn((2, *physics.domain), 1)
    assert relative(physics.forward(x.to(torch.complex64)), physics.forward(x)) < 4e-5


def test_linear(physics: NonCartesianPhysics) -> None:
    a, b = drawn((2, *physics.domain), 1), drawn((2, *physics.domain), 2)
    torch.testing.assert_close(physics.forward(2.5j * a - b), 2.5j * physics.forward(a) - physics.forward(b))


def test_gradients_are_adjoints(physics: NonCartesianPhysics) -> None:
    slices = physics.slices
    x = drawn((slices, *physics.domain), 1).requires_grad_()
    y = drawn((slices, *physics.range), 2)
    physics.forward(x).backward(y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, physics.adjoint(y))
    direction = drawn((slices, *physics.domain), 3)
    (through_normal,) = torch.autograd.grad(physics.normal(x), x, direction)
    torch.testing.assert_close(through_normal, physics.normal(direction))


def test_a_sample_does_not_depend_on_its_batch(physics: NonCartesianPhysics) -> None:
    x = drawn((2, *physics.domain), 1)
    one = physics.select(torch.tensor([1]))
    torch.testing.assert_close(physics.forward(x)[1], one.forward(x[1:])[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(physics.normal(x)[1], one.normal(x[1:])[0], rtol=0, atol=1e-12)


def test_threads_share_a_physics() -> None:
    physics = physics_of(radial_trajectory(16, 48, 24), (24, 24))
    images = [drawn((1 + i % 3, 24, 24), i) for i in range(24)]
    expected = [physics.forward(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(physics.forward, images), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_wrong_shapes_are_refused(physics: NonCartesianPhysics) -> None:
    x, y = drawn((2, *physics.domain), 1), drawn((2, *physics.range), 1)
    with pytest.raises(BadInput, match="does not fit"):
        physics.forward(x[:, :-1])
    with pytest.raises(BadInput, match="does not fit"):
        physics.adjoint(y[..., :-1])
    with pytest.raises(BadInput, match="not complex64"):
        physics.select(torch.tensor([0])).adjoint(y[:1].real)
    if physics.slices > 1:
        with pytest.raises(BadInput, match="coil maps of 2 slices"):
            physics.forward(drawn((3, *physics.domain), 1))


def test_convolution_is_the_normal_operator(physics: NonCartesianPhysics) -> None:
    x = drawn((2, *physics.domain), 1)
    two_steps = physics.adjoint(physics.weight(physics.forward(x)))
    assert relative(physics.normal(x), two_steps) < 1e-11
    assert relative(physics.normal(x.to(torch.complex64)), two_steps) < 1e-5


def test_weighted_normal_operator_has_norm_one(physics: NonCartesianPhysics) -> None:
    norm = operator_norm(physics.normal, drawn((physics.slices, *physics.domain), 3), steps=80)
    assert 0.97 < norm <= 1.02


def test_weight_is_symmetric_and_positive(physics: NonCartesianPhysics) -> None:
    a, b = drawn((1, *physics.range), 4), drawn((1, *physics.range), 5)
    left, right = torch.sum(a.conj() * physics.weight(b)), torch.sum(physics.weight(a).conj() * b)
    torch.testing.assert_close(left, right)
    assert float(physics.density.min()) > 0


def test_a_split_keeps_whole_readouts_and_withholds_the_rest() -> None:
    physics = physics_of(radial_trajectory(16, 48, 24), (24, 24), slices=2)
    x = drawn((2, *physics.domain), 6)
    y = physics.forward(x)
    kept = physics.random_split(torch.Generator().manual_seed(2))
    assert kept.shape == (16,)
    assert int(kept.sum()) == 10
    part, withheld = physics.part(y, kept), physics.withheld(y, kept)
    thinned = physics.thinned(kept)
    torch.testing.assert_close(part, thinned.forward(x))
    torch.testing.assert_close(physics.part(withheld, kept), torch.zeros_like(part), rtol=0, atol=0)
    sizes = [float(torch.sum(values.abs() ** 2)) for values in (y, part, withheld)]
    assert sizes[0] == pytest.approx(sizes[1] + sizes[2])
    # what is left stands for what is missing
    assert float(thinned.density.sum()) == pytest.approx(float(physics.density.sum()), rel=0.05)
    with pytest.raises(BadInput, match="cannot be split"):
        physics_of(spiral_trajectory(1, 600, 24), (24, 24)).random_split(torch.Generator())
    with pytest.raises(BadInput, match="none of 16"):
        physics.thinned(torch.zeros(16, dtype=torch.bool))


def test_slices_selected_and_joined_are_those_of_the_scan() -> None:
    physics = physics_of(radial_trajectory(16, 48, 24), (24, 24), slices=3)
    y = drawn((3, *physics.range), 1)
    first, rest = physics.select(torch.tensor([0])), physics.select(torch.tensor([1, 2]))
    torch.testing.assert_close(first.weight(y[:1]), physics.weight(y)[:1])
    joined = first.joined([rest])
    assert joined.slices == 3
    torch.testing.assert_close(joined.adjoint(y), physics.adjoint(y))


def test_equals_the_sum_written_out() -> None:
    matrix = (9, 12)
    positions = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 10, 2)) * matrix
    physics = physics_of(positions, matrix, 2)
    x = drawn((1, *matrix), 1)
    rows, columns = (np.arange(size) - size // 2 for size in matrix)
    wave_y = np.exp(-2j * np.pi * positions[..., 0, None] * rows / matrix[0])
    wave_x = np.exp(-2j * np.pi * positions[..., 1, None] * columns / matrix[1])
    expected = np.einsum("rsy,rsx,cyx->crs", wave_y, wave_x, (physics.maps[0] * x).numpy()) / math.sqrt(9 * 12)
    assert relative(physics.forward(x)[0], torch.from_numpy(expected)) < 1e-12


@pytest.mark.parametrize("matrix", [(24, 24), (17, 22)])
def test_a_cartesian_trajectory_gives_cartesian_physics(matrix: tuple[int, int]) -> None:
    maps = smooth_maps(3, matrix).to(torch.complex128)
    cartesian = CartesianPhysics(maps, torch.ones(matrix, dtype=torch.bool))
    physics = NonCartesianPhysics(maps, geometry(cartesian_positions(matrix), matrix))
    x, y = drawn((1, *matrix), 1), drawn((1, *cartesian.range), 2)
    assert relative(physics.forward(x), cartesian.forward(x)) < 1e-12
    assert relative(physics.analytic(y), cartesian.analytic(y)) < 1e-6
    # the norm is one but for the margin of the Lanczos process
    assert relative(1.01 * physics.gradient(x, y), cartesian.gradient(x, y)) < 1e-6


def test_agrees_with_sigpy() -> None:
    sigpy = pytest.importorskip("sigpy")
    trajectory = radial_trajectory(20, 64, (30, 36))
    physics = NonCartesianPhysics(torch.ones((1, 1, 30, 36), dtype=torch.complex128), geometry(trajectory, (30, 36)))
    x = drawn((1, 30, 36), 1)
    forward = sigpy.nufft(x[0].numpy(), trajectory, oversamp=2, width=6)
    assert relative(physics.forward(x)[0, 0], torch.from_numpy(forward)) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_mri_nufft() -> None:
    mrinufft = pytest.importorskip("mrinufft", reason="mri-nufft is not installed")
    trajectory = radial_trajectory(20, 64, 32)
    other = mrinufft.get_operator("finufft")((2 * np.pi * trajectory / 32).astype(np.float32), (32, 32), n_coils=1)
    physics = NonCartesianPhysics(torch.ones((1, 1, 32, 32), dtype=torch.complex64), geometry(trajectory, (32, 32)))
    x = drawn((1, 32, 32), 1, torch.complex64)
    theirs = torch.from_numpy(np.asarray(other.op(x[0].numpy())).reshape(20, 64))
    ours = physics.forward(x)[0, 0]
    # its scale is a convention of its own
    factor = torch.sum(theirs.conj() * ours) / torch.sum(theirs.abs() ** 2)
    assert relative(ours, factor * theirs) < 1e-3


def test_density_is_the_area_of_a_sample() -> None:
    spokes, samples, matrix = 210, 128, 64
    density = density_compensation(radial_trajectory(spokes, samples, matrix), (matrix, matrix))
    assert density.shape == (spokes, samples)
    assert density.min() > 0
    # a sample of a spoke stands for |k| times the angle between spokes times the distance between samples
    radius = np.abs(np.arange(samples) - samples // 2) * matrix / samples
    ring = radius * np.pi / spokes * matrix / samples
    inside = (radius > 3) & (radius < 28)
    np.testing.assert_allclose(density.mean(axis=0)[inside], ring[inside], rtol=0.03)
    assert density.sum() == pytest.approx(math.pi * (matrix / 2) ** 2, rel=0.04)


def test_density_of_a_cartesian_trajectory_is_one() -> None:
    density = density_compensation(cartesian_positions((20, 15)), (20, 15))
    np.testing.assert_allclose(density, 1.0, atol=1e-6)


def test_density_spreads_repeated_samples() -> None:
    once = cartesian_positions((16, 16))
    density = density_compensation(np.concatenate([once, once[:4]]), (16, 16))
    np.testing.assert_allclose(density[[0, 16]], 0.5, atol=1e-3)
    np.testing.assert_allclose(density[4:16], 1.0, atol=1e-3)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ["radial", "spiral"])
def test_an_ellipse_known_in_kspace_comes_back_with_its_density(kind: str, given: bool) -> None:
    matrix = 96
    if kind == "radial":
        trajectory = radial_trajectory(201, 2 * matrix, matrix)
        # the ramp, but for the disc that all spokes share at the centre
        density = 17.0 * np.maximum(np.linalg.norm(trajectory, axis=-1), 0.125)
    else:
        trajectory = spiral_trajectory(16, 1200, matrix)
        density = 42.0 * density_compensation(trajectory, (matrix, matrix))
    radii, middle = (30.0, 21.0), (5.0, -8.0)
    y = ellipse_kspace(trajectory, matrix, radii, middle)[None, None]
    physics = NonCartesianPhysics(
        torch.ones((1, 1, matrix, matrix), dtype=torch.complex128),
        geometry(trajectory, (matrix, matrix), density if given else None),
    )
    image = physics.analytic(y)[0]
    down, across = torch.meshgrid(*[torch.arange(matrix) - matrix // 2.0] * 2, indexing="ij")
    distance = torch.sqrt(((down - middle[0]) / radii[0]) ** 2 + ((across - middle[1]) / radii[1]) ** 2)
    field = torch.sqrt(down**2 + across**2) < matrix / 2 - 2
    inside, outside = distance < 0.85, (distance > 1.2) & field
    assert float(image.real[inside].mean()) == pytest.approx(1.0, abs=0.02)
    assert float(image.real[inside].std()) < 0.02
    assert float(image[outside].abs().mean()) < 0.03


def test_conjugate_gradients_bring_an_image_back_from_several_coils() -> None:
    matrix = (32, 32)
    physics = physics_of(radial_trajectory(30, 64, 32), matrix, 6)
    x = centred_fft(torch.nn.functional.pad(drawn((1, 20, 20), 4), (6, 6, 6, 6)))
    y = physics.forward(x)
    right = physics.adjoint(physics.weight(y))
    solved = conjugate_gradients(physics.normal, right, tolerance=1e-8, max_steps=60)
    assert relative(solved.value, x) < 1e-3
    assert relative(physics.analytic(y), x) > 0.05


@pytest.mark.parametrize(
    ("density", "message"), [(-1.0, "positive"), (0.0, "positive"), (math.nan, "positive"), (math.inf, "positive")]
)
def test_a_density_that_cannot_be_one_is_refused(density: float, message: str) -> None:
    trajectory = radial_trajectory(4, 16, 16)
    physics = NonCartesianPhysics(
        torch.ones((1, 1, 16, 16), dtype=torch.complex64), geometry(trajectory, (16, 16), np.full((4, 16), density))
    )
    with pytest.raises(BadInput, match=message):
        physics.analytic(drawn((1, 1, 4, 16), 1))


def test_scans_that_cannot_be_are_refused() -> None:
    trajectory = radial_trajectory(4, 16, 16)
    with pytest.raises(BadInput, match="do not fit"):
        NonCartesianPhysics(torch.ones((1, 1, 16, 15), dtype=torch.complex64), geometry(trajectory, (16, 16)))
    with pytest.raises(BadInput, match="holds none"):
        NonCartesianPhysics(torch.ones((1, 1, 16, 16), dtype=torch.complex64), geometry(trajectory[:0], (16, 16)))
    with pytest.raises(BadInput, match="holds no samples"):
        density_compensation(trajectory[:0], (16, 16))
    zero = NonCartesianPhysics(torch.zeros((1, 1, 16, 16), dtype=torch.complex64), geometry(trajectory, (16, 16)))
    with pytest.raises(BadInput, match="zero everywhere"):
        zero.weight(drawn((1, 1, 4, 16), 1))


def test_a_shift_of_the_field_of_view_moves_the_image() -> None:
    matrix = (20, 27)
    positions = cartesian_positions(matrix)
    image = drawn((2, 3, *matrix), 1)
    moved = shift_field_of_view(centred_fft(image), positions, (3.0, -5.0), matrix)
    assert relative(moved, centred_fft(torch.roll(image, (3, -5), (-2, -1)))) < 1e-12
    back = shift_field_of_view(moved, positions, (-3.0, 5.0), matrix)
    assert relative(back, centred_fft(image)) < 1e-12
    with pytest.raises(BadInput, match="do not fit"):
        shift_field_of_view(moved, positions[:-1], (1.0, 1.0), matrix)


def test_a_shift_by_a_fraction_of_a_pixel_moves_an_ellipse() -> None:
    trajectory = spiral_trajectory(8, 300, 48)
    here = ellipse_kspace(trajectory, 48, (10.0, 7.0), (0.0, 0.0))
    there = ellipse_kspace(trajectory, 48, (10.0, 7.0), (2.25, -6.5))
    assert relative(shift_field_of_view(here[None], trajectory, (2.25, -6.5), (48, 48))[0], there) < 1e-12


def test_trajectories_cover_kspace_as_they_say() -> None:
    radial = radial_trajectory(12, 40, (20, 30))
    assert radial.shape == (12, 40, 2)
    np.testing.assert_allclose(radial[:, 20], 0)
    np.testing.assert_allclose(radial[0, 0], [0, -15])
    np.testing.assert_allclose(radial[6, 0], [-10, 0], atol=1e-12)
    golden = radial_trajectory(3, 40, 20, golden=True)
    turned = np.degrees(np.arctan2(golden[1, -1, 0], golden[1, -1, 1]))
    assert turned == pytest.approx(111.246, abs=1e-3)
    spiral = spiral_trajectory(8, 500, 64)
    radius = np.linalg.norm(spiral, axis=-1)
    assert 0.99 * 32 < radius.max() <= 32
    steps = np.linalg.norm(np.diff(spiral[0], axis=0), axis=-1)
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.06)
    # the arms cross a ray from the centre one cycle apart
    assert np.interp(2 * np.pi * np.arange(1, 4), np.unwrap(np.arctan2(*spiral[0, 1:].T)), radius[0, 1:]) == (
        pytest.approx([8, 16, 24], abs=0.05)
    )
    for wrong in (lambda: radial_trajectory(0, 8, 8), lambda: spiral_trajectory(2, 8, 8, turns=0.0)):
        with pytest.raises(BadInput):
            wrong()


def test_calibration_is_the_centre_of_cartesian_kspace() -> None:
    matrix = 64
    trajectory = radial_trajectory(101, 128, matrix)
    ellipses = [((20.0, 14.0), (3.0, -4.0)), ((9.0, 22.0), (-6.0, 2.0))]
    y = torch.stack([ellipse_kspace(trajectory, matrix, *one) for one in ellipses])
    centre = calibration_kspace(y, geometry(trajectory, (matrix, matrix)))
    assert centre.shape == (2, 24, 24)
    positions = cartesian_positions((24, 24))
    expected = torch.stack([ellipse_kspace(positions, matrix, *one) for one in ellipses])
    assert relative(torch.from_numpy(centre), expected) < 5e-3


def test_calibration_is_no_larger_than_what_was_measured() -> None:
    trajectory = radial_trajectory(14, 128, 64)
    centre = calibration_kspace(drawn((2, 14, 128), 1), geometry(trajectory, (64, 64)))
    assert 8 <= min(centre.shape[1:]) < 16
    few = geometry(radial_trajectory(4, 128, 64), (64, 64))
    with pytest.raises(BadInput, match="at least 8 x 8"):
        noncartesian_maps(drawn((2, 4, 128), 1), few)
    with pytest.raises(BadInput, match="do not fit"):
        calibration_kspace(drawn((2, 4, 127), 1), few)


def test_maps_are_found_from_spokes() -> None:
    matrix = (64, 64)
    trajectory = radial_trajectory(80, 128, 64)
    true = smooth_maps(4, matrix)
    down, across = torch.meshgrid(*[torch.arange(64) - 32.0] * 2, indexing="ij")
    body = torch.sqrt((down / 26) ** 2 + (across / 20) ** 2)
    image = torch.sigmoid(8 * (1 - body)) * (1 + 0.3 * torch.cos(down / 5) * torch.sin(across / 4))
    y = NonCartesianPhysics(true, geometry(trajectory, matrix)).forward(image[None].to(torch.complex64))[0]
    found = torch.from_numpy(noncartesian_maps(y, geometry(trajectory, matrix)))
    assert found.shape == (4, *matrix)
    # maps are known but for a phase in each pixel
    overlap = torch.sum(found.conj() * true[0], dim=0).abs()
    assert float(overlap[body < 0.9].min()) > 0.99
    assert np.array_equal(noncartesian_maps(y[:1], geometry(trajectory, matrix)), np.ones((1, 64, 64)))


def test_a_measured_spiral_scan_is_reconstructed(shared_data: Path) -> None:
    file = shared_data / "mri-spirit-mat" / "spiral.mat"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    scan = scipy.io.loadmat(file)
    turn = 256 * scan["k"].T
    trajectory = np.stack([turn.imag, turn.real], axis=-1)
    y = torch.from_numpy(np.ascontiguousarray(scan["data"].transpose(2, 1, 0)).astype(np.complex64))
    computed = geometry(trajectory, (256, 256))
    maps = torch.from_numpy(noncartesian_maps(y, computed))[None]
    physics = NonCartesianPhysics(maps, computed)
    image = physics.analytic(y[None])
    given = geometry(trajectory, (256, 256), np.ascontiguousarray(scan["w"].T))
    assert relative(NonCartesianPhysics(maps, given).analytic(y[None]), image) < 0.12
    solved = conjugate_gradients(physics.normal, physics.adjoint(physics.weight(y[None])), tolerance=1e-2, max_steps=8)
    assert relative(solved.value, image) < 0.15
    # the bottles and the plate are bright, the corner beside them and the middle of the plate are not
    shown = image[0].abs()
    assert float(shown[170:230, 180:220].mean()) > 8 * float(shown[10:40, 5:35].mean())
    # one in three spirals aliases; what the coils know takes some of it away
    kept = torch.arange(60) % 3 == 0
    thinned, part = physics.thinned(kept), physics.part(y[None], kept)
    right = thinned.adjoint(thinned.weight(part))
    unfolded = conjugate_gradients(thinned.normal, right, tolerance=1e-9, max_steps=4)
    assert relative(unfolded.value, solved.value) < 0.85 * relative(thinned.analytic(part), solved.value)
