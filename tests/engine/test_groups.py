"""Rotations: inverse, adjoint, direction, and angles that bring information."""

from __future__ import annotations

import math

import pytest
import torch

from equipoise_engine.groups import rotate, rotation_angles


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


def test_the_adjoint_is_the_inverse_for_content_inside_the_disc() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = smooth_image(48, 48)[None]
    other = inside * torch.randn((1, 48, 48), dtype=torch.float64, generator=generator)
    angle = torch.tensor([0.7], dtype=torch.float64)
    left = torch.sum(rotate(inside, angle) * other)
    right = torch.sum(inside * rotate(other, -angle))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


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
