"""The denoisers: homogeneous, of any size, symmetric or nonexpansive where they say so, whatever their weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from equipoise_engine.errors import BadInput
from equipoise_engine.networks import (
    SIZES,
    GradientStep,
    LipschitzNetwork,
    ResidualUNet,
    build_denoiser,
    convolution_norm_bound,
    expansion,
)
from equipoise_engine.weights import read_checkpoint
from equipoise_resources import weights_path

NETWORKS = ("unet", "gradient-step", "lipschitz")


def untrained(network: str, image_channels: int = 1) -> nn.Module:
    """Return a small network in double precision that is not the identity."""
    torch.manual_seed(0)
    denoiser = build_denoiser(network, image_channels, (4, 6, 8)).double()
    if isinstance(denoiser, ResidualUNet | GradientStep):
        nn.init.normal_(denoiser.leave.weight, std=0.3)
    return denoiser


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobian_products(denoiser: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return J v by differentiating twice, and J^T v."""
    x = x.clone().requires_grad_()
    u = torch.zeros_like(x, requires_grad=True)
    (transposed,) = torch.autograd.grad(denoiser(x), x, u, create_graph=True)
    (forward,) = torch.autograd.grad(transposed, u, v)
    (backward,) = torch.autograd.grad(denoiser(x), x, v)
    return forward, backward


# --- every kind ------------------------------------------------------------------------------------


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(BadInput, match="resnet"):
        build_denoiser("resnet", 1, SIZES["small"])


@pytest.mark.parametrize("network", NETWORKS)
def test_each_kind_says_whether_it_is_symmetric(network: str) -> None:
    assert build_denoiser(network, 1, SIZES["small"]).symmetric is (network == "gradient-step")


