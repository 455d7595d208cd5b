"""Transforms: inverse, adjoint, direction; what a scanner sees through them, and whether that is new."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.groups import Transform, TransformedPhysics, draw, rotate, rotation_angles, virtual
from equipoise_engine.identifiability import information
from equipoise_engine.mri import CartesianPhysics, undersampling_mask
from equipoise_engine.operators import Physics
from equipoise_engine.phantoms import random_images


def smooth_image(rows: int, columns: int) -> torch.Tensor:
    y = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2
    x = torch.arange(columns, dtype=torch.float64)[None, :] - (columns - 1) / 2
    return torch.exp(-((x - 6) ** 2 + (y + 4) ** 2) / 30) + 0.5 * torch.exp(-((x + 9) ** 2 + (y - 2) ** 2) / 12)


@pytest.mark.parametrize("degrees", [7.0, 33.0, 121.0, -65.0, 179.0, 290.0])
def test_turning_back_gives_the_image(degrees: float) -> None:
    image = smooth_image(64, 64)[None]
    angle = torch.tensor([math.radians(degrees)], dtype=torch.float64)
    back = rotate(rotate(image, angle), -angle)
    error = (back - image).square().mean()
    assert 10 * math.log10(float(image.max() ** 2 / error)) > 50


def test_sharp_edges_survive_the_round_trip() -> None:
    y = torch.arange(128)[:, None] - 63.5
    x = torch.arange(128)[None, :] - 63.5
    image = ((x / 40) ** 2 + (y / 30) ** 2 < 1).double()[None].repeat(3, 1, 1)
    angle = torch.deg2rad(torch.tensor([7.0, 33.0, 121.0], dtype=torch.float64))
    error = (rotate(rotate(image, angle), -angle) - image).square().mean((1, 2))
    assert float((10 * torch.log10(1 / error)).min()) >= 50


def test_turns_counter_clockwise_with_y_up() -> None:
    image = torch.zeros((1, 65, 65), dtype=torch.float64)
    image[0, 32, 52] = 1.0
    turned = rotate(image, torch.tensor([math.radians(30.0)], dtype=torch.float64))
    row, column = divmod(int(turned.argmax()), 65)
    assert (row, column) == (32 - 10, 32 + 17)


@pytest.mark.parametrize("shape", [(24, 24), (17, 17), (20, 31)])
@pytest.mark.parametrize("degrees", [7.0, 33.0, 121.0, -90.0, 200.0])
def test_turning_back_is_the_adjoint_of_any_image(shape: tuple[int, int], degrees: float) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn((2, 1, *shape), dtype=torch.float64, generator=generator)
    angle = torch.tensor([math.radians(degrees)], dtype=torch.float64)
    left, right = torch.sum(rotate(one, angle) * other), torch.sum(one * rotate(other, -angle))
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


def test_each_sample_turns_by_its_own_angle_and_complex_images_keep_their_phase() -> None:
    image = smooth_image(40, 52)[None].repeat(2, 1, 1)
    angles = torch.tensor([0.3, -1.9], dtype=torch.float64)
    both = rotate(torch.complex(image, -0.5 * image), angles)
    for sample in range(2):
        alone = rotate(image[sample : sample + 1], angles[sample : sample + 1])[0]
        torch.testing.assert_close(both[sample].real, alone)
        torch.testing.assert_close(both[sample].imag, -0.5 * alone)


def test_a_quarter_turn_is_exact() -> None:
    image = torch.rand((1, 16, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        rotate(image, torch.tensor([math.pi / 2], dtype=torch.float64)), torch.rot90(image, 1, (-2, -1))
    )


def test_angles_keep_away_from_those_that_only_permute_the_views() -> None:
    step = math.pi / 50
    angles = rotation_angles(2000, torch.Generator().manual_seed(0), avoid_step_rad=step)
    offset = (angles / step - torch.round(angles / step)).abs()
    assert float(offset.min()) > 0.24
    assert float(angles.max() - angles.min()) > 6.0


def test_phantoms_survive_the_round_trip() -> None:
    images = random_images(3, 128, torch.Generator().manual_seed(0)).double()
    angle = torch.deg2rad(torch.tensor([7.0, 33.0, 121.0], dtype=torch.float64))
    error = (rotate(rotate(images, angle), -angle) - images).square().mean((1, 2))
    assert float((10 * torch.log10(images.amax((1, 2)) ** 2 / error)).min()) >= 50


EXACT = ["rot90", "flip", "shift", "phase", "rot90+flip", "rot90+flip+shift+phase"]


def complex_images(batch: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((batch, rows, columns), dtype=torch.complex128, generator=generator)


@pytest.mark.parametrize("group", EXACT)
def test_finite_groups_and_shifts_and_phases_are_unitary(group: str) -> None:
    image, other = complex_images(8, 18, 18), complex_images(8, 18, 18).flip(0)
    transform = draw(group, 8, torch.Generator().manual_seed(1), shape=(18, 18))
    moved = transform.apply(image)
    torch.testing.assert_close(transform.inverse(moved), image, rtol=1e-6, atol=1e-6)
    left, right = torch.sum(moved.conj() * other), torch.sum(image.conj() * transform.inverse(other))
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    assert float((moved - image).abs().amax((1, 2)).median()) > 0.1
    # each sample draws its own element
    again = transform.apply(image[:1].expand(8, -1, -1))
    assert len({tuple(one.flatten().tolist()) for one in again}) > 1


@pytest.mark.parametrize("group", ["rotation", "rotation+flip+shift+phase"])
def test_the_inverse_of_a_rotation_undoes_it_and_is_its_adjoint(group: str) -> None:
    image = smooth_image(64, 64)[None].repeat(3, 1, 1).to(torch.complex128)
    transform = draw(group, 3, torch.Generator().manual_seed(1), shape=(64, 64))
    error = (transform.inverse(transform.apply(image)) - image).abs().square().mean()
    if "shift" not in group:
        assert 10 * math.log10(1 / float(error)) > 50
    one, other = complex_images(3, 64, 64), complex_images(3, 64, 64).flip(0)
    left = torch.sum(transform.apply(one).conj() * other)
    torch.testing.assert_close(left, torch.sum(one.conj() * transform.inverse(other)), rtol=1e-6, atol=1e-6)


def test_flips_draw_each_of_the_three() -> None:
    image = torch.arange(9.0).reshape(1, 3, 3)
    moved = draw("flip", 60, torch.Generator().manual_seed(0), shape=(3, 3)).apply(image.expand(60, -1, -1))
    expected = {tuple(image.flip(axes).flatten().tolist()) for axes in ((1,), (2,), (1, 2))}
    assert {tuple(one.flatten().tolist()) for one in moved} == expected


def test_a_transform_of_part_of_a_batch_and_of_two_batches() -> None:
    image = complex_images(3, 16, 16)
    transform = draw("rotation+flip+shift+phase", 3, torch.Generator().manual_seed(0), shape=(16, 16))
    moved = transform.apply(image)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(transform.select(chosen).apply(image[chosen]), moved[chosen])
    twice = transform.joined([transform]).apply(torch.cat([image, image]))
    torch.testing.assert_close(twice, torch.cat([moved, moved]))


def test_only_rotations_off_the_axes_of_the_frame_are_cropped() -> None:
    image = torch.ones((1, 16, 16))
    for degrees, kept in ((90.0, True), (180.0, True), (30.0, False)):
        transform = Transform(angle_rad=torch.deg2rad(torch.tensor([degrees])))
        assert torch.equal(transform.cropped(image), image) == kept
    quarter = Transform(angle_rad=torch.tensor([math.pi / 2]))
    assert not torch.equal(quarter.cropped(torch.ones((1, 16, 24))), torch.ones((1, 16, 24)))


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(BadInput, match="'scale'"):
        draw("rotation+scale", 1, torch.Generator(), shape=(8, 8))


def parallel(views: int, side: int) -> TomographyPhysics:
    return TomographyPhysics(ParallelBeam(np.linspace(0, np.pi, views, endpoint=False), 1.0, (side - 1) / 2), side)


def cartesian(side: int, acceleration: int) -> CartesianPhysics:
    mask = undersampling_mask(np.ones((side, side), dtype=np.bool_), acceleration, centre_lines=side // 8)
    return CartesianPhysics(torch.ones((1, 1, side, side), dtype=torch.complex64), torch.from_numpy(mask))


@pytest.mark.parametrize("degrees", [20.0, -75.0, 161.0])
def test_a_scanner_turned_back_measures_the_turned_object(degrees: float) -> None:
    image = smooth_image(64, 64)[None]
    physics = parallel(30, 64)
    angle = torch.tensor([math.radians(degrees)], dtype=torch.float64)
    turned = virtual(physics, Transform(angle_rad=angle))
    assert isinstance(turned, TomographyPhysics)
    expected = TransformedPhysics(physics, Transform(angle_rad=angle)).forward(image)
    wrong = virtual(physics, Transform(angle_rad=-angle)).forward(image)
    size = torch.linalg.vector_norm(expected)
    assert float(torch.linalg.vector_norm(turned.forward(image) - expected) / size) < 0.01
    assert float(torch.linalg.vector_norm(wrong - expected) / size) > 0.1
    # the weight of the scan serves the turned one
    residual = physics.forward(image)
    torch.testing.assert_close(turned.weight(residual), physics.weight(residual))


def test_what_a_scanner_sees_through_transforms_that_differ_from_slice_to_slice() -> None:
    physics = cartesian(16, 2)
    transform = draw("rotation+flip", 2, torch.Generator().manual_seed(0), shape=(16, 16))
    looking = virtual(physics, transform)
    images = complex_images(2, 16, 16)
    both = looking.forward(images)
    torch.testing.assert_close(both, physics.forward(transform.apply(images)))
    assert (physics.slices, looking.slices) == (1, 2)
    doubled = looking.joined([looking])
    torch.testing.assert_close(doubled.forward(torch.cat([images, images])), torch.cat([both, both]))
    second = looking.select(torch.tensor([1]))
    torch.testing.assert_close(second.forward(images[1:]), both[1:])


GEOMETRIES: dict[str, Physics] = {
    "CT of 50 views": parallel(50, 64),
    "MRI": cartesian(64, 4),
}


@pytest.mark.parametrize(
    ("geometry", "group", "useful"),
    [
        ("CT of 50 views", "rot90", False),
        ("CT of 50 views", "flip", False),
        ("CT of 50 views", "rot90+flip", False),
        ("CT of 50 views", "rotation", True),
        ("MRI", "shift", False),
        ("MRI", "phase", False),
        ("MRI", "flip", False),
        ("MRI", "rot90", True),
        ("MRI", "rotation", True),
    ],
)
def test_groups_that_only_permute_the_measurements_bring_no_information(
    geometry: str, group: str, useful: bool
) -> None:
    found = information(
        GEOMETRIES[geometry], group, torch.Generator().manual_seed(0), avoid_step_rad=math.pi / 50, draws=4
    )
    assert found.useful == useful
    assert found.share > 0.2 if useful else found.share < 0.01
    assert ("brings no information" in found.message) != useful
    assert group in found.message


def test_a_complete_scan_hides_nothing() -> None:
    found = information(cartesian(64, 1), "rotation", torch.Generator().manual_seed(0), draws=2)
    assert found.hidden < 1e-6
    assert not found.useful
    assert "complete" in found.message
