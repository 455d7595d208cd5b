"""Makes the two sample scans that ship with the program, the same bytes of data each time.

The CT projections are exact line integrals of ellipses, averaged over the width of a detector pixel, and the
MRI data are exact Fourier transforms of ellipses times smooth coil sensitivities of few harmonics: neither
goes through the operators of the program, so reconstructing them tests those operators.

Run: `python resources/equipoise_resources/samples/make_samples.py [FOLDER]`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

SEED = 20240611

CT_SLICES = 8
CT_VIEWS = 120
CT_COLUMNS = 176
CT_PIXEL_MM = 0.05
CT_CENTRE_PX = 83.3
CT_FRAMES = 5
CT_BEAM = 20_000.0
CT_DARK = 100.0

MRI_SLICES = 2
MRI_COILS = 4
MRI_SIZE = 160
MRI_FIELD_MM = 220.0
MRI_SLICE_MM = 5.0
MRI_NOISE = 0.012


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in a plane with x to the right and y up; its value adds to what is below.

    Parameters
    ----------
    value
        Attenuation per unit of length, or signal.
    half_axes
        Along its own x and y.
    middle
        `(x, y)`.
    turn_rad
        Anticlockwise turn of its axes.
    """

    value: float
    half_axes: tuple[float, float]
    middle: tuple[float, float]
    turn_rad: float = 0.0


def tooth(height: float) -> list[Ellipse]:
    """Return the cross-section of a tooth-like body, half sizes below one, at a height from -1 to 1."""
    lean = 0.08 * height
    grow = 1.0 - 0.12 * height**2
    outer, inner = 0.86 * grow, 0.70 * grow
    parts = [
        Ellipse(1.00, (outer, 0.66 * grow), (lean, 0.0), 0.35),
        Ellipse(-0.45, (inner, 0.52 * grow), (lean + 0.01, -0.02), 0.35),
        Ellipse(-0.50, (0.20 + 0.05 * height, 0.11), (lean - 0.22, 0.02), 0.9),
        Ellipse(-0.50, (0.10, 0.05 - 0.02 * height), (lean + 0.28, 0.16), -0.3),
        Ellipse(0.55, (0.09, 0.06), (lean + 0.34, -0.22), 0.2),
    ]
    # A crack, and a row of pores that grow smaller: fine details, and none of it mirror-symmetric.
    parts.append(Ellipse(-0.50, (0.26, 0.008), (lean + 0.10, 0.27), 0.75))
    for number in range(7):
        size = 0.034 * 0.80**number
        parts.append(Ellipse(-0.50, (size, size), (lean - 0.12 + 0.085 * number, -0.34 + 0.02 * number)))
    return parts


