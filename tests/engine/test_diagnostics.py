"""Diagnostics of known maps: proximal maps, rotations, linear maps of known spectrum."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.diagnostics import (
    Estimate,
    Map,
    ProximalSettings,
    Rate,
    Transform,
    asymmetry,
    contraction,
    cyclic,
    equivariance_error,
    equivariance_gap,
    error_parts,
    gradient_cosines,
    pairwise,
    plain,
    proximal_report,
    quarter_turns_and_flips,
    residual_ratio,
    rotations,
    start_sensitivity,
    symmetric_spectrum,
)
from equipoise_engine.errors import BadInput, NumericalTrouble, Unsupported
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.mri import CartesianPhysics, centred_fft, centred_ifft, undersampling_mask
from equipoise_engine.networks import ResidualUNet, as_channels, from_channels
from equipoise_engine.phantoms import random_images
from equipoise_engine.solve import Outcome


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- maps of which everything is known -----------------------------------------------------------------------------


def soft_threshold(x: Tensor) -> Tensor:
    """The proximal map of 0.3 ||x||_1, the sum of moduli for complex x."""
    size = x.abs()
    return torch.where(size > 0.3, x * (1 - 0.3 / size.clamp(min=0.3)), 0)


GAUSSIAN_WIDTH = 2.0


def gaussian(x: Tensor) -> Tensor:
    """Smoothing with a periodic Gaussian, whose eigenvalues are its transfer function."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in x.shape[-2:])
    transfer = torch.exp(-((rows[:, None] ** 2 + columns**2) * (math.pi * GAUSSIAN_WIDTH) ** 2))
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer.to(x.dtype)).real


def linear(matrix: Tensor) -> Map:
    """A matrix on the pixels of an image; on real and imaginary parts of complex ones."""

    def apply(x: Tensor) -> Tensor:
        real = torch.view_as_real(x) if x.is_complex() else x
        moved = (real.reshape(x.shape[0], -1) @ matrix.to(real.dtype).T).reshape(real.shape)
        return torch.view_as_complex(moved) if x.is_complex() else moved

    return apply


def quadratic_prox(x: Tensor) -> Tensor:
    """The proximal map of ||B x||^2 / 2."""
    root = drawn(x[0].numel(), x[0].numel(), seed=3) / 4
    return linear(torch.linalg.inv(torch.eye(x[0].numel(), dtype=torch.float64) + root.T @ root))(x)


def total_variation_prox(x: Tensor) -> Tensor:
    """The proximal map of 0.3 TV(x), anisotropic, by projected gradients on the dual run to rounding."""
    level = 0.3

    def divergence(rows: Tensor, columns: Tensor) -> Tensor:
        return -rows.diff(dim=1, prepend=rows[:, :1] * 0, append=rows[:, :1] * 0) - columns.diff(
            dim=2, prepend=columns[:, :, :1] * 0, append=columns[:, :, :1] * 0
        )

    rows, columns = torch.zeros_like(x.diff(dim=1)), torch.zeros_like(x.diff(dim=2))
    for _ in range(600):
        image = x - divergence(rows, columns)
        rows = (rows + image.diff(dim=1) / 8).clamp(-level, level)
        columns = (columns + image.diff(dim=2) / 8).clamp(-level, level)
    return x - divergence(rows, columns)


