"""k-space in MATLAB files, by the names and the shapes of the variables.

Sources: M. Lustig and J. M. Pauly 2010, SPIRiT, doi:10.1002/mrm.22428, and S. Srinivas et al. 2022, EDITER,
doi:10.1002/mrm.28992, whose examples name the variables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Match, MriAcquisition
from equipoise_engine.errors import BadInput, Incomplete
from equipoise_engine.formats.hdf5 import check_memory
from equipoise_engine.formats.mat_variables import Value, Variable, load
from equipoise_engine.formats.mri.kspace import (
    centre_warnings,
    check_finite,
    line_axis,
    measured_positions,
    sampling_warnings,
)
from equipoise_engine.formats.mri.matlab_axes import MAX_COILS, likely_axes, ordered, told_axes
from equipoise_engine.formats.mri.trajectory import image_size
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.recipe import Known, Source

KSPACE_NAMES = frozenset({"data", "datafft", "kspace", "kdata", "ksp", "rawdata", "raw", "signal", "fid", "meas"})
TRAJECTORY_NAMES = frozenset({"k", "traj", "trajectory", "ktraj", "kloc", "coord", "coords"})
DENSITY_NAMES = frozenset({"w", "dcf", "density", "weights", "dcomp"})
NOISE_NAMES = frozenset({"noise", "noisedata", "noisescan"})
SENSITIVITY_NAMES = frozenset({"sens", "sensitivity", "sensitivities", "smap", "smaps", "csm", "coilmaps", "maps"})
"""Names in small letters and without underscores."""
_DETECTOR = re.compile(r"noise|emi|interf", re.IGNORECASE)
_REAL_KINDS = ("double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def read_kspace(path: Path, variables: list[Variable], known: Known) -> MriAcquisition:
    """Return the k-space in a file with these variables. Raises as `matlab.read_matlab`.

    The source of the k-space may tell its axes, as "kspace@ky,kx,coil,slice".
    """
    told = told_roles(known, path, ("kspace", "trajectory", "density", "noise", "interference"))
    axes = None
    if "kspace" in told:
        told["kspace"], axes = told_axes(told["kspace"])
    variables, inside = _opened(path, variables)
    roles = _roles(path, variables, told)
    values = _values(path, roles.wanted, inside)
    kspace = values[roles.data.name]
    if not isinstance(kspace, np.ndarray) or kspace.dtype.kind != "c":
        raise BadInput(
            f"{path.name}: {roles.data} is not complex; k-space is", "Export complex k-space, not magnitudes."
        )
    if roles.trajectory is None:
        single, guess = kspace.astype(np.complex64), list[str]()
        if axes is None:
            axes, guess = likely_axes(path, roles.data, single, _coil_counts(variables, roles.noise))
        scan = _along_lines(path, roles, ordered(path, roles.data, single, axes), values)
        match = Match("k-space", roles.data.name, roles.data.shape, _order(axes))
        scan = replace(scan, matched=(match, *scan.matched), warnings=(*guess, *scan.warnings))
    else:
        if axes is not None:
            raise BadInput(
                f"{path.name}: k-space along a trajectory has the axes (sample, readout, coil), not {', '.join(axes)}"
            )
        positions = _positions(path, roles.trajectory, values[roles.trajectory.name])
        weights = None if roles.density is None else (roles.density, values[roles.density.name])
        scan = _along(path, (roles.data, kspace), positions, weights, known.matrix)
    return replace(scan, sources=tuple(Source(v.name, v.shape, v.kind) for v in variables if v.kind in _REAL_KINDS))


# --- variables --------------------------------------------------------------------------------------


def _opened(path: Path, variables: list[Variable]) -> tuple[list[Variable], dict[str, Value]]:
    """Return the variables with the parts of the only structure in place of it, and the values of these parts."""
    structures = [v for v in variables if v.kind == "struct" and v.shape == (1, 1)]
    if len(structures) != 1 or any(v.kind in _REAL_KINDS and max(v.shape, default=0) > 16 for v in variables):
        return variables, {}
    name = structures[0].name
    value = load(path, [name])[name]
    parts = {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {}
    arrays = {
        part: inner for part, inner in parts.items() if isinstance(inner, np.ndarray) and inner.dtype.kind in "iufc"
    }
    opened = [Variable(part, tuple(inner.shape), "double") for part, inner in arrays.items()]
    return [v for v in variables if v.name != name] + opened, arrays


def _values(path: Path, wanted: list[Variable], inside: dict[str, Value]) -> dict[str, Value]:
    loaded = load(path, [v.name for v in wanted if v.name not in inside])
    return {v.name: inside[v.name] if v.name in inside else loaded[v.name] for v in wanted}


@dataclass(frozen=True)
class _Roles:
    """Which variable is what; None where there is none."""

    data: Variable
    trajectory: Variable | None
    density: Variable | None
    noise: Variable | None
    detectors: list[Variable]

    @property
    def wanted(self) -> list[Variable]:
        """All of them."""
        return [v for v in (self.data, self.trajectory, self.density, self.noise, *self.detectors) if v is not None]


def _roles(path: Path, variables: list[Variable], told: dict[str, str]) -> _Roles:
    """Return which of the variables is what, as told or by their names. Raises Incomplete where none is k-space."""

    def found(role: str, names: frozenset[str]) -> Variable | None:
        if role in told:
            return _named(path, variables, role, told[role]) if told[role] else None
        fitting = [v for v in variables if _plain(v) in names]
        fitting = [v for v in fitting if v.kind in _REAL_KINDS and max(v.shape, default=0) > 1]
        return fitting[0] if len(fitting) == 1 else None

    data = found("kspace", KSPACE_NAMES) or _by_part(variables, told)
    if data is None:
        raise _unknown(path, variables)
    if data.kind not in _REAL_KINDS or not 2 <= len(data.shape) <= 4 or min(data.shape) < 1:
        raise BadInput(f"{path.name}: {data} is not complex k-space of two to four axes", "Choose another variable.")
    roles = _Roles(
        data,
        found("trajectory", TRAJECTORY_NAMES),
        found("density", DENSITY_NAMES),
        found("noise", NOISE_NAMES),
        _detectors(path, variables, data, told),
    )
    for variable in roles.wanted:
        check_memory(int(np.prod(variable.shape, dtype=np.float64)) * 48, f"{variable.name} of {path.name}")
    return roles


def _plain(variable: Variable) -> str:
    """Return the name of a variable, or of a part of a structure, in small letters and without underscores."""
    return variable.name.rpartition(".")[2].lower().replace("_", "")


def _named(path: Path, variables: list[Variable], role: str, source: str) -> Variable:
    fitting = next((v for v in variables if v.name == source), None)
    if fitting is None:
        there = ", ".join(v.name for v in variables[:12])
        raise BadInput(f"{path.name}: there is no variable {source!r} for the {role}", f"There are {there or 'none'}.")
    return fitting


def _by_part(variables: list[Variable], told: dict[str, str]) -> Variable | None:
    """Return the only variable in whose name k-space is spoken of."""
    if "kspace" in told:
        return None
    fitting = [
        v
        for v in variables
        if v.kind in _REAL_KINDS and min(v.shape, default=0) > 0 and re.search(r"k_?sp(ace)?(?![a-z])", v.name.lower())
    ]
    return fitting[0] if len(fitting) == 1 and len(fitting[0].shape) > 1 else None


def _unknown(path: Path, variables: list[Variable]) -> Incomplete:
    said = ", ".join(str(variable) for variable in variables[:8]) + (", ..." if len(variables) > 8 else "")
    return Incomplete(
        f"{path.name}: the variables of this MATLAB file are not known: it holds {said or 'none'}",
        "Tell which variable is the k-space (ky, kx, coil), and which the trajectory (sample, readout) where it lies"
        " along one. Fan-beam scans are structures CtData; an image to compare with is opened as a reference.",
        missing=("kspace",),
        sources=tuple(Source(v.name, v.shape, v.kind) for v in variables if v.kind in _REAL_KINDS),
    )


def _detectors(path: Path, variables: list[Variable], data: Variable, told: dict[str, str]) -> list[Variable]:
    """Return the variables of coils that see no signal, in the order of the numbers in their names."""
    pattern = told.get("interference")
    if pattern == "" or len(data.shape) != 2:
        return []
    if pattern is None:
        fitting = [v for v in variables if _DETECTOR.search(v.name) and v.shape == data.shape and v.name != data.name]
    else:
        fitting = [v for v in variables if fnmatchcase(v.name, pattern)]
        wrong = next((v for v in fitting if v.shape != data.shape), None)
        if not fitting or wrong is not None:
            raise BadInput(
                f"{path.name}: interference must be as large as {data}; there is {wrong or f'no variable {pattern!r}'}"
            )
    return sorted(fitting, key=lambda v: [int(n) for n in re.findall(r"\d{1,9}", v.name)])


def _coil_counts(variables: list[Variable], noise: Variable | None) -> set[int]:
    """Return how many coils there may be, as noise `(coil, sample)` and sensitivities `(y, x, coil)` tell."""
    maps = [v for v in variables if _plain(v) in SENSITIVITY_NAMES]
    counts = {v.shape[2] for v in maps if len(v.shape) == 3}
    return counts | ({noise.shape[0], noise.shape[-1]} if noise is not None else set())


def _order(axes: tuple[str, ...]) -> str:
    """Say how the axes of k-space were taken."""
    said = f"complex, taken as ({', '.join(axes)})"
    if "coil" not in axes:
        said += ", one coil"
    return said + (", transformed along kz" if "kz" in axes else "")


def _noise(path: Path, variable: Variable, value: Value, coils: int) -> NDArray[np.complex64] | None:
    """Return noise `(coil, sample)`; None where there is none of this many coils."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "c" or value.ndim < 2:
        return None
    if coils not in (value.shape[0], value.shape[-1]) or value.size == coils:
        return None
    laid = value if value.shape[-1] != coils else np.moveaxis(value, -1, 0)
    noise = np.ascontiguousarray(laid.reshape(coils, -1), dtype=np.complex64)
    check_finite(noise, path, f"{variable} (coil, sample)")
    return noise