@pytest.mark.parametrize("image_channels", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_homogeneous(network: str, image_channels: int) -> None:
    denoiser = untrained(network, image_channels)
    x = drawn(2, image_channels, 18, 23)
    value = denoiser(x).detach()
    assert float((value - x).norm() / x.norm()) > 0.01
    for scale in (1e-6, 0.3, 1e5):
        torch.testing.assert_close(denoiser(scale * x) / scale, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 16), (17, 10)], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_any_size(network: str, shape: tuple[int, int]) -> None:
    x = drawn(2, 2, *shape)
    value = untrained(network, 2)(x)
    assert value.shape == x.shape
    assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_is_denoised_alone_as_in_a_batch(network: str) -> None:
    denoiser = untrained(network)
    x = drawn(3, 1, 12, 13) * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)[:, None, None, None]
    for index in range(3):
        torch.testing.assert_close(denoiser(x)[index], denoiser(x[index : index + 1])[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_value_without_a_graph(network: str) -> None:
    denoiser = untrained(network)
    x = drawn(1, 1, 12, 13)
    with torch.no_grad():
        value = denoiser(x)
    assert not value.requires_grad
    assert denoiser(x).requires_grad
    torch.testing.assert_close(value, denoiser(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_finite_at_empty_images_and_backgrounds(network: str) -> None:
    denoiser = build_denoiser(network, 1, SIZES["small"])
    x = torch.zeros(2, 1, 32, 32)
    x[1, :, 12:20, 12:20] = 1.0
    x.requires_grad_()
    value = denoiser(x)
    assert float(value[0].detach().abs().max()) == 0
    for gradient in torch.autograd.grad(value.sum(), [x, *denoiser.parameters()]):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_first_training_step_reaches_every_weight(network: str) -> None:
    denoiser = untrained(network)
    x = drawn(2, 1, 16, 16)
    energy = denoiser(x).square().sum()
    gradients = torch.autograd.grad(energy, list(denoiser.parameters()))
    for (name, _), gradient in zip(denoiser.named_parameters(), gradients, strict=True):
        assert float(gradient.abs().max()) > 0, name
    # a thousandth of the energy less, to first order
    length = 1e-3 * float(energy.detach()) / sum(float(g.square().sum()) for g in gradients)
    with torch.no_grad():
        denoiser(x)
        for parameter, gradient in zip(denoiser.parameters(), gradients, strict=True):
            parameter -= length * gradient
    # with and without a graph: nothing of the old weights is left
    after = float(denoiser(x).detach().square().sum())
    with torch.no_grad():
        assert float(denoiser(x).square().sum()) == pytest.approx(after, rel=1e-12)
    assert 1 - after / float(energy.detach()) == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize("network", ["unet", "gradient-step"])
def test_a_new_network_is_near_the_identity(network: str) -> None:
    torch.manual_seed(0)
    x = drawn(2, 1, 32, 32).float()
    value = build_denoiser(network, 1, SIZES["small"])(x)
    assert float((value - x).detach().norm() / x.norm()) < 0.2


@pytest.mark.parametrize("network", ["gradient-step", "lipschitz"])
def test_vector_jacobian_products_are_those_of_the_map(network: str) -> None:
    denoiser = untrained(network)
    x = drawn(1, 1, 5, 4).requires_grad_()
    parameters = list(denoiser.parameters())
    v, directions = drawn(1, 1, 5, 4, seed=1), [drawn(*p.shape, seed=2) for p in parameters]
    u = drawn(1, 1, 5, 4, seed=3)
    gradients = torch.autograd.grad(denoiser(x), [x, *parameters], u)
    exact = sum(float((g * d).sum()) for g, d in zip(gradients, [v, *directions], strict=True))
    length = 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * length * direction
            values.append(float((u * denoiser(x + math.copysign(length, sign) * v)).sum()))
    assert exact == pytest.approx((values[0] - values[1]) / (2 * length), rel=1e-6)


@pytest.mark.parametrize("network", ["gradient-step", "lipschitz"])
def test_checkpointing_changes_no_gradient(network: str) -> None:
    denoiser = untrained(network)
    x = drawn(1, 1, 8, 8).requires_grad_()
    wanted = [x, *denoiser.parameters()]
    plain = torch.autograd.grad(denoiser(denoiser(x)).square().sum(), wanted)
    once = checkpoint(denoiser, x, use_reentrant=False)
    saving = torch.autograd.grad(checkpoint(denoiser, once, use_reentrant=False).square().sum(), wanted)
    for one, other in zip(plain, saving, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- the shipped weights ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ct", (18.47091, 5.55718, 9.24296)), ("mri", (28.99124, 5.19317, 9.27602))],
    ids=["ct", "mri"],
)
def test_shipped_weights_give_what_they_gave(kind: str, expected: tuple[float, float, float]) -> None:
    shipped = read_checkpoint(weights_path(kind))
    channels = shipped.architecture.image_channels
    denoiser = build_denoiser("unet", channels, shipped.architecture.widths)
    prefix = "denoiser."
    denoiser.load_state_dict({k.removeprefix(prefix): v for k, v in shipped.weights.items() if k.startswith(prefix)})
    y, x = torch.meshgrid(torch.arange(22.0), torch.arange(26.0), indexing="ij")
    image = torch.stack([torch.sin(0.4 * y + 0.9 * x * (channel + 1)) + (x > 12) for channel in range(channels)])[None]
    with torch.no_grad():
        value = denoiser(image)
    found = [float(number) for number in (value.norm(), (value * y).mean(), (value * x).mean())]
    assert found == pytest.approx(expected, rel=1e-4)


# --- the gradient step -----------------------------------------------------------------------------


def asymmetry(denoiser: nn.Module, x: Tensor) -> float:
    forward, backward = jacobian_products(denoiser, x, drawn(*x.shape, seed=5))
    return float((forward - backward).norm() / forward.norm())


def test_only_the_gradient_step_has_a_symmetric_jacobian() -> None:
    x = drawn(2, 2, 14, 11)
    x[..., :5] = 0
    assert asymmetry(untrained("gradient-step", 2), x) < 1e-12
    assert asymmetry(untrained("unet", 2), x) > 1e-2
    assert asymmetry(untrained("lipschitz", 2), x) > 1e-2


def test_the_gradient_step_is_a_step_along_the_gradient_of_its_potential() -> None:
    denoiser = untrained("gradient-step")
    assert isinstance(denoiser, GradientStep)
    x, v = drawn(1, 1, 9, 10), drawn(1, 1, 9, 10, seed=1)
    length = 1e-5
    with torch.no_grad():
        ahead, behind = (denoiser.residual(x + sign * length * v).square().sum() / 2 for sign in (1, -1))
        slope = float(((x - denoiser(x)) * v).sum())
    assert float(ahead - behind) / (2 * length) == pytest.approx(slope, rel=1e-7)


def test_the_jacobian_of_the_gradient_step_is_continuous_at_a_zero_background() -> None:
    x = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    x[..., 8:16, 8:16] = 1.0
    v = drawn(1, 1, 24, 24, seed=2)

    def jump(denoiser: nn.Module, length: float) -> float:
        one, _ = jacobian_products(denoiser, x + length * drawn(1, 1, 24, 24, seed=3), v)
        other, _ = jacobian_products(denoiser, x + length * drawn(1, 1, 24, 24, seed=4), v)
        return float((one - other).norm() / one.norm())

    assert jump(untrained("gradient-step"), 1e-7) < 1e-4
    # a network of ReLUs has another Jacobian in each direction
    assert jump(untrained("unet"), 1e-7) > 1e-2


# --- the network that expands nothing --------------------------------------------------------------


def true_norm(kernel: Tensor, samples: int = 96) -> float:
    matrices = torch.fft.fft2(kernel, s=(samples, samples)).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(matrices, ord=2).max())


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (4, 4, 3, 3), (6, 2, 3, 3), (2, 5, 3, 3), (3, 3, 1, 3)], ids=str)
def test_the_bound_lies_little_above_the_norm(shape: tuple[int, ...]) -> None:
    for seed in range(4):
        kernel = drawn(*shape, seed=seed)
        exact, bound = true_norm(kernel), float(convolution_norm_bound(kernel))
        assert exact <= bound <= 1.041 * exact


def test_the_bound_is_reached_between_the_frequencies_of_the_grid() -> None:
    # all of the kernel at one frequency, half a step off the grid of 16 along both axes
    place = math.pi / 16 * (torch.arange(3, dtype=torch.float64) + 1)
    wave = place[:, None] + place
    kernel = torch.stack([torch.cos(wave), -torch.sin(wave)])[:, None]
    kernel = torch.cat([kernel, kernel.flip(0) * torch.tensor([-1.0, 1.0])[:, None, None, None]], dim=1)
    exact = true_norm(kernel, 32)
    assert true_norm(kernel, 16) < 0.98 * exact
    assert exact <= float(convolution_norm_bound(kernel)) <= 1.041 * exact


def test_the_bound_holds_for_zero_padding_and_the_matrix_of_the_kernel_does_not_bound() -> None:
    kernel = drawn(3, 3, 3, 3).abs()
    x = drawn(1, 3, 32, 32)
    for _ in range(50):
        x = functional.conv_transpose2d(functional.conv2d(x, kernel, padding=1), kernel, padding=1)
        x = x / x.norm()
    norm = float(functional.conv2d(x, kernel, padding=1).norm())
    assert 0.9 * float(convolution_norm_bound(kernel)) < norm <= float(convolution_norm_bound(kernel))
    assert float(torch.linalg.matrix_norm(kernel.flatten(1), ord=2)) < 0.7 * norm


def test_the_gradient_flows_through_the_bound() -> None:
    kernel = drawn(3, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(convolution_norm_bound, (kernel,))


@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_the_lipschitz_network_expands_nothing_whatever_its_weights(size: float) -> None:
    torch.manual_seed(1)
    network = LipschitzNetwork(2, 8, 5).double()
    with torch.no_grad():
        for kernel in network.kernels:
            kernel.normal_(std=size)
        for seed in range(10):
            a, b = drawn(4, 2, 20, 21, seed=seed), drawn(4, 2, 20, 21, seed=seed + 100)
            if seed % 2:
                b = a + 1e-3 * b
            distances = (network(a) - network(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
            assert float(distances.max()) <= 0.99


def test_training_the_lipschitz_network_to_expand_reaches_its_limit_and_stays_below() -> None:
    torch.manual_seed(1)
    network = LipschitzNetwork(1, 4, 3).double()
    x, direction = drawn(2, 1, 12, 12), drawn(2, 1, 12, 12, seed=1)
    gains = []
    for _ in range(30):
        gain, direction = expansion(network, x, direction)
        gains.append(float(gain.detach().max()))
        found = torch.autograd.grad(gain.sum(), list(network.kernels))
        with torch.no_grad():
            for kernel, gradient in zip(network.kernels, found, strict=True):
                kernel += 0.1 * kernel.norm() / gradient.norm() * gradient
    assert 0.97 < max(gains) <= 0.99 + 1e-9


def test_a_contraction_can_be_asked_for() -> None:
    torch.manual_seed(1)
    network = LipschitzNetwork(1, 8, 5, contraction=0.5)
    x = drawn(1, 1, 20, 21).float()
    gain, _ = expansion(network, x, drawn(1, 1, 20, 21, seed=1).float(), steps=40)
    assert 0.4 < float(gain.detach()) <= 0.5 + 1e-6


def test_the_kernels_are_normalised_once_for_a_solve() -> None:
    torch.manual_seed(0)
    network = LipschitzNetwork(1, 4, 2)
    x = drawn(1, 1, 8, 8).float()
    with torch.no_grad():
        first = network.normalised()
        network(x)
        assert all(a is b for a, b in zip(first, network.normalised(), strict=True))
    assert network.normalised()[0].requires_grad
    other = LipschitzNetwork(1, 4, 2)
    network.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(x), other(x))
        # and in another precision
        torch.testing.assert_close(network.double()(x.double()), other.double()(x.double()))