def turning(degrees: float) -> Map:
    """Rotation of the plane of every two neighbouring pixels: no gradient field, though monotone up to 90 degrees."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(x: Tensor) -> Tensor:
        left, right = x[..., 0::2], x[..., 1::2]
        return torch.stack([cosine * left - sine * right, sine * left + cosine * right], -1).reshape(x.shape)

    return turn


def gradient_step(x: Tensor) -> Tensor:
    """x - grad g with g = ||x - N(x)||^2 / 2: differentiates inside, as gradient-step denoisers do."""
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        energy = (point - gaussian(torch.tanh(gaussian(point)))).square().sum() / 2
        (gradient,) = torch.autograd.grad(energy, point, create_graph=True)
    return x - gradient


# --- asymmetry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prox", [soft_threshold, gaussian, quadratic_prox, total_variation_prox, gradient_step], ids=lambda f: f.__name__
)
def test_proximal_maps_and_gradient_steps_have_symmetric_jacobians(prox: Map) -> None:
    images = drawn(2, 8, 8)
    assert abs(asymmetry(prox, images, seeded(), probes=4).mean) < 1e-10


@pytest.mark.parametrize("degrees", [90.0, 25.0])
def test_a_rotation_field_has_the_asymmetry_of_its_angle(degrees: float) -> None:
    found = asymmetry(turning(degrees), drawn(3, 8, 8), seeded(), probes=2)
    assert found.mean == pytest.approx(2 * math.sin(math.radians(degrees)) ** 2, rel=1e-12)
    assert found.probes == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lopsided_convolution_has_the_asymmetry_of_its_kernel(dtype: torch.dtype) -> None:
    # kernel (1, 1/2): ||k - flipped k||^2 / (2 ||k||^2) = 1/2 / (5/2)
    found = asymmetry(lambda x: x + x.roll(1, -1) / 2, drawn(1, 24, 24, dtype=dtype), seeded(), probes=40)
    assert found.mean == pytest.approx(0.2, rel=0.02)
    assert found.low < 0.2 < found.high
    assert found.standard_error > 0
    assert found.probes == 40


def test_complex_images_are_pairs_of_reals() -> None:
    images = drawn(2, 8, 8, dtype=torch.complex128)
    assert abs(asymmetry(soft_threshold, images, seeded()).mean) < 1e-20
    # i x turns the plane of real and imaginary part; the complex conjugate mirrors it
    assert asymmetry(lambda x: 1j * x, images, seeded()).mean == pytest.approx(2.0)
    assert abs(asymmetry(lambda x: x.conj() + 0, images, seeded()).mean) < 1e-20


def test_exact_products_agree_with_differences_for_a_network_and_a_physics() -> None:
    torch.manual_seed(0)
    network = ResidualUNet(2, (4, 4, 4)).double()
    torch.nn.init.normal_(network.leave.weight, std=0.2)
    mask = torch.from_numpy(undersampling_mask(np.ones((16, 16), dtype=np.bool_), 3, centre_lines=4))
    physics = CartesianPhysics(torch.ones((2, 1, 16, 16), dtype=torch.complex128), mask)
    y = physics(drawn(2, 16, 16, dtype=torch.complex128))

    def step(x: Tensor) -> Tensor:
        return from_channels(network(as_channels(x - physics.gradient(x, y))))

    images = drawn(2, 16, 16, dtype=torch.complex128, seed=5)
    exact = asymmetry(step, images, seeded())
    assert exact.mean > 1e-4
    assert asymmetry(step, images, seeded(), difference=1e-7).mean == pytest.approx(exact.mean, rel=1e-4)


class _Once(torch.autograd.Function):
    """x^2 with a gradient that cannot be differentiated again, as that of an implicit layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


def test_a_map_with_a_single_derivative_needs_differences() -> None:
    images = drawn(1, 8, 8)
    with pytest.raises(Unsupported, match="differentiated again"):
        asymmetry(_Once.apply, images, seeded())
    # here one way back to u is open and the other is cut
    with pytest.raises(Unsupported, match="differentiated again"):
        asymmetry(lambda x: x + _Once.apply(x), images, seeded())
    assert asymmetry(_Once.apply, images, seeded(), difference=1e-5).mean < 1e-15
    spectrum = symmetric_spectrum(_Once.apply, images, seeded(), steps=64, difference=1e-5)
    assert spectrum.largest.mean == pytest.approx(2 * float(images.max()), rel=1e-6)


def test_maps_without_a_gradient_are_refused() -> None:
    with pytest.raises(BadInput, match="no gradient"):
        asymmetry(lambda x: torch.ones_like(x), drawn(1, 4, 4), seeded())
    with pytest.raises(NumericalTrouble, match="not finite"):
        contraction(lambda x: x / 0, drawn(1, 4, 4), seeded())


# --- spectra ---------------------------------------------------------------------------------------------------------


