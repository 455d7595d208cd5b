"""Cartesian physics with one set of coil maps and with several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import sigpy.mri.linop
import torch

from equipoise_engine.errors import BadInput
from equipoise_engine.krylov import conjugate_gradients
from equipoise_engine.mri import CartesianPhysics, centred_fft, centred_ifft, undersampling_mask
from equipoise_engine.operators import adjoint_error, adjoint_tolerance, operator_norm
from equipoise_engine.preprocess.coils import coil_map_sets, coil_maps
from equipoise_engine.preprocess.kspace import embedded


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def _orthonormal(batch: int, sets: int, coils: int, rows: int, columns: int) -> torch.Tensor:
    """Return maps `(batch, set, coil, y, x)`, orthonormal over the coils from set to set."""
    basis, _ = torch.linalg.qr(_draw(batch, rows, columns, coils, sets))
    return basis.permute(0, 4, 3, 1, 2).contiguous()


def _mask(rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(undersampling_mask(np.ones((rows, columns), bool), 3, centre_lines=4))


@pytest.fixture(name="physics", params=[1, 2, 3])
def _physics(request: pytest.FixtureRequest) -> CartesianPhysics:
    return CartesianPhysics(_orthonormal(2, request.param, 4, 18, 21), _mask(18, 21))


def test_the_adjoint_of_several_sets_is_exact(physics: CartesianPhysics) -> None:
    error = adjoint_error(physics, generator=torch.Generator().manual_seed(1), complex_values=True, batch=2)
    assert error < adjoint_tolerance(physics, 2)


def test_a_measurement_is_the_sum_over_the_sets(physics: CartesianPhysics) -> None:
    image = _draw(2, *physics.domain, seed=2)
    expected = centred_fft(torch.einsum("bscyx,bsyx->bcyx", physics.maps, image)) * physics.mask
    torch.testing.assert_close(physics.forward(image), expected)
    kspace = _draw(2, *physics.range, seed=3)
    combined = torch.einsum("bscyx,bcyx->bsyx", physics.maps.conj(), centred_ifft(kspace * physics.mask))
    torch.testing.assert_close(physics.adjoint(kspace), combined)
    torch.testing.assert_close(physics.analytic(kspace), combined)


def test_one_set_agrees_with_another_implementation() -> None:
    maps, mask = _orthonormal(1, 1, 4, 18, 21)[:, 0], _mask(18, 21)
    physics = CartesianPhysics(maps, mask)
    other = sigpy.mri.linop.Sense(maps[0].numpy(), weights=mask.numpy().astype(float))
    image = _draw(1, 18, 21, seed=2)
    np.testing.assert_allclose(physics.forward(image)[0].numpy(), other(image[0].numpy()), rtol=0, atol=1e-12)
    kspace = physics.forward(image)
    np.testing.assert_allclose(physics.adjoint(kspace)[0].numpy(), other.H(kspace[0].numpy()), rtol=0, atol=1e-12)


def test_one_set_is_the_physics_without_sets() -> None:
    maps = _orthonormal(2, 1, 4, 18, 21)
    sets, plain = CartesianPhysics(maps, _mask(18, 21)), CartesianPhysics(maps[:, 0], _mask(18, 21))
    image = _draw(2, 18, 21, seed=2)
    assert torch.equal(sets.forward(image[:, None]), plain.forward(image))
    assert torch.equal(sets.adjoint(plain.forward(image))[:, 0], plain.adjoint(plain.forward(image)))
    assert torch.equal(plain.framed(image), image)
    torch.testing.assert_close(sets.framed(image[:, None]), image.abs())


@pytest.mark.parametrize("shape", [(2, 1, 17, 19), (3, 4, 24, 16), (2, 2, 4, 18, 21)])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_normal_map_is_bit_for_bit_that_of_two_steps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    physics = CartesianPhysics(_draw(*shape).to(dtype), _mask(*shape[-2:]))
    image = _draw(shape[0], *physics.domain, seed=2).to(dtype)
    assert torch.equal(physics.normal(image), physics.adjoint(physics.forward(image)))


def test_the_normal_map_can_be_differentiated(physics: CartesianPhysics) -> None:
    image = _draw(2, *physics.domain, seed=2).requires_grad_()
    direction = _draw(2, *physics.domain, seed=3)
    physics.normal(image).backward(direction)
    assert image.grad is not None
    torch.testing.assert_close(image.grad, physics.normal(direction))


def test_the_norm_is_at_most_one(physics: CartesianPhysics) -> None:
    norm = operator_norm(physics.normal, _draw(1, *physics.domain, seed=4).expand(2, *physics.domain), steps=60)
    assert norm <= 1 + 1e-12
    # and the spectrum is that of a projection where everything is sampled
    full = CartesianPhysics(physics.maps, torch.ones_like(physics.mask))
    image = _draw(2, *physics.domain, seed=5)
    torch.testing.assert_close(full.normal(image), image)


def test_parts_of_a_scan_keep_their_sets(physics: CartesianPhysics) -> None:
    second = physics.select(torch.tensor([1]))
    assert second.slices == 1
    image = _draw(2, *physics.domain, seed=2)
    torch.testing.assert_close(second.forward(image[1:]), physics.forward(image)[1:])
    assert torch.equal(second.joined([physics]).maps, torch.cat([physics.maps[1:], physics.maps]))
    kept = physics.random_split(torch.Generator().manual_seed(0))
    thinned, kspace = physics.thinned(kept), physics.forward(image)
    torch.testing.assert_close(thinned.forward(image), physics.part(kspace, kept))
    assert physics.resolvent(image, 1.0) is None


def test_maps_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(BadInput, match="does not fit"):
        CartesianPhysics(_draw(4, 8, 8), torch.ones((8, 8), dtype=torch.bool))
    with pytest.raises(BadInput, match="does not fit"):
        CartesianPhysics(_orthonormal(1, 2, 3, 8, 8), torch.ones((8, 9), dtype=torch.bool))
    with pytest.raises(BadInput, match="a batch of 3"):
        CartesianPhysics(_orthonormal(2, 2, 3, 8, 8), torch.ones((8, 8), dtype=torch.bool)).forward(_draw(3, 2, 8, 8))


def test_two_sets_unfold_a_head_that_wraps(shared_data: Path) -> None:
    file = scipy.io.loadmat(shared_data / "mri-spirit-mat" / "brain_alias_8ch.mat")
    kspace_of_coils = np.ascontiguousarray(file["DATA"].transpose(2, 0, 1)).astype(np.complex64)
    whole, _ = embedded(kspace_of_coils, (160, 192))
    sampled = np.abs(whole).sum(axis=0) > 0
    columns = np.arange(sampled.shape[1])
    sampled &= (columns % 2 == 0) | (np.abs(columns - 96) < 12)
    expected = torch.linalg.vector_norm(centred_ifft(torch.from_numpy(whole)), dim=0)
    kspace = torch.from_numpy(whole * sampled)[None]
    errors = []
    for maps in (coil_maps(whole * sampled, sampled), coil_map_sets(whole * sampled, sampled).maps):
        physics = CartesianPhysics(torch.from_numpy(maps)[None], torch.from_numpy(sampled))

        def apply(image: torch.Tensor, physics: CartesianPhysics = physics) -> torch.Tensor:
            return physics.normal(image) + 1e-3 * image

        solved = conjugate_gradients(apply, physics.adjoint(kspace), tolerance=1e-3, max_steps=25)
        image = physics.framed(solved.value)[0].abs()
        errors.append(float(torch.linalg.vector_norm(image - expected) / torch.linalg.vector_norm(expected)))
    # one set leaves the wrapped ear in the middle of the head
    assert errors[0] > 0.25
    assert errors[1] < 0.1
