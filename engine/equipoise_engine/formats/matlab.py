"""Reader for MATLAB files: fan-beam scans of the Helsinki laboratory, and k-space.

Fan-beam scans are structures as the Helsinki Tomography Challenge and the HelTomo toolbox write them: attenuation
already, the rotation axis in the middle, angles of the ASTRA toolbox, whose convention is that of `FanBeam`.

Source: A. Meaney et al. 2022, Helsinki Tomography Challenge 2022 open tomographic dataset, doi:10.5281/zenodo.6984868.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise_engine.acquisition import Acquisition, CtAcquisition, DataState, Match
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.angles import repeated_views, to_radians
from equipoise_engine.formats.mat_variables import DAMAGE, Value, Variable, load, variables_of
from equipoise_engine.formats.mri.matlab_kspace import read_kspace
from equipoise_engine.formats.roles import told_roles
from equipoise_engine.geometry import FanBeam
from equipoise_engine.recipe import Known

SCAN_NAMES = ("CtDataLimited", "CtDataFull", "CtData")
_MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}


def read_matlab(path: Path, known: Known) -> Acquisition:
    """Return the scan in a MATLAB file: a fan-beam structure, Cartesian k-space, or k-space along a trajectory.

    Raises
    ------
    BadInput
        The file is damaged, or the shapes of its variables do not fit together.
    Incomplete
        None of its variables is known as k-space; `known.roles` may name it.
    Unsupported
        The scan was measured with another beam than a fan.
    OutOfMemory
        A variable is larger than the free memory.
    """
    try:
        variables = variables_of(path)
        names = {variable.name for variable in variables}
        scan = next((name for name in SCAN_NAMES if name in names), None) or _only_structure(path, variables)
        if scan is not None:
            told_roles(known, path, ())
            if known.transposed:
                raise BadInput(
                    f"{path.name}: the angles tell which axis of its sinogram holds the views", "Leave it out."
                )
            return _read_fan(path, scan, load(path, [scan])[scan])
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond single precision are found not to be finite
            return read_kspace(path, variables, known)
    except DAMAGE as error:
        raise BadInput(f"{path.name}: the MATLAB file is damaged ({error})", "Copy or download it again.") from error


def _only_structure(path: Path, variables: list[Variable]) -> str | None:
    """Return the only structure of a file where it has the parts of a scan."""
    structures = [v.name for v in variables if v.kind == "struct" and v.shape == (1, 1)]
    if len(structures) != 1:
        return None
    value = load(path, structures)[structures[0]]
    return structures[0] if isinstance(value, dict) and {"sinogram", "parameters"} <= value.keys() else None


# --- computed tomography ----------------------------------------------------------------------------


def _read_fan(path: Path, name: str, scan: Value) -> CtAcquisition:
    if not isinstance(scan, dict):
        raise BadInput(f"{path.name}: {name} is no structure", "Export the scan again.")
    parameters = scan.get("parameters")
    if not isinstance(parameters, dict):
        raise BadInput(f"{path.name}: {name}.parameters is missing", "Export the scan again.")
    kind = str(scan.get("type", "2d"))
    beam = str(parameters.get("geometryType", "cone"))
    if kind.lower() != "2d" or beam.lower() not in ("cone", "fan"):
        raise Unsupported(
            f"{path.name}: {name} is of type {kind!r} and geometry {beam!r}; two-dimensional scans with a fan beam are"
            " read",
        )
    part = next((part for part in ("sinogram", "sinogramTotal") if part in scan), None)
    if part is None:
        raise BadInput(f"{path.name}: {name}.sinogram is missing (there are {', '.join(scan)})")
    sinogram = _reals(scan[part], path, f"{name}.{part}")
    if sinogram.ndim != 2 or min(sinogram.shape) < 2:
        raise BadInput(f"{path.name}: {name}.{part} has shape {sinogram.shape}; (view, column) is needed")
    angles = _reals(parameters.get("angles"), path, f"{name}.parameters.angles").reshape(-1)
    reason = "(view, column): as many rows as angles"
    if sinogram.shape[0] != angles.size and sinogram.shape[1] == angles.size:
        sinogram, reason = sinogram.T, "(column, view) in the file: as many columns as angles"
    angle_rad, _, warnings = to_radians(angles, "degrees", where=f"{path.name}: {name}.parameters.angles")
    if np.ptp(angle_rad) > 1.5 * np.pi:
        warnings += repeated_views(angle_rad)  # half a turn later, a fan does not see the same rays
    unit = str(parameters.get("distanceUnit", "mm"))
    if unit.lower() not in _MILLIMETRES:
        raise BadInput(f"{path.name}: distances in {unit!r}; {', '.join(_MILLIMETRES)} are read")
    factor = _MILLIMETRES[unit.lower()]

    def length(key: str) -> float:
        return factor * _number(parameters, key, path, name)

    columns = sinogram.shape[1]
    pixel_name, pixel_mm = _pixel(parameters, columns, path, name)
    source_axis_mm, source_detector_mm = length("distanceSourceOrigin"), length("distanceSourceDetector")
    geometry = FanBeam(
        angle_rad=angle_rad,
        source_axis_mm=source_axis_mm,
        source_detector_mm=source_detector_mm,
        pixel_mm=factor * pixel_mm,
        centre_px=(columns - 1) / 2,
    )
    distances = f"source to axis {source_axis_mm:g} mm, source to detector {source_detector_mm:g} mm"
    centre = "the middle of the detector, where files of this kind are corrected to have it"
    matched = (
        Match("projections", f"{name}.{part}", tuple(int(n) for n in scan[part].shape), reason),
        Match("angles", f"{name}.parameters.angles", (angles.size,), "degrees, as files of this kind have them"),
        Match("distances", f"{name}.parameters.distanceSource...", (), distances),
        Match("pixel size", f"{name}.parameters.{pixel_name}", (), f"{factor * pixel_mm:g} mm at the detector"),
        Match("rotation centre", "the detector", (), centre),
    )
    return CtAcquisition(
        path=path,
        format="MATLAB fan-beam structure",
        state=DataState.ATTENUATION,
        projections=np.ascontiguousarray(sinogram[:, None, :], dtype=np.float32),
        geometry=geometry,
        matched=matched,
        warnings=warnings,
    )


def _pixel(parameters: Mapping[str, Value], columns: int, path: Path, name: str) -> tuple[str, float]:
    """Return the name and the size of a detector element as the sinogram has it, after binning."""
    if "pixelSizePost" in parameters:
        return "pixelSizePost", _number(parameters, "pixelSizePost", path, name)
    size = _number(parameters, "pixelSize", path, name)
    if "detectorCols" in parameters:
        binned = _number(parameters, "detectorCols", path, name) / columns
        return "pixelSize", size * max(round(binned), 1)
    return "pixelSize", size


def _number(parameters: Mapping[str, Value], key: str, path: Path, name: str) -> float:
    value = _reals(parameters.get(key), path, f"{name}.parameters.{key}")
    if value.size != 1 or not np.isfinite(value).all() or value.item() <= 0:
        raise BadInput(
            f"{path.name}: {name}.parameters.{key} is {value.reshape(-1)[:3]}; one number above zero is needed"
        )
    return float(value.item())


def _reals(value: Value, path: Path, what: str) -> NDArray[np.float64]:
    if value is None:
        raise BadInput(f"{path.name}: {what} is missing", "Export the scan again.")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb" or value.size == 0:
        said = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise BadInput(f"{path.name}: {what} holds {said}; real numbers are needed")
    return np.asarray(value, dtype=np.float64)