def test_lanczos_finds_the_ends_of_a_known_spectrum() -> None:
    vectors, _ = torch.linalg.qr(drawn(64, 64))
    values = torch.cat([torch.tensor([-0.2, 1.3], dtype=torch.float64), torch.linspace(0, 1, 62, dtype=torch.float64)])
    skew = drawn(64, 64, seed=1)
    # an antisymmetric part changes the norm, not the symmetric part
    matrix = vectors @ torch.diag(values) @ vectors.T + 0.05 * (skew - skew.T)
    found = symmetric_spectrum(linear(matrix), drawn(2, 8, 8), seeded(), steps=64)
    assert found.smallest.mean == pytest.approx(-0.2, abs=1e-10)
    assert found.largest.mean == pytest.approx(1.3, abs=1e-10)
    assert found.norm.mean == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-10)
    assert found.residual < 1e-8


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_few_lanczos_steps_find_the_spectrum_of_a_smoother(dtype: torch.dtype, accuracy: float) -> None:
    found = symmetric_spectrum(gaussian, drawn(2, 32, 32, dtype=dtype), seeded(), steps=40)
    assert found.largest.mean == pytest.approx(1.0, abs=accuracy)
    assert found.norm.mean == pytest.approx(1.0, abs=accuracy)
    assert found.smallest.mean == pytest.approx(math.exp(-0.5 * (math.pi * GAUSSIAN_WIDTH) ** 2), abs=1e-3)


def test_lanczos_ends_in_an_invariant_space() -> None:
    images = drawn(3, 8, 8, dtype=torch.complex64)
    # two eigenvalues for the second image, one for the others
    slopes = torch.full((3, 8, 8), 0.5)
    slopes[1, 2:] = -2.0
    found = symmetric_spectrum(lambda x: slopes * x, images, seeded())
    assert (found.smallest.least, found.smallest.greatest) == pytest.approx((-2.0, 0.5), abs=1e-6)
    assert (found.largest.least, found.largest.greatest) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert (found.norm.least, found.norm.greatest) == pytest.approx((0.5, 2.0), abs=1e-6)


# --- pairs and cycles ------------------------------------------------------------------------------------------------


def test_pairs_give_the_values_of_a_multiple() -> None:
    pairs = (drawn(10, 8, 8), drawn(10, 8, 8, seed=1))
    found = pairwise(lambda x: 1.5 * x, pairs)
    assert found.monotone.value.mean == pytest.approx(1.5)
    assert found.monotone.rate.violations == 0
    assert found.nonexpansive.value.greatest == pytest.approx(1.5)
    assert found.nonexpansive.rate.violations == 10
    assert found.firmly_nonexpansive.value.least == pytest.approx(1.5 - 1.5**2)
    assert found.firmly_nonexpansive.rate.violations == 10
    mirrored = pairwise(lambda x: -x, pairs)
    assert mirrored.monotone.rate.violations == 10
    assert mirrored.monotone.value.least == pytest.approx(-1.0)
    assert mirrored.nonexpansive.rate.violations == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_a_proximal_map_passes_for_pairs_that_are_close(dtype: torch.dtype) -> None:
    images = drawn(40, 8, 8, dtype=dtype)
    found = pairwise(soft_threshold, (images, images + 1e-3 * drawn(40, 8, 8, dtype=dtype, seed=1)))
    for check in (found.monotone, found.nonexpansive, found.firmly_nonexpansive):
        assert check.rate.violations == 0
    # no violation among 40 leaves the rate below z^2 / (40 + z^2)
    assert found.monotone.rate.high == pytest.approx(1.96**2 / (40 + 1.96**2), rel=1e-4)
    # nothing is hidden behind rounding: a map that expands by a little is caught
    assert pairwise(lambda x: 1.01 * x, (images, -images)).nonexpansive.rate.violations == 40
    with pytest.raises(BadInput, match="equal"):
        pairwise(soft_threshold, (images, images))


