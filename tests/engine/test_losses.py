"""Each loss against what it estimates: risks in closed form or over many noise draws, and what it must not react to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.groups import Transform, draw, rotate
from equipoise_engine.losses import (
    NoiseLevel,
    Reconstruction,
    SteinTerms,
    attenuation_variance,
    equivariance,
    equivariant_splitting,
    measurement_consistency,
    poisson_gaussian_sure,
    raised,
    recorrupt,
    splitting,
    stein_terms,
    supervised,
    sure,
    unsure,
)
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.operators import Physics
from equipoise_engine.phantoms import random_coil_maps

DRAWS = 3000


def parallel(views: int = 9, side: int = 10) -> TomographyPhysics:
    return TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, views, endpoint=False), 1.0, (side - 1) / 2), side)


def cartesian(side: int = 8, acceleration: int = 2, coils: int = 2) -> CartesianPhysics:
    maps = random_coil_maps(coils, side, torch.Generator().manual_seed(1))[None].to(torch.complex128)
    if coils == 1:
        maps = torch.ones_like(maps)
    mask = undersampling_mask(np.ones((side, side), dtype=np.bool_), acceleration, centre_lines=2)
    return CartesianPhysics(maps, torch.from_numpy(mask))


def smooth(side: int) -> Tensor:
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / side
    return torch.exp(-((axis[None, :] - 0.1) ** 2 + (axis[:, None] + 0.05) ** 2) / 0.03)[None]


def linear(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
    """0.7 A^H W y."""
    return 0.7 * physics.adjoint(physics.weight(y))


def bent(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
    """A reconstruction that is not linear in y."""
    x = linear(y, physics)
    return x + 0.3 * (torch.tanh(2 * x) if not x.is_complex() else x * torch.tanh(x.abs()))


def iterated(y: Tensor, physics: Physics, copies: int = 1) -> Tensor:
    """Ten gradient steps, with little bias."""
    x = linear(y, physics)
    for _ in range(10):
        x = x - physics.gradient(x, y)
    return x


def weighed(d: Tensor, physics: Physics) -> Tensor:
    return torch.sum((d.conj() * physics.weight(d)).real.flatten(1), 1)


def agrees(estimate: Tensor, truth: Tensor) -> None:
    """Assert that paired draws have the same mean, within four standard errors that are small beside it."""
    difference = estimate - truth
    standard_error = float(difference.std()) / math.sqrt(len(difference))
    assert abs(float(difference.mean())) < 4 * standard_error
    assert standard_error < 0.03 * float(truth.mean())


def noisy(physics: Physics, deviation: float) -> tuple[Tensor, Tensor]:
    """Return noise-free measurements `(1, ...)` of a smooth image and many noisy ones."""
    x = smooth(physics.domain[0])
    clean = physics.forward(x.to(torch.complex128) * (1 + 0.4j) if physics.complex_image else x)
    y = clean.expand(DRAWS, *clean.shape[1:])
    return clean, y + deviation * physics.noise_like(y, torch.Generator().manual_seed(5))


PHYSICS: dict[str, Physics] = {"CT": parallel(), "MRI": cartesian()}


@pytest.mark.parametrize("modality", PHYSICS)
@pytest.mark.parametrize("reconstruct", [linear, bent])
def test_sure_is_the_risk_in_expectation(modality: str, reconstruct: Reconstruction) -> None:
    physics, deviation = PHYSICS[modality], 0.3
    clean, y = noisy(physics, deviation)
    probe = physics.noise_like(y, torch.Generator().manual_seed(6))
    terms = stein_terms(y, physics, reconstruct, variance=deviation**2, probe=probe)
    torch.testing.assert_close(terms.x_hat, reconstruct(y, physics))
    risk = weighed(physics.forward(terms.x_hat) - clean, physics)
    agrees(sure(terms) * weighed(y, physics), risk)
    # the misfit alone is no estimate of it
    torch.testing.assert_close(terms.misfit, measurement_consistency(terms.x_hat, y, physics))
    with pytest.raises(AssertionError):
        agrees(terms.misfit * weighed(y, physics), risk)


def test_sure_of_a_linear_reconstruction_is_its_closed_form() -> None:
    physics, deviation = parallel(), 0.3
    clean, y = noisy(physics, deviation)
    count = math.prod(physics.range)
    unit = torch.eye(count, dtype=torch.float64).reshape(count, *physics.range)
    hat = physics.forward(linear(unit, physics)).reshape(count, count).T
    weight = physics.weight(unit).reshape(count, count)
    bias = (hat - torch.eye(count)) @ clean.flatten()
    expected = float(bias @ weight @ bias + deviation**2 * torch.trace(hat.T @ weight @ hat))
    probe = physics.noise_like(y, torch.Generator().manual_seed(6))
    terms = stein_terms(y, physics, linear, variance=deviation**2, probe=probe)
    size = weighed(y, physics)
    estimate = sure(terms) * size
    assert abs(float(estimate.mean()) - expected) < 4 * float(estimate.std()) / math.sqrt(DRAWS)
    divergence = terms.divergence * size / deviation**2
    exact = float(torch.trace(weight @ hat))
    assert abs(float(divergence.mean()) - exact) < 4 * float(divergence.std()) / math.sqrt(DRAWS)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_terms_do_not_depend_on_the_unit_of_the_measurements(scale: float) -> None:
    physics = parallel()
    _, y = noisy(physics, 0.3)
    y = y[:4]
    probe = physics.noise_like(y, torch.Generator().manual_seed(6))
    one = stein_terms(y, physics, linear, variance=0.09, probe=probe)
    other = stein_terms(scale * y, physics, linear, variance=0.09 * scale**2, probe=probe)
    torch.testing.assert_close(sure(other), sure(one), rtol=1e-6, atol=1e-9)


def test_the_pair_is_solved_in_one_batch_with_an_operator_for_each_sample() -> None:
    maps = torch.cat([cartesian().maps, cartesian().maps.conj()])
    physics = CartesianPhysics(maps, cartesian().mask)
    y = torch.randn((2, *physics.range), dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    calls: list[tuple[int, int, int]] = []

    def watched(given: Tensor, used: Physics, copies: int = 1) -> Tensor:
        calls.append((given.shape[0], used.slices, copies))
        return linear(given, used)

    probe = physics.noise_like(y, torch.Generator().manual_seed(6))
    terms = stein_terms(y * physics.mask, physics, watched, variance=0.1, probe=probe)
    assert calls == [(4, 4, 2)]
    torch.testing.assert_close(terms.x_hat, linear(y * physics.mask, physics))


def transmission(photons: float, readout: float) -> tuple[TomographyPhysics, Tensor, Tensor]:
    """Return physics, noise-free attenuation `(1, view, column)` up to 2.5, and many noisy measurements of it."""
    physics = parallel(9, 10)
    clean = physics.forward(0.6 * smooth(10))
    clean = clean * (2.5 / clean.max())
    rates = (photons * torch.exp(-clean)).expand(DRAWS, -1, -1)
    generator = torch.Generator().manual_seed(2)
    counts = torch.poisson(rates, generator=generator)
    counts = counts + readout * torch.randn(rates.shape, dtype=torch.float64, generator=generator)
    return physics, clean, -torch.log(counts / photons)


@pytest.mark.parametrize("readout", [0.0, 30.0])
def test_the_variance_of_attenuation_is_that_of_simulated_counts(readout: float) -> None:
    _, clean, y = transmission(5000.0, readout)
    expected = attenuation_variance(clean, 5000.0, readout)[0]
    torch.testing.assert_close(y.var(0), expected, rtol=0.15, atol=0)
    torch.testing.assert_close(y.var(0).mean(), expected.mean(), rtol=0.02, atol=0)
    assert float(expected.max() / expected.min()) > 5


@pytest.mark.long
@pytest.mark.parametrize("readout", [0.0, 30.0])
def test_sure_and_r2r_of_attenuation_with_the_noise_of_each_ray(readout: float) -> None:
    physics, clean, y = transmission(20000.0, readout)
    variance = attenuation_variance(y, 20000.0, readout)
    size = weighed(y, physics)

    def estimates(level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probe = physics.noise_like(y, torch.Generator().manual_seed(6))
        terms = stein_terms(y, physics, iterated, variance=level, probe=probe)
        drawn = level.sqrt() * physics.noise_like(y, torch.Generator().manual_seed(7))
        given, target = recorrupt(y, drawn, 0.5)
        x_hat = iterated(given, physics)
        compared = weighed(physics.forward(x_hat) - target, physics) - weighed(target - clean, physics)
        risks = [weighed(physics.forward(x) - clean, physics) for x in (terms.x_hat, x_hat)]
        return sure(terms) * size, risks[0], compared, risks[1]

    stein, risk, compared, recorrupted_risk = estimates(variance)
    agrees(stein, risk)
    agrees(compared, recorrupted_risk)
    # white noise of the same mean variance is not the noise of the rays
    stein, risk, _, _ = estimates(variance.mean().expand_as(variance))
    with pytest.raises(AssertionError):
        agrees(stein, risk)


@pytest.mark.parametrize("modality", PHYSICS)
def test_recorrupted_measurements_give_the_risk_up_to_a_constant(modality: str) -> None:
    physics, deviation = PHYSICS[modality], 0.3
    clean, y = noisy(physics, deviation)
    noise = deviation * physics.noise_like(y, torch.Generator().manual_seed(7))
    given, target = recorrupt(y, noise, share=0.5)
    compared = weighed(physics.forward(bent(given, physics)) - target, physics)
    risk = weighed(physics.forward(bent(given, physics)) - clean, physics)
    agrees(compared - weighed(target - clean, physics), risk)
    # from the measurements themselves the noise would be fitted
    fitted = weighed(physics.forward(bent(y, physics)) - y, physics) - weighed(y - clean, physics)
    with pytest.raises(AssertionError):
        agrees(fitted, weighed(physics.forward(bent(y, physics)) - clean, physics))


@pytest.mark.parametrize(("gain", "deviation"), [(0.1, 0.0), (0.1, 2.0), (0.0, 1.0)])
def test_sure_of_counts_that_are_linear_in_the_image(gain: float, deviation: float) -> None:
    physics = parallel()
    clean = physics.forward(2 * smooth(10))
    generator = torch.Generator().manual_seed(3)
    rates = clean.expand(DRAWS, -1, -1)
    y = gain * torch.poisson(rates / gain, generator=generator) if gain else rates
    y = y + deviation * torch.randn(y.shape, dtype=torch.float64, generator=generator)

    def quadratic(given: Tensor, used: Physics, copies: int = 1) -> Tensor:
        x = linear(given, used)
        return 0.5 * x + 0.3 * x**2

    probe = physics.noise_like(y, torch.Generator().manual_seed(6))
    loss, x_hat = poisson_gaussian_sure(
        y, physics, quadratic, gain=gain, deviation=deviation, probe=probe, generator=generator
    )
    torch.testing.assert_close(x_hat, quadratic(y, physics))
    agrees(loss * weighed(y, physics), weighed(physics.forward(x_hat) - clean, physics))


@pytest.mark.parametrize("first", [0.2, 5.0])
def test_unsure_learns_the_noise_level(first: float) -> None:
    # constant images: of the k-space only the centre holds signal, the rest is noise
    physics, side, deviation = cartesian(8, 1, 1), 8, 0.2
    count = side * side
    generator = torch.Generator().manual_seed(0)
    gains = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    centre = torch.zeros((side, side), dtype=torch.float64)
    centre[side // 2, side // 2] = 1

    def reconstruct(y: Tensor, used: Physics, copies: int = 1) -> Tensor:
        return used.adjoint((gains[0] * centre + gains[1] * (1 - centre)) * y)

    level = NoiseLevel(first * deviation**2)
    seen: list[float] = []
    for _ in range(300):
        height = 0.5 + torch.rand((16, 1, 1), dtype=torch.float64, generator=generator)
        clean = physics.forward((height * torch.ones((side, side))).to(torch.complex128))
        y = clean + deviation * physics.noise_like(clean, generator)
        terms = stein_terms(y, physics, reconstruct, variance=1.0, probe=physics.noise_like(y, generator))
        (slope,) = torch.autograd.grad(unsure(terms, level).mean(), gains)
        with torch.no_grad():
            # signal and noise have the curvatures of their shares of the measurements
            gains -= 0.2 * slope / torch.stack([torch.ones_like(slope[0]), deviation**2 * terms.noise.mean()])
        level = raised(level, terms)
        seen.append(level.variance)
    # the least misfit of zero divergence in the limit of a strong signal, which takes one of all dimensions
    expected = deviation**2 * count / (count - 1)
    assert np.mean(seen[-100:]) == pytest.approx(expected, rel=0.02)


def test_the_level_climbs_with_momentum() -> None:
    one = torch.ones(2, dtype=torch.float64)
    terms = SteinTerms(one, 0.5 * one, one, one)
    level = raised(NoiseLevel(2.0), terms, rate=1.0, momentum=0.5)
    assert level.velocity == pytest.approx(0.25)
    assert level.variance == pytest.approx(2.0 * math.exp(0.25))
    again = raised(level, terms, rate=1.0, momentum=0.5)
    assert again.velocity == pytest.approx(0.375)
    assert again.variance == pytest.approx(2.0 * math.exp(0.625))
    still = raised(again, SteinTerms(one, 0 * one, one, one), rate=1.0, momentum=0.5)
    assert still.velocity == pytest.approx(0.1875)


def test_supervised_is_relative_to_the_truth_where_it_is_seen() -> None:
    physics = parallel(9, 16)
    x = smooth(16)
    corner = torch.zeros_like(x)
    corner[0, 0, 0] = 5.0
    assert float(supervised(x + corner, x, physics)) == 0
    assert float(supervised(1.1 * x, x, physics)) == pytest.approx(0.01)
    assert float(measurement_consistency(1.1 * x, physics.forward(x), physics)) == pytest.approx(0.01)


@pytest.mark.parametrize("group", ["rotation", "rot90+flip", "shift+phase"])
def test_equivariance_is_zero_for_the_inverse_of_a_complete_measurement(group: str) -> None:
    physics = cartesian(16, 1)
    x = smooth(16).repeat(2, 1, 1).to(torch.complex128)
    transform = draw(group, 2, torch.Generator().manual_seed(0), shape=(16, 16))

    def inverse(y: Tensor, used: Physics, copies: int = 1) -> Tensor:
        return used.adjoint(y)

    assert float(equivariance(x, physics, inverse, transform=transform).max()) < 1e-12
    noise = physics.noise_like(physics.forward(x), torch.Generator().manual_seed(0))
    assert float(equivariance(x, physics, inverse, transform=transform, corrupt=lambda _: 0.1 * noise).min()) > 1e-3
    # it is not for one that prefers a place
    corner = torch.linspace(0, 1, 16, dtype=torch.float64)[:, None]

    def placed(y: Tensor, used: Physics, copies: int = 1) -> Tensor:
        return corner * used.adjoint(y)

    assert float(equivariance(corner * x, physics, placed, transform=transform).min()) > 1e-2


def test_detaching_the_target_changes_the_gradient_but_not_the_loss() -> None:
    physics = cartesian(12, 2)
    y = physics.forward(smooth(12).to(torch.complex128))
    transform = Transform(angle_rad=torch.tensor([0.7]))
    gradients, losses = [], []
    for detach in (False, True):
        gain = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

        def scaled(given: Tensor, used: Physics, copies: int = 1, gain: Tensor = gain) -> Tensor:
            return gain * used.adjoint(given)

        x_hat = scaled(y, physics)
        loss = equivariance(x_hat, physics, scaled, transform=transform, detach_target=detach).sum()
        (gradient,) = torch.autograd.grad(loss, gain, retain_graph=True)
        (through_image,) = torch.autograd.grad(loss, x_hat, allow_unused=True)
        assert (through_image is None) == detach
        gradients.append(float(gradient))
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1])
    assert abs(gradients[0] - gradients[1]) > 0.05 * abs(gradients[1])


@pytest.mark.parametrize("modality", PHYSICS)
def test_splitting_compares_only_with_what_the_reconstruction_has_not_seen(modality: str) -> None:
    physics = PHYSICS[modality]
    clean, _ = noisy(physics, 0.0)
    kept = physics.random_split(torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def knowing(y: Tensor, used: Physics, copies: int = 1) -> Tensor:
        seen.append(y)
        x = smooth(physics.domain[0])
        return x.to(torch.complex128) * (1 + 0.4j) if physics.complex_image else x

    disturbance = physics.noise_like(clean, torch.Generator().manual_seed(0))
    hidden = physics.withheld(disturbance, kept)
    loss, _ = splitting(clean, physics, knowing, kept=kept)
    assert float(loss) < 1e-20
    torch.testing.assert_close(seen[0], physics.part(clean, kept))
    # noise in the part that is given is no error of the comparison
    assert float(splitting(clean + disturbance - hidden, physics, knowing, kept=kept)[0]) < 1e-20
    disturbed, x_hat = splitting(clean + hidden, physics, knowing, kept=kept)
    assert float(disturbed) > 1e-3
    torch.testing.assert_close(seen[2], seen[0])
    torch.testing.assert_close(x_hat, knowing(clean, physics))


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_equivariant_splitting_is_zero_for_the_object_turned_back(modality: str) -> None:
    physics = parallel(20, 32) if modality == "CT" else cartesian(32, 2)
    x = smooth(32).to(torch.complex128 if physics.complex_image else torch.float64)
    y = physics.forward(x)
    angle = torch.tensor([0.6], dtype=torch.float64)
    kept = physics.random_split(torch.Generator().manual_seed(0))

    def turned_back(given: Tensor, used: Physics, copies: int = 1) -> Tensor:
        # what is given was measured of this image by this physics
        image = rotate(x, -angle)
        residual = used.forward(image) - physics.part(y, kept)
        assert float(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(given)) < 0.02
        return image

    transform = Transform(angle_rad=angle)
    loss, x_hat = equivariant_splitting(y, physics, turned_back, transform=transform, kept=kept)
    assert float(loss) < 1e-3
    torch.testing.assert_close(x_hat, rotate(x, -angle))
    away, _ = equivariant_splitting(y, physics, lambda *_, **__: x, transform=transform, kept=kept)
    assert float(away) > 10 * float(loss) + 1e-3


def test_equivariant_splitting_compares_the_given_part_with_the_independent_half() -> None:
    physics, deviation = PHYSICS["CT"], 0.3
    clean, y = noisy(physics, deviation)
    kept = physics.random_split(torch.Generator().manual_seed(0))
    noise = deviation * physics.noise_like(y, torch.Generator().manual_seed(7))
    transform = Transform(angle_rad=torch.tensor([0.0]))
    loss, x_hat = equivariant_splitting(y, physics, linear, transform=transform, kept=kept, noise=noise)
    given, half = recorrupt(y, noise)
    torch.testing.assert_close(x_hat, linear(physics.part(given, kept), physics.thinned(kept)))
    target = torch.where(kept[:, None], half, y)
    risk = weighed(physics.forward(x_hat) - clean, physics)
    compared = loss * weighed(y, physics)
    torch.testing.assert_close(compared, weighed(physics.forward(x_hat) - target, physics))
    agrees(compared - weighed(target - clean, physics), risk)
