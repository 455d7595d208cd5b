"""The methods by name: which suit a scan, which choices they have, and that the choices reach the reconstruction."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise_engine.acquisition import Acquisition, CtAcquisition, DataState, MriAcquisition
from equipoise_engine.algebraic import ordered_subsets, simultaneous_iterations
from equipoise_engine.classical import conjugate_gradients, counts_weights
from equipoise_engine.cone import ConeBeamPhysics
from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import Cartesian, ConeBeam, FanBeam, NonCartesian, ParallelBeam
from equipoise_engine.measured import Modelling, Undersampling, kspace_of, measure
from equipoise_engine.methods import METHODS, BatchResult, is_direct, methods_for, run, weightings, with_defaults
from equipoise_engine.operators import operator_norms
from equipoise_engine.partial_fourier import homodyne
from equipoise_engine.phantoms import random_coil_maps, random_images, simulate_kspace
from equipoise_engine.progress import Progress, unwatched
from equipoise_engine.protocol import ReconstructSettings
from equipoise_engine.recipe import CompressCoils, Prewhiten, Recipe

CPU = torch.device("cpu")
SIZE = 24
ANGLES = np.linspace(0, np.pi, 20, endpoint=False)
TURN = np.linspace(0, 2 * np.pi, 16, endpoint=False)


def ct_scan(geometry: ParallelBeam | FanBeam | None = None) -> CtAcquisition:
    beam = geometry or ParallelBeam(ANGLES, 0.5, (SIZE - 1) / 2 + 0.2)
    physics = TomographyPhysics(beam, SIZE)
    y = physics(random_images(2, physics.domain[0], torch.Generator().manual_seed(3)))
    return CtAcquisition(
        path=Path("slices.h5"),
        format="test",
        state=DataState.ATTENUATION,
        projections=np.ascontiguousarray(y.numpy().transpose(1, 0, 2)),
        geometry=beam,
    )


def cone_scan() -> CtAcquisition:
    beam = ConeBeam(TURN, 60.0, 90.0, 1.5, 1.5, 3.5, 7.5)
    physics = ConeBeamPhysics(beam, (8, 16))
    truth = torch.zeros((1, *physics.domain))
    truth[:, 2:-2, 5:11, 6:10] = 1.0
    y = physics(truth)[0].numpy()
    return CtAcquisition(
        path=Path("volume.h5"), format="test", state=DataState.ATTENUATION, projections=y, geometry=beam
    )


def mri_scan(coils: int = 6, size: int = 48) -> tuple[MriAcquisition, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    truth = random_images(1, size, generator)
    maps = random_coil_maps(coils, size, generator)
    kspace = simulate_kspace(truth.to(torch.complex64), maps, 1e-4, generator)
    geometry = Cartesian(np.ones((size, size), dtype=np.bool_), (1.0 * size, 1.0 * size))
    return MriAcquisition(path=Path("brain.h5"), format="test", kspace=kspace.numpy(), geometry=geometry), truth


def partial_scan() -> tuple[MriAcquisition, MriAcquisition]:
    """A scan that stops short of the last rows of k-space, and the whole of it."""
    whole = mri_scan()[0]
    sampled = np.ones((48, 48), dtype=np.bool_)
    sampled[31:] = False
    geometry = Cartesian(sampled, (48.0, 48.0), phase_axis=0)
    return replace(whole, kspace=np.asarray(whole.kspace) * sampled, geometry=geometry), whole


def radial_scan() -> MriAcquisition:
    spokes = np.arange(24) * np.pi / 24
    radius = np.arange(-16, 16)
    trajectory = np.stack([radius * np.sin(spokes)[:, None], radius * np.cos(spokes)[:, None]], axis=-1)
    kspace = np.zeros((1, 2, 24, 32), dtype=np.complex64)
    kspace[..., 12:21] = np.exp(-0.1 * np.abs(radius[12:21])) * np.array([1.0, 0.5j])[:, None, None]
    return MriAcquisition(
        path=Path("radial.h5"),
        format="test",
        kspace=kspace,
        geometry=NonCartesian(trajectory, (32, 32), (32.0, 32.0)),
    )


def reconstruct(
    scan: Acquisition, slices: slice = slice(0, 1), *, seen: list[Progress] | None = None, **settings: object
) -> BatchResult:
    _, filled = with_defaults(ReconstructSettings(**settings), scan)  # type: ignore[arg-type]
    return run(scan, slices, filled, None, CPU, unwatched if seen is None else seen.append)


def test_methods_suit_the_geometry() -> None:
    slices = ("fbp", "cgls", "sirt", "tv", "wavelet", "deq")
    assert methods_for(ct_scan()) == slices
    assert methods_for(ct_scan(FanBeam(TURN, 60.0, 90.0, 1.5, 11.5))) == slices
    assert methods_for(cone_scan()) == ("fdk", "cgls", "sirt", "tv")
    assert methods_for(mri_scan()[0]) == ("zerofilled", "grappa", "sense", "tv", "wavelet", "deq")
    assert methods_for(mri_scan(coils=1)[0]) == ("zerofilled", "sense", "tv", "wavelet", "deq")
    partial = ("zerofilled", "homodyne", "pocs", "grappa", "sense", "tv", "wavelet", "deq")
    assert methods_for(partial_scan()[0]) == partial
    assert methods_for(radial_scan()) == ("gridding", "sense", "tv", "wavelet", "deq")
    direct = {name for name in METHODS if is_direct(ReconstructSettings(method=name))}
    assert direct == {"fbp", "fdk", "zerofilled", "gridding", "grappa", "homodyne", "pocs"}


def test_defaults_depend_on_the_scan_and_the_subsets() -> None:
    ct, mri = ct_scan(), mri_scan()[0]

    def filled(scan: Acquisition, **settings: object) -> ReconstructSettings:
        return with_defaults(ReconstructSettings(**settings), scan)[1]  # type: ignore[arg-type]

    assert filled(ct, method="tv").weighting == weightings("tv", ct)[0] == "ramp"
    assert filled(ct, method="sirt").weighting == "uniform"
    assert filled(mri, method="tv").weighting == ""
    assert filled(mri, method="tv").strength < filled(ct, method="tv").strength
    assert filled(mri, method="tv", strength=0.3).strength == 0.3
    plain = filled(ct, method="sirt").iterations
    assert filled(ct, method="sirt", subsets=5).iterations == plain // 5
    assert filled(ct, method="sirt", subsets=20).iterations == plain // 20
    assert filled(ct, method="sirt", subsets=20, iterations=50).iterations == 50
    # nothing but what was left to the method changes
    asked = ReconstructSettings(method="sirt", nonnegative=False, subsets=2, footprint="strip", slices=(0, 1))
    for name in ("nonnegative", "subsets", "footprint", "slices", "views_every", "model"):
        assert getattr(with_defaults(asked, ct)[1], name) == getattr(asked, name)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("ct", {"method": "sirt", "subsets": 0}, r"0 subsets.* 1 to 20 "),
        ("ct", {"method": "sirt", "subsets": 21}, r"21 subsets.* 1 to 20 "),
        ("ct", {"method": "sirt", "subsets": 8, "views_every": 3}, r"8 subsets.* 1 to 7 "),
        ("ct", {"method": "tv", "subsets": 2}, r"TV has no subsets of views; 2"),
        ("ct", {"method": "tv", "window": "hann"}, r"TV has no filter window"),
        ("ct", {"method": "fbp", "window": "blackman"}, r"unknown filter window 'blackman'"),
        ("mri", {"method": "grappa", "coil_maps": "walsh"}, r"GRAPPA takes no coil maps"),
        ("ct", {"method": "fbp", "shift_px": (1.0, 0.0)}, r"a CT scan cannot be moved by \(1\.0, 0\.0\) pixels"),
        ("mri", {"method": "sense", "shift_px": (math.nan, 0.0)}, r"cannot be moved by \(nan"),
        ("ct", {"method": "cgls", "weighting": "ramp"}, r"CGLS of a CT scan has no weighting 'ramp'"),
        ("ct", {"method": "fbp", "weighting": "counts"}, r"FBP of a CT scan has no weighting 'counts'"),
        ("mri", {"method": "tv", "weighting": "counts"}, r"TV of an MRI scan has no weighting 'counts'"),
        ("ct", {"method": "fbp", "footprint": "disc"}, r"footprint 'disc'"),
        ("mri", {"method": "sense", "footprint": "strip"}, r"an MRI scan has no footprint 'strip'"),
        ("cone", {"method": "fdk", "footprint": "strip"}, r"cone-beam CT scan has no footprint 'strip'"),
        ("mri", {"method": "sense", "coil_maps": "guess"}, r"coil maps 'guess'"),
        ("ct", {"method": "fbp", "coil_maps": "walsh"}, r"CT scan has no coil maps 'walsh'"),
        ("cone", {"method": "fbp"}, r"'fbp' is not one for a cone-beam CT scan"),
        ("radial", {"method": "grappa"}, r"'grappa' is not one for a non-Cartesian MRI scan"),
        ("mri", {"method": "fbp"}, r"'fbp' is not one for an MRI scan"),
        ("mri", {"method": "homodyne"}, r"homodyne needs partial Fourier sampling; no side of this scan's"),
        ("mri", {"method": "pocs"}, r"pocs needs partial Fourier sampling"),
        ("mri", {"method": "deq", "coil_maps": "espirit-2"}, r"one set of coil maps, not two"),
        ("ct", {"method": "wavelet", "strength": -1.0}, r"strength -1\.0"),
    ],
)
def test_what_a_method_does_not_have_is_refused(kind: str, settings: dict[str, object], said: str) -> None:
    scans = {"ct": ct_scan, "mri": lambda: mri_scan()[0], "cone": cone_scan, "radial": radial_scan}
    with pytest.raises(BadInput, match=said):
        with_defaults(ReconstructSettings(**settings), scans[kind]())  # type: ignore[arg-type]


def test_the_choices_reach_the_physics_and_the_solver() -> None:
    scan = ct_scan()
    y = torch.from_numpy(np.ascontiguousarray(scan.projections[:, :1].transpose(1, 0, 2)))
    assert isinstance(scan.geometry, ParallelBeam)
    strip = TomographyPhysics(scan.geometry, SIZE, footprint="strip")
    direct = conjugate_gradients(strip, y, damping=0.0, tolerance=1e-4, max_steps=5, weights=counts_weights(y)).image
    found = reconstruct(scan, method="cgls", weighting="counts", footprint="strip", iterations=5)
    torch.testing.assert_close(found.image, direct)
    for changed in ({"weighting": "uniform"}, {"footprint": "joseph"}):
        settings = {"method": "cgls", "weighting": "counts", "footprint": "strip", "iterations": 5} | changed
        assert not torch.allclose(reconstruct(scan, **settings).image, direct, rtol=1e-3, atol=1e-3)
    lifted = replace(scan, projections=np.asarray(scan.projections) - np.float32(1.0))
    for method in ("sirt", "tv"):
        assert float(reconstruct(lifted, method=method, iterations=10).image.min()) == 0
        assert float(reconstruct(lifted, method=method, iterations=10, nonnegative=False).image.min()) < 0
    assert float(reconstruct(lifted, method="tv", weighting="uniform", iterations=10).image.min()) == 0
    mri = mri_scan()[0]
    one, other = (reconstruct(mri, method="sense", coil_maps=maps, accelerate=2).whole for maps in ("espirit", "walsh"))
    assert not torch.allclose(one, other, rtol=1e-3)


def test_every_iteration_lowers_the_residual_of_a_fan_beam() -> None:
    scan = ct_scan(FanBeam(TURN, 60.0, 90.0, 1.5, 11.5))
    analytic = reconstruct(scan, method="fbp", views_every=2)
    for method, settings in (("sirt", {"subsets": 4}), ("tv", {"weighting": "counts"}), ("wavelet", {}), ("tv", {})):
        found = reconstruct(scan, method=method, views_every=2, **settings)
        assert float(found.data_residual[0]) < 0.5 * float(analytic.data_residual[0]), (method, settings)


def test_grappa_removes_the_aliases() -> None:
    scan, truth = mri_scan()
    complete = reconstruct(scan, method="zerofilled").image

    def error(method: str) -> float:
        return float((reconstruct(scan, method=method, accelerate=2).image - complete).norm() / truth.norm())

    assert error("grappa") < 0.2 * error("zerofilled")
    torch.testing.assert_close(reconstruct(scan, method="grappa").image, complete)
    empty = replace(scan, kspace=np.zeros_like(scan.kspace))
    assert not reconstruct(empty, method="grappa", accelerate=2).image.any()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fdk", "window": "hann"},
        {"method": "cgls", "iterations": 5},
        {"method": "sirt", "subsets": 4},
        {"method": "tv", "iterations": 15},
        {"method": "tv", "iterations": 15, "weighting": "counts"},
    ],
)
def test_a_cone_beam_gives_the_slices_of_its_volume(settings: dict[str, object]) -> None:
    scan = cone_scan()
    seen: list[Progress] = []
    whole = reconstruct(scan, slice(0, scan.slices), seen=seen, **settings)
    part = reconstruct(scan, slice(2, 5), **settings)
    assert whole.image.shape[0] == scan.slices
    torch.testing.assert_close(part.image, whole.image[2:5])
    assert whole.data_residual.shape == (1,)
    # the block is where it was
    inside = whole.image[3:-3, 6:10, 7:9].mean()
    assert float(inside) > 0.6
    assert all(progress.iterate is not None and progress.iterate.shape == whole.image.shape for progress in seen)
    assert bool(seen) != is_direct(ReconstructSettings(method=str(settings["method"])))


def test_sampling_off_the_grid_is_gridded() -> None:
    scan = radial_scan()
    seen: list[Progress] = []
    found = reconstruct(scan, method="gridding", seen=seen)
    assert (found.outcome, found.iterations, len(seen)) == ("direct", 1, 0)
    assert found.image.shape == (1, 32, 32)
    assert found.image.dtype == torch.float32
    # a blob in the middle
    assert divmod(int(found.image[0].argmax()), 32) == (16, 16)
    assert math.isfinite(float(found.data_residual[0]))


def test_partial_fourier_is_filled_in_from_the_other_side() -> None:
    scan, whole = partial_scan()
    complete = reconstruct(whole, method="zerofilled").image

    def error(method: str) -> float:
        return float((reconstruct(scan, method=method).image - complete).norm() / complete.norm())

    assert error("pocs") < 0.7 * error("zerofilled")
    assert error("homodyne") < error("zerofilled")


def test_the_residual_of_coil_images_is_that_of_their_kspace() -> None:
    scan, _ = partial_scan()
    for method in ("zerofilled", "pocs", "grappa"):
        assert 0 < float(reconstruct(scan, method=method).data_residual[0]) < 1e-5
    images = homodyne(np.asarray(scan.kspace[0]), np.asarray(scan.geometry.sampled))  # type: ignore[union-attr]
    shifted = np.fft.fft2(np.fft.ifftshift(images, axes=(-2, -1)), norm="ortho")
    kspace = np.fft.fftshift(shifted, axes=(-2, -1))
    expected = np.linalg.norm((kspace - scan.kspace[0])[:, :31]) / np.linalg.norm(scan.kspace[0])
    assert expected > 1e-3
    assert float(reconstruct(scan, method="homodyne").data_residual[0]) == pytest.approx(expected, rel=1e-4)
    empty = replace(scan, kspace=np.zeros_like(scan.kspace))
    assert float(reconstruct(empty, method="homodyne").data_residual[0]) == 0.0


def test_an_empty_slice_has_one_set_of_maps_and_a_norm_of_one() -> None:
    scan = mri_scan()[0]
    both = replace(scan, kspace=np.concatenate([np.zeros_like(scan.kspace), scan.kspace]))
    physics = measure(both, slice(0, 2), CPU, None, Modelling(coil_maps="espirit-2")).physics
    start = torch.randn((2, *physics.domain), dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    norm = operator_norms(physics.normal, start, steps=12)
    assert float(norm[0]) == pytest.approx(1.0, abs=1e-5)
    assert float(norm[1]) < 1.01


@pytest.mark.parametrize(("centre", "turn"), [(8.0, 2 * np.pi), ((SIZE - 1) / 2, np.pi)])
def test_directions_of_a_half_acquisition_do_not_repeat_after_half_a_turn(centre: float, turn: float) -> None:
    beam = ParallelBeam(np.linspace(0, 2 * np.pi, 24, endpoint=False), 0.5, centre)
    scan = ct_scan(beam)
    found = reconstruct(scan, method="sirt", subsets=4, iterations=2)
    measured = measure(scan, slice(0, 1), CPU)
    direct = simultaneous_iterations(
        measured.physics,
        measured.y,
        tolerance=METHODS["sirt"].tolerance,
        max_steps=2,
        nonnegative=True,
        subsets=ordered_subsets(beam.angle_rad, 4, turn_rad=turn),
    )
    torch.testing.assert_close(found.whole, direct.image)


def test_fewer_coils_hold_nearly_all_and_whitening_makes_them_alike() -> None:
    scan = mri_scan()[0]

    def with_coils(count: int) -> MriAcquisition:
        return replace(scan, recipe=Recipe(steps=(CompressCoils(coils=count),)))

    full = reconstruct(scan, method="zerofilled").image
    for count, least in ((5, 0.995), (3, 0.95)):
        fewer = reconstruct(with_coils(count), method="zerofilled").image
        assert least < float(fewer.norm() / full.norm()) <= 1.0
    torch.testing.assert_close(reconstruct(with_coils(6), method="zerofilled").image, full)
    assert "grappa" not in methods_for(with_coils(1))
    with pytest.raises(BadInput, match="grappa needs several coils; this scan has one"):
        with_defaults(ReconstructSettings(method="grappa"), with_coils(1))
    with pytest.raises(BadInput, match=r"step 1 \(compress\): 7 virtual coils are outside 1 to 6"):
        reconstruct(with_coils(7), method="zerofilled")
    found = reconstruct(with_coils(4), method="sense", accelerate=2).image
    assert float((found - reconstruct(scan, method="sense", accelerate=2).image).norm() / found.norm()) < 0.1
    generator = np.random.default_rng(0)
    mixing = np.eye(6) + 0.5 * generator.normal(size=(6, 6))
    steps = (Prewhiten(), CompressCoils(coils=5))
    some = replace(scan, kspace=np.concatenate([np.zeros_like(scan.kspace), scan.kspace]), recipe=Recipe(steps=steps))
    both = reconstruct(some, slice(0, 2), method="zerofilled").image
    assert not both[0].any()
    assert both[1].any()
    parts = generator.normal(size=(2, 6, 48, 48))
    noise = np.einsum("cd,dyx->cyx", mixing, parts[0] + 1j * parts[1])
    loud = replace(scan, kspace=(1e-3 * noise)[None].astype(np.complex64), recipe=Recipe(steps=(Prewhiten(),)))
    kspace, _ = kspace_of(loud, slice(0, 1), Undersampling())
    covariance = np.cov(kspace[0].reshape(6, -1).numpy())
    np.testing.assert_allclose(covariance, np.eye(6), atol=0.2)


def test_two_sets_of_maps_unfold_what_wraps_around() -> None:
    scan, _ = mri_scan(size=64)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan.kspace, axes=(-2, -1)), axes=(-2, -1)), axes=(-2, -1))
    # half the field of view along y: what was outside lies on top of the rest
    folded = images[..., 16:48, :] + np.concatenate([images[..., 48:, :], images[..., :16, :]], axis=-2)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(folded, axes=(-2, -1)), axes=(-2, -1)), axes=(-2, -1))
    wrapped = replace(
        scan,
        kspace=kspace.astype(np.complex64),
        geometry=Cartesian(np.ones((32, 64), dtype=np.bool_), (32.0, 64.0), phase_axis=1),
    )
    residual = {
        maps: float(reconstruct(wrapped, method="sense", coil_maps=maps, strength=1e-3).data_residual[0])
        for maps in ("espirit", "espirit-2")
    }
    assert residual["espirit-2"] < 0.5 * residual["espirit"]
    two = reconstruct(wrapped, method="sense", coil_maps="espirit-2")
    assert two.image.shape == (1, 32, 64)
    assert two.advice == ""
    assert "larger than its field of view" in reconstruct(wrapped, method="sense").advice
    assert reconstruct(scan, method="sense").advice == ""


def test_a_shift_moves_the_image_on_and_off_the_grid() -> None:
    scan = mri_scan()[0]
    still = reconstruct(scan, method="zerofilled").image
    moved = reconstruct(scan, method="zerofilled", shift_px=(3.0, -5.0)).image
    torch.testing.assert_close(moved, still.roll((3, -5), (-2, -1)), rtol=1e-4, atol=1e-5)
    radial = radial_scan()
    found = reconstruct(radial, method="gridding", shift_px=(4.0, -6.0)).image[0]
    assert divmod(int(found.argmax()), 32) == (20, 10)


def test_iterations_off_the_grid_weigh_the_samples_by_their_density() -> None:
    scan = radial_scan()
    assert float(reconstruct(scan, method="sense", strength=1e-3, iterations=8).data_residual[0]) < 0.3
