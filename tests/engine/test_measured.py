"""Measurements of MRI as the recipe prepares them, and the pictures of k-space and of the coils."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.measured import (
    Undersampling,
    coil_picture,
    kspace_noise,
    kspace_of,
    kspace_stage,
    measure,
    sampling_picture,
)
from equipoise_engine.mri import CartesianPhysics
from equipoise_engine.noncartesian import NonCartesianPhysics
from equipoise_engine.phantoms import random_coil_maps, random_images, simulate_kspace
from equipoise_engine.preprocess.whitening import noise_covariance, outermost, whitened, whitening_matrix
from equipoise_engine.recipe import CompressCoils, Prewhiten, Recipe, Step

SIZE, COILS = 48, 5


def _truth() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return random_images(2, SIZE, generator).to(torch.complex64), random_coil_maps(COILS, SIZE, generator)


def _scan(steps: tuple[Step, ...] | None = None, noise: float = 1e-3) -> MriAcquisition:
    images, maps = _truth()
    kspace = simulate_kspace(images, maps, noise, torch.Generator().manual_seed(1)).numpy()
    geometry = Cartesian(np.ones((SIZE, SIZE), dtype=np.bool_), (48.0, 48.0))
    return MriAcquisition(
        path=Path("brain.h5"), format="test", kspace=kspace, geometry=geometry, recipe=Recipe(steps=steps)
    )


def _spiral(steps: tuple[Step, ...] | None = None) -> MriAcquisition:
    images, maps = _truth()
    turns = np.linspace(0, 1, 600)
    arms = 2 * np.pi * np.arange(8)[:, None] / 8
    radius, angle = 24 * turns, 2 * np.pi * 4 * turns
    trajectory = np.stack([radius * np.sin(angle + arms), radius * np.cos(angle + arms)], axis=-1)
    geometry = NonCartesian(trajectory, (SIZE, SIZE), (48.0, 48.0))
    kspace = NonCartesianPhysics(maps.reshape(1, COILS, SIZE, SIZE), geometry)(images[:1]).numpy()
    return MriAcquisition(
        path=Path("spiral.h5"), format="test", kspace=kspace, geometry=geometry, recipe=Recipe(steps=steps)
    )


def test_what_is_left_of_a_scan_is_prepared() -> None:
    scan = _scan((Prewhiten(), CompressCoils(coils=3)), noise=0.02)
    found, geometry = kspace_of(scan, slice(1, 2), Undersampling(accelerate=2))
    assert isinstance(geometry, Cartesian)
    left = np.asarray(scan.kspace)[1] * geometry.sampled
    white = whitened(left, whitening_matrix(noise_covariance(left[:, outermost(geometry)])), axis=0)
    full, _ = kspace_of(replace(scan, recipe=Recipe(steps=(Prewhiten(),))), slice(1, 2), Undersampling(accelerate=2))
    np.testing.assert_array_equal(full[0].numpy(), white.astype(np.complex64))
    assert found.shape == (1, 3, SIZE, SIZE)
    assert not found[..., torch.from_numpy(~geometry.sampled)].any()
    # the noise is that of the prepared values: whitened complex noise has a variance of one half in either part
    assert kspace_noise(full, geometry) == pytest.approx(np.sqrt(0.5), rel=0.1)
    measured = measure(scan, slice(0, 2), torch.device("cpu"))
    assert isinstance(measured.physics, CartesianPhysics)
    assert measured.y.shape == (2, 3, SIZE, SIZE)
    assert measured.noise == pytest.approx(np.sqrt(0.5), rel=0.1)


def test_readouts_that_are_left_are_prepared() -> None:
    scan = _spiral((CompressCoils(coils=2),))
    found, geometry = kspace_of(scan, slice(0, 1), Undersampling(accelerate=2))
    assert isinstance(geometry, NonCartesian)
    assert found.shape == (1, 2, 4, 600)
    empty, _ = kspace_of(scan, slice(0, 0), Undersampling())
    assert empty.shape[0] == 0


def test_kspace_can_be_looked_at_on_its_way() -> None:
    scan = _scan((Prewhiten(), CompressCoils(coils=3)))
    np.testing.assert_array_equal(kspace_stage(scan, 1, 4, 0), np.asarray(scan.kspace)[1, 4])
    done, _ = kspace_of(scan, slice(1, 2), Undersampling())
    for stage in (2, None):
        np.testing.assert_array_equal(kspace_stage(scan, 1, 2, stage), done[0, 2].numpy())
    assert not np.allclose(kspace_stage(scan, 1, 2, 1), kspace_stage(scan, 1, 2, 2))
    assert kspace_stage(_spiral(), 0, 1, 0).shape == (8, 600)
    for index, coil, stage, said in (
        (2, 0, None, "no slice 2; the scan has 0 to 1"),
        (0, 4, None, "no coil 4; there are 0 to 2"),
        (0, -1, 0, "no coil -1; there are 0 to 4"),
        (0, 0, 3, "no stage 3; its preparation has 2 steps"),
    ):
        with pytest.raises(BadInput, match=said):
            kspace_stage(scan, index, coil, stage)


def test_where_kspace_was_measured() -> None:
    scan = _scan()
    sampled = np.tri(SIZE, dtype=np.bool_)
    part = replace(scan, geometry=replace(scan.geometry, sampled=sampled))
    picture = sampling_picture(part)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, sampled)
    spiral = sampling_picture(_spiral())
    assert spiral.shape == (512, 512)
    assert spiral.sum() == 8 * 600
    assert spiral[256, 256] == spiral.max()
    assert spiral[256, 0:8].sum() == 0
    # one sample at positive ky and negative kx: below and to the left of the middle
    trajectory = np.array([[[12.0, -23.0]]])
    one = replace(_spiral(), geometry=NonCartesian(trajectory, (48, 48), (48.0, 48.0)))
    assert np.argwhere(sampling_picture(one)).tolist() == [[256 + int(256 * 12 / 25), 256 - 1 - int(256 * 23 / 25)]]


@pytest.mark.parametrize("scan", [_scan(), _spiral()], ids=["cartesian", "spiral"])
def test_sensitivities_can_be_looked_at(scan: MriAcquisition) -> None:
    image, maps = _truth()
    inside = (image[0].abs() > 0.2).numpy()
    known = maps.reshape(COILS, SIZE, SIZE)
    size = (known.abs() / torch.linalg.vector_norm(known, dim=0)).numpy()
    for coil in (0, COILS - 1):
        picture = coil_picture(scan, 0, coil, "magnitude")
        assert picture.dtype == np.float32
        np.testing.assert_allclose(picture[inside], size[coil][inside], atol=0.06)
    turned = coil_picture(scan, 0, 1, "phase") - coil_picture(scan, 0, 0, "phase")
    expected = (known[1] * known[0].conj()).angle().numpy()
    apart = np.abs(np.angle(np.exp(1j * (turned - expected))))[inside & (size[:2] > 0.2).all(axis=0)]
    assert np.median(apart) < 0.05
    eigenvalue = coil_picture(scan, 0, 0, "eigenvalue")
    assert eigenvalue.shape == (SIZE, SIZE)
    assert np.median(eigenvalue[inside]) > 0.97
    assert eigenvalue.max() < 1.01
    assert coil_picture(scan, 0, 0, "noise").shape == (COILS, COILS)


def test_an_empty_slice_has_equal_sensitivities() -> None:
    for scan in (_scan(), _spiral()):
        empty = replace(scan, kspace=np.zeros_like(scan.kspace))
        np.testing.assert_allclose(coil_picture(empty, 0, 0, "magnitude"), 1 / np.sqrt(COILS), rtol=1e-6)
        assert not coil_picture(empty, 0, 0, "eigenvalue").any()


def test_pictures_of_coils_that_are_not_there_are_refused() -> None:
    scan = _scan((CompressCoils(coils=2),))
    with pytest.raises(BadInput, match="no coil 2; there are 0 to 1"):
        coil_picture(scan, 0, 2, "phase")
    with pytest.raises(BadInput, match="no slice -1"):
        coil_picture(scan, -1, 0, "phase")
    with pytest.raises(BadInput, match="no picture 'colour' of coils"):
        coil_picture(scan, 0, 0, "colour")  # type: ignore[arg-type]
    one = replace(scan, kspace=np.asarray(scan.kspace)[:, :1], recipe=Recipe())
    np.testing.assert_allclose(coil_picture(one, 0, 0, "eigenvalue").max(), 1.0, atol=0.01)