# --- lines --------------------------------------------------------------------------------------


def _along_lines(path: Path, roles: _Roles, stack: NDArray[np.complex64], values: dict[str, Value]) -> MriAcquisition:
    """Return Cartesian k-space `(slice, coil, ky, kx)` with what was measured beside it."""
    check_finite(stack, path, f"{roles.data.name} (slice, coil, ky, kx)")
    sampled = measured_positions(stack, path)
    rows, columns = sampled.shape
    coils = stack.shape[1]
    matched = []
    interference = None
    phase_axis = line_axis(sampled, 0)
    if roles.detectors:
        interference, match = _interference(path, roles.detectors, values)
        matched.append(match)
        if sampled.all() and rows != columns:
            # Readouts have more samples than there are lines.
            phase_axis = 1 if rows > columns else 0
    samples = None
    if roles.noise is not None:
        samples = _noise(path, roles.noise, values[roles.noise.name], coils)
        if samples is not None:
            matched.append(Match("noise", roles.noise.name, roles.noise.shape, "(coil, sample)"))
    return MriAcquisition(
        path=path,
        format="MATLAB k-space",
        kspace=stack,
        geometry=Cartesian(sampled=sampled, field_of_view_mm=(float(rows), float(columns)), phase_axis=phase_axis),
        matched=tuple(matched),
        warnings=(
            *sampling_warnings(sampled, coils),
            # interference is strongest anywhere
            *(() if roles.detectors else centre_warnings(stack[stack.shape[0] // 2])),
        ),
        noise=samples,
        interference=interference,
    )


def _interference(
    path: Path, detectors: list[Variable], values: dict[str, Value]
) -> tuple[NDArray[np.complex64], Match]:
    """Return what coils without signal measured `(slice, detector, ky, kx)`, and where it was found."""
    seen = np.stack([np.asarray(values[v.name]) for v in detectors])
    if seen.dtype.kind != "c":
        raise BadInput(f"{path.name}: {detectors[0]} is not complex; what reference coils measure is")
    interference = np.ascontiguousarray(seen[None], dtype=np.complex64)
    check_finite(interference, path, "the interference (slice, detector, ky, kx)")
    names = f"{detectors[0].name} ... {detectors[-1].name}" if len(detectors) > 1 else detectors[0].name
    return interference, Match("interference", names, seen.shape, "(detector, ky, kx), as large as the k-space")


# --- along a trajectory -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trajectory:
    """Where k-space was measured.

    Parameters
    ----------
    points
        `(sample, readout, 2)` in cycles per pixel.
    unit
        Of the values in the file.
    matrix
        Rows and columns of the image that they tell, where they do.
    """

    variable: Variable
    points: NDArray[np.float64]
    unit: str
    matrix: int | None


def _positions(path: Path, variable: Variable, value: Value) -> _Trajectory:
    """Return the trajectory that a variable holds."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iufc" or not np.isfinite(value).all():
        raise BadInput(f"{path.name}: {variable} must hold finite positions, ky + i kx or pairs", "Export it again.")
    if value.dtype.kind == "c":
        # The real part runs down the rows, the first axis in MATLAB; so read, letters on a phantom are not mirrored.
        points = np.stack([value.real, value.imag], axis=-1)
    elif value.shape[-1] == 2:
        points = value
    elif value.shape[0] == 2:
        points = np.moveaxis(value, 0, -1)
    else:
        raise BadInput(
            f"{path.name}: {variable} must hold complex positions, ky + i kx, or have an axis of the length 2",
            "Three-dimensional trajectories are not read.",
        )
    points = np.asarray(points, dtype=np.float64)
    points = points[:, None] if points.ndim == 2 else points
    if points.ndim != 3:
        raise BadInput(
            f"{path.name}: {variable} has {points.ndim - 1} axes besides its pairs; (sample, readout) is read"
        )
    reach = float(np.abs(points).max(initial=0.0))
    if 0.05 < reach < 0.51:
        return _Trajectory(variable, points, f"cycles per pixel, up to {reach:.3g}", None)
    if 0.9 * np.pi < reach < 1.02 * np.pi:
        return _Trajectory(variable, points / (2 * np.pi), f"radians per pixel, up to {reach:.3g}", None)
    if 8 <= reach < 4096:
        matrix = 2 * round(reach)
        return _Trajectory(variable, points / matrix, f"cycles per field of view, up to {reach:.4g}", matrix)
    raise BadInput(
        f"{path.name}: {variable} reaches {reach:.4g}; positions in cycles per pixel reach up to 0.5, in cycles per"
        " field of view half of the matrix",
        "Divide the positions by twice the largest one.",
    )


def _along(
    path: Path,
    measured: tuple[Variable, NDArray[np.complex128]],
    trajectory: _Trajectory,
    density: tuple[Variable, Value] | None,
    matrix: tuple[int, int] | None,
) -> MriAcquisition:
    """Return what was measured, k-space `(sample, readout, coil)`, along a trajectory."""
    data, kspace = measured
    variable, told = trajectory.variable, trajectory.matrix
    samples, readouts = trajectory.points.shape[:2]
    if kspace.shape[: 2 - (readouts == 1)] == (samples, readouts)[: 2 - (readouts == 1)]:
        planes = kspace.reshape(samples, readouts, -1)
    else:
        raise BadInput(
            f"{path.name}: the trajectory {variable} does not fit {data}; the first two axes must be the same",
            "Order the axes of both as (sample, readout).",
        )
    if planes.shape[2] > MAX_COILS:
        raise BadInput(f"{path.name}: {data} would have {planes.shape[2]} coils; at most {MAX_COILS} are read")
    laid = np.ascontiguousarray(planes.transpose(2, 1, 0), dtype=np.complex64)[None]
    check_finite(laid, path, f"{data.name} (slice, coil, readout, sample)")
    points = np.ascontiguousarray(trajectory.points.transpose(1, 0, 2))
    note: list[str] = []
    if matrix is not None:
        chosen = matrix
    elif told is not None:
        chosen = (told, told)
    else:
        size, why = image_size(points)
        chosen = (size, size)
        note = [f"The file gives no size of the image; {size} x {size} was taken, as {why}."]
    matched = [
        Match("k-space", data.name, data.shape, "complex, (sample, readout, coil), as long as the trajectory"),
        Match("trajectory", variable.name, variable.shape, f"ky + i kx in {trajectory.unit}"),
    ]
    compensation = None
    if density is not None:
        weighed, value = density
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size == samples * readouts:
            if not np.isfinite(value).all() or value.min() < 0:
                raise BadInput(f"{path.name}: {weighed} must hold finite weights, none below zero")
            compensation = np.ascontiguousarray(value.reshape(samples, readouts).T, dtype=np.float64)
            matched.append(Match("density compensation", weighed.name, weighed.shape, "as the trajectory"))
    return MriAcquisition(
        path=path,
        format="MATLAB k-space along a trajectory",
        kspace=laid,
        geometry=NonCartesian(
            trajectory=points * np.asarray(chosen, dtype=np.float64),
            matrix=chosen,
            field_of_view_mm=(float(chosen[0]), float(chosen[1])),
            density=compensation,
        ),
        matched=tuple(matched),
        warnings=(*note, *sampling_warnings(np.ones((1, 1), dtype=np.bool_), laid.shape[1])),
        guessed=("matrix",) if note else (),
    )