def strip_integral(ellipse: Ellipse, angle_rad: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return line integrals averaged over detector pixels, `(view, column)`.

    A ray at angle `a` and position `s` is the line `x cos(a) + y sin(a) = s`. The integral over a pixel has a
    closed form: the antiderivative of a half circle.

    Parameters
    ----------
    angle_rad
        `(view,)`.
    edges
        Positions of the pixel edges, ascending, `(column + 1,)`.
    """
    a, b = ellipse.half_axes
    x, y = ellipse.middle
    turned = angle_rad - ellipse.turn_rad
    radius = np.sqrt((a * np.cos(turned)) ** 2 + (b * np.sin(turned)) ** 2)[:, None]
    shift = (x * np.cos(angle_rad) + y * np.sin(angle_rad))[:, None]
    at = np.clip((edges[None, :] - shift) / radius, -1.0, 1.0)
    area = ellipse.value * a * b * (at * np.sqrt(1.0 - at**2) + np.arcsin(at))
    return np.asarray(np.diff(area, axis=1) / np.diff(edges)[None, :])


def ct_line_integrals() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return line integrals `(view, slice, column)` without unit, and angles in degrees `(view,)`."""
    angles = np.linspace(0.0, 180.0, CT_VIEWS, endpoint=False, dtype=np.float64)
    radians = np.asarray(np.deg2rad(angles), dtype=np.float64)
    reach = 0.5 * CT_COLUMNS * CT_PIXEL_MM * 0.92
    edges = np.asarray((np.arange(CT_COLUMNS + 1) - 0.5 - CT_CENTRE_PX) * CT_PIXEL_MM / reach, dtype=np.float64)
    peak = 2.2 / 1.4
    integrals = np.zeros((CT_VIEWS, CT_SLICES, CT_COLUMNS))
    for row in range(CT_SLICES):
        for part in tooth(2.0 * row / (CT_SLICES - 1) - 1.0):
            integrals[:, row] += strip_integral(part, radians, edges) * peak
    return integrals, angles


def make_ct(path: Path) -> None:
    """Write the CT sample: an NXtomo file of counts with flats, darks, uneven pixels and dead pixels."""
    random = np.random.default_rng(SEED)
    integrals, angles = ct_line_integrals()
    size = (CT_SLICES, CT_COLUMNS)
    gain = 1.0 + 0.04 * random.standard_normal(size)
    column = np.linspace(-1.0, 1.0, CT_COLUMNS)
    beam = CT_BEAM * gain * (1.0 - 0.15 * column**2)[None, :]
    dead = random.choice(CT_SLICES * CT_COLUMNS, 5, replace=False)
    beam.reshape(-1)[dead] = 0.0

    def expose(mean: NDArray[np.float64]) -> NDArray[np.uint16]:
        counts = random.poisson(mean) + random.normal(CT_DARK, 2.0, mean.shape)
        return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)

    none = np.zeros((CT_FRAMES, *size))
    darks = expose(none)
    flats = expose(none + beam)
    projections = expose(beam * np.exp(-integrals))
    darks.reshape(CT_FRAMES, -1)[:, dead] = 0
    flats.reshape(CT_FRAMES, -1)[:, dead] = 0
    projections.reshape(CT_VIEWS, -1)[:, dead] = 0

    frames = np.concatenate([darks, flats, projections])
    keys = np.repeat([2, 1, 0], [CT_FRAMES, CT_FRAMES, CT_VIEWS]).astype(np.int32)
    rotation = np.concatenate([np.zeros(2 * CT_FRAMES), angles])
    with h5py.File(path, "w", track_order=True) as file:
        entry = _group(file, "entry", "NXentry")
        entry["definition"] = "NXtomo"
        entry["title"] = "Simulated tooth-like body"
        detector = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
        detector.create_dataset(
            "data", data=frames, chunks=(13, *size), shuffle=True, compression="gzip", compression_opts=9
        )
        detector["image_key"] = keys
        for axis in "xy":
            detector[f"{axis}_pixel_size"] = CT_PIXEL_MM
            detector[f"{axis}_pixel_size"].attrs["units"] = "mm"
        sample = _group(entry, "sample", "NXsample")
        sample["name"] = "simulated"
        sample["rotation_angle"] = rotation
        sample["rotation_angle"].attrs["units"] = "degree"
        plot = _group(entry, "data", "NXdata")
        plot.attrs["signal"] = "data"
        plot["data"] = h5py.SoftLink("/entry/instrument/detector/data")
        plot["image_key"] = h5py.SoftLink("/entry/instrument/detector/image_key")
        plot["rotation_angle"] = h5py.SoftLink("/entry/sample/rotation_angle")


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name, track_order=True)
    group.attrs["NX_class"] = kind
    return group


def head(height: float) -> list[Ellipse]:
    """Return the cross-section of a head-like body, half sizes below one, at a height of 0 or 1."""
    parts = [
        Ellipse(0.90, (0.72, 0.88), (0.0, 0.0)),
        Ellipse(-0.80, (0.67, 0.83), (0.0, 0.0)),
        Ellipse(0.55, (0.63, 0.79), (0.0, -0.005)),
        Ellipse(0.22, (0.46, 0.60), (0.03, 0.0), 0.1),
        Ellipse(0.30, (0.06, 0.24 - 0.06 * height), (-0.12, 0.08), 0.25),
        Ellipse(0.30, (0.06, 0.20), (0.13, 0.06 + 0.05 * height), -0.25),
        Ellipse(-0.35, (0.15, 0.10), (0.26, -0.38), 0.5),
        Ellipse(0.35, (0.07, 0.09), (-0.33, 0.34 - 0.08 * height)),
        Ellipse(-0.30, (0.012, 0.30), (0.0, 0.48)),
    ]
    for number in range(6):
        size = 0.036 * 0.78**number
        parts.append(Ellipse(0.35, (size, size), (-0.30 + 0.09 * number, -0.55 + 0.015 * number)))
    return parts


