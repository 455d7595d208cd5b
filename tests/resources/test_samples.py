"""The sample scans: what the script beside them makes, small, and right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, MriAcquisition
from equipoise_engine.formats import read
from equipoise_engine.preprocess.attenuation import prepare
from equipoise_engine.preprocess.centre import find_centre
from equipoise_resources import licence_text, sample_path, weights_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script again, into another folder."""
    folder = tmp_path_factory.mktemp("samples")
    script = sample_path("ct").parent / "make_samples.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=120)
    return folder


def _arrays(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r", locking=False) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("kind", ["ct", "mri"])
def test_samples_are_what_their_script_makes(made: Path, kind: str) -> None:
    kept, again = _arrays(sample_path(kind)), _arrays(made / sample_path(kind).name)
    assert kept.keys() == again.keys()
    assert len(kept) > 1
    for name, value in kept.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
            # other builds of the mathematical library differ in the last bits
            assert np.allclose(value, again[name], rtol=1e-5, atol=1e-5), name
        else:
            assert np.array_equal(value, again[name]), name


def test_samples_are_small() -> None:
    total = sum(p.stat().st_size for p in sample_path("ct").parent.iterdir() if p.is_file())
    assert total < 3_000_000


def test_ct_sample_has_what_a_measured_scan_has() -> None:
    scan = read(sample_path("ct"))
    assert isinstance(scan, CtAcquisition)
    assert scan.shape == (120, 8, 176)
    assert (scan.geometry.calibrated, scan.geometry.pixel_mm) == (True, 0.05)
    assert scan.warnings == ()
    assert prepare(scan, slice(None)).repaired_pixels == 5
    assert find_centre(scan).centre_px == pytest.approx(83.3, abs=0.1)


def test_ct_line_integrals_agree_with_counting_points() -> None:
    spec = importlib.util.spec_from_file_location("make_samples", sample_path("ct").parent / "make_samples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["make_samples"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    ellipse = script.Ellipse(2.0, (0.5, 0.2), (0.3, -0.1), 0.7)
    edges = np.linspace(-1.0, 1.0, 21)
    angle = np.deg2rad([0.0, 40.0, 90.0, 135.0])
    # points on a fine grid, sorted into detector pixels
    side = np.linspace(-1.2, 1.2, 1201)
    x, y = np.meshgrid(side, side)
    along, across = (
        (x - 0.3) * np.cos(0.7) + (y + 0.1) * np.sin(0.7),
        -(x - 0.3) * np.sin(0.7) + (y + 0.1) * np.cos(0.7),
    )
    inside = (along / 0.5) ** 2 + (across / 0.2) ** 2 <= 1
    cell = (side[1] - side[0]) ** 2
    for row, one in zip(script.strip_integral(ellipse, angle, edges), angle, strict=True):
        counted, _ = np.histogram((x * np.cos(one) + y * np.sin(one))[inside], edges)
        assert row == pytest.approx(2.0 * counted * cell / np.diff(edges), abs=0.03)


def test_mri_sample_shows_the_head_the_right_way_up() -> None:
    scan = read(sample_path("mri"))
    assert isinstance(scan, MriAcquisition)
    assert scan.shape == (2, 4, 160, 160)
    assert scan.geometry.field_of_view_mm == (220.0, 220.0)
    assert scan.geometry.sampled.all()
    shifted = np.fft.ifftshift(scan.kspace[0], axes=(-2, -1))
    images = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
    image = np.sqrt(np.sum(np.abs(images) ** 2, axis=0))
    # at (x, y) of the bright ellipse up on the left, and of the dark one down on the right; y points up
    at = lambda x, y: float(image[80 - round(80 * y), 80 + round(80 * x)])  # noqa: E731
    assert at(-0.33, 0.34) > 1.2 * at(0.33, 0.34)
    assert at(0.26, -0.38) < 0.8 * at(-0.26, -0.38)
    assert at(0.95, 0.95) < 0.1


def test_paths_and_licence() -> None:
    assert weights_path("ct").name == "ct.safetensors"
    assert weights_path("mri").parent == weights_path("ct").parent
    assert "Redistribution" in licence_text()
    with pytest.raises(KeyError):
        sample_path("pet")
