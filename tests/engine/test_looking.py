"""Pictures of what was measured: what they show, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise_engine.acquisition import Acquisition
from equipoise_engine.errors import BadInput
from equipoise_engine.looking import picture_of
from equipoise_engine.methods import run, with_defaults
from equipoise_engine.opening import open_scan
from equipoise_engine.preprocess.attenuation import attenuation
from equipoise_engine.progress import unwatched
from equipoise_engine.protocol import ReconstructSettings
from equipoise_engine.recipe import CompressCoils, Recipe
from equipoise_resources import sample_path


@pytest.fixture(scope="module")
def ct() -> Acquisition:
    return open_scan(sample_path("ct"), Recipe(), unwatched)


@pytest.fixture(scope="module")
def mri() -> Acquisition:
    return open_scan(sample_path("mri"), Recipe(steps=(CompressCoils(coils=2),)), unwatched)


def test_a_raw_projection_is_what_the_file_holds(ct: Acquisition) -> None:
    picture = picture_of(ct, "projection", 3, 0, 0, unwatched)
    np.testing.assert_array_equal(picture.pixels, np.asarray(ct.projections[3], np.float32))  # type: ignore[union-attr]
    assert picture.count == ct.shape[0]
    assert "counts" in picture.caption


def test_a_prepared_sinogram_is_what_reconstructions_take(ct: Acquisition) -> None:
    picture = picture_of(ct, "sinogram", 1, 0, None, unwatched)
    np.testing.assert_allclose(picture.pixels, attenuation(ct, slice(1, 2))[0], rtol=1e-6)  # type: ignore[arg-type]
    assert "attenuation" in picture.caption


def test_the_quick_image_is_the_analytic_one(ct: Acquisition, mri: Acquisition) -> None:
    for scan, method in ((ct, "fbp"), (mri, "zerofilled")):
        picture = picture_of(scan, "image", 1, 0, None, unwatched)
        _, settings = with_defaults(ReconstructSettings(method=method), scan)
        full = run(scan, slice(1, 2), settings, None, torch.device("cpu")).image[0].numpy()
        assert picture.pixels.shape == full.shape
        np.testing.assert_allclose(picture.pixels, full, atol=1e-5 * float(np.abs(full).max()))


def test_kspace_before_and_after_its_steps(mri: Acquisition) -> None:
    raw = np.asarray(mri.kspace[1, 1])  # type: ignore[union-attr]
    picture = picture_of(mri, "kspace", 1, 1, 0, unwatched)
    measured = raw != 0
    np.testing.assert_allclose(picture.pixels[measured], np.log10(np.abs(raw[measured])), rtol=1e-4, atol=1e-4)
    assert np.isnan(picture.pixels[~measured]).all()
    phase = picture_of(mri, "phase", 1, 1, 0, unwatched)
    np.testing.assert_allclose(phase.pixels[measured], np.angle(raw[measured]), atol=1e-4)
    after = picture_of(mri, "kspace", 1, 1, None, unwatched)
    assert not np.allclose(after.pixels[measured], picture.pixels[measured])


def test_sampling_and_coils(mri: Acquisition) -> None:
    sampled = picture_of(mri, "sampling", 0, 0, None, unwatched).pixels
    np.testing.assert_array_equal(sampled > 0, mri.geometry.sampled)  # type: ignore[union-attr]
    magnitude = picture_of(mri, "coil-magnitude", 0, 1, None, unwatched).pixels
    phase = picture_of(mri, "coil-phase", 0, 1, None, unwatched).pixels
    eigenvalue = picture_of(mri, "coil-eigenvalue", 0, 0, None, unwatched).pixels
    assert magnitude.shape == phase.shape == eigenvalue.shape
    assert np.nanmax(magnitude) <= 1.0 + 1e-5
    assert np.nanmax(np.abs(phase)) <= np.pi + 1e-5
    assert 0.9 < np.nanmax(eigenvalue) < 1.1


@pytest.mark.parametrize(
    ("kind", "what", "index", "coil", "stage", "said"),
    [
        ("ct", "projection", 9999, 0, 0, "view 9999"),
        ("ct", "sinogram", -1, 0, 0, "detector row -1"),
        ("ct", "image", 77, 0, None, "slice 77"),
        ("ct", "sinogram", 0, 0, 9, "stage 9"),
        ("ct", "kspace", 0, 0, 0, "no picture 'kspace' of a CT scan"),
        ("mri", "projection", 0, 0, 0, "no picture 'projection' of an MRI scan"),
        ("mri", "coil-phase", 0, 99, 0, "coil 99"),
        ("mri", "kspace", 99, 0, 0, "slice 99"),
    ],
)
def test_what_there_is_no_picture_of(
    kind: str, what: str, index: int, coil: int, stage: int | None, said: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(BadInput, match=said):
        picture_of(request.getfixturevalue(kind), what, index, coil, stage, unwatched)