def ellipse_spectrum(ellipse: Ellipse, kx: NDArray[np.float64], ky: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the continuous Fourier transform of an ellipse at frequencies in cycles per unit of length."""
    a, b = ellipse.half_axes
    x, y = ellipse.middle
    cosine, sine = np.cos(ellipse.turn_rad), np.sin(ellipse.turn_rad)
    own_x, own_y = kx * cosine + ky * sine, -kx * sine + ky * cosine
    radius = np.hypot(a * own_x, b * own_y)
    safe = np.maximum(radius, 1e-9)
    disc = np.where(radius < 1e-9, np.pi * a * b, a * b * j1(2 * np.pi * safe) / safe)
    return np.asarray(ellipse.value * disc * np.exp(-2j * np.pi * (kx * x + ky * y)))


def coil_harmonics(coil: int) -> list[tuple[complex, float, float]]:
    """Return a coil's sensitivity as plane waves: weight, and cycles per unit of length along x and y.

    With so few waves the product with an ellipse has a Fourier transform in closed form: shifted copies of
    its spectrum.
    """
    angle = 2 * np.pi * (coil + 0.3) / MRI_COILS
    x, y = np.cos(angle), np.sin(angle)
    phase = np.exp(1j * (0.7 * coil + 0.2))
    waves = [(0.55 + 0j, 0.0, 0.0)]
    for weight, cycles in ((0.50, 0.25), (0.14, 0.45)):
        waves.append((0.5 * weight * np.exp(-1j * 2.0 * cycles), cycles * x, cycles * y))
        waves.append((0.5 * weight * np.exp(+1j * 2.0 * cycles), -cycles * x, -cycles * y))
    waves.append((0.12j, 0.20 * y, -0.20 * x))
    return [(phase * weight, across, up) for weight, across, up in waves]


def mri_signal() -> NDArray[np.complex128]:
    """Return k-space without noise, `(slice, coil, ky, kx)`, zero frequency at index `n // 2`."""
    # Rows go downwards, y goes up: hence the sign. The field of view is two units wide.
    steps = (np.arange(MRI_SIZE) - MRI_SIZE // 2) / 2.0
    kx, ky = np.meshgrid(steps, -steps)
    signal = np.zeros((MRI_SLICES, MRI_COILS, MRI_SIZE, MRI_SIZE), dtype=np.complex128)
    for number in range(MRI_SLICES):
        for coil in range(MRI_COILS):
            for weight, across, up in coil_harmonics(coil):
                for part in head(float(number)):
                    signal[number, coil] += weight * ellipse_spectrum(part, kx - across, ky - up)
    # So that the centred orthonormal inverse transform gives the signal values themselves.
    return signal * (MRI_SIZE / 4.0)


def make_mri(path: Path) -> None:
    """Write the MRI sample: a fastMRI-style file of fully sampled multi-coil k-space with noise."""
    random = np.random.default_rng(SEED + 1)
    signal = mri_signal()
    noise = random.standard_normal(signal.shape) + 1j * random.standard_normal(signal.shape)
    kspace = (signal + MRI_NOISE * noise).astype(np.complex64)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    rss = np.sqrt(np.sum(np.abs(images) ** 2, axis=1)).astype(np.float32)
    header = (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace>'
        f"<matrixSize><x>{MRI_SIZE}</x><y>{MRI_SIZE}</y><z>1</z></matrixSize>"
        f"<fieldOfView_mm><x>{MRI_FIELD_MM}</x><y>{MRI_FIELD_MM}</y><z>{MRI_SLICE_MM}</z></fieldOfView_mm>"
        "</encodedSpace></encoding></ismrmrdHeader>"
    )
    with h5py.File(path, "w", track_order=True) as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header
        file.attrs["acquisition"] = "simulated"
        file.attrs["patient_id"] = "simulated"
        file.attrs["max"] = float(rss.max())


def main(folder: Path) -> None:
    """Write both samples into a folder."""
    make_ct(folder / "sample_ct.nxs")
    make_mri(folder / "sample_mri.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
