"""The thickness of a refracting object from one distance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import fft

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, ParallelBeam
from equipoise_engine.preprocess.phase import smoothing
from equipoise_engine.preprocess.selection import selected
from equipoise_engine.recipe import PhaseRetrieval, Selection, Span

DELTA, BETA, ENERGY_KEV, DISTANCE_MM, PIXEL_MM = 4.0e-7, 4.0e-10, 25.0, 150.0, 0.001
STEP = PhaseRetrieval(delta_beta=DELTA / BETA, energy_kev=ENERGY_KEV, distance_mm=DISTANCE_MM)
WAVELENGTH_MM = 1.23984e-6 / ENERGY_KEV
SIZE = 256


def _scan(geometry: ParallelBeam | ConeBeam, rows: int = SIZE) -> CtAcquisition:
    return CtAcquisition(
        path=Path("made.h5"),
        format="made",
        state=DataState.TRANSMISSION,
        projections=np.ones((1, rows, SIZE), dtype=np.float32),
        geometry=geometry,
    )


def _parallel(pixel_mm: float = PIXEL_MM, calibrated: bool = True) -> ParallelBeam:
    return ParallelBeam(np.zeros(1), pixel_mm=pixel_mm, calibrated=calibrated)


def _thickness_mm() -> np.ndarray:
    """Return the thickness of a ball with a soft rim `(row, column)`."""
    at = (np.arange(SIZE) - SIZE / 2) * PIXEL_MM
    radius = np.hypot(at[:, None], at[None, :] * 1.2)
    return 0.08 * np.sqrt(np.clip(1 - (radius / 0.07) ** 2, 0, None))


def _propagated(thickness_mm: np.ndarray) -> np.ndarray:
    """Return the intensity behind a free path, by the Fresnel propagator in double precision."""
    wave = 2 * np.pi / WAVELENGTH_MM
    fine = 4  # samples per pixel, because the phase turns fast
    dense = np.kron(thickness_mm, np.ones((fine, fine)))
    soft = np.exp(-0.5 * ((fft.fftfreq(SIZE * fine) * SIZE * fine / (0.25 * SIZE)) ** 2))
    dense = fft.ifft2(fft.fft2(dense) * soft[:, None] * soft[None, :]).real
    field = np.exp(-wave * (BETA + 1j * DELTA) * dense)
    frequency = 2 * np.pi * fft.fftfreq(SIZE * fine, PIXEL_MM / fine)
    square = frequency[:, None] ** 2 + frequency[None, :] ** 2
    far = fft.ifft2(fft.fft2(field) * np.exp(-0.5j * DISTANCE_MM / wave * square))
    return (np.abs(far) ** 2).reshape(SIZE, fine, SIZE, fine).mean(axis=(1, 3))


def test_the_thickness_of_a_ball() -> None:
    thickness = _thickness_mm()
    intensity = _propagated(thickness)
    assert intensity.max() > 1.05  # bright fringes, which absorption alone cannot make
    flat = smoothing(_scan(_parallel()), STEP).apply(intensity[:, None, :].astype(np.float32))[:, 0]
    found = -np.log(flat) / (4 * np.pi * BETA / WAVELENGTH_MM)
    inside = thickness > 0.03
    assert np.abs(found - thickness)[inside].mean() < 0.03 * thickness.max()
    assert np.abs(found - thickness).max() < 0.1 * thickness.max()
    assert np.abs(found[:20]).max() < 0.02 * thickness.max()


def test_the_equation_is_solved() -> None:
    """An intensity made by the transport equation itself gives exactly the exponential of the thickness."""
    filtered = smoothing(_scan(_parallel()), STEP)
    # a cosine keeps its shape under mirrored continuation
    row, column = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    truth = 0.6 + 0.2 * np.cos(6 * np.pi * row / SIZE) * np.cos(10 * np.pi * column / SIZE)
    square = (2 * np.sin(3 * np.pi / SIZE) / PIXEL_MM) ** 2 + (2 * np.sin(5 * np.pi / SIZE) / PIXEL_MM) ** 2
    area = DELTA / BETA * WAVELENGTH_MM * DISTANCE_MM / (4 * np.pi)
    intensity = 0.6 + (truth - 0.6) * (1 + area * square)
    assert filtered.apply(intensity[:, None, :].astype(np.float32))[:, 0] == pytest.approx(truth, abs=1e-5)


def test_rows_beyond_the_margin_do_not_matter() -> None:
    random = np.random.default_rng(0)
    values = random.random((SIZE, 1, SIZE)).astype(np.float32)
    filtered = smoothing(_scan(_parallel(pixel_mm=0.004)), STEP)
    assert 10 < filtered.margin < 100
    part = filtered.apply(values[128 - filtered.margin : 129 + filtered.margin])
    assert part[filtered.margin] == pytest.approx(filtered.apply(values)[128], abs=1e-4)


def test_an_enlarged_object_counts_for_less_distance() -> None:
    cone = ConeBeam(np.zeros(1), 100.0, 400.0, 0.004, 0.008, 127.5)
    found, plain = smoothing(_scan(cone), STEP), smoothing(_scan(_parallel()), STEP)
    # the element is as large at the object, and the distance four times smaller
    assert found.across_px == pytest.approx(plain.across_px / 2)
    assert found.along_px == pytest.approx(plain.across_px / 4)


def test_the_selection_changes_what_an_element_is() -> None:
    whole = smoothing(_scan(_parallel()), STEP)
    part = Selection(rows=Span(step=3), bin=2)
    scan = replace(selected(_scan(_parallel()), part), full_shape=(1, SIZE, SIZE))
    for step in (STEP, PhaseRetrieval(**(msgspec.structs.asdict(STEP) | {"pixel_mm": PIXEL_MM}))):
        found = smoothing(scan, step)
        assert found.across_px == pytest.approx(whole.across_px / 2)
        # two of every third row make one
        assert found.along_px == pytest.approx(whole.across_px / 6)


@pytest.mark.parametrize("energy_kev", [1e-300, 1e-3])
def test_a_filter_longer_than_the_detector_is_refused(energy_kev: float) -> None:
    step = PhaseRetrieval(delta_beta=1e6, energy_kev=energy_kev, distance_mm=1e6)
    with pytest.raises(BadInput, match="more than the 256 columns there are"):
        smoothing(_scan(_parallel()), step)


def test_the_pixel_must_be_known() -> None:
    scan = _scan(_parallel(pixel_mm=1.0, calibrated=False))
    with pytest.raises(BadInput, match=r"made.h5: phase retrieval needs the size of a pixel"):
        smoothing(scan, STEP)
    given = smoothing(scan, PhaseRetrieval(delta_beta=1000, energy_kev=25, distance_mm=150, pixel_mm=PIXEL_MM))
    assert given.across_px == pytest.approx(smoothing(_scan(_parallel()), STEP).across_px)