def test_a_rotation_of_the_plane_violates_only_long_cycles() -> None:
    # rotation by t is monotone on cycles of n points if and only if t <= 180 / n degrees
    points = drawn(30, 1, 2)
    found = cyclic(turning(50), points, seeded(), cycles=3000, loops=1)
    assert [found.monotone[length].rate.violations > 0 for length in (3, 4, 5)] == [False, True, True]
    assert pairwise(turning(50), (points[:15], points[15:])).monotone.rate.violations == 0
    kept = cyclic(soft_threshold, points, seeded(), cycles=300, loops=1)
    assert [kept.monotone[length].rate.violations for length in (3, 4, 5)] == [0, 0, 0]
    assert kept.monotone[3].value.least > 0


def test_the_integral_of_a_rotation_field_is_twice_the_area() -> None:
    corners = torch.tensor([[0.2, 0.1], [1.3, 0.4], [0.5, 1.6]], dtype=torch.float64)
    found = cyclic(turning(90), corners[:, None], seeded(), lengths=(3,), cycles=1, loops=1, panels=64)
    (ax, ay), (bx, by) = (corners[1] - corners[0]).tolist(), (corners[2] - corners[0]).tolist()
    size = 0.0
    for first, last in zip(corners.numpy(), corners.roll(-1, 0).numpy(), strict=True):
        edge = last - first
        size += quad(lambda t, a=first, e=edge: np.linalg.norm(a + t * e), 0, 1)[0] * np.linalg.norm(edge)
    assert found.integral.mean == pytest.approx(abs(ax * by - ay * bx) / size, rel=1e-8)
    assert found.quadrature_error < 1e-12


def test_the_integral_of_a_gradient_field_vanishes_with_the_order_of_the_rule() -> None:
    images = drawn(6, 6, 6)
    # the gradient of a polynomial of degree four is integrated exactly, also by half the panels
    exact = cyclic(lambda x: x**3 + gaussian(x), images, seeded(), panels=8)
    assert exact.integral.greatest < 1e-14
    assert exact.quadrature_error < 1e-14
    errors = []
    for panels in (4, 8, 16):
        smooth = cyclic(lambda x: torch.tanh(x), images, seeded(), panels=panels)
        errors.append(smooth.integral.greatest)
        assert smooth.integral.greatest < smooth.quadrature_error
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_cycles_need_three_images_and_whole_panels() -> None:
    with pytest.raises(BadInput, match="2 images are too few"):
        cyclic(gaussian, drawn(2, 4, 4), seeded())
    with pytest.raises(BadInput, match="6 panels"):
        cyclic(gaussian, drawn(3, 4, 4), seeded(), panels=6)


# --- the whole report ------------------------------------------------------------------------------------------------

ALL = {
    "symmetric",
    "monotone",
    "nonexpansive",
    "firmly_nonexpansive",
    "cyclically_monotone",
    "conservative",
    "proximal",
    "proximal_convex",
}


@pytest.mark.parametrize(
    ("function", "violated"),
    [
        (gaussian, set()),
        (soft_threshold, set()),
        (lambda x: 1.5 * x, {"nonexpansive", "firmly_nonexpansive", "proximal_convex"}),
        (lambda x: -0.5 * x, ALL - {"symmetric", "nonexpansive", "conservative"}),
        (turning(70), ALL - {"monotone", "nonexpansive", "cyclically_monotone"}),
    ],
    ids=["gaussian", "soft threshold", "expansion", "mirror", "rotation"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_report_says_what_speaks_against_a_proximal_map(
    function: Map, violated: set[str], dtype: torch.dtype
) -> None:
    images = drawn(3, 8, 8, dtype=dtype)
    settings = ProximalSettings(probes=4, steps=20, cycles=10, loops=2)
    # the loop integral of the soft threshold is only as exact as its kinks allow
    report = proximal_report(function, images, seeded(), transforms=quarter_turns_and_flips()[:2], settings=settings)
    against = {name for name, verdict in report.verdicts.items() if not verdict.consistent}
    assert report.verdicts.keys() == ALL
    assert against == violated
    assert set(report.pairs) == {"images", "noisy", "transformed"}
    assert report.pairs["transformed"].monotone.rate.probes == 6
    for name, verdict in report.verdicts.items():
        assert verdict.words.startswith("Not" if name in violated else "Consistent with")
    text = json.dumps(plain(report), allow_nan=False)
    assert json.loads(text)["asymmetry"]["probes"] == 6


def test_a_report_in_words_names_the_numbers() -> None:
    words = proximal_report(turning(70), drawn(3, 8, 8), seeded()).verdicts
    assert words["symmetric"].words.startswith("Not a symmetric Jacobian at the points tested: asymmetry 1.77")
    # half of ||J - J^T|| over ||J||: the sine of the angle
    assert "94 % of the Jacobian" in words["symmetric"].words
    assert "it is not symmetric, not conservative" in words["proximal"].words
    assert "no violation in 6 pairs" in words["monotone"].words


# --- equivariance ----------------------------------------------------------------------------------------------------

GROUPS = {"exact": quarter_turns_and_flips(), "interpolated": rotations((0.3, 1.1, -2.0))}


def test_the_exact_group_has_seven_elements_that_are_undone() -> None:
    image = drawn(1, 6, 6)
    turned = [transform.apply(image) for transform in GROUPS["exact"]]
    assert len({tuple(one.reshape(-1).tolist()) for one in [image, *turned]}) == 8
    for transform, one in zip(GROUPS["exact"], turned, strict=True):
        torch.testing.assert_close(transform.undo(one), image, rtol=0, atol=0)


def test_an_equivariant_map_has_next_to_no_error() -> None:
    images = random_images(3, 48, seeded()).double()
    found = equivariance_error(gaussian, images, GROUPS)
    assert found["exact"].raw.mean < 1e-14
    assert found["exact"].floor.mean == 0.0
    assert 1e-5 < found["interpolated"].floor.mean < 1e-3
    assert found["interpolated"].error.mean < 1e-3
    lopsided = equivariance_error(lambda x: gaussian(x).roll(2, -1), images, GROUPS)
    assert lopsided["exact"].error.mean > 0.1
    assert lopsided["interpolated"].error.mean > 0.1
    assert lopsided["interpolated"].error.low < lopsided["interpolated"].error.mean


def test_the_floor_takes_away_what_the_transform_itself_gets_wrong() -> None:
    images = drawn(4, 32, 32)
    generator = seeded()

    def noisy(turns: int) -> Map:
        def apply(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            return torch.rot90(x, turns, (-2, -1)) + 0.05 * noise

        return apply

    group = {"noisy": [Transform(noisy(1), noisy(-1))] * 6}
    same = equivariance_error(lambda x: -x, images, group)["noisy"]
    assert same.raw.mean == pytest.approx(0.05 * math.sqrt(2), rel=0.05)
    assert same.floor.mean == pytest.approx(same.raw.mean, rel=0.05)
    assert same.error.low == 0
    assert same.error.mean < 0.3 * same.raw.mean

    def lopsided(x: Tensor) -> Tensor:
        return x + 0.1 * x.roll(1, -1)

    exact = equivariance_error(lopsided, images, {"turn": quarter_turns_and_flips()[:1]})["turn"]
    found = equivariance_error(lopsided, images, group)["noisy"]
    assert found.raw.mean > 1.08 * exact.raw.mean
    assert found.error.mean == pytest.approx(exact.error.mean, rel=0.03)
    # what comes out of the gap is compared with the image that went in, with all its noise
    gap = equivariance_gap(lambda x: x.clamp(-9, 9), images, group)["noisy"]
    assert (gap.raw.mean, gap.error.mean) == (0, 0)
    assert gap.floor.mean == pytest.approx(0.05, rel=0.05)


def test_the_error_is_what_its_formula_says() -> None:
    images = drawn(1, 12, 12)
    turn = quarter_turns_and_flips()[:1]

    def blur(x: Tensor) -> Tensor:
        return x + x.roll(1, -1)

    turned = torch.rot90(images, 1, (-2, -1))
    wanted = (blur(turned) - torch.rot90(blur(images), 1, (-2, -1))).norm() / blur(images).norm()
    found = equivariance_error(blur, images, {"turn": turn})["turn"]
    assert found.error.mean == found.raw.mean == pytest.approx(float(wanted))
    assert math.isnan(found.error.standard_error)
    gap = equivariance_gap(blur, images, {"turn": turn})["turn"]
    assert gap.error.mean == pytest.approx(float((blur(turned) - turned).norm() / images.norm()))
    half = torch.zeros(12, 12, dtype=torch.float64)
    half[:6] = 1
    part = equivariance_gap(blur, images, {"turn": turn}, seen=lambda x: x * half)["turn"]
    assert part.error.mean == pytest.approx(float((half * (blur(turned) - turned)).norm() / (half * images).norm()))
    with pytest.raises(BadInput, match="no transform"):
        equivariance_error(blur, images, {"none": ()})


# --- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(torch.float32, 1e-4), (torch.float64, 1e-9), (torch.complex128, 1e-9)]
)
def test_contraction_finds_the_radius_of_a_linear_map(dtype: torch.dtype, accuracy: float) -> None:
    # a leading complex pair of modulus 0.9, on which the power method goes round, in a basis that is not orthogonal
    size = 128 if dtype.is_complex else 64
    blocks = torch.diag(torch.linspace(-0.7, 0.7, size, dtype=torch.float64))
    blocks[:2, :2] = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    basis = torch.eye(size, dtype=torch.float64) + 0.1 * drawn(size, size, seed=2) / math.sqrt(size / 64)
    matrix = basis @ blocks @ torch.linalg.inv(basis)
    found = contraction(lambda x: linear(matrix)(x) + 1, drawn(2, 8, 8, dtype=dtype), seeded(), steps=size)
    assert found.radius.mean == pytest.approx(0.9, abs=accuracy)
    assert found.norm.mean == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=accuracy)
    assert found.norm.mean > 1.1
    assert found.residual < 100 * accuracy


def test_the_observed_ratio_is_that_of_the_decay_and_ends_where_a_sample_stopped() -> None:
    steps = torch.arange(20, dtype=torch.float64)
    residuals = torch.stack([0.8**steps + 0.1**steps, 3 * 0.5 ** steps.clamp(max=8)], 1)
    found = residual_ratio(residuals)
    assert found.greatest == pytest.approx(0.8, rel=1e-8)
    assert found.least == pytest.approx(0.5, rel=1e-12)
    with pytest.raises(BadInput, match="two different residuals"):
        residual_ratio(torch.ones(1, 2))


def test_a_unique_solution_forgets_the_start_and_another_does_not() -> None:
    keep = torch.zeros((8, 8), dtype=torch.float64)
    starts = [drawn(2, 8, 8, seed=seed) for seed in range(3)]

    def solve_from(x: Tensor) -> Tensor:
        for _ in range(200):
            x = (0.5 + 0.5 * keep) * x + (1 - keep)
        return x

    found = start_sensitivity(solve_from, starts)
    assert found.distance.greatest < 1e-12
    assert found.start_distance.mean == pytest.approx(math.sqrt(2), rel=0.1)
    assert found.distance.probes == 6
    keep += 1
    same = start_sensitivity(solve_from, starts)
    assert same.distance == same.start_distance
    with pytest.raises(BadInput, match="1 start"):
        start_sensitivity(solve_from, starts[:1])


# --- gradients -------------------------------------------------------------------------------------------------------


def test_the_cosine_of_the_jacobian_free_gradient_is_that_of_its_spectrum() -> None:
    # x = J x + b with the spectrum of J uniform in [0, rho]: 1 / (1 - s) against 1, averaged over s
    rho = 0.9
    slopes = torch.linspace(0, rho, 4096, dtype=torch.float64)
    u = drawn(6, 4096)
    modes = {
        "implicit": lambda: u / (1 - slopes),
        "neumann": lambda: sum(slopes**power for power in range(6)) * u,
        "jacobian-free": lambda: u,
        "one draw": lambda: (u / (1 - slopes))[0],
    }
    with pytest.raises(BadInput, match="shape"):
        gradient_cosines(modes, "implicit")
    del modes["one draw"]
    found = gradient_cosines(modes, "implicit")
    first, second = -math.log(1 - rho) / rho, 1 / (1 - rho)
    assert found["implicit"].cosine.mean == pytest.approx(1.0)
    assert found["jacobian-free"].cosine.mean == pytest.approx(first / math.sqrt(second), abs=0.01)
    assert found["jacobian-free"].norm_ratio.mean == pytest.approx(1 / math.sqrt(second), abs=0.01)
    assert found["jacobian-free"].cosine.mean < found["neumann"].cosine.mean < 1
    assert found["jacobian-free"].cosine.probes == 6
    with pytest.raises(BadInput, match="'unrolled'"):
        gradient_cosines(modes, "unrolled")


# --- where the error lies --------------------------------------------------------------------------------------------


def test_error_parts_of_cartesian_sampling_are_those_of_the_mask() -> None:
    mask = torch.from_numpy(undersampling_mask(np.ones((16, 16), dtype=np.bool_), 3, centre_lines=4))
    physics = CartesianPhysics(torch.ones((3, 1, 16, 16), dtype=torch.complex128), mask)
    x, error = drawn(3, 16, 16, dtype=torch.complex128), 0.1 * drawn(3, 16, 16, dtype=torch.complex128, seed=1)
    found = error_parts(x + error, x, physics)
    inside = centred_ifft(centred_fft(error) * mask)
    size = x.flatten(1).norm(dim=1)
    assert found.range.mean == pytest.approx(float((inside.flatten(1).norm(dim=1) / size).mean()), rel=1e-10)
    assert found.null.mean == pytest.approx(float(((error - inside).flatten(1).norm(dim=1) / size).mean()), rel=1e-10)
    assert found.remaining < 1e-10
    assert found.outcome is Outcome.CONVERGED


def test_error_parts_of_few_views_are_those_of_the_pseudoinverse() -> None:
    physics = TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, 5, endpoint=False), 1.0, 5.5), 12)
    unit = torch.eye(144, dtype=torch.float64).reshape(144, 12, 12)
    matrix = physics(unit).reshape(144, -1).T
    x, error = drawn(2, 12, 12), 0.1 * drawn(2, 12, 12, seed=1)
    found = error_parts(x + error, x, physics, steps=400, tolerance=1e-10)
    projection = torch.linalg.pinv(matrix, rtol=1e-10) @ matrix
    inside = error.reshape(2, -1) @ projection.T
    size = x.flatten(1).norm(dim=1)
    assert found.range.mean == pytest.approx(float((inside.norm(dim=1) / size).mean()), rel=1e-4)
    assert found.null.mean == pytest.approx(
        float(((error.reshape(2, -1) - inside).norm(dim=1) / size).mean()), rel=1e-4
    )
    assert found.total.mean == pytest.approx(float((error.flatten(1).norm(dim=1) / size).mean()))
    assert error_parts(x + error, x, physics, steps=2).outcome is Outcome.MAX_STEPS


# --- estimates -------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = {"mean": 0, "ratio": 0, "rate": 0}
    values = drawn(2000, 5)
    sizes = torch.rand((2000, 20), dtype=torch.float64, generator=seeded()) + 0.5
    for mean, size, noise in zip(values, sizes, drawn(2000, 20, seed=4), strict=True):
        one = Estimate.of(mean)
        held["mean"] += one.low < 0 < one.high
        two = Estimate.of_ratio(size * (0.3 + 0.05 * noise), size)
        held["ratio"] += two.low < 0.3 < two.high
        three = Rate.of(noise < -0.6745)
        held["rate"] += three.low < 0.25 < three.high
    for count in held.values():
        assert count / 2000 == pytest.approx(0.95, abs=0.025)


def test_records_become_json_without_nan() -> None:
    assert plain(Estimate.of(torch.tensor([2.0]))) == {
        "mean": 2.0,
        "standard_error": None,
        "low": None,
        "high": None,
        "least": 2.0,
        "greatest": 2.0,
        "probes": 1,
    }
    assert plain({3: (1, float("inf"), Outcome.CONVERGED)}) == {"3": [1, None, "converged"]}
